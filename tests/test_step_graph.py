"""StepGraph: its steps are those of the plain loop, its copies those of the parameters.

Without a GPU the kernels run on the emulator, where a whole step takes seconds: what does not
depend on who computes the model leaves all but the optimizer's step to torch (`only`).
"""

import copy
import functools

import pytest
import torch

from cuda_numba import launches
from minilm import ops
from minilm.model import MiniLM, ModelConfig
from minilm.optim import SGD, AdamW, Lion, clip_grad_norm, grad_norm, parameter_groups
from minilm.precision import autocast
from minilm.step_graph import StepGraph

ALMOST_TORCH = {"adamw_step", "lion_step"}
# Only 8 steps deep and far from the smallest gradients: those of the key biases are 0 but for
# rounding, and with a small ε AdamW would make a whole step of it.
OPTIONS = dict(betas=(0.9, 0.95), eps=1e-3)
LRS = (1e-2, 3e-2, 2e-2)  # another one in each step
SMALL = dict(vocab_size=17, context_length=5, d_model=8, n_layers=1, n_heads=2, d_ff=16)
WIDE = dict(vocab_size=64, context_length=8, d_model=32, n_layers=1, n_heads=1, d_ff=64)


def make(shape=SMALL, rule=AdamW, device="cpu", **changes):
    """A model and its optimizer, in two groups, the same at each call."""
    torch.manual_seed(0)
    model = MiniLM(ModelConfig(mlp="gelu_tanh", **shape | changes)).to(device)
    options = OPTIONS if rule is AdamW else {}
    return model, rule(parameter_groups(model, 0.1), **options)


def batch_of(i, shape=SMALL, rows=2, device="cpu"):
    source = torch.Generator().manual_seed(100 + i)
    size = (rows, shape["context_length"] + 1)
    return torch.randint(0, shape["vocab_size"], size, generator=source).to(device)


def plain_step(model, optimizer, ids, lr, clip=1.0, dtype="float32", device="cpu", **batch):
    """(loss, gradient norm) of one step as it is written in every book, by torch."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    with autocast(device, dtype):
        loss = model.loss(ids, **batch)
    loss.backward()
    params = list(model.parameters())
    norm = clip_grad_norm(params, clip) if clip else float(grad_norm(params))
    optimizer.step()
    return loss.item(), norm


def state_of(model, optimizer):
    """Every number of a training, by name."""
    numbers = {}
    for name, p in model.named_parameters():
        numbers[name] = p.detach().clone()
        for key, value in optimizer.state[p].items():
            numbers[f"{key} of {name}"] = torch.as_tensor(value).clone()
    return numbers


def apart(a, b) -> float:
    """The largest difference of any two numbers of the same place."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def plain_run(lrs=LRS, scale=1.0, **options):
    """The plain loop's [(loss, norm), …] and its last state."""
    model, optimizer = make()
    rows = [
        plain_step(model, optimizer, batch_of(i), scale * lr, **options) for i, lr in enumerate(lrs)
    ]
    return rows, state_of(model, optimizer)


@functools.cache
def small_run(steps=3):
    """The same by our kernels, all of them: rows, the state after each, and what was launched."""
    model, optimizer = make()
    graph, rows, states = StepGraph(model, optimizer, clip=1.0, dtype="float32"), [], []
    with launches() as log:
        for i in range(steps):
            rows.append(tuple(t.item() for t in graph.step(batch_of(i), LRS[i])))
            states.append(state_of(model, optimizer))
    return rows, states, [launch.name for launch in log]


def close(rows, others, tolerance) -> bool:
    return bool(torch.allclose(torch.tensor(rows), torch.tensor(others), rtol=tolerance, atol=0))


# ---- all of it by our kernels


def test_steps_in_float32_are_those_of_the_plain_loop():
    rows, states, _ = small_run()
    expected, expected_state = plain_run()
    assert expected[0][1] > 1.0  # clipping has something to do
    assert close(rows, expected, 1e-5)
    assert apart(states[-1], expected_state) < 1e-5
    # the bound tells a learning rate that is a thousandth off, or a step that was not clipped
    assert apart(plain_run(scale=1.001)[1], expected_state) > 1e-5
    assert apart(plain_run(clip=None)[1], expected_state) > 1e-5


def test_every_part_of_the_step_is_ours():
    names = set(small_run()[2])
    for part in (
        "embedding", "norm_forward", "norm_backward", "matmul", "attention", "gelu",
        "cross_entropy", "gather_rows", "optimizer_step",
    ):  # fmt: skip
        assert any(part in name for name in names), part


def test_the_same_step_gives_the_same_bits():
    rows, states, names = small_run.__wrapped__(1)
    others, other_states, other_names = small_run()
    assert rows == others[:1] and same(states[0], other_states[0])
    assert names * 3 == other_names
    assert not same(states[0], other_states[1])


@functools.cache
def wide_run():
    """Two steps in bfloat16 on the kernels of the tensor cores; what each of them left behind."""
    model, optimizer = make(WIDE)
    graph, seen = StepGraph(model, optimizer, dtype="bfloat16"), []
    for i in range(2):
        loss, norm = graph.step(batch_of(i, WIDE), LRS[i])
        seen.append(
            {
                "loss": loss.item(),
                "norm": norm.item(),
                "gradients": {n: p.grad.clone() for n, p in model.named_parameters()},
                "copied": [torch.equal(c, p.detach().bfloat16()) for p, c in graph.copies.items()],
            }
        )
    return seen, len(graph.copies)


def first_gradients(shape, dtype, device="cpu", numbers=torch.float32, batch=0, rows=2):
    """The gradients of the first batch by torch."""
    model = make(shape, device=device)[0].to(numbers)
    with autocast(device, dtype):
        model.loss(batch_of(batch, shape, rows, device)).backward()
    return {name: p.grad.double() for name, p in model.named_parameters()}


def check_gradients(ours, autocast_s, exact, factor):
    """Each tensor's error, by its length, is within `factor` of what torch's autocast has."""
    for name, right in exact.items():
        error = (ours[name].double() - right).norm()
        theirs = (autocast_s[name] - right).norm()
        assert error <= factor * theirs, f"{name}: {error / theirs:.2f} times autocast's error"
        assert 0 < theirs < 0.1 * right.norm(), name


def test_steps_in_bfloat16():
    seen, _ = wide_run()
    model, optimizer = make(WIDE)
    for i, row in enumerate(seen):
        loss, norm = plain_step(model, optimizer, batch_of(i, WIDE), LRS[i], dtype="bfloat16")
        assert row["loss"] == pytest.approx(loss, rel=2**-8)
        assert row["norm"] == pytest.approx(norm, rel=2**-6)
    first, second = seen[0]["loss"], seen[1]["loss"]
    assert first == pytest.approx(4.2, abs=0.3) and abs(first - second) > 0.05 * first


def test_gradients_in_bfloat16_are_as_right_as_those_of_autocast():
    ours = wide_run()[0][0]["gradients"]
    assert all(g.dtype == torch.float32 for g in ours.values())
    exact = first_gradients(WIDE, None, numbers=torch.float64)
    lowered = first_gradients(WIDE, "bfloat16")
    check_gradients(ours, lowered, exact, 3)
    other = first_gradients(WIDE, None, batch=1)
    with pytest.raises(AssertionError, match="autocast's error"):
        check_gradients(other, lowered, exact, 3)


def test_copies_are_the_rounded_parameters_after_each_step():
    seen, copies = wide_run()
    assert copies == 6  # two embeddings, four matrices of the block
    for row in seen:
        assert row["copied"] == [True] * copies


# ---- the optimizer's step by our kernel, the rest by torch


def graph_of(made=None, **options):
    model, optimizer = made or make()
    options = {"dtype": "float32", "only": ALMOST_TORCH} | options
    return StepGraph(model, optimizer, **options)


def run_graph(graph, batches=range(3), **options):
    rows = []
    for i in batches:
        rows.append(tuple(t.item() for t in graph.step(batch_of(i, **options), LRS[i])))
    return rows


def test_only_some_operations():
    with launches() as log:
        run_graph(graph_of(only={"adamw_step"}), [0])
    assert {launch.name for launch in log} == {"optimizer_step"}
    assert ops.backend() == "torch"


@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_clipping(clip):
    graph = graph_of(clip=clip)
    rows = run_graph(graph, range(2))
    expected, state = plain_run(LRS[:2], clip=clip)
    assert close(rows, expected, 1e-5)
    assert apart(state_of(graph.model, graph.optimizer), state) < 1e-5
    left = float(grad_norm(graph.params))
    assert left == pytest.approx(rows[-1][1])  # what stands in .grad is not clipped


def test_lion():
    graph = graph_of(make(rule=Lion))
    rows = run_graph(graph, range(2))
    model, optimizer = make(rule=Lion)
    expected = [plain_step(model, optimizer, batch_of(i), LRS[i]) for i in range(2)]
    assert close(rows, expected, 1e-4)
    ours, theirs = state_of(graph.model, graph.optimizer), state_of(model, optimizer)
    assert ours.keys() == theirs.keys() and not any(name.startswith("v of") for name in ours)
    moved = torch.cat([(ours[n] - theirs[n]).abs().flatten() for n in ours if " of " not in n])
    # every weight moves by ±η: rounding may turn the sign of one whose momentum is 0, no others
    assert float((moved > 1e-5).double().mean()) < 0.05


@pytest.mark.parametrize("rule", [AdamW, Lion])
def test_copies_follow_every_rule(rule):
    model, optimizer = made = make(rule=rule)
    graph = graph_of(made, dtype="bfloat16")
    before = {p: p.detach().clone() for p in graph.params}
    run_graph(graph, [0])
    wide = [p for p in model.parameters() if p.ndim >= 2]
    assert set(graph.copies) == set(wide)
    for p in wide:
        assert torch.equal(graph.copies[p], p.detach().bfloat16())
        assert not torch.equal(graph.copies[p], before[p].bfloat16())


def test_refresh_makes_the_copies_anew():
    graph = graph_of(dtype="bfloat16")
    p, old = next(iter(graph.copies.items()))
    with torch.no_grad():
        p.add_(1)
    assert not torch.equal(graph.copies[p], p.detach().bfloat16())
    graph.refresh()
    assert graph.copies[p] is old and torch.equal(old, p.detach().bfloat16())


def test_no_copies_in_float32():
    assert graph_of().copies == {}


def test_the_state_goes_on_in_a_plain_optimizer():
    """One step in the graph, the rest by torch, from a saved state; and the other way round."""
    graph = graph_of()
    run_graph(graph, [0])
    model, optimizer = make()
    model.load_state_dict(graph.model.state_dict())
    fresh = copy.deepcopy((model, optimizer))  # the control: moments that begin anew
    optimizer.load_state_dict(copy.deepcopy(graph.optimizer.state_dict()))
    plain_step(*fresh, batch_of(1), LRS[1])
    plain_step(model, optimizer, batch_of(1), LRS[1])
    assert {state["step"] for state in optimizer.state.values()} == {2}
    second = state_of(model, optimizer)
    assert apart(second, plain_run(LRS[:2])[1]) < 1e-5 < 1e-3 < apart(second, state_of(*fresh))
    graph = graph_of((model, optimizer))
    run_graph(graph, [2])
    state = state_of(model, optimizer)
    assert apart(state, plain_run()[1]) < 1e-5
    assert {float(state[n]) for n in state if n.startswith("step of")} == {3.0}


def test_parts_of_a_batch_add_up_to_it():
    gradients, rows = {}, {}
    for parts in (1, 2):
        graph = graph_of(accumulation=parts)
        rows[parts] = run_graph(graph, [0])
        gradients[parts] = {n: p.grad.clone() for n, p in graph.model.named_parameters()}
    assert close(rows[2], rows[1], 1e-6)
    assert apart(gradients[2], gradients[1]) < 1e-6
    half = graph_of()  # the control: the first part alone
    half.step(batch_of(0)[:1], LRS[0])
    first = {n: p.grad for n, p in half.model.named_parameters()}
    assert apart(first, gradients[1]) > 1e-2


def test_batches_with_masks():
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, 3:] = 0
    graph, ids = graph_of(), batch_of(0)
    loss, norm = graph.step({"ids": ids, "mask": mask}, LRS[0])
    model, optimizer = make()
    expected = plain_step(model, optimizer, ids, LRS[0], mask=mask)
    assert close([(loss.item(), norm.item())], [expected], 1e-5)
    other = plain_step(*make(), ids, LRS[0])
    assert not close([expected], [other], 1e-5)
    loss, _ = graph.step({"ids": batch_of(1), "mask": 1 - mask}, LRS[1])  # the new mask is read
    second = plain_step(model, optimizer, batch_of(1), LRS[1], mask=1 - mask)
    assert loss.item() == pytest.approx(second[0], rel=1e-5)


def test_results_are_scalars_in_float32():
    graph = graph_of(dtype="bfloat16")
    loss, norm = graph.step(batch_of(0), 1e-2)
    for t in (loss, norm):
        assert t.shape == () and t.dtype == torch.float32 and not t.requires_grad


def test_a_norm_that_is_not_finite_is_seen():
    """The step itself goes on: the host looks at what came out."""
    graph = graph_of()
    with torch.no_grad():
        graph.params[0].fill_(torch.inf)
    loss, norm = graph.step(batch_of(0), 1e-2)
    assert not loss.isfinite() or not norm.isfinite()


# ---- what is refused


def sgd():
    model, _ = make()
    return model, SGD(model.parameters(), lr=0.1)


def one_behind():
    model, optimizer = make()
    plain_step(model, optimizer, batch_of(0), 1e-2)
    optimizer.state[model.head_weight]["step"] = 0
    return model, optimizer


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (sgd, {}, "^optimizer: got SGD, there are kernels for AdamW and Lion$"),
        (make, {"dtype": "float16"}, "^dtype: must be float32 or bfloat16, got 'float16'$"),
        (make, {"only": {"linear"}}, "^only: 'adamw_step' must be among the operations$"),
        (make, {"only": {"linear", "lion_step"}}, "^only: 'adamw_step' must be among"),
        (make, {"only": ()}, "^only: 'adamw_step' must be among"),
        (make, {"capture": True}, "^capture: a CUDA graph needs a GPU, the model is on cpu$"),
        (one_behind, {}, "^optimizer: its parameters have taken 0 to 1 steps"),
    ],
)
def test_what_cannot_be_recorded(made, options, message):
    with pytest.raises(ValueError, match=message):
        StepGraph(*made(), **options)


def test_an_operation_that_does_not_exist():
    with pytest.raises(ValueError, match="^op: got 'conv', allowed are 'linear', "):
        graph_of(only={"adamw_step", "conv"}).step(batch_of(0), 1e-2)


def test_another_shape():
    graph = graph_of()
    run_graph(graph, [0])
    before = state_of(graph.model, graph.optimizer)
    for batch in (batch_of(1, rows=3), {"ids": batch_of(1), "mask": torch.ones(2, 6)}):
        with pytest.raises(ValueError, match="^batch: its shapes are .*, the graph's are"):
            graph.step(batch, 1e-2)
    assert same(state_of(graph.model, graph.optimizer), before)


def test_parts_that_are_not_equal():
    with pytest.raises(ValueError, match="^accumulation: 2 must divide the batch of 3 rows$"):
        graph_of(accumulation=2).step(batch_of(0, rows=3), 1e-2)
    batch = {"ids": batch_of(0), "mask": torch.ones(2, 6)}
    with pytest.raises(ValueError, match="^accumulation: parts of a batch with masks or segments"):
        graph_of(accumulation=2).step(batch, 1e-2)


# ---- on a GPU: recorded and replayed

MEDIUM = dict(vocab_size=512, context_length=256, d_model=128, n_layers=2, n_heads=2)
GPT2 = dict(vocab_size=50257, context_length=1024, d_model=768, n_layers=2, n_heads=12)


def gpu_run(steps, shape=MEDIUM, rule=AdamW, lr=1e-3, rows=4, **options):
    """(the rows of losses and norms, the state, the copies) after `steps` steps."""
    model, optimizer = make(shape, rule, "cuda")
    graph = StepGraph(model, optimizer, **options)
    results = []
    for i in range(steps):
        batch = batch_of(i, shape, rows, "cuda")
        results.append(tuple(t.item() for t in graph.step(batch, lr * (1 + i))))
    copies = {str(i): c.clone() for i, c in enumerate(graph.copies.values())}
    return results, state_of(model, optimizer), copies


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        dict(dtype="bfloat16"),
        dict(dtype="float32"),
        dict(dtype="bfloat16", clip=None, rule=Lion, lr=1e-4),
        dict(dtype="bfloat16", accumulation=2),
        dict(dtype="bfloat16", only={"linear", "mlp", "adamw_step"}),
    ],
    ids=str,
)
def test_a_replayed_step_is_the_launched_one_bit_by_bit(options):
    recorded, launched = gpu_run(5, **options), gpu_run(5, capture=False, **options)
    assert recorded[0] == launched[0]
    for a, b in zip(recorded[1:], launched[1:], strict=True):
        assert same(a, b)
    assert len(set(recorded[0])) == 5  # each step had another batch
    assert not same(gpu_run(4, **options)[1], recorded[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_warm_up_leaves_no_trace(dtype):
    recorded, launched = (gpu_run(1, dtype=dtype, capture=c) for c in (True, False))
    assert recorded[0] == launched[0]
    assert same(recorded[1], launched[1]) and same(recorded[2], launched[2])
    assert {float(v) for n, v in recorded[1].items() if n.startswith("step of")} == {1.0}


@pytest.mark.gpu
def test_a_recorded_step_reads_the_new_batch_and_learning_rate():
    model, optimizer = make(MEDIUM, device="cuda")
    graph = StepGraph(model, optimizer)
    batch = batch_of(0, MEDIUM, 4, "cuda")
    graph.step(batch, 1e-3)
    before = state_of(model, optimizer)
    loss, _ = graph.step(batch, 0.0)
    first = loss.item()
    after = state_of(model, optimizer)
    assert same(*({n: s[n] for n in s if " of " not in n} for s in (before, after)))
    loss, _ = graph.step(batch_of(1, MEDIUM, 4, "cuda"), 0.0)
    assert loss.item() != first
    loss, _ = graph.step(batch, 0.0)
    assert loss.item() == first


@pytest.mark.gpu
def test_steps_on_a_gpu_are_those_of_the_plain_loop():
    rows, state, _ = gpu_run(3, dtype="float32")
    model, optimizer = make(MEDIUM, device="cuda")
    expected = [
        plain_step(model, optimizer, batch_of(i, MEDIUM, 4, "cuda"), 1e-3 * (1 + i))
        for i in range(3)
    ]
    assert close(rows, expected, 1e-5)
    assert apart(state, state_of(model, optimizer)) < 1e-5


@pytest.mark.gpu
def test_gradients_at_the_widths_of_gpt2():
    model, optimizer = make(GPT2, device="cuda")
    StepGraph(model, optimizer).step(batch_of(0, GPT2, 2, "cuda"), 1e-4)
    ours = {name: p.grad.double() for name, p in model.named_parameters()}
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    exact = first_gradients(GPT2, None, "cuda")
    lowered = first_gradients(GPT2, "bfloat16", "cuda")
    check_gradients(ours, lowered, exact, 2)
    with pytest.raises(AssertionError, match="autocast's error"):
        check_gradients(first_gradients(GPT2, None, "cuda", batch=1), lowered, exact, 2)
