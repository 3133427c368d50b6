"""What the sanitizer watches of the quantised products: every kernel, every kind of codes, once."""

import torch

from .sanitizer_inputs import HALVES, module, randn, take

SHAPES = ((1, 5, 33), (8, 33, 130), (11, 20, 640))  # (rows, N, K)
KINDS = ("int8", "int4", "e4m3", "e5m2")


def quantized_linear(dtype: torch.dtype, device: str) -> None:
    """Every rung, every kind of codes."""
    m, quantize = module("quantized"), module("quantize")
    quantizers = {
        "int8": quantize.quantize_int8,
        "int4": quantize.quantize_int4,
        "e4m3": quantize.quantize_fp8,
        "e5m2": lambda w: quantize.quantize_fp8(w, "e5m2"),
    }
    for rows, N, K in SHAPES:
        x = randn(rows, K, dtype=dtype, device=device)
        for kind in KINDS:
            codes = quantizers[kind](torch.randn(N, K).to(device))
            for rung in m.RUNGS:
                if rung != "few" or rows <= m.FEW_ROWS:
                    take(m.linear_by(rung, x, codes))


def quantized_parts(dtype: torch.dtype, device: str) -> None:
    """K divided between blocks, and the kernel that adds up what they leave."""
    m, quantize = module("quantized"), module("quantize")
    x = randn(9, 4096, dtype=dtype, device=device)
    for quantizer in (quantize.quantize_int8, quantize.quantize_int4):
        take(m.linear_by("tiles", x, quantizer(torch.randn(20, 4096).to(device))))


OPERATIONS = (quantized_linear, quantized_parts)
DTYPES_OF = {quantized_linear: HALVES, quantized_parts: HALVES}
