"""Claim d: the tensor operations of a step resolve into GEMM, softmax/reduction, element-wise,
gather/scatter and copy kernels; fused kernels cut memory traffic and raise arithmetic intensity,
change gradients only by rounding and weight shapes not at all.

Bytes and FLOPs of PyTorch's operations are counted one by one, those of a kernel by the emulator,
which sees every access. Both are exact, so the checks need no clock.
"""

from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

import pytest
import torch

from cuda_numba import cuda, jit
from cuda_numba.jit import Kernel
from minilm import MiniLM, ModelConfig, ops
from minilm.optim import AdamW
from minilm.profile_ops import CLASSES, ELEMENTWISE, GEMM, REDUCTION, Profile, profile

cross_entropy = import_module("cuda_numba.cross_entropy")
layer_norm = import_module("cuda_numba.layer_norm")
rms_norm = import_module("cuda_numba.rms_norm")
softmax = import_module("cuda_numba.softmax")
activation = import_module("cuda_numba.activation")
vector_add = import_module("cuda_numba.vector_add")

ROWS, N = 8, 512
SIZE = 4 * ROWS * N  # bytes of one (ROWS, N) tensor of float32
B, T, C, V, L = 3, 8, 16, 24, 2


# ------------------------------------------------------------------ the operations of a step


def make_model(**changes) -> MiniLM:
    torch.manual_seed(0)
    shape = dict(vocab_size=V, context_length=T, d_model=C, n_layers=L, n_heads=2)
    return MiniLM(ModelConfig(**shape | changes))


def step_of(model: MiniLM, extra: Callable = lambda loss: loss) -> Callable:
    """One training step, as a function; `extra` may do something to the loss."""
    optimizer, ids = AdamW(model.parameters()), torch.randint(0, V, (B, T + 1))

    def step():
        optimizer.zero_grad()
        extra(model.loss(ids)).backward()
        optimizer.step()

    return step


def resolves(seen: Profile) -> bool:
    """Does every operation belong to one of the classes, and does each class occur?"""
    known = all(row.kind in CLASSES for row in seen.rows)
    return known and {row.kind for row in seen.rows} == set(CLASSES)


def test_a_step_resolves_into_five_classes():
    assert resolves(profile(step_of(make_model())))
    # control: a step with an operation that is none of them
    assert not resolves(profile(step_of(make_model(), lambda loss: loss + loss.cumsum(0))))
    # control: a step without gather/scatter is not a step of a language model
    assert not resolves(profile(lambda: torch.randn(3, 3) @ torch.randn(3, 3)))


def has_the_flops_of_the_formula(seen: Profile, model: MiniLM) -> bool:
    """Are the FLOPs of the products those of `flops_per_token`?"""
    counted = seen.by_class()[GEMM].flops
    return abs(counted / (B * T * model.flops_per_token(T)) - 1) < 0.05


def test_the_products_hold_the_flops_and_the_rest_the_bytes():
    model = make_model()
    seen = profile(step_of(model))
    assert has_the_flops_of_the_formula(seen, model)
    # control: the forward pass alone has a third of them
    assert not has_the_flops_of_the_formula(profile(step_of(model, stop)), model)
    wide = profile(step_of(make_model(d_model=128, vocab_size=64)))
    classes = wide.by_class()
    assert classes[GEMM].flops > 0.8 * wide.total().flops
    assert classes[GEMM].bytes < 0.5 * wide.total().bytes
    for kind in (REDUCTION, ELEMENTWISE):
        assert classes[kind].intensity < 2 < classes[GEMM].intensity


def stop(loss):
    """A loss whose backward pass ends at once."""
    return loss.detach().requires_grad_()


# ------------------------------------------------------------------ memory traffic of kernels


@contextmanager
def reported():
    """The emulator's reports of all launches inside."""
    reports, launch = [], Kernel.launch

    def report(self, grid, block, *args, smem=0, cluster=None, cooperative=False, **_):
        options = dict(smem=smem, cluster=cluster, cooperative=cooperative)
        reports.append(self.report(grid, block, *args, **options))

    Kernel.launch = report
    try:
        yield reports
    finally:
        Kernel.launch = launch


class Cost(NamedTuple):
    """Bytes that were read and written, and floating-point operations."""

    bytes: int
    flops: int

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes


def kernel_cost(function: Callable) -> Cost:
    with reported() as reports:
        function()
    assert reports and not any(report.findings for report in reports)
    return Cost(sum(r.reads + r.writes for r in reports), sum(r.flops for r in reports))


def torch_cost(function: Callable) -> Cost:
    total = profile(function).check()
    return Cost(total.total().bytes, total.total().flops)


def tensors(n: int, dtype=torch.float32) -> tuple[torch.Tensor, ...]:
    source = torch.Generator().manual_seed(n)
    return tuple(torch.randn(ROWS, N, generator=source).to(dtype) for _ in range(n))


X, RESIDUAL, DY = tensors(3)
W = 1 + 0.1 * tensors(4)[3][0]
TARGETS = torch.arange(ROWS) * 7
# What a norm asks for beside the large tensors, exactly: the weights, once for every row (a team of
# warps takes one row and is done; they come from L1), and at most two statistics of a row.
SMALL = ROWS * (W.nbytes + 2 * 4)
# operation → (unfused in PyTorch, fused kernel, how often the fused one moves a large tensor)
FUSED = {
    "softmax": (lambda: softmax.softmax_reference(X), lambda: softmax.softmax_forward(X), 2),
    "layer_norm with residual": (
        lambda: layer_norm.layer_norm_residual_reference(X, RESIDUAL, W),
        lambda: layer_norm.layer_norm_residual_forward(X, RESIDUAL, W),
        4,
    ),
    "rms_norm": (lambda: rms_norm.rms_norm_reference(X, W), lambda: ops.rms_norm(X, W), 2),
    "swiglu": (
        lambda: X * torch.sigmoid(X) * RESIDUAL,
        lambda: activation.swiglu_forward(X, RESIDUAL),
        3,
    ),
}


def moves(cost: Cost, times: int, small: int = 0) -> bool:
    """Were the large tensors moved `times` times in all, with at most `small` bytes beside them?"""
    return times * SIZE <= cost.bytes <= times * SIZE + small


@pytest.mark.parametrize("name", FUSED)
def test_fusion_cuts_the_traffic_and_raises_the_intensity(name):
    unfused, fused, times = FUSED[name]
    apart = torch_cost(unfused)
    with ops.use_backend("numba"):
        together = kernel_cost(fused)
    small = SMALL if "norm" in name else 0
    assert moves(together, times, small)
    assert together.bytes < 0.65 * apart.bytes
    assert together.intensity > 1.5 * apart.intensity
    assert not moves(apart, times, small)  # control: the operations one by one


def test_a_fused_softmax_reads_once_and_writes_once():
    """Exact: 4, 3 and 2 times the tensor; one that reads twice fails the check for once."""
    costs = {name: kernel_cost(lambda rung=rung: rung(X)) for name, rung in softmax.RUNGS.items()}
    assert moves(costs["vectorised"], 2)
    assert moves(costs["online"], 3) and not moves(costs["online"], 2)  # control: reads twice
    assert moves(costs["naive"], 4) and not moves(costs["naive"], 2)  # control: three passes
    # FLOPs may rise as bytes fall: the running sum is corrected when the maximum grows
    assert costs["online"].flops > costs["naive"].flops
    assert costs["online"].intensity > costs["naive"].intensity


def test_a_residual_and_its_norm_in_one_kernel():
    """Forward: 3 + 2 large tensors in two kernels, 4 in one."""
    total = X + RESIDUAL
    addition = kernel_cost(lambda: vector_add.add_by_vector(X, RESIDUAL))
    norm = kernel_cost(lambda: layer_norm.layer_norm_forward(total, W))
    together = kernel_cost(lambda: layer_norm.layer_norm_residual_forward(X, RESIDUAL, W))
    assert moves(addition, 3) and moves(norm, 2, SMALL) and moves(together, 4, SMALL)
    assert addition.bytes + norm.bytes - together.bytes == SIZE
    assert together.flops == addition.flops + norm.flops
    both = Cost(addition.bytes + norm.bytes, addition.flops + norm.flops)
    assert not moves(both, 4, SMALL)  # control: two kernels


# ------------------------------------------------------------------ gradients and shapes


def by_autograd(function: Callable, *values: torch.Tensor, dy=DY) -> list[torch.Tensor]:
    leaves = [v.clone().requires_grad_() for v in values]
    y = function(*leaves)
    y = y if isinstance(y, torch.Tensor) else sum(y)
    return list(torch.autograd.grad(y, leaves, dy.to(y) if y.dim() else None))


def only_rounded(got: list[torch.Tensor], exact: list[torch.Tensor]) -> bool:
    """Same shapes, and errors of a few float32 roundings of the largest number?"""
    return all(
        g.shape == e.shape and (g.double() - e).abs().max() <= 2e-6 * e.abs().max()
        for g, e in zip(got, exact, strict=True)
    )


GRADIENTS = {  # operation → (reference, public operation, tensors)
    "softmax": (softmax.softmax_reference, softmax.softmax, (X,)),
    "layer_norm with residual": (
        layer_norm.layer_norm_residual_reference,
        layer_norm.layer_norm_residual,
        (X, RESIDUAL, W),
    ),
    "rms_norm": (rms_norm.rms_norm_reference, rms_norm.rms_norm, (X, W)),
    "swiglu": (lambda g, u: g * torch.sigmoid(g) * u, activation.swiglu, (X, RESIDUAL)),
    "cross_entropy": (
        lambda x: -x.log_softmax(-1)[torch.arange(ROWS), TARGETS].mean(),
        lambda x: cross_entropy.cross_entropy_(1 * x, TARGETS),
        (X,),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_fusion_changes_a_gradient_only_by_rounding(name):
    reference, fused, values = GRADIENTS[name]
    exact = by_autograd(reference, *(v.double() for v in values))
    assert only_rounded(by_autograd(reference, *values), exact)  # unfused, in float32
    assert only_rounded(by_autograd(fused, *values), exact)
    # control: numbers rounded to bfloat16 on the way are off by more
    assert not only_rounded(by_autograd(reference, *(v.bfloat16() for v in values)), exact)


@jit
def forgets_the_sum(dy, y, dx):
    """A wrong backward pass of softmax: y · dy, without − Σ dy · y."""
    i = cuda.grid(1)
    if i < y.size:
        dx[i] = y[i] * dy[i]


def test_a_kernel_with_a_wrong_gradient_is_caught():
    y = softmax.softmax_forward(X)
    exact = [softmax.softmax_backward_reference(DY.double(), X.double().softmax(-1))]
    assert only_rounded([softmax.softmax_backward(DY, y)], exact)
    dx = torch.empty_like(y)
    forgets_the_sum[-(-y.numel() // 128), 128](DY.view(-1), y.view(-1), dx.view(-1))
    assert not only_rounded([dx], exact)  # control
    assert not only_rounded([dx[:4]], exact)  # control: another shape


def shapes(model: MiniLM) -> dict[str, tuple]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def test_fusion_leaves_the_weights_their_shapes():
    model = make_model(n_layers=1)
    before, values = shapes(model), {k: v.clone() for k, v in model.state_dict().items()}
    gradients = {}
    for backend in ("torch", "numba"):
        model.load_state_dict(values)
        torch.manual_seed(1)
        with ops.use_backend(backend):
            step_of(model)()
        assert shapes(model) == before
        gradients[backend] = [p.grad for p in model.parameters()]
        assert all(p.grad.shape == p.shape for p in model.parameters())
    exact = [g.double() for g in gradients["torch"]]
    assert all(
        (g - e).abs().max() <= 2e-5 * e.abs().max()
        for g, e in zip(gradients["numba"], exact, strict=True)
    )
    # control: a model whose gate and up matrices are fused into one has other shapes
    assert shapes(make_model(n_layers=1, mlp="swiglu")) != before
