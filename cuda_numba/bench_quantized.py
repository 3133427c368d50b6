"""What `bench` measures of linear layers with int8, int4 and fp8 weights: from 1 row to 64.

The value of a row is the bytes of codes and scales over the time, and so is a peer's: the ratio of
two values is the ratio of two times. The dense product reads 2 bytes for each weight.
"""

from collections.abc import Callable, Iterator

import torch

from .bench_cases import Case, inputs, module, over, randn, relative_error

SQUARE = (8192, 8192)
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))  # (N, K) of a model with 7 B weights
ROWS = (1, 2, 4, 8, 16, 32, 64)
GROUP = 128
CHECKED_COLUMNS = 512
# Times of the dense product for one row, by which it has to be exceeded there.
GOALS = {"int8_linear": 1.8, "int4_linear": 3.3, "fp8_linear": 1.8}
QUANTIZERS = {
    "int8_linear": "quantize_int8",
    "int4_linear": "quantize_int4",
    "fp8_linear": "quantize_fp8",
}


def in_turn(sets: list[tuple], fn: Callable) -> Callable[[int], object]:
    """fn on the arguments of a set; a peer with larger sets may have fewer than the case."""
    return lambda i: fn(*sets[i % len(sets)])


def dense_peer(M: int, N: int, K: int) -> Callable[[int], object]:
    sets = inputs(2 * N * K, lambda: (randn(M, K), randn(N, K)))
    return in_turn(sets, lambda x, w: torch.mm(x, w.T))


def int4_peer(M: int, N: int, K: int) -> Callable[[int], object]:
    """tinygemm, in torch; its own packing, a scale and a zero for each group."""

    def make() -> tuple:
        nibbles = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device="cuda")
        packed = torch.ops.aten._convert_weight_to_int4pack(nibbles, 8)
        return randn(M, K), packed, GROUP, randn(K // GROUP, N, 2)

    return in_turn(inputs(N * K // 2, make), torch.ops.aten._weight_int4pack_mm)


def int8_peer(M: int, N: int, K: int) -> Callable[[int], object]:
    def make() -> tuple:
        w = torch.randint(-127, 128, (N, K), dtype=torch.int8, device="cuda")
        return randn(M, K), w, randn(N)

    return in_turn(inputs(N * K, make), torch._weight_int8pack_mm)


def fp8_peer(M: int, N: int, K: int) -> Callable[[int], object]:
    """x in fp8 as well: another operation, on the same weights."""
    one = torch.ones((), device="cuda")

    def make() -> tuple:
        return tuple(randn(*shape).to(torch.float8_e4m3fn) for shape in ((M, K), (N, K)))

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch._scaled_mm(x, w.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return in_turn(inputs(N * K, make), product)


PEERS = {
    "int4_linear": ("torch tinygemm int4", int4_peer),
    "int8_linear": ("torch int8pack", int8_peer),
    "fp8_linear": ("torch scaled_mm fp8", fp8_peer),
}


def peers_of(op: str, M: int, N: int, K: int) -> dict[str, Callable[[int], object]]:
    """The dense product, and torch's own kernel where it runs for this shape."""
    peers = {"torch bf16": dense_peer(M, N, K)}
    name, make = PEERS[op]
    try:
        call = make(M, N, K)
        call(0)
        peers[name] = call
    except RuntimeError as error:
        print(f"{op} {M} × {N} × {K}: {name} does not run: {str(error).splitlines()[0]}")
    return peers


def error_of(op: Callable, x: torch.Tensor, quantized: object) -> Callable[[], float]:
    """Against float64 on some of the columns."""

    def error() -> float:
        got = op(x, quantized.q, quantized.scales)[:, :CHECKED_COLUMNS]
        w = quantized.dequantize(torch.float64)[:CHECKED_COLUMNS]
        return relative_error(got, x.double() @ w.T)

    return error


def linear_cases(op: str) -> Iterator[Case]:
    m, quantize = module("quantized"), getattr(module("quantize"), QUANTIZERS[op])
    function = getattr(m, op)
    for (N, K), rows in ((SQUARE, ROWS), *((shape, (1,)) for shape in SHAPES)):
        nbytes = N * K // 2 if op == "int4_linear" else N * K
        sets = inputs(nbytes, lambda N=N, K=K: (quantize(randn(N, K)),))
        nbytes = sets[0][0].nbytes
        for M in rows:
            x = randn(M, K)

            def ours(quantized: object, x: torch.Tensor = x) -> torch.Tensor:
                return function(x, quantized.q, quantized.scales)

            def fma(quantized: object, x: torch.Tensor = x) -> torch.Tensor:
                return m.linear_by("rows", x, quantized)

            yield Case(
                op, "forward", {"M": M, "N": N, "K": K}, "bfloat16", nbytes, over(sets, ours),
                error_of(function, x, sets[0][0]), len(sets), peers_of(op, M, N, K),
                {"fma": over(sets, fma)} if M <= 8 else {},
                beats={"torch bf16": GOALS[op]} if (M, N, K) == (1, *SQUARE) else {},
            )  # fmt: skip


CASES = {op: lambda op=op: linear_cases(op) for op in GOALS}
