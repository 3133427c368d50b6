"""Exercises of notebook 14: what a step makes of the GPU, what it reads, what a graph keeps."""

import torch

from .capture import Recorder
from .exercise import exercise, predict
from .launching import wavy

NOTEBOOK = "14_training_fast"


def _number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@exercise(
    notebook=NOTEBOOK,
    minutes=6,
    difficulty=1,
    hints=(
        "FLOPs of a token times tokens per second is what the model makes of the GPUs.",
        "All of them could make gpus · peak. The share is a number from 0 to 1.",
    ),
)
def my_mfu(tokens_per_second, N, L, C, T, peak, gpus=1):
    """Model FLOPs utilisation: the share of what the GPUs could do that goes into the model.

    A token costs 6 N FLOPs for the N parameters of the matrix products, forward and backward, and
    12 L C T for the scores and values of attention over all T positions (PaLM's count, Chowdhery et
    al. 2022, appendix B; L layers, width C). tokens_per_second is of all GPUs together, peak are
    the FLOP/s of one. What is computed twice to save memory does not count.
    """
    # solution:
    return tokens_per_second * (6 * N + 12 * L * C * T) / (gpus * peak)
    # end


@my_mfu.checked_by
def _(mfu, trial):
    trial.on_error = "all arguments are numbers."
    small, large = (124e6, 12, 768, 1024), (7e9, 32, 4096, 4096)
    for rate, model, peak, gpus in (
        (1.0e5, small, 312e12, 1),
        (2.5e5, small, 989e12, 1),
        (8.8e4, large, 989e12, 8),
    ):
        N, L, C, T = model
        want = rate * (6 * N + 12 * L * C * T) / (gpus * peak)
        slips = [
            (100 * want, "a share, not per cent."),
            (want * gpus, "tokens_per_second is of all GPUs: so is what they could do."),
            (want * gpus * gpus, "divide by gpus: more GPUs could do more."),
            (rate * 6 * N / (gpus * peak), "attention's own products, 12 L C T, are missing."),
            (rate * 2 * N / (gpus * peak), "2 N is the forward pass; backward costs twice that."),
            (rate * (2 * N + 4 * L * C * T) / (gpus * peak), "that is the forward pass alone."),
            (rate * (6 * N + 12 * L * C) / (gpus * peak), "a token looks at all T positions."),
            (1 / want, "what is used, over what there is."),
        ]
        got = mfu(rate, N, L, C, T, peak, gpus=gpus)
        hint = "tokens/s times (6 N + 12 L C T), over gpus · peak."
        text = f"{trial.last_call} is not the share"
        mistakes = [(_number(value), why) for value, why in slips]
        trial.close(got, _number(want), text, hint, mistakes)


@predict(
    notebook=NOTEBOOK,
    minutes=2,
    difficulty=1,
    hints=(
        "Let the step take 100 ms. How long do the parts take afterwards?",
        "60 ms stay 60 ms; 40 ms become 10 ms.",
    ),
    mistakes={
        4: "only 40 ms of 100 get faster.",
        2.2: "times add up, speeds do not: what are 60 ms and a quarter of 40 ms?",
        1.667: "that is the limit, with the 40 ms gone altogether.",
        1.3: "that is what is saved, 30 ms of 100; divide the old time by the new.",
        0.7: "that is the new time over the old.",
        2.5: "that would be the limit if the matrix products were what vanished.",
    },
    otherwise="the old time over the new: 100 ms over 60 ms + 40 ms / 4.",
    because="Even infinitely fast kernels for the rest would give 1.67 (Amdahl 1967).",
)
def my_amdahl():
    """In a training step matrix products take 60 % of the time, norms, activations, softmax, loss
    and optimizer together 40 %. New kernels make these 40 % four times as fast; the products stay
    as they are. How many times as fast is the step?
    """
    milliseconds = {"products": 60.0, "rest": 40.0}
    faster = milliseconds | {"rest": milliseconds["rest"] / 4}
    return sum(milliseconds.values()) / sum(faster.values())


@exercise(
    notebook=NOTEBOOK,
    minutes=10,
    difficulty=2,
    hints=(
        "y = x Wᵀ reads W. dx = dy W reads W. dW = dyᵀ x does not: it writes a gradient. The "
        "optimizer reads W once more, when all micro-batches have added their gradients.",
        "The table does the work of two matrices: it is looked up at the bottom and multiplied "
        "with at the top. The lookup's backward reads no weight.",
        "Step: (2 a + 1) matrices + (3 a + 1) table, over matrices + table, with a micro-batches. "
        "A pass of decoding reads each of both once, for `batch` tokens.",
    ),
)
def my_weight_reads(matrices, table, micro_batches=1, batch=1):
    """How often is a byte of weights read, per training step and per decoded token?

    matrices: bytes of all weight matrices but the last. table: bytes of the embedding, which is
    tied: the same bytes are the last matrix. Every product reads its operands once; a training
    batch has so many tokens that its lookups read the table once. A step is forward and backward
    for each micro-batch and one optimizer update (count what it reads of the weights). In decoding
    one pass makes a token for each of `batch` sequences; its lookups, a few rows, count as nothing.
    Return (bytes read per step, bytes read per decoded token), each over matrices + table.
    """
    # solution:
    total = matrices + table
    step = (2 * micro_batches + 1) * matrices + (3 * micro_batches + 1) * table
    return step / total, 1 / batch
    # end


@my_weight_reads.checked_by
def _(reads, trial):
    trial.on_error = "all arguments are numbers; return two."
    for matrices, table, a, batch in ((100, 0, 3, 1), (85, 39, 4, 1), (85, 39, 1, 1), (7, 2, 3, 8)):
        total = matrices + table

        def over(m, t, total=total, matrices=matrices, table=table):
            return _number((m * matrices + t * table) / total)

        slips = [
            (over(3 * a + 1, 4 * a + 1), "dW = dyᵀ x reads no weight: it writes a gradient."),
            (over(3 * a, 4 * a), "the optimizer runs once per step, after all micro-batches."),
            (over(a + 1, 2 * a + 1), "the backward pass reads them as well: dx = dy W."),
            (over(2 * a, 3 * a), "the optimizer reads each weight, too."),
            (over(2 * a + 1, 2 * a + 1), "the table is looked up *and* multiplied with."),
            (over(2 * a + 1, 4 * a + 1), "the lookup's backward reads no weight."),
            (over(3, 4), "forward and backward run once for each micro-batch."),
            (over(2 * a + 1, 3 * a + 1) * total, "divide by the bytes that there are."),
        ]
        if table:
            untied = over(2 * a + 1, 3 * a + 1) * total / (total + table)
            slips.append((untied, "the tied table is there once."))
        step, token = reads(matrices, table, micro_batches=a, batch=batch)
        text = f"{trial.last_call}: wrong reads per step"
        hint = "matrices 2 a + 1 times, the tied table 3 a + 1 times, for a micro-batches."
        trial.close(step, over(2 * a + 1, 3 * a + 1), text, hint, slips)
        slips = [
            (
                over(1, 2) / batch,
                "in decoding the lookup is a row for each token, next to nothing.",
            ),
            (over(1, 1), "one pass serves `batch` tokens."),
            (over(1, 0) / batch, "the table is the last matrix: it is read for every token."),
            (over(1, 1) * batch, "one pass serves `batch` tokens: divide."),
        ]
        text = f"{trial.last_call}: wrong reads per decoded token"
        trial.close(token, over(1, 1) / batch, text, "everything once per pass.", slips)


@exercise(
    notebook=NOTEBOOK,
    kind="repair",
    minutes=12,
    difficulty=3,
    hints=(
        "What is recorded are operations on tensors. `t`, schedule(t) and 0.9**t are Python: which "
        "values does the recording hold?",
        "`x = batch` gives a name to another tensor; the recording still holds the old one.",
        "Before each replay: x.copy_(batch), and rate.fill_(schedule(t) / (1 - 0.9**t)), where "
        "rate = torch.zeros(()) was made before the capture and is what the captured lines use.",
    ),
    in_place=("w",),
)
def my_graph(graph, w, batches, schedule):
    """Train w, (C,), in place, one step for each batch (n, C), with one captured step.

    Step t = 1, 2, …: g = gradient of mean((x w - 1)²) / 2, m = 0.9 m + 0.1 g,
    w = w - schedule(t) · m / (1 - 0.9^t). `with graph.capture():` records the tensor operations
    inside without doing them, graph.replay() does them, on the very same tensors: what a CUDA graph
    does (here on the CPU). Captured once, replayed once per batch, the result must be that of the
    plain loop. It runs, the loss falls, and it is wrong.
    """
    m, x = torch.zeros_like(w), batches[0].clone()
    # given:
    # t = 0
    # with graph.capture():
    #     t += 1
    #     m.mul_(0.9).add_(x.T @ (x @ w - 1), alpha=0.1 / len(x))
    #     w.sub_(schedule(t) / (1 - 0.9**t) * m)
    # for batch in batches:
    #     x = batch
    #     graph.replay()
    # solution:
    rate = torch.zeros(())
    with graph.capture():
        m.mul_(0.9).add_(x.T @ (x @ w - 1), alpha=0.1 / len(x))
        w.sub_(rate * m)
    for t, batch in enumerate(batches, 1):
        x.copy_(batch)
        rate.fill_(schedule(t) / (1 - 0.9**t))
        graph.replay()
    # end


def _plain_loop(w, batches, schedule, *, step=None, batch=None, correction=None):
    """The loop without a graph. step, batch, correction: where frozen, the value that is kept."""
    w, m = w.clone(), torch.zeros_like(w)
    for t, x in enumerate(batches, 1):
        x = x if batch is None else batch
        m.mul_(0.9).add_(x.T @ (x @ w - 1), alpha=0.1 / len(x))
        w.sub_(schedule(step or t) / (1 - 0.9 ** (correction or step or t)) * m)
    return w


DATA = "the graph reads the tensor that it has recorded: copy each batch into it."
FROZEN = {  # what stayed as it was at the capture → hint
    "step batch": DATA,
    "batch": DATA,
    "step": "t is Python: schedule(t) and 0.9**t are those of step 1. Keep the rate in a tensor.",
    "correction": "1 - 0.9**t is still that of the first step.",
}


@my_graph.checked_by
def _(train, trial):
    trial.on_error = "Python runs once, at the capture; what changes must be in a tensor before it."
    once = "capture one step, before the loop, and replay it for each batch."
    for steps, rates in ((1, [0.1]), (6, [0.4, 0.2, 0.1, 0.1, 0.05, 0.05]), (5, [0.1] * 5)):
        batches = [wavy(4, 3, seed=seed) for seed in range(steps)]
        graph, w = Recorder(), wavy(3, seed=9)
        before, kept = w.clone(), {"step": 1, "batch": batches[0], "correction": 1}

        def schedule(t, rates=rates):
            return rates[t - 1]

        train(graph, w, batches, schedule)
        text = f"{trial.last_call}: {graph.captures} captures"
        trial.require(graph.captures == 1, text, once)
        text = f"{trial.last_call}: {graph.replays} replays, for {steps} batches"
        trial.require(graph.replays == steps, text, once)
        mistakes = [
            (before, "w is what it was: the captured lines must change w itself, in place.")
        ]
        for names, hint in FROZEN.items():
            frozen = {name: kept[name] for name in names.split()}
            mistakes.append((_plain_loop(before, batches, schedule, **frozen), hint))
        same = _plain_loop(before, batches, lambda t, rates=rates: rates[0])
        mistakes.append((same, "schedule(t) is still that of the first step."))
        text = f"{trial.last_call}: w is not that of the plain loop after {steps} steps"
        hint = "three things change from step to step: the batch, schedule(t), 1 - 0.9**t."
        trial.close(w, _plain_loop(before, batches, schedule), text, hint, mistakes)
