"""What tests of the Hopper product share: operands in every layout, the expected result."""

import torch
import torch.nn.functional as F

from cuda_numba.hopper_choice import Choice
from cuda_numba.hopper_tile import Tile

LAYOUTS = ["nt", "nn", "tn", "tt"]  # t: A along M, or B along K, as torch writes transposed views
SMALL = Tile(128, 2, 2)  # for the emulator
FORMS = {"gelu": "none", "gelu_tanh": "tanh"}


def matrix(rows, columns, along_rows, dtype, device="cpu", batch=()):
    """Normal numbers; along_rows: columns are contiguous. Rows are padded to 16 bytes and the
    padding is NaN, so that whatever reads it shows."""
    shape = (columns, rows) if along_rows else (rows, columns)
    pitch = -(-shape[1] // 8) * 8
    whole = torch.full((*batch, shape[0], pitch), float("nan"), dtype=dtype)
    whole[..., : shape[1]] = torch.randn(*batch, *shape)
    x = whole.to(device)[..., : shape[1]]
    return x.transpose(-1, -2) if along_rows else x


def operands(layout, M, N, K, dtype=torch.bfloat16, device="cpu", batch=((), ())):
    """a (M, K), b (K, N). layout: "nt" is x wᵀ, "nn" is dy w, "tn" is dyᵀ x."""
    a = matrix(M, K, layout[0] == "t", dtype, device, batch[0])
    b = matrix(K, N, layout[1] == "t", dtype, device, batch[1])
    return a, b


def choose(tile=SMALL, group=2, split=False, adjust=0):
    return Choice(tile, group, split, adjust)


def scale_of(a, b):
    """The size of what is added up: of Σ |a| |b|, the largest."""
    return (a.abs().double() @ b.abs().double()).max()


def slope_of(x, form):
    x = x.double().requires_grad_()
    F.gelu(x, approximate=FORMS[form]).sum().backward()
    return x.grad


def expected(a, b, *, bias=None, activation=None, slope_at=None, slope="gelu_tanh", residual=None):
    """(result, argument of the activation) in float64."""
    c = a.double() @ b.double()
    if bias is not None:
        c = c + bias.double()
    pre = c
    if activation:
        c = F.gelu(c, approximate=FORMS[activation])
    if slope_at is not None:
        c = c * slope_of(slope_at, slope)
    if residual is not None:
        c = c + residual.double()
    return c, pre
