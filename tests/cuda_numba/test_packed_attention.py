"""Attention of packed queries, keys and values: values, gradients, and that nothing is copied."""

from importlib import import_module

import pytest
import torch
from ptx_tiles import devices
from tolerance import check, poisoned
from torch.utils._python_dispatch import TorchDispatchMode

from cuda_numba.attention import attention, rung_of

module = import_module("cuda_numba.packed_attention")
packed_attention, heads_of = module.packed_attention, module.heads_of
reference = module.packed_attention_reference

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
#    rung, B, T, H, H_kv, D, dtype, causal, window
CASES = [
    ("hopper", 1, 33, 2, 2, 64, BF16, True, None),
    ("hopper", 2, 7, 4, 2, 32, F16, False, None),
    ("hopper", 1, 70, 2, 1, 64, BF16, True, 40),
    ("hopper", 1, 20, 1, 1, 128, BF16, True, None),
    ("warp", 1, 33, 3, 1, 16, BF16, True, 9),
    ("online", 2, 7, 2, 1, 12, F32, True, None),
    ("online", 1, 9, 2, 2, 7, BF16, False, 3),
    ("online", 1, 1, 1, 1, 1, F32, True, None),
]
LONG = [
    ("hopper", 16, 1024, 12, 12, 64, BF16, True, None),  # a layer of GPT-2
    ("hopper", 2, 1000, 8, 2, 128, F16, True, 200),
    ("hopper", 2, 333, 4, 4, 64, BF16, False, None),
    ("warp", 2, 333, 4, 2, 24, BF16, True, None),
    ("online", 2, 200, 4, 2, 64, F32, True, None),
]


def operands(case, device="cpu"):
    """qkv, dy"""
    _, B, T, H, H_kv, D, dtype, *_ = case
    make = torch.Generator().manual_seed(sum(case[1:6]))
    shapes = ((B, T, (H + 2 * H_kv) * D), (B, T, H * D))
    return [torch.randn(*s, generator=make).to(dtype).to(device) for s in shapes]


def options_of(case):
    return {"causal": case[7], "window": case[8]}


def exact(qkv, dy, case):
    """(y, dqkv) in float64."""
    leaf = qkv.detach().double().requires_grad_()
    y = reference(leaf, *case[3:5], **options_of(case))
    y.backward(dy.double())
    return y.detach(), leaf.grad


def compute(qkv, dy, case):
    leaf = qkv.detach().requires_grad_()
    with poisoned():
        y = packed_attention(leaf, *case[3:5], **options_of(case))
        y.backward(dy)
    return y.detach(), leaf.grad


def compare(got, right, case):
    """As in the tests of `attention`: p, ds and the stored o are rounded to 16 bits."""
    half = case[0] != "online"
    check("y", got[0], right[0], stored=int(half))
    parts = zip(*(heads_of(x, *case[3:5]) for x in (got[1], right[1])), strict=True)
    for name, (x, expected) in zip(("dq", "dk", "dv"), parts, strict=True):
        check(name, x, expected, stored=4 if half else 1)


@devices
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradient(device, case):
    qkv, dy = operands(case, device)
    assert rung_of(heads_of(qkv, *case[3:5])[0]) == case[0]
    got = compute(qkv, dy, case)
    assert got[0].is_contiguous() and got[1].is_contiguous()
    assert got[0].dtype == got[1].dtype == qkv.dtype
    compare(got, exact(qkv, dy, case), case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", LONG, ids=str)
def test_values_and_gradient_at_length(case):
    """The norm of the error, and the bits of `attention` on contiguous heads."""
    qkv, dy = operands(case, "cuda")
    y, dqkv = compute(qkv, dy, case)
    allowed = {F32: 1e-5, F16: 1e-3, BF16: 6e-3}[case[6]]
    for n in range(case[1]):  # a sequence at a time: the reference has all scores
        right = exact(qkv[n : n + 1], dy[n : n + 1], case)
        for got, expected in zip((y, dqkv), right, strict=True):
            error = (got[n : n + 1].double() - expected).norm() / expected.norm()
            assert error < allowed, (n, error)
    leaves = [x.contiguous().requires_grad_() for x in heads_of(qkv, *case[3:5])]
    o = attention(*leaves, **options_of(case))
    assert torch.equal(o.transpose(1, 2).flatten(2), y)
    o.backward(dy.unflatten(2, (case[3], -1)).transpose(1, 2))
    for leaf, grad in zip(leaves, heads_of(dqkv, *case[3:5]), strict=True):
        assert torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("wrong", [{"causal": False}, {"window": 30}, {"scale": 0.13}], ids=str)
def test_the_check_notices_another_mask(wrong):
    """The control, and values and gradients of keys and values exchanged."""
    case = CASES[0]
    qkv, dy = operands(case)
    leaf = qkv.double().requires_grad_()
    y = reference(leaf, *case[3:5], **(options_of(case) | wrong))
    y.backward(dy.double())
    other = y.detach().to(BF16), leaf.grad.to(BF16)
    right = exact(qkv, dy, case)
    with pytest.raises(AssertionError):
        compare((other[0], right[1].to(BF16)), right, case)
    with pytest.raises(AssertionError):
        compare((right[0].to(BF16), other[1]), right, case)
    q, k, v = right[1].chunk(3, -1)
    with pytest.raises(AssertionError):
        compare((right[0].to(BF16), torch.cat([q, v, k], -1).to(BF16)), right, case)


class Calls(TorchDispatchMode):
    """The operators that PyTorch runs, and the sizes of what they make."""

    def __init__(self):
        super().__init__()
        self.names, self.sizes = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.names.append(name)
        if name.startswith("empty"):
            self.sizes.append(tuple(result.shape))
        return result


COPIES = {"copy_", "clone", "cat", "stack", "_to_copy", "contiguous", "add_", "add", "zero_"}
COPIES |= {"zeros", "fill_", "select_backward", "slice_backward", "new_zeros", "as_strided_copy"}


@devices
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4]], ids=str)
def test_nothing_is_copied(device, case, monkeypatch):
    """One dqkv, which the kernels have written through views, and no operator that moves data."""
    qkv, dy = operands(case, device)
    compute(qkv, dy, case)  # once: what is kept for a shape is made now
    backward, outs = import_module(f"cuda_numba.{module.BACKWARD[case[0]]}").backward, []

    def watched(*args, out, **options):
        outs.append(out)
        return backward(*args, out=out, **options)

    monkeypatch.setattr(f"cuda_numba.{module.BACKWARD[case[0]]}.backward", watched)
    leaf = qkv.requires_grad_()
    with Calls() as calls:
        y = packed_attention(leaf, *case[3:5], **options_of(case))
        (dqkv,) = torch.autograd.grad(y, leaf, dy)
    assert not COPIES & set(calls.names)
    assert calls.sizes.count(tuple(qkv.shape)) == 1  # dqkv
    (out,) = outs
    for x, view in zip(out, heads_of(dqkv, *case[3:5]), strict=True):
        assert x.data_ptr() == view.data_ptr() and x.stride() == view.stride()


def test_a_copy_would_be_noticed():
    """The control: the rung for float32, whose results are copied in."""
    case = CASES[5]
    qkv, dy = operands(case)
    leaf = qkv.requires_grad_()
    with Calls() as calls:
        y = packed_attention(leaf, *case[3:5], **options_of(case))
        torch.autograd.grad(y, leaf, dy)
    assert {"copy_", "clone"} <= set(calls.names)


def test_views_that_are_read_as_they_are_and_others():
    """A slice with wide rows is not copied; one from an odd address is, and a transposed one."""
    case = ("hopper", 2, 9, 1, 1, 32, BF16, True, None)
    qkv, dy = operands(case)
    right = exact(qkv, dy, case)
    wide = torch.full((2, 9, 112), float("nan"), dtype=BF16)
    for first, copied in ((8, False), (3, True)):
        view = wide[..., first : first + 96]
        view.copy_(qkv)
        assert (module.aligned(view) is view) is not copied
        compare(compute(view, dy, case), right, case)
    turned = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    compare(compute(turned, dy.mT.contiguous().mT, case), right, case)


def test_default_scale_and_heads():
    qkv, _ = operands(CASES[0])
    y = packed_attention(qkv, 2, scale=64**-0.5)
    assert torch.equal(packed_attention(qkv, 2), y)
    assert torch.equal(packed_attention(qkv, 2, 2), y)
    assert not torch.equal(packed_attention(qkv, 2, scale=0.3), y)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"qkv": torch.zeros(2, 3, 8, dtype=torch.float64)},
            TypeError,
            "qkv: its dtype is float64",
        ),
        ({"qkv": torch.zeros(3, 8)}, ValueError, r"qkv: its shape is \(3, 8\)"),
        ({"qkv": torch.zeros(2, 0, 8)}, ValueError, r"qkv: its shape is \(2, 0, 8\)"),
        ({"qkv": torch.zeros(2, 3, 12)}, ValueError, r"qkv: .* \(B, T, 8 · D\), 4 \+ 2 · 2 heads"),
        ({"qkv": torch.zeros(2, 3, 8 * 257)}, ValueError, "D from 1 to 256"),
        ({"n_heads": 0}, ValueError, "n_heads: got 0"),
        ({"n_kv_heads": 3}, ValueError, "n_kv_heads: got 3"),
        ({"n_kv_heads": 0}, ValueError, "n_kv_heads: got 0"),
        ({"window": 0}, ValueError, "window: got 0"),
        ({"scale": -1.0}, ValueError, "scale: got -1.0"),
    ],
)
def test_errors(change, error, text):
    args = {"qkv": torch.zeros(2, 3, 8), "n_heads": 4, "n_kv_heads": 2} | change
    with pytest.raises(error, match=text):
        packed_attention(**args)
