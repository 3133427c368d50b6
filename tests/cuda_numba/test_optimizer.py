"""AdamW and Lion against float64: many tensors in one launch, any start, any size."""

import importlib
import weakref

import pytest
import torch
from tolerance import DTYPES, check, guarded

from cuda_numba.jit import launches
from cuda_numba.optimizer import (
    LION_RUNGS,
    RUNGS,
    adamw_step,
    adamw_step_reference,
    lion_step,
    lion_step_reference,
)
from cuda_numba.optimizer_kernel import TUNED, Tuning
from cuda_numba.optimizer_table import KEPT, groups_of, layout_of

table = importlib.import_module("cuda_numba.optimizer_table")
optimizer = importlib.import_module("cuda_numba.optimizer")
CHUNK = TUNED.chunk
SHAPES = [(1,), (7, 33), (4,), (0, 3), (), (130,), (33, 7), (CHUNK + 5,), (64, 4)]
SMALL = [(5,), (7, 33), (1,), (0,), (64,)]
ADAMW = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "step": 3}
LION = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
FORMATS = [  # parameters, gradients, moments
    (torch.float32, torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.float32, torch.float16, torch.float32),
    (torch.float16, torch.float16, torch.float16),
    (torch.bfloat16, torch.float32, torch.bfloat16),
]


def columns(shapes, formats=FORMATS[0], moments=2, device="cpu", offset=0):
    """[params, grads, ms, vs]; offset: elements by which every tensor misses its alignment."""

    def tensor(shape, dtype, scale):
        size = torch.Size(shape).numel()
        x = torch.randn(size + offset).mul_(scale).to(device, dtype)
        return x[offset:].view(shape)

    p, g, m = formats
    made = [[tensor(s, dtype, scale) for s in shapes]
            for dtype, scale in ((p, 1.0), (g, 0.1), (m, 0.1))]  # fmt: skip
    if moments == 2:
        made.append([tensor(s, m, 0.1).abs_() for s in shapes])
    return made


def copied(lists):
    """Copies whose elements start at the same distance from a multiple of 16 bytes."""
    result = []
    for tensors in lists:
        result.append([])
        for x in tensors:
            beyond = x.storage_offset()
            y = torch.empty(x.numel() + beyond, dtype=x.dtype, device=x.device)
            result[-1].append(y[beyond:].view(x.shape).copy_(x))
    return result


def either_way(got, lists, expected, options):
    """Lion's new parameters, where a direction hangs on a rounding the one that was taken.

    b₁ m and (1 − b₁) g may cancel up to the rounding of 0.9: among numbers of 16 bits g = −9 m is
    common enough to come up in every million. There float32 and float64 may step either way.
    """
    beta, scale, lr = options["betas"][0], options.get("grad_scale", 1.0), options["lr"]
    result = []
    for after, p, g, m, wanted in zip(got, *lists, expected, strict=True):
        old, new = beta * m.double(), (1 - beta) * scale * g.double()
        hangs = (old + new).abs() < 2**-22 * (old.abs() + new.abs())
        still = p.double() * (1 - lr * options["weight_decay"])
        ways = torch.stack([still - lr, still, still + lr])
        nearest = (ways - after.double()).abs().argmin(0, keepdim=True)
        result.append(torch.where(hangs, ways.gather(0, nearest)[0], wanted))
    return result


def check_step(step, reference, lists, options, **more):
    """One step in place of copies; expected from the same numbers in float64."""
    got = copied(lists)
    step(*got, **options, **more)
    expected = [[t.double().clone() for t in tensors] for tensors in lists]
    reference(*expected, **options)
    if reference is lion_step_reference:
        expected[0] = either_way(got[0], lists, expected[0], options)
    for name, after, before, wanted in zip("pgmv", got, lists, expected, strict=False):
        for i, (a, b, w) in enumerate(zip(after, before, wanted, strict=True)):
            if name == "g":
                assert torch.equal(a, b), "gradients are only read"
            elif a.numel():
                size = b.double().abs().max() + (w - b.double()).abs().max()
                check(f"{name}[{i}]", a, w, scale=size)
    return got


@pytest.mark.parametrize("formats", FORMATS, ids=str)
class TestAgainstFloat64:
    @pytest.mark.parametrize("rung", RUNGS)
    def test_adamw(self, rung, formats):
        check_step(RUNGS[rung], adamw_step_reference, columns(SMALL, formats), ADAMW)

    @pytest.mark.parametrize("rung", LION_RUNGS)
    def test_lion(self, rung, formats):
        check_step(LION_RUNGS[rung], lion_step_reference, columns(SMALL, formats, 1), LION)


@pytest.mark.parametrize("offset", [0, 1])
class TestOneLaunch:
    """All sizes at once; with an offset no tensor starts at a multiple of 16 bytes."""

    def test_adamw(self, offset):
        with launches() as log:
            lists = columns(SHAPES, offset=offset)
            check_step(adamw_step, adamw_step_reference, lists, ADAMW)
        assert len(log) == 1 and log[0].grid == len(SHAPES) - 1 + 1  # one is empty, one has two

    def test_lion(self, offset):
        with launches() as log:
            lists = columns(SHAPES, FORMATS[1], 1, offset=offset)
            check_step(lion_step, lion_step_reference, lists, LION)
        assert len(log) == 1


class TestAdamW:
    @pytest.mark.parametrize("step", [1, 2, 10, 1000, 10**6])
    @pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.0), (0.95, 0.99999)])
    def test_bias_correction(self, step, betas):
        options = ADAMW | {"step": step, "betas": betas}
        check_step(adamw_step, adamw_step_reference, columns([(5,)]), options)

    def test_first_step_from_zero(self):
        """m̂ = g and v̂ = g²: every weight moves by the learning rate."""
        p, g = torch.zeros(9), torch.randn(9)
        options = ADAMW | {"step": 1, "weight_decay": 0.0, "eps": 0.0}
        adamw_step([p], [g], [torch.zeros(9)], [torch.zeros(9)], **options)
        check("p", p, -0.01 * g.sign().double())

    def test_like_torch(self):
        """Ten steps with torch.optim.AdamW."""
        mine, theirs = torch.randn(33), None
        theirs = mine.clone().requires_grad_()
        m, v = torch.zeros(33), torch.zeros(33)
        options = {k: ADAMW[k] for k in ("lr", "betas", "eps", "weight_decay")}
        other = torch.optim.AdamW([theirs], **options)
        for step in range(1, 11):
            theirs.grad = torch.randn(33)
            adamw_step([mine], [theirs.grad], [m], [v], **options, step=step)
            other.step()
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)

    def test_zero_gradient(self):
        """Nothing to divide: only the decay is left."""
        p = torch.ones(5)
        adamw_step([p], [torch.zeros(5)], [torch.zeros(5)], [torch.zeros(5)], **ADAMW)
        check("p", p, torch.full((5,), 1 - 0.01 * 0.1, dtype=torch.float64))


class TestLion:
    def test_three_directions(self):
        p, m = torch.zeros(4), torch.zeros(4)
        g = torch.tensor([3.0, -1e-30, 0.0, float("nan")])
        lion_step([p], [g], [m], **LION)
        assert p[:3].tolist() == pytest.approx([-0.01, 0.01, 0.0]) and p[3].isnan()

    def test_momentum_comes_after(self):
        """The direction is made of the momentum before the step."""
        p, g, m = torch.zeros(1), torch.tensor([-1.0]), torch.tensor([0.2])
        lion_step([p], [g], [m], **LION | {"betas": (0.9, 0.5)})
        assert p > -0.01 - 1e-6 and p < 0  # 0.9 · 0.2 − 0.1 > 0, though m is now negative
        assert m.item() == pytest.approx(-0.4)

    def test_direction_that_hangs_on_a_rounding(self):
        """0.9 m + 0.1 g with g = −9 m: any direction will do, but no other length of the step."""
        m = torch.tensor([1.0, -0.5, 3.0, 0.25, 2.0**-10]).half()
        lists = [[torch.randn(5).half()], [-9 * m], [m]]
        got = check_step(lion_step, lion_step_reference, lists, LION)
        got[0][0] += 0.005
        expected = [p.double() * (1 - 0.01 * 0.1) for p in lists[0]]
        [allowed] = either_way(got[0], lists, expected, LION)
        with pytest.raises(AssertionError):
            check("p", got[0][0], allowed)


class TestOptions:
    def test_numbers_in_memory(self):
        """lr, step and scale as tensors: the same bits as from numbers."""
        lists = columns(SMALL)
        given = copied(lists)
        adamw_step(*given, **ADAMW, grad_scale=0.25)
        read = copied(lists)
        numbers = {"lr": torch.tensor(0.01), "step": torch.tensor([3.0])}
        adamw_step(*read, **ADAMW | numbers, grad_scale=torch.tensor(0.25))
        for a, b in zip(given, read, strict=True):
            assert all(map(torch.equal, a, b))

    def test_scale(self):
        check_step(adamw_step, adamw_step_reference, columns(SMALL), ADAMW | {"grad_scale": 0.03})
        check_step(lion_step, lion_step_reference, columns(SMALL, moments=1),
                   LION | {"grad_scale": 0.03})  # fmt: skip

    @pytest.mark.parametrize("offset", [0, 1])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_copies(self, dtype, offset):
        lists = columns(SMALL, offset=offset)
        copies = [torch.full(s, float("nan"), dtype=dtype) for s in SMALL]
        got = check_step(adamw_step, adamw_step_reference, lists, ADAMW, copies=copies)
        for p, copy in zip(got[0], copies, strict=True):
            assert torch.equal(p.to(dtype), copy)

    def test_decay_of_each_tensor(self):
        """Matrices decay, the rest does not, in one launch."""
        decays = [0.1 if len(s) > 1 else 0.0 for s in SMALL]
        lists, got = columns(SMALL, moments=1), None
        got = copied(lists)
        with launches() as log:
            lion_step(*got, **LION | {"weight_decay": decays})
        assert len(log) == 1
        for i, decay in enumerate(decays):
            alone = [[x[i].clone()] for x in lists]
            lion_step(*alone, **LION | {"weight_decay": decay})
            assert torch.equal(alone[0][0], got[0][i])

    def test_mixed_formats(self):
        """One launch for each combination of formats."""
        mixed = [columns([(33,), (5,)], formats) for formats in FORMATS[:2]]
        lists = [a + b for a, b in zip(*mixed, strict=True)]
        with launches() as log:
            check_step(adamw_step, adamw_step_reference, lists, ADAMW)
        assert len(log) == 2

    def test_nothing_to_do(self):
        with launches() as log:
            adamw_step([], [], [], [], **ADAMW)
            lion_step([torch.zeros(0)], [torch.zeros(0)], [torch.zeros(0)], **LION)
        assert not log

    def test_parameters_that_require_grad(self):
        p = torch.ones(3, requires_grad=True)
        lion_step([p], [torch.ones(3)], [torch.zeros(3)], **LION)
        assert p.requires_grad and p.is_leaf and (p < 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("n", [1, 6, 1029])
def test_writes_nothing_outside(n, offset, dtype):
    made = [guarded((n,), dtype, guard=64 + offset) for _ in range(4)]
    for x, _ in made:
        x.copy_(torch.rand(n))
    adamw_step(*([x] for x, _ in made), **ADAMW)
    assert all(intact() for _, intact in made)
    assert not made[0][0].isnan().any()


def test_views_of_one_storage():
    """Flattened parameters: neighbours in memory, updated by different blocks."""
    shapes = [(3,), (5, 2), (1,)]
    lists = columns(shapes)
    flat = [torch.cat([x.flatten() for x in tensors]) for tensors in lists]
    views = [[part.view(s) for part, s in zip(f.split([3, 10, 1]), shapes, strict=True)]
             for f in flat]  # fmt: skip
    adamw_step(*views, **ADAMW)
    adamw_step(*lists, **ADAMW)
    for f, tensors in zip(flat, lists, strict=True):
        torch.testing.assert_close(f, torch.cat([x.flatten() for x in tensors]), rtol=0, atol=1e-7)


class TestRemembered:
    """A check is not repeated for what it has seen, and is for everything else."""

    def seen(self, shape=(4, 4)):
        columns = {name: [torch.rand(shape)] for name in ("params", "grads", "ms")}
        return columns, groups_of(columns, 0.1)

    def test_the_same_tensors(self):
        columns, groups = self.seen()
        assert groups_of(columns, 0.1) is groups
        assert groups_of({name: list(tensors) for name, tensors in columns.items()}, 0.1) is groups
        assert groups_of(columns, 0.2)[0].decays == (0.2,)
        assert groups_of(columns, [0.3])[0].decays == (0.3,)

    def test_other_tensors(self):
        columns, groups = self.seen()
        columns["grads"][0] = columns["grads"][0].clone()
        [group] = groups_of(columns, 0.1)
        assert group.addresses[1] == columns["grads"][0].data_ptr() != groups[0].addresses[1]

    @pytest.mark.parametrize("again", ["same object", "same address"])
    def test_another_shape(self, again):
        columns, _ = self.seen((3, 5))
        if again == "same object":
            columns["grads"][0].t_()
        else:
            columns["grads"][0] = columns["grads"][0].view(5, 3)
        with pytest.raises(ValueError, match=r"^grads\[0\]: its shape is \(5, 3\)"):
            groups_of(columns, 0.1)

    def test_not_contiguous(self):
        columns, _ = self.seen()
        columns["ms"][0].t_()
        with pytest.raises(ValueError, match=r"^ms\[0\]: it is not contiguous"):
            groups_of(columns, 0.1)

    def test_another_format(self):
        """The same object, address and shape; and a second time, errors being not remembered."""
        columns, _ = self.seen()
        columns["params"][0].data = columns["params"][0].data.view(torch.int32)
        for _ in range(2):
            with pytest.raises(TypeError, match="^params: a tensor is int32"):
                groups_of(columns, 0.1)

    def test_no_tensor_is_kept(self):
        columns, _ = self.seen()
        alive = [weakref.ref(t) for tensors in columns.values() for t in tensors]
        columns.clear()
        assert not any(ref() for ref in alive)

    def test_bounded(self):
        kept = [self.seen() for _ in range(KEPT + 3)]
        assert len(table._seen) == KEPT
        assert groups_of(kept[-1][0], 0.1) is kept[-1][1]
        assert groups_of(kept[0][0], 0.1) is not kept[0][1]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(64, 1, 8, 512, "", ""),
        Tuning(64, 4, 2, 1024, "_no_allocate", "_no_allocate"),
        Tuning(128, 3, 1, 2048, "_l2_256", "_cg"),
    ],
    ids=str,
)
def test_tunings(monkeypatch, tuning, offset):
    """Other blocks, chunks and cache hints: the same bits."""
    lists = columns([(1,), (1029,), (33, 70)], offset=offset)
    tuned, other = copied(lists), copied(lists)
    adamw_step(*tuned, **ADAMW)
    monkeypatch.setattr(optimizer, "TUNED", tuning)
    adamw_step(*other, **ADAMW)
    for a, b in zip(tuned, other, strict=True):
        assert all(map(torch.equal, a, b))


def test_layout():
    """Every element in exactly one chunk, and chunks no larger than CHUNK."""
    shapes = [(1,), (CHUNK,), (CHUNK + 1,), (3 * CHUNK - 1,)]
    tensors = [torch.zeros(s) for s in shapes]
    [group] = groups_of({"params": tensors}, [0.0, 0.5, 0.0, 0.25])
    layout = layout_of(group, CHUNK)
    assert layout.chunks.tolist() == [[0, 0], [1, 0], [2, 0], [2, 1], [3, 0], [3, 1], [3, 2]]
    assert layout.sizes.tolist() == [t.numel() for t in tensors]
    assert layout.decays.tolist() == [0.0, 0.5, 0.0, 0.25]


def test_errors():
    p, g, m = [torch.zeros(3, 5)], [torch.zeros(3, 5)], [torch.zeros(3, 5)]
    for error, match, args, options in (
        (ValueError, "^grads: 2 tensors, there must be as many as in params, 1", (p, g * 2, m), {}),
        (ValueError, r"^grads\[0\]: its shape is \(3,\)", (p, [torch.zeros(3)], m), {}),
        (ValueError, r"^ms\[0\]: it is not contiguous", (p, g, [torch.zeros(5, 3).t()]), {}),
        (TypeError, r"^grads\[0\]: got NoneType, it must be a tensor", (p, [None], m), {}),
        (ValueError, r"^ms\[0\]: it is on meta", (p, g, [torch.zeros(3, 5, device="meta")]), {}),
        (TypeError, "^grads: a tensor is int64, ", (p, [torch.zeros(3, 5).long()], m), {}),
        (ValueError, r"^betas\[1\]: got 1.0, ", (p, g, m), {"betas": (0.9, 1.0)}),
        (ValueError, "^weight_decay: 2 numbers for 1 tensors", (p, g, m), {"weight_decay": [0, 0]}),
        (ValueError, "^lr: a float64 tensor", (p, g, m), {"lr": torch.tensor(0.1).double()}),
    ):
        with pytest.raises(error, match=match):
            lion_step(*args, **LION | options)
    with pytest.raises(TypeError, match="^vs: a tensor is float16, it must be float32"):
        adamw_step(p, g, m, [torch.zeros(3, 5).half()], **ADAMW)


# Shapes of GPT-2's 148 tensors, 124 million parameters; the embedding is tied.
LAYER = [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,),
         (768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]  # fmt: skip
GPT2 = [(50257, 768), (1024, 768), *12 * LAYER, (768,), (768,)]


@pytest.mark.gpu
class TestOnGPU:
    @pytest.mark.parametrize("offset", [0, 1])
    @pytest.mark.parametrize("formats", FORMATS, ids=str)
    def test_odd_sizes(self, formats, offset):
        shapes = [*SHAPES, (1823, 781), (781, 1823)]
        lists = columns(shapes, formats, device="cuda", offset=offset)
        check_step(adamw_step, adamw_step_reference, lists, ADAMW)
        check_step(lion_step, lion_step_reference, lists[:3], LION)

    @pytest.mark.parametrize("rung", RUNGS)
    def test_rungs(self, rung):
        lists = columns([*SHAPES, (1823, 781)], device="cuda")
        check_step(RUNGS[rung], adamw_step_reference, lists, ADAMW)
        check_step(LION_RUNGS[rung], lion_step_reference, lists[:3], LION)

    def test_all_of_gpt2(self):
        """Five steps as torch.optim.AdamW(fused=True), one launch each."""
        assert len(GPT2) == 148 and sum(torch.Size(s).numel() for s in GPT2) > 124e6
        mine, _, ms, vs = columns(GPT2, device="cuda")
        for x in (*ms, *vs):
            x.zero_()
        theirs = [p.clone().requires_grad_() for p in mine]
        options = {k: ADAMW[k] for k in ("lr", "betas", "eps", "weight_decay")}
        other = torch.optim.AdamW(theirs, **options, fused=True)
        for step in range(1, 6):
            for p in theirs:
                p.grad = torch.randn_like(p)
            grads = [p.grad for p in theirs]
            with launches() as log:
                adamw_step(mine, grads, ms, vs, **options, step=step)
            assert len(log) == 1
            other.step()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=2e-6)

    def test_tables_are_kept(self):
        """The same tensors: nothing is copied again. Other gradients: their addresses only."""
        lists = columns(SMALL, device="cuda")
        table._tables.clear()
        adamw_step(*lists, **ADAMW)
        assert len(table._tables) == 2
        adamw_step(*lists, **ADAMW)
        assert len(table._tables) == 2
        lists[1] = [g.clone() for g in lists[1]]
        adamw_step(*lists, **ADAMW)
        assert len(table._tables) == 3

    @pytest.mark.parametrize("warm", [True, False])
    def test_in_a_graph(self, warm):
        """Replayed with another learning rate, step and scale, read from memory."""
        lists = columns([*SHAPES, (1823, 781)], device="cuda")
        lr, step, scale = (torch.tensor(x, device="cuda") for x in (0.01, 0.0, 1.0))
        options = ADAMW | {"lr": lr, "step": step, "grad_scale": scale}
        adamw_step(*columns(SMALL, device="cuda"), **options)  # compiles
        mine, theirs = copied(lists), copied(lists)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            if warm:
                saved = copied(mine)
                adamw_step(*mine, **options | {"step": 1})
                for a, b in zip(mine, saved, strict=True):
                    torch._foreach_copy_(a, b)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            adamw_step(*mine, **options)
        for t in range(1, 4):
            lr.fill_(0.01 * t)
            step.fill_(t)
            scale.fill_(1 / t)
            graph.replay()
            adamw_step(*theirs, **ADAMW | {"lr": 0.01 * t, "step": t, "grad_scale": 1 / t})
        torch.cuda.synchronize()
        for a, b in zip(mine, theirs, strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)

    def test_deterministic(self):
        lists = columns([*SHAPES, (1823, 781)], device="cuda")
        runs = [copied(lists) for _ in range(2)]
        for run in runs:
            adamw_step(*run, **ADAMW)
        for a, b in zip(*runs, strict=True):
            assert all(map(torch.equal, a, b))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPerformanceWarning")
def test_plain_numba():
    """The kernel's function under `numba.cuda.jit` itself."""
    import numpy as np
    from numba import cuda

    from cuda_numba.optimizer import lion_elements

    p, g, m = (x[0] for x in columns([(781,)], moments=1, device="cuda"))
    q, n = p.clone(), m.clone()
    torch.cuda.synchronize()  # numba launches on a stream of its own
    numbers = (0.01, 1.0, 0.1, 0.9, 1 - 0.9, 0.99, 1 - 0.99)
    cuda.jit(lion_elements.function)[4, 256](p, g, m, *map(np.float32, numbers))
    cuda.synchronize()
    LION_RUNGS["tensor"]([q], [g], [n], **LION)
    assert torch.equal(p, q) and torch.equal(m, n)
