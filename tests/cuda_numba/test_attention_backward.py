"""The backward pass of attention on Hopper, against float64, on the emulator and on a GPU."""

import itertools

import pytest
import torch
from ptx_tiles import devices, findings
from tolerance import check, guarded, poisoned

from cuda_numba.attention_backward_hopper import (
    LAYOUTS,
    RUNGS,
    attention_backward_reference,
    backward,
    backward_unordered,
    heads_together,
    launches,
)
from cuda_numba.attention_backward_layout import LARGEST, Layout
from cuda_numba.attention_backward_schedule import KEYS, OPEN, band, visits

#        B  H Hkv Tq   Tk   D   causal window
SMALL = [
    (1, 1, 1, 1, 1, 8, True, None),
    (1, 2, 1, 7, 33, 64, True, None),
    (2, 1, 1, 33, 130, 64, False, None),
    (1, 1, 1, 130, 130, 32, True, None),
    (1, 1, 1, 33, 65, 40, False, 20),
    (1, 2, 2, 65, 129, 128, True, None),
    (1, 1, 1, 63, 257, 96, True, 50),  # the first block of keys is seen by nobody
]
LARGE = [
    (2, 4, 2, 1000, 1300, 128, True, None),
    (2, 4, 2, 1000, 1300, 64, True, None),
    (2, 4, 4, 777, 777, 128, True, 100),
    (2, 4, 4, 777, 777, 64, False, 100),
    (2, 4, 1, 700, 777, 64, False, None),
    (2, 4, 4, 700, 777, 128, False, None),
    (3, 3, 1, 130, 257, 104, True, None),
    (3, 3, 1, 130, 257, 32, True, None),
    (1, 16, 16, 2048, 2048, 128, True, None),
    (1, 16, 16, 2048, 2048, 64, True, None),
]


def inputs(case, dtype=torch.bfloat16, device="cpu"):
    """(dO, q, k, v, o, lse), the results in float64, and how much was added up for each."""
    B, H, Hkv, Tq, Tk, D, causal, window = case
    torch.manual_seed(sum(case[:6]))
    do, q = (torch.randn(B, H, Tq, D).to(dtype).to(device) for _ in range(2))
    k, v = (torch.randn(B, Hkv, Tk, D).to(dtype).to(device) for _ in range(2))
    exact = [x.double() for x in (do, q, k, v)]
    o, lse, *right = attention_backward_reference(*exact, causal=causal, window=window)
    return (do, q, k, v, o.to(dtype), lse.float()), right, sums(*exact, lse, causal, window)


def sums(do, q, k, v, lse, causal, window):
    """Σ of absolute values behind each element of dq, dk, dv: what roundings are relative to.

    P (|dP| + Σ |dO O|) stands for |dS|: P, dS and O are each rounded once.
    """
    group, scale = q.shape[1] // k.shape[1], q.shape[3] ** -0.5
    keys, values = (x.repeat_interleave(group, 1) for x in (k, v))
    p = torch.exp2(q @ keys.mT * scale * 1.4426950408889634 - lse[..., None])
    distance = (
        torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2] - torch.arange(k.shape[2])
    )
    seen = distance.abs() < (window or OPEN)
    p = p * (seen & (distance >= 0) if causal else seen).to(p)
    d = (do.abs() * (p @ values).abs()).sum(-1, keepdim=True)
    ds = p * ((do @ values.mT).abs() + d) * scale
    over = lambda x: x.unflatten(1, (k.shape[1], group)).sum(2)  # noqa: E731
    return ds @ keys.abs(), over(ds.mT @ q.abs()), over(p.mT @ do.abs())


def compare(got, right, scales):
    for name, x, expected, scale in zip(("dq", "dk", "dv"), got, right, scales, strict=True):
        check(name, x, expected, scale=scale + 1e-6, stored=2)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_values(case):
    args, right, scales = inputs(case)
    with poisoned():
        got = backward(*args, causal=case[6], window=case[7])
    compare(got, right, scales)


def test_values_float16():
    args, right, scales = inputs(SMALL[1], torch.float16)
    with poisoned():
        compare(backward(*args), right, scales)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SMALL + LARGE, ids=str)
def test_values_on_a_gpu(case, dtype):
    args, right, scales = inputs(case, dtype)
    args = [x.cuda() for x in args]
    with poisoned():
        got = backward(*args, causal=case[6], window=case[7])
    compare(got, right, scales)


@pytest.mark.parametrize("wrong", [{"causal": False}, {"window": 30}, {"scale": 0.13}], ids=str)
def test_the_check_notices_another_mask(wrong):
    """The control: the gradients of a slightly different function do not pass."""
    case = SMALL[1]
    args, right, scales = inputs(case)
    do, q, k, v = (x.double() for x in args[:4])
    other = attention_backward_reference(do, q, k, v, **({"causal": True} | wrong))[2:]
    with pytest.raises(AssertionError):
        compare([x.to(torch.bfloat16) for x in other], right, scales)


@devices
def test_unordered(device):
    case = SMALL[5]
    args, right, scales = inputs(case)
    with poisoned():
        compare(backward_unordered(*(x.to(device) for x in args)), right, scales)
    assert set(RUNGS) == {"unordered", "ordered"}


@devices
def test_turns_in_pairs(device):
    """The same parts in the same order: the same bits."""
    case = (1, 1, 1, 100, 131, 128, True, 70)
    args = [x.to(device) for x in inputs(case)[0]]
    paired = LAYOUTS[128]._replace(paired=True)
    results = [backward(*args, window=70, layout=x) for x in (LAYOUTS[128], paired)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@devices
def test_the_number_of_blocks_changes_nothing(device):
    """Bit for bit the same, in whatever order the tiles are done."""
    args = [x.to(device) for x in inputs((1, 2, 2, 9, 130, 64, True, None))[0]]
    first = backward(*args, grid=1)
    for grid, rows in ((3, 1), (4, 1 << 20)):
        again = backward(*args, grid=grid, rows=rows)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_the_same_bits_each_time():
    """The control is the rung of plain atomics, whose dq differs."""
    args, *_ = inputs((2, 16, 16, 1024, 1024, 64, True, None))
    args = [x.cuda() for x in args]
    for rung, steady in ((backward, True), (backward_unordered, False)):
        first = rung(*args)
        same = [torch.equal(first[0], rung(*args)[0]) for _ in range(20)]
        assert all(same) is steady
        assert torch.equal(first[1], rung(*args)[1]) and torch.equal(first[2], rung(*args)[2])


@devices
def test_packed_views(device):
    """qkv and dqkv as (B, T, 3, H, D), o and dO as (B, T, H, D); nothing else is written."""
    B, H, T, D = 1, 2, 33, 64
    (do, q, k, v, o, lse), right, scales = inputs((B, H, H, T, T, D, True, None))
    qkv = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous().to(device)
    do, o = (x.transpose(1, 2).contiguous().transpose(1, 2).to(device) for x in (do, o))
    memory, intact = guarded((B, T, 3, H, D), torch.bfloat16, device)
    out = memory.permute(2, 0, 3, 1, 4).unbind(0)
    got = backward(do, *qkv.permute(2, 0, 3, 1, 4).unbind(0), o, lse.to(device), out=out)
    assert got[0].data_ptr() == memory.data_ptr()
    compare(got, right, scales)
    assert intact()


@devices
def test_a_row_that_sees_nothing(device):
    """lse = −∞ and garbage in its O: the gradients of that row are 0, no NaN comes of it."""
    (do, q, k, v, o, lse), *_ = inputs((1, 1, 1, 9, 20, 64, True, None))
    silent = do.clone()
    silent[:, :, 3] = 0
    right = backward(*(x.to(device) for x in (silent, q, k, v, o, lse)))
    lse[:, :, 3], o[:, :, 3] = -torch.inf, 1e30
    got = backward(*(x.to(device) for x in (do, q, k, v, o, lse)))
    assert (got[0][:, :, 3] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))


@pytest.mark.parametrize("d", [64, 128])
def test_no_findings(d):
    """All blocks at once, so that they wait for each other's turns; two heads side by side."""
    args, right, scales = inputs((1, 1, 1, 9, 130, d, True, None))
    out = [torch.empty_like(x) for x in args[1:4]]
    options = dict(causal=True, window=None, scale=d**-0.5, layout=LAYOUTS[d])
    for kernel, grid, block, smem, arguments in launches(*args, out, **options):
        report = kernel.report(
            grid, block, *arguments, smem=smem, cooperative=smem > 0, seed=1 if d == 64 else None
        )
        assert findings(report) == []
        assert report.conflicts == 0
    compare(out, right, scales)


# ---- the schedule


@pytest.mark.parametrize("bq", [64, 128])
def test_schedule(bq):
    """A block of keys visits exactly the tiles that hold a visible pair, and what lies between."""
    cases = itertools.product((1, 65, 300), (0, 1, 200), (True, False), (None, 1, 64, 190))
    for tq, more, causal, window in cases:
        tk = tq + more
        distance = torch.arange(tq)[:, None] + more - torch.arange(tk)
        seen = distance.abs() < (window or OPEN)
        if causal:
            seen &= distance >= 0
        for j in range(-(-tk // KEYS)):
            low, high = visits(j, bq, tq, tk, *band(causal, window))
            rows = torch.nonzero(seen[:, j * KEYS : (j + 1) * KEYS].any(1)).flatten() // bq
            if len(rows):
                assert low <= rows.min() and rows.max() < high
                assert high - low <= rows.max() - rows.min() + 2
            else:
                assert high - low <= 1


def test_heads_together():
    assert heads_together(1024, 1, 192, 1) == 64  # three rounds
    assert heads_together(4096, 1, 64, 2) == 32
    assert heads_together(4096, 1, 65, 2) == 22  # three rounds, as even as can be
    assert heads_together(16384, 1, 16, 2) == 16
    assert heads_together(4096, 1, 9, 2, rows=32768) == 5
    assert heads_together(16384, 4, 5, 2, rows=32768) == 1


def test_shared_memory():
    for layout in LAYOUTS.values():
        assert layout.nbytes <= LARGEST
        assert layout.ring * layout.bq * 128 >= 2 * layout.halves * 8192  # dK and dV leave by it
    assert Layout(128, 64, 4, 4, True).nbytes > LARGEST


# ---- what is refused


def wrong(name, **change):
    args = dict(zip(("do", "q", "k", "v", "o", "lse"), inputs(SMALL[1])[0], strict=True))
    with pytest.raises(ValueError, match=rf"^{name}: "):
        backward(**(args | change))


def test_refusals():
    do, q, k, v, o, lse = inputs(SMALL[1])[0]
    wrong("q", q=q.float())
    wrong("q", q=q[0])
    wrong("q", q=q[..., :12])
    wrong("k", k=k[:, :, :5])
    wrong("k", k=k[..., :32])
    wrong("v", v=v[:, :, 1:])
    wrong("v", v=v.half())
    wrong("do", do=do.transpose(2, 3).contiguous().transpose(2, 3))
    wrong("o", o=o[:, :, 1:])
    wrong("lse", lse=lse.double())
    wrong("lse", lse=lse[:, :1])
    wrong("window", window=0)
    wrong("dk", out=(torch.empty_like(q), torch.empty_like(q), torch.empty_like(v)))


def test_nothing_to_do():
    args, *_ = inputs((1, 2, 1, 7, 33, 64, True, None))
    do, q, k, v, o, lse = args
    none = [x[:, :, :0] for x in (do, q, o)]
    dq, dk, dv = backward(none[0], none[1], k, v, none[2], lse[:, :, :0].contiguous())
    assert dq.shape == none[1].shape and not dk.any() and not dv.any()
