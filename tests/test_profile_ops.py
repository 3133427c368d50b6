"""The classes, bytes and FLOPs of tensor operations, counted by hand and for a whole step."""

import pytest
import torch
import torch.nn.functional as F

from minilm import ops
from minilm.model import MiniLM, ModelConfig
from minilm.optim import SGD, AdamW, Lion, clip_grad_norm
from minilm.precision import autocast
from minilm.profile_ops import CLASSES, COPY, ELEMENTWISE, GATHER, GEMM, REDUCTION, profile

X, Y = torch.randn(4, 6), torch.randn(6, 3)
IDS = torch.tensor([1, 1, 2])


@pytest.mark.parametrize(
    ("function", "kind", "read", "written", "flops"),
    [
        (lambda: X @ Y, GEMM, 4 * (24 + 18), 4 * 12, 2 * 4 * 6 * 3),
        (lambda: torch.addmm(Y[0], X, Y), GEMM, 4 * (3 + 24 + 18), 48, 2 * 4 * 6 * 3 + 12),
        (lambda: X.bfloat16() @ Y.bfloat16(), GEMM, 2 * (24 + 18), 2 * 12, 2 * 4 * 6 * 3),
        (lambda: torch.bmm(X[None], Y[None]), GEMM, 4 * (24 + 18), 48, 2 * 4 * 6 * 3),
        (lambda: X.sum(), REDUCTION, 96, 4, 24),
        (lambda: X.amax(-1), REDUCTION, 96, 16, 24),
        (lambda: X.softmax(-1), REDUCTION, 96, 96, 5 * 24),
        (lambda: X + X, ELEMENTWISE, 192, 96, 24),
        (lambda: X + X[0], ELEMENTWISE, 96 + 24, 96, 24),
        (lambda: X + X[0].expand(4, 6), ELEMENTWISE, 96 + 24, 96, 24),
        (lambda: X.clone().mul_(2), ELEMENTWISE, 96, 96, 24),
        (lambda: F.gelu(X), ELEMENTWISE, 96, 96, 5 * 24),
        (lambda: torch._foreach_add([X, Y], [X, Y]), ELEMENTWISE, 4 * 84, 4 * 42, 42),
        (lambda: torch._foreach_mul_([X.clone(), Y.clone()], 1.0), ELEMENTWISE, 168, 168, 42),
        (lambda: F.embedding(IDS, X), GATHER, 24 + 3 * 24, 3 * 24, 0),
        (lambda: X.clone(), COPY, 96, 96, 0),
        (lambda: X.bfloat16(), COPY, 96, 48, 0),
        (lambda: torch.cat((X, X)), COPY, 192, 192, 0),
        (lambda: torch.empty(5).fill_(1.0), COPY, 0, 20, 0),
        (lambda: torch.zeros_like(X), COPY, 0, 96, 0),
    ],
)
def test_one_operation_by_hand(function, kind, read, written, flops):
    rows = [row for row in profile(function).check().rows if row.kind == kind]
    row = rows[-1]
    assert (row.bytes_read, row.bytes_written, row.flops) == (read, written, flops), row


def test_picking_the_target_touches_one_number_a_row():
    x = torch.randn(4, 6).log_softmax(-1).requires_grad_()
    rows = profile(lambda: F.nll_loss(x, torch.tensor([0, 5, 2, 1]))).check().rows
    (row,) = [row for row in rows if row.kind == GATHER]
    assert row.bytes_read == 4 * 8 + 4 * 4 and row.flops == 4


def test_views_and_empty_memory_are_free():
    def views():
        y = X.view(2, 12).transpose(0, 1)[1:3].unsqueeze(0).expand(2, 2, 2)
        return y.detach(), torch.empty_like(X), Y.split(2)

    assert profile(views).rows == []
    assert len(profile(lambda: X.t().contiguous()).rows) == 1  # but a copy is a copy


def step(model, optimizer, ids, dtype="float32", **kwargs):
    optimizer.zero_grad()
    with autocast("cpu", dtype):
        loss = model.loss(ids, **kwargs)
    loss.backward()
    clip_grad_norm(model.parameters(), 0.1)
    optimizer.step()


SHAPE = dict(vocab_size=19, context_length=8, d_model=8, n_layers=2, n_heads=2)
CONFIGS = [
    {},
    dict(norm="rmsnorm", mlp="swiglu", position="rope", bias=False, tied=False, dropout=0.1),
    dict(mlp="gelu_tanh", position="rope", qk_norm=True, n_kv_heads=1, window=3),
]
RULES = {
    "adamw": AdamW,
    "lion": Lion,
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("choices", CONFIGS)
def test_every_operation_of_a_step_has_a_class(choices, rule, dtype):
    model = MiniLM(ModelConfig(**SHAPE | choices))
    optimizer, ids = RULES[rule](model.parameters()), torch.randint(0, 19, (2, 8))
    mask, segments = torch.rand(2, 8) < 0.8, torch.zeros(2, 8, dtype=torch.int64)
    seen = profile(lambda: step(model, optimizer, ids, dtype, mask=mask, segments=segments))
    assert seen.unknown == []
    assert list(seen.by_class()) == list(CLASSES)
    assert all(total.calls and total.bytes for total in seen.by_class().values())


def test_an_operation_without_a_class_is_named():
    seen = profile(lambda: torch.cumsum(X, 0).trace())
    assert seen.unknown == ["aten.cumsum.default", "aten.trace.default"]
    with pytest.raises(ValueError, match="^profile: no class .* aten.cumsum.default, aten.trace"):
        seen.by_class()


def test_the_table_of_a_profile():
    text = str(profile(lambda: X @ Y))
    assert text.splitlines()[1].split() == ["GEMM", "1", "216", "144", "0.67"]


def test_kernels_that_pytorch_does_not_run_are_not_passed_over():
    with ops.use_backend("numba"), pytest.raises(ValueError, match="^backend: must be 'torch'"):
        profile(lambda: None)
