"""Times on a GPU: medians of single calls, contenders in turn, inputs that the cache has not seen.

Each call gets the next of several sets of inputs, together larger than the L2 cache, so that what
is timed is device memory. The host runs ahead of the GPU, so a call's time is the GPU's own.
"""

import functools
import statistics
from collections.abc import Callable

import torch

L2_BYTES = 50 << 20  # of an H100; an A100 has 40 MB
ROUNDS, CALLS = 5, 12
SLEEP_CYCLES = 4_000_000  # about 2 ms: CALLS calls of several launches are queued in less


def sets_for(nbytes: int) -> int:
    """How many sets of inputs of `nbytes` go past the L2 cache three times over."""
    return max(2, min(16, -(-3 * L2_BYTES // max(nbytes, 1))))


def measure(contenders: dict[str, Callable[[int], object]], sets: int) -> dict[str, float]:
    """Median seconds of one call of each contender, called with the number of an input set.

    The contenders take turns in rounds, in both directions, so that a clock that drifts meets all
    of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        for i in range(3):
            call(i % sets)
    for n in range(ROUNDS):
        order = list(contenders) if n % 2 else list(reversed(contenders))
        for name in order:
            times[name] += batch(contenders[name], sets)
    return {name: statistics.median(found) for name, found in times.items()}


def batch(call: Callable[[int], object], sets: int) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * CALLS)]
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP_CYCLES)  # the host fills the queue meanwhile
    for i in range(CALLS):
        events[2 * i].record()
        call(i % sets)
        events[2 * i + 1].record()
    torch.cuda.synchronize()
    return [events[2 * i].elapsed_time(events[2 * i + 1]) / 1e3 for i in range(CALLS)]


def copy_contender(nbytes: int, sets: int) -> Callable[[int], object]:
    """A copy that reads and writes `nbytes` together: the roof of a kernel of that many bytes."""
    half = max(nbytes // 2, 16)
    pairs = [
        (torch.empty(half, dtype=torch.uint8, device="cuda"),
         torch.randint(0, 255, (half,), dtype=torch.uint8, device="cuda"))
        for _ in range(sets)
    ]  # fmt: skip

    def copy(i: int) -> None:
        to, source = pairs[i]
        to.copy_(source)

    return copy


@functools.cache
def matrix_rate() -> float:
    """TFLOP/s of cuBLAS on a bf16 product of 8192³: the roof of kernels that compute."""
    n = 8192
    pairs = [
        tuple(torch.randn(n, n, device="cuda").to(torch.bfloat16) for _ in range(2)) for _ in "ab"
    ]
    seconds = measure({"cuBLAS": lambda i: torch.mm(pairs[i][0], pairs[i][1].T)}, len(pairs))
    return 2 * n**3 / seconds["cuBLAS"] / 1e12
