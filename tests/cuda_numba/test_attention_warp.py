"""Attention on mma.sync against float64, forward and backward, on the emulator and on a GPU."""

import math
from typing import NamedTuple

import pytest
import torch
from ptx_tiles import findings
from tolerance import check, guarded, poisoned

from cuda_numba import attention_warp, launches
from cuda_numba.attention_warp_forward import ForwardPlan
from cuda_numba.attention_warp_keys import KeysPlan
from cuda_numba.attention_warp_queries import QueriesPlan
from cuda_numba.attention_warp_tiles import Format

BF16, FP16 = torch.bfloat16, torch.float16


class Case(NamedTuple):
    B: int
    H: int
    Hk: int
    Tq: int
    Tk: int
    D: int
    causal: bool = True
    window: int | None = None

    @property
    def mask(self):
        return {"causal": self.causal, "window": self.window, "scale": self.D**-0.5}


# Emulator, blocks of 32 queries and tiles of 16 keys: several tiles of each at small T.
SMALL = [
    Case(1, 1, 1, 1, 1, 64),
    Case(1, 2, 1, 7, 7, 40),
    Case(2, 1, 1, 33, 33, 32),
    Case(1, 1, 1, 32, 64, 64),
    Case(1, 3, 1, 17, 31, 96),
    Case(1, 1, 1, 65, 65, 32, True, 17),
    Case(1, 2, 1, 15, 50, 32, False),
    Case(1, 1, 1, 33, 50, 48, False, 9),
    Case(1, 1, 1, 16, 17, 128),
    Case(1, 1, 1, 5, 40, 32, True, 1),
]
REAL = Case(1, 1, 1, 20, 70, 64)  # by the shipped plans
ON_GPU = [
    *SMALL,
    REAL,
    Case(2, 4, 2, 129, 129, 64),
    Case(1, 6, 2, 333, 781, 128),
    Case(2, 3, 3, 1000, 1000, 64, True, 130),
    Case(1, 4, 1, 257, 511, 96, False),
    Case(1, 2, 2, 640, 640, 80, False, 65),
    Case(1, 2, 2, 1, 4096, 128),
]


@pytest.fixture(autouse=True)
def poison():
    torch.manual_seed(3)
    with poisoned():
        yield


def small_plans(dtype, D, turing=False):
    width = next(d for d in attention_warp.DIMS if d >= D)
    form = Format(str(dtype).removeprefix("torch."), width, width == D, turing)
    return (
        ForwardPlan(form, 1, 2, 16, True, 1),
        (QueriesPlan(form, 1, 2, 16, False, 1), KeysPlan(form, 1, 2, 32, True, 1, 2)),
    )


def visible(case, device="cpu"):
    """(Tq, Tk): does query t see key s."""
    t = torch.arange(case.Tq, device=device)[:, None] + case.Tk - case.Tq
    s = torch.arange(case.Tk, device=device)[None]
    seen = torch.ones(case.Tq, case.Tk, dtype=torch.bool, device=device)
    if case.causal:
        seen &= s <= t
    if case.window is not None:
        seen &= (t - s).abs() < case.window
    return seen


def inputs(case, dtype, device="cpu"):
    shapes = [(case.H, case.Tq)] + [(case.Hk, case.Tk)] * 2 + [(case.H, case.Tq)]
    return [torch.randn(case.B, *shape, case.D).to(device, dtype) for shape in shapes]


class Expected(NamedTuple):
    """Results in float64, and of each how large the numbers are that were added up."""

    o: torch.Tensor
    lse: torch.Tensor
    grads: tuple
    o_scale: torch.Tensor
    lse_scale: torch.Tensor
    grad_scales: tuple


def expected(case, q, k, v, do, seen=None):
    seen = visible(case, q.device) if seen is None else seen
    group = case.H // case.Hk
    tiny = torch.finfo(q.dtype).tiny
    q, k, v, do = (x.double() for x in (q, k, v, do))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scale = case.D**-0.5
    s = (q @ k.mT * scale).masked_fill(~seen, -math.inf)
    lse = torch.logsumexp(s, -1)
    p = torch.exp(s - lse.clamp_min(-1e300)[..., None])
    o, dp = p @ v, do @ v.mT
    ds = p * (dp - (do * o).sum(-1, keepdim=True))
    # P in 16 bits: below the smallest normal number it is as exact as that one, not relatively
    p_size = torch.where(p > 0, p.clamp_min(tiny), 0.0)
    size = p_size * (do.abs() @ v.mT.abs() + (do * o).abs().sum(-1, keepdim=True))

    def grouped(x):
        return x.unflatten(1, (case.Hk, group)).sum(2)

    grads = scale * ds @ k, scale * grouped(ds.mT @ q), grouped(p.mT @ do)
    scales = (
        scale * size @ k.abs(), scale * grouped(size.mT @ q.abs()), grouped(p_size.mT @ do.abs())
    )  # fmt: skip
    log2 = lse / math.log(2)
    return Expected(o, log2, grads, p_size @ v.abs(), (scale * q.abs() @ k.mT.abs()).amax(), scales)


def run(case, q, k, v, do, plans=(None, None), **out):
    o, lse = attention_warp.forward(q, k, v, **case.mask, plan=plans[0])
    grads = attention_warp.backward(do, q, k, v, o, lse, **case.mask, plans=plans[1], **out)
    return o, lse, grads


def check_all(right, o, lse, grads):
    """Stored in 16 bits in between: P; for dQ and dK also dS and the O that δ is made of."""
    check("o", o, right.o, scale=right.o_scale, stored=1)
    check("lse", lse, right.lse, scale=right.lse_scale, factor=2)
    for name, got, want, scale, stored in zip(
        ("dq", "dk", "dv"), grads, right.grads, right.grad_scales, (3, 3, 1), strict=True
    ):
        check(name, got, want, scale=scale, stored=stored)


@pytest.mark.parametrize(
    ("case", "dtype"), [*((c, BF16) for c in SMALL), *((c, FP16) for c in SMALL[1:3])], ids=str
)
def test_against_float64(case, dtype):
    tensors = inputs(case, dtype)
    check_all(expected(case, *tensors), *run(case, *tensors, small_plans(dtype, case.D)))


@pytest.mark.parametrize("case", (SMALL[3], SMALL[5]), ids=str)
def test_without_ampere(case):
    """The code for sm_75: products 8 deep, copies through registers."""
    tensors = inputs(case, FP16)
    check_all(expected(case, *tensors), *run(case, *tensors, small_plans(FP16, case.D, True)))


def test_shipped_plans():
    tensors = inputs(REAL, BF16)
    check_all(expected(REAL, *tensors), *run(REAL, *tensors))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("case", ON_GPU, ids=str)
def test_on_gpu(case, dtype):
    tensors = inputs(case, dtype, "cuda")
    first = run(case, *tensors)
    check_all(expected(case, *tensors), *first)
    again = run(case, *tensors)
    for a, b in zip((*first[:2], *first[2]), (*again[:2], *again[2]), strict=True):
        assert torch.equal(a, b), "not the same bits on every run"


class TestControls:
    """What the comparison has to refuse."""

    case = Case(1, 1, 1, 40, 40, 32)

    def wrong(self, seen):
        tensors = inputs(self.case, BF16)
        right = expected(self.case, *tensors, seen)
        got = run(self.case, *tensors, small_plans(BF16, 32))
        for name, *pair in (("o", got[0], right.o), ("dq", got[2][0], right.grads[0])):
            with pytest.raises(AssertionError, match=name):
                check(name, *pair, scale=right.o_scale, stored=3)

    def test_mask_one_off(self):
        self.wrong(visible(self.case).roll(-1, 0))

    def test_a_tile_dropped(self):
        seen = visible(self.case)
        seen[:, 16:32] = False
        self.wrong(seen)


def test_packed_and_strided():
    """q, k, v are views of one (B, T, 3, H, D), gradients go into another, o is (B, T, H, D)."""
    case = Case(2, 2, 2, 33, 33, 32)
    qkv = torch.randn(2, 33, 3, 2, 32).to(BF16)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    do = torch.randn(2, 33, 2, 32).to(BF16).transpose(1, 2)
    dqkv, intact = guarded((2, 33, 3, 2, 32), BF16)
    out = tuple(dqkv.permute(2, 0, 3, 1, 4))
    o, lse, grads = run(case, q, k, v, do, small_plans(BF16, 32), out=out)
    check_all(expected(case, q, k, v, do), o, lse, grads)
    assert o.transpose(1, 2).is_contiguous() and lse.is_contiguous()
    assert all(a is b for a, b in zip(grads, out, strict=True)) and intact()


def test_rows_beyond_the_end_are_not_written(monkeypatch):
    case = Case(1, 1, 1, 35, 35, 32)
    tensors = inputs(case, BF16)
    made = []

    def like(x):
        y, intact = guarded(x.shape, x.dtype)
        made.append(intact)
        return y

    monkeypatch.setattr(attention_warp, "_empty_like", like)
    check_all(expected(case, *tensors), *run(case, *tensors, small_plans(BF16, 32)))
    assert len(made) == 4 and all(intact() for intact in made)


def test_large_scores_need_the_peak():
    """Scores of hundreds, growing along the keys: the peak moves in every tile."""
    case = Case(1, 1, 1, 33, 33, 32)
    q, k, v, do = inputs(case, BF16)
    k = k * torch.linspace(1, 60, 33).to(BF16)[:, None]
    q = q * 8
    o, lse = attention_warp.forward(q, k, v, **case.mask, plan=small_plans(BF16, 32)[0])
    right = expected(case, q, k, v, do)
    check("o", o, right.o, scale=right.o_scale, stored=1, factor=4)
    check("lse", lse, right.lse, scale=right.lse_scale, factor=2)


@pytest.mark.parametrize("turing", [False, True])
def test_report_without_findings(turing):
    """No race, no misaligned or uninitialised read, no bank conflict; products as counted."""
    case = Case(1, 2, 1, 17, 33, 64)
    dtype = FP16 if turing else BF16
    tensors = inputs(case, dtype)
    with launches(report=True) as log:
        run(case, *tensors, small_plans(dtype, 64, turing))
    reports = {launch.name.removeprefix("attention_warp_"): launch.report for launch in log}
    assert set(reports) == {"forward", "queries", "keys"}
    for name, report in reports.items():
        assert findings(report) == [], name
        assert report.conflicts == 0, name
        assert report.efficiency > 0.95, name


def test_empty():
    case = Case(0, 2, 1, 5, 5, 32)
    tensors = inputs(case, BF16)
    o, lse, grads = run(case, *tensors)
    assert o.shape == (0, 2, 5, 32) and lse.shape == (0, 2, 5) and grads[1].shape == (0, 1, 5, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q.float(), k, v), "^q: .*float32"),
        (lambda q, k, v: (q, k.half(), v), "^k: .*float16"),
        (lambda q, k, v: (q, k[:, :, :3], v[:, :, :3]), "^q: .*5 queries.*3 keys"),
        (lambda q, k, v: (q[:, :3], k, v), "^q: .*3 heads.*2"),
        (lambda q, k, v: (q[..., :36], k[..., :36], v[..., :36]), "^q: .*36"),
        (lambda q, k, v: (q, k, v[..., :32].mT.contiguous().mT), "^v: .*stride"),
    ],
)
def test_errors_name_the_argument(change, message):
    case = Case(1, 4, 2, 5, 5, 40)
    q, k, v, _ = inputs(case, BF16)
    if "stride" in message:
        q, k = q[..., :32].contiguous(), k[..., :32].contiguous()
    with pytest.raises((TypeError, ValueError), match=message):
        attention_warp.forward(*change(q, k, v), **case.mask)
