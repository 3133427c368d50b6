"""Wrong answers to the exercises in minilm/exercises/training_fast.py."""

import torch

from minilm.exercises.capture import Recorder

from .mutant import simplest, wrong


@simplest("training_fast.mfu")
def one_gpu_that_sees_nothing(mfu):
    return float(mfu(1e4, 1e8, 12, 768, 0, 1e14))  # T = 0: no attention


@wrong("training_fast.mfu", "12 L C T, are missing", right_on_simplest=True)
def without_attention(tokens_per_second, N, L, C, T, peak, gpus=1):
    return tokens_per_second * 6 * N / (gpus * peak)


@wrong("training_fast.mfu", "so is what they could do", right_on_simplest=True)
def one_gpu(tokens_per_second, N, L, C, T, peak, gpus=1):
    return tokens_per_second * (6 * N + 12 * L * C * T) / peak


@wrong("training_fast.mfu", "divide by gpus", right_on_simplest=True)
def multiplied_by_gpus(tokens_per_second, N, L, C, T, peak, gpus=1):
    return gpus * tokens_per_second * (6 * N + 12 * L * C * T) / peak


@wrong("training_fast.mfu", "that is the forward pass alone")
def forward(tokens_per_second, N, L, C, T, peak, gpus=1):
    return tokens_per_second * (2 * N + 4 * L * C * T) / (gpus * peak)


@wrong("training_fast.mfu", "not per cent")
def per_cent(tokens_per_second, N, L, C, T, peak, gpus=1):
    return 100 * tokens_per_second * (6 * N + 12 * L * C * T) / (gpus * peak)


@simplest("training_fast.weight_reads")
def no_table(reads):
    return [float(x) for x in reads(100, 0, 1, 1)]


@wrong("training_fast.weight_reads", "dW = dyᵀ x reads no weight")
def weights_for_their_gradient(matrices, table, micro_batches=1, batch=1):
    a, total = micro_batches, matrices + table
    return ((3 * a + 1) * matrices + (4 * a + 1) * table) / total, 1 / batch


@wrong("training_fast.weight_reads", "is looked up *and*", right_on_simplest=True)
def table_as_a_matrix(matrices, table, micro_batches=1, batch=1):
    return 2 * micro_batches + 1, 1 / batch


@wrong("training_fast.weight_reads", "the tied table is there once", right_on_simplest=True)
def untied(matrices, table, micro_batches=1, batch=1):
    a, total = micro_batches, matrices + 2 * table
    return ((2 * a + 1) * matrices + (3 * a + 1) * table) / total, 1 / batch


@wrong("training_fast.weight_reads", "once for each micro-batch", right_on_simplest=True)
def one_micro_batch(matrices, table, micro_batches=1, batch=1):
    return (3 * matrices + 4 * table) / (matrices + table), 1 / batch


@wrong("training_fast.weight_reads", "reads each weight, too")
def without_optimizer(matrices, table, micro_batches=1, batch=1):
    a = micro_batches
    return (2 * a * matrices + 3 * a * table) / (matrices + table), 1 / batch


@wrong("training_fast.weight_reads", "one pass serves", right_on_simplest=True)
def alone(matrices, table, micro_batches=1, batch=1):
    a = micro_batches
    return ((2 * a + 1) * matrices + (3 * a + 1) * table) / (matrices + table), 1.0


@wrong("training_fast.weight_reads", "next to nothing", right_on_simplest=True)
def whole_lookup(matrices, table, micro_batches=1, batch=1):
    a, total = micro_batches, matrices + table
    step = ((2 * a + 1) * matrices + (3 * a + 1) * table) / total
    return step, (matrices + 2 * table) / total / batch


@simplest("training_fast.graph")
def one_step(train):
    w = torch.zeros(2)
    train(Recorder(), w, [torch.eye(2)], lambda t: 0.1)
    return w


def graph_with(graph, w, batches, *, rate_of, rate_at=None, copy=True):
    """The solution with its slips as options: rate_of(1) is frozen, rate_at(t) is not."""
    m, x, rate = torch.zeros_like(w), batches[0].clone(), torch.ones(())
    with graph.capture():
        m.mul_(0.9).add_(x.T @ (x @ w - 1), alpha=0.1 / len(x))
        w.sub_(rate_of(1) * rate * m)
    for t, batch in enumerate(batches, 1):
        if copy:
            x.copy_(batch)
        if rate_at:
            rate.fill_(rate_at(t))
        graph.replay()


@wrong("training_fast.graph", "Keep the rate in a tensor", right_on_simplest=True)
def step_is_frozen(graph, w, batches, schedule):
    graph_with(graph, w, batches, rate_of=lambda t: schedule(t) / (1 - 0.9**t))


@wrong("training_fast.graph", "copy each batch into it", right_on_simplest=True)
def batch_is_frozen(graph, w, batches, schedule):
    rate = dict(rate_of=lambda t: 1.0, rate_at=lambda t: schedule(t) / (1 - 0.9**t))
    graph_with(graph, w, batches, **rate, copy=False)


@wrong("training_fast.graph", "1 - 0.9**t is still that of the first step", right_on_simplest=True)
def correction_is_frozen(graph, w, batches, schedule):
    graph_with(graph, w, batches, rate_of=lambda t: 1 / (1 - 0.9**t), rate_at=schedule)


@wrong("training_fast.graph", "schedule(t) is still that of the first step", right_on_simplest=True)
def schedule_is_frozen(graph, w, batches, schedule):
    graph_with(graph, w, batches, rate_of=schedule, rate_at=lambda t: 1 / (1 - 0.9**t))


@wrong("training_fast.graph", "before the loop, and replay it", right_on_simplest=True)
def captured_at_every_step(graph, w, batches, schedule):
    m = torch.zeros_like(w)
    for t, x in enumerate(batches, 1):
        with graph.capture():
            m.mul_(0.9).add_(x.T @ (x @ w - 1), alpha=0.1 / len(x))
            w.sub_(schedule(t) / (1 - 0.9**t) * m)
        graph.replay()


@wrong("training_fast.graph", "and replay it for each batch", right_on_simplest=True)
def without_the_graph(graph, w, batches, schedule):
    m = torch.zeros_like(w)
    for t, x in enumerate(batches, 1):
        m.mul_(0.9).add_(x.T @ (x @ w - 1), alpha=0.1 / len(x))
        w.sub_(schedule(t) / (1 - 0.9**t) * m)


@wrong("training_fast.graph", "must change w itself, in place")
def w_is_another_tensor(graph, w, batches, schedule):
    m, x, rate = torch.zeros_like(w), batches[0].clone(), torch.zeros(())
    with graph.capture():
        m.mul_(0.9).add_(x.T @ (x @ w - 1), alpha=0.1 / len(x))
        w = w - rate * m
    for t, batch in enumerate(batches, 1):
        x.copy_(batch)
        rate.fill_(schedule(t) / (1 - 0.9**t))
        graph.replay()


@wrong("training_fast.graph", "Python runs once, at the capture")
def step_read_back(graph, w, batches, schedule):
    m, x, t = torch.zeros_like(w), batches[0].clone(), torch.zeros(())
    with graph.capture():
        t += 1
        m.mul_(0.9).add_(x.T @ (x @ w - 1), alpha=0.1 / len(x))
        w.sub_(schedule(int(t)) / (1 - 0.9**t) * m)
    for batch in batches:
        x.copy_(batch)
        graph.replay()
