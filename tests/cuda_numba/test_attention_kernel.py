"""The public attention: its rungs against float64, its gradients, its contract."""

import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from ptx_tiles import devices, findings
from tolerance import check, poisoned

from cuda_numba.attention_tiles import reach

module = import_module("cuda_numba.attention")
rows, naive = (import_module(f"cuda_numba.attention_{n}") for n in ("rows", "naive"))
attention, attention_reference = module.attention, module.attention_reference

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SLOW = ["naive", "online"]
#         B, H, H_kv, Tq, Tk, D, causal, window
SHAPES = [
    (1, 1, 1, 1, 1, 1, True, None),
    (1, 2, 1, 7, 33, 24, True, None),
    (2, 2, 2, 5, 5, 40, False, 2),
    (1, 3, 1, 2, 20, 7, True, 6),
]
LONG = [
    (2, 4, 2, 333, 777, 64, True, None),
    (1, 2, 2, 300, 300, 128, False, 70),
    (1, 2, 1, 130, 1030, 100, True, 130),
]


def operands(B, H, H_kv, Tq, Tk, D, dtype, device="cpu", seed=0):
    """do, q, k, v"""
    make = torch.Generator().manual_seed(seed)
    shapes = ((B, H, Tq, D), (B, H, Tq, D), (B, H_kv, Tk, D), (B, H_kv, Tk, D))
    return [torch.randn(*s, generator=make).to(dtype).to(device) for s in shapes]


def exact(*tensors):
    return [x.detach().double() for x in tensors]


def check_forward(got, lse, q, k, v, rounded=False, **options):
    """rounded: p is rounded to the operands' format on the way."""
    o, right = attention_reference(*exact(q, k, v), **options)
    size = attention_reference(*exact(q, k, v.abs()), **options)[0]
    check("o", got, o, scale=size, stored=int(rounded))
    check("lse", lse, right, scale=4.0)


def check_backward(grads, do, q, k, v, o, rounded=False, **options):
    """The rounding of the stored o comes in by δ; with `rounded` those of p and ds as well."""
    right = module.attention_backward_reference(*exact(do, q, k, v), **options)
    for name, got, expected in zip(("dq", "dk", "dv"), grads, right, strict=True):
        check(name, got, expected, stored=4 if rounded else 1)


class TestReference:
    @pytest.mark.parametrize(("Tq", "causal"), [(9, True), (9, False), (4, False)])
    def test_as_torch(self, Tq, causal):
        _, q, k, v = exact(*operands(2, 4, 2, Tq, 9, 8, F32))
        right = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        torch.testing.assert_close(attention_reference(q, k, v, causal=causal)[0], right)

    def test_queries_are_the_last_positions(self):
        _, q, k, v = exact(*operands(1, 1, 1, 9, 9, 8, F32))
        whole = attention_reference(q, k, v, window=4)
        last = attention_reference(q[:, :, 6:], k, v, window=4)
        torch.testing.assert_close(last[0], whole[0][:, :, 6:])
        torch.testing.assert_close(last[1], whole[1][:, :, 6:])

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_gradients(self, shape):
        *sizes, causal, window = shape
        do, *leaves = exact(*operands(*sizes, F32))
        for x in leaves:
            x.requires_grad_()
        options = {"causal": causal, "window": window, "scale": 0.3}
        attention_reference(*leaves, **options)[0].backward(do)
        grads = module.attention_backward_reference(do, *exact(*leaves), **options)
        for leaf, grad in zip(leaves, grads, strict=True):
            torch.testing.assert_close(leaf.grad, grad)


class TestSlowRungs:
    @pytest.mark.parametrize("rung", SLOW)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_values(self, rung, shape):
        *sizes, causal, window = shape
        for dtype in (F32, BF16) if sizes[5] == 24 else (F32,):
            do, q, k, v = operands(*sizes, dtype)
            options = {"causal": causal, "window": window}
            with poisoned():
                o, lse = module.RUNGS[rung](q, k, v, **options)
            check_forward(o, lse * math.log(2), q, k, v, **options)
            assert o.transpose(1, 2).is_contiguous()
            if rung == "online":
                with poisoned():
                    scale = sizes[5] ** -0.5
                    grads = rows.backward(do, q, k, v, o, lse, **options, scale=scale)
                check_backward(grads, do, q, k, v, o, **options)

    @pytest.mark.gpu
    @pytest.mark.parametrize("rung", SLOW)
    @pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
    @pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
    def test_values_on_a_gpu(self, rung, shape, dtype):
        *sizes, causal, window = shape
        do, q, k, v = operands(*sizes, dtype, "cuda")
        options = {"causal": causal, "window": window}
        with poisoned():
            o, lse = module.RUNGS[rung](q, k, v, **options)
        # Long sums of float32, one number after another: 777 terms, not a tree.
        factor = 8.0 if dtype == F32 else 1.0
        right, right_lse = attention_reference(*exact(q, k, v), **options)
        size = attention_reference(*exact(q, k, v.abs()), **options)[0]
        check("o", o, right, scale=size, factor=factor)
        check("lse", lse * math.log(2), right_lse, scale=4.0, factor=8.0)

    def test_a_wrong_mask_is_seen(self):
        _, q, k, v = operands(1, 1, 1, 9, 9, 8, F32)
        o, lse = module.RUNGS["online"](q, k, v, causal=True, window=4)
        for options in ({"window": 5}, {"window": 3}, {"window": 4, "causal": False}):
            with pytest.raises(AssertionError):
                check_forward(o, lse * math.log(2), q, k, v, **options)

    def test_without_findings(self):
        do, q, k, v = operands(1, 2, 1, 5, 9, 40, BF16)
        sizes = (2, 5, 9, *reach(True, 4), 0.2)
        o, lse = torch.empty(1, 5, 2, 40, dtype=BF16), torch.empty(1, 2, 5)
        s, delta = torch.empty(1, 2, 5, 9), torch.empty(1, 2, 5)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for kernel, grid, threads, args in (
            (rows.forward_kernel("bfloat16", 40), (2, 2), 128, (q, k, v, o, lse, 2, *sizes)),
            (
                rows.query_gradient_kernel("bfloat16", 40), (2, 2), 128,
                (do, q, k, v, o.transpose(1, 2).contiguous(), lse, delta, dq, *sizes),
            ),
            (
                rows.key_gradient_kernel("bfloat16", 40), (3, 1), 128,
                (do, q, k, v, lse, delta, dk, dv, *sizes),
            ),
            (naive.scores_kernel("bfloat16", 40), (1, 5, 2), naive.THREADS, (q, k, s, *sizes)),
            (naive.attention_softmax, 10, 32, (s, lse, 9)),
            (naive.output_kernel("bfloat16", 40), (5, 2), 40, (s, v, o, 2, 2, 5, 9)),
        ):  # fmt: skip
            assert findings(kernel.report(grid, threads, *args)) == [], kernel.name
        check_forward(o.transpose(1, 2), lse * math.log(2), q, k, v, window=4,
                      scale=0.2 * math.log(2))  # fmt: skip


class TestPublic:
    #         rung, B, H, H_kv, Tq, Tk, D, dtype, causal, window
    CASES = [
        ("online", 1, 2, 1, 5, 9, 12, F32, True, 4),
        ("warp", 1, 2, 1, 5, 33, 16, BF16, True, None),
        ("hopper", 1, 2, 1, 33, 70, 64, BF16, True, None),
        ("hopper", 1, 1, 1, 20, 20, 72, F16, False, 9),
    ]
    LONG = [
        ("hopper", 2, 4, 2, 700, 1000, 64, BF16, True, None),
        ("hopper", 1, 2, 2, 513, 513, 128, F16, True, 200),
        ("hopper", 1, 2, 1, 384, 384, 96, BF16, False, None),
        ("warp", 1, 2, 1, 200, 200, 24, BF16, True, None),
        ("online", 1, 2, 1, 200, 200, 64, F32, True, None),
    ]

    def compute(self, case, device):
        rung, *sizes, dtype, causal, window = case
        do, *leaves = operands(*sizes, dtype, device)
        assert module.rung_of(leaves[0]) == rung
        for x in leaves:
            x.requires_grad_()
        with poisoned():
            o, lse = attention(*leaves, causal=causal, window=window, return_lse=True)
            o.backward(do)
        assert o.dtype == dtype and not lse.requires_grad
        return do, leaves, o, lse, {"causal": causal, "window": window}

    @devices
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_values_and_gradients(self, device, case):
        do, leaves, o, lse, options = self.compute(case, device)
        half = case[0] != "online"
        check_forward(o, lse, *leaves, rounded=half, **options)
        check_backward([x.grad for x in leaves], do, *leaves, o, rounded=half, **options)

    @pytest.mark.gpu
    @pytest.mark.parametrize("case", LONG, ids=str)
    def test_values_and_gradients_at_length(self, case):
        do, leaves, o, lse, options = self.compute(case, "cuda")
        right = attention_reference(*exact(*leaves), **options)
        grads = module.attention_backward_reference(*exact(do, *leaves), **options)
        for got, expected in zip((o, *(x.grad for x in leaves)), (right[0], *grads), strict=True):
            error = (got.double() - expected).norm() / expected.norm()
            assert error < (1e-5 if case[7] == F32 else 1e-3 if case[7] == F16 else 6e-3)
        torch.testing.assert_close(lse.double(), right[1], rtol=1e-5, atol=1e-5)

    @devices
    def test_packed_operands_and_result(self, device):
        """Slices of one (B, T, 3, H, D) tensor; the result is (B, T, H · D) without a copy."""
        x = torch.randn(1, 40, 3, 2, 32).to(BF16).to(device).requires_grad_()
        q, k, v = (x[:, :, i].transpose(1, 2) for i in range(3))
        assert all(module.aligned(y) is y for y in (q, k, v))
        o = attention(q, k, v)
        flat = o.transpose(1, 2).reshape(1, 40, 64)
        assert flat.data_ptr() == o.data_ptr()
        flat.sum().backward()
        do = torch.ones_like(o)
        right = module.attention_backward_reference(*exact(do, q, k, v))
        for i, expected in enumerate(right):
            check(f"gradient {i}", x.grad[:, :, i].transpose(1, 2), expected, stored=4)

    def test_other_views_are_copied(self):
        _, q, k, v = operands(1, 1, 1, 4, 4, 33, BF16)
        q, k, v = q[..., 1:], k[..., 1:], v[..., :32]
        o = attention(q, k, v)
        size = attention_reference(*exact(q, k, v.abs()))[0]
        check("o", o, attention_reference(*exact(q, k, v))[0], scale=size, stored=1)

    @pytest.mark.parametrize("strides", [(3, 5, 32, 1), (0, 0, 40, 1), (128, 128, 0, 1)], ids=str)
    def test_strides_that_no_copy_takes(self, strides):
        """Those of a single row mean nothing; a row that is repeated is copied."""
        x = torch.randn(160).to(BF16).as_strided((1, 1, 4, 32), strides)
        o = attention(x, x, x)
        size = attention_reference(*exact(x, x, x.abs()))[0]
        check("o", o, attention_reference(*exact(x, x, x))[0], scale=size, stored=1)

    @pytest.mark.parametrize(
        ("cc", "dtype", "D", "rung"),
        [
            ((9, 0), "bfloat16", 64, "hopper"), ((9, 0), "float16", 40, "hopper"),
            ((9, 0), "bfloat16", 24, "warp"), ((9, 0), "float32", 64, "online"),
            ((9, 0), "float16", 36, "online"), ((9, 0), "bfloat16", 136, "online"),
            ((8, 0), "bfloat16", 64, "warp"), ((10, 0), "float16", 128, "warp"),
            ((7, 5), "float16", 64, "warp"), ((7, 5), "bfloat16", 64, "online"),
        ],
    )  # fmt: skip
    def test_which_rung(self, monkeypatch, cc, dtype, D, rung):
        class Tensor:
            shape, device = (1, 1, 1, D), torch.device("cuda", 0)

        Tensor.dtype = getattr(torch, dtype)
        monkeypatch.setattr(module.driver, "compute_capability", lambda index: cc)
        monkeypatch.setattr(module, "_rung_of", module._rung_of.__wrapped__)
        assert module.rung_of(Tensor()) == rung

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"q": (2, 4, 8)}, ValueError, r"q: its shape is \(2, 4, 8\)"),
            ({"k": (1, 2, 6, 16)}, ValueError, "k, v: their shapes"),
            ({"v": (1, 2, 6, 16)}, ValueError, "k, v: their shapes"),
            ({"k": (1, 3, 6, 8), "v": (1, 3, 6, 8)}, ValueError, "k: it has 3 heads"),
            ({"q": (1, 4, 7, 8)}, ValueError, "q: it has 7 positions"),
            ({"q": (1, 4, 0, 8)}, ValueError, "at least 1"),
            ({"window": 0}, ValueError, "window: got 0"),
            ({"scale": 0.0}, ValueError, "scale: got 0.0"),
            ({"scale": math.inf}, ValueError, "scale: got inf"),
            ({"dtype": torch.float64}, TypeError, "q: its dtype is float64"),
        ],
    )
    def test_errors(self, change, error, text):
        shapes = {"q": (1, 4, 6, 8), "k": (1, 2, 6, 8), "v": (1, 2, 6, 8)}
        options = {n: x for n, x in change.items() if n in ("window", "scale")}
        shapes |= {n: x for n, x in change.items() if n in shapes}
        q, k, v = (torch.zeros(s, dtype=change.get("dtype", F32)) for s in shapes.values())
        with pytest.raises(error, match=text):
            attention(q, k, v, **options)

    def test_operands_of_one_dtype(self):
        q = torch.zeros(1, 1, 2, 8)
        with pytest.raises(TypeError, match="k: its dtype is bfloat16"):
            attention(q, q.bfloat16(), q)
