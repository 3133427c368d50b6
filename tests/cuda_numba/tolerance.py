"""How exact a kernel has to be: one table for all kernel tests, always against float64.

The expected value is the reference in float64 on the very numbers that the kernel was given
(already rounded to the format), so that only the kernel's own arithmetic and its last rounding
remain:

    |got − expected| ≤ relative · |expected| + (absolute + stored · half) · scale
                       + (1 + stored) · smallest

`half` is half a unit in the last place: what one rounding to the format may cost. `relative` is
that and a little more; `absolute` covers cancellation in float32 accumulators; `stored` counts
tensors of that format in between (the y that softmax's backward reads, say). `scale` is the size of
what was added up, by default the largest |expected|; `smallest` is half the distance of the
subnormals.
"""

import contextlib

import torch

SHAPES = [(1, 1), (1, 7), (7, 1), (7, 33), (33, 7), (3, 130), (130, 3)]  # (rows, columns), emulator
GPU_SHAPES = SHAPES + [(33, 130), (130, 1823), (1823, 781), (781, 1823)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

#          relative  absolute  half     smallest
TOLERANCE = {
    torch.float32: (5e-6, 1e-6, 2**-24, 2**-126),  # ex2.approx, rsqrt.approx: 2 ulp, ftz
    torch.float16: (2**-11 * 1.1, 1e-6, 2**-11, 2**-25),
    torch.bfloat16: (2**-8 * 1.05, 1e-6, 2**-8, 2**-126),
    torch.float8_e4m3fn: (2**-4 * 1.01, 1e-6, 2**-4, 2**-10),
    torch.float8_e5m2: (2**-3 * 1.01, 1e-6, 2**-3, 2**-17),
}


def check(name, got, expected64, dtype=None, *, scale=None, stored=0, factor=1.0):
    """Assert that tensor `got` is `expected64` within the table's tolerance for `dtype`.

    dtype: the format whose row of the table counts, by default got's. scale: a number or a tensor
    that broadcasts. factor widens everything: give the reason for it where it is used.
    NaN and infinities must stand at the same places.
    """
    dtype = dtype or got.dtype
    assert got.shape == expected64.shape, f"{name}: shape {got.shape}, not {expected64.shape}"
    assert expected64.dtype == torch.float64, f"{name}: expected is {expected64.dtype}"
    got, expected = got.detach().double().cpu(), expected64.detach().cpu()
    if not expected.numel():
        return
    finite = torch.isfinite(expected)
    special = torch.where(finite, 0.0, expected)
    got_special = torch.where(torch.isfinite(got), 0.0, got)
    same = torch.allclose(got_special, special, rtol=0, atol=0, equal_nan=True)
    assert same, f"{name}: NaN or infinity at other places than expected"
    got, expected = torch.where(finite, got, 0.0), torch.where(finite, expected, 0.0)
    relative, absolute, half, smallest = TOLERANCE[dtype]
    if scale is None:
        scale = expected.abs().max()
    scale = torch.as_tensor(scale, dtype=torch.float64).cpu()
    error = (got - expected).abs()
    allowed = relative * expected.abs() + (absolute + stored * half) * scale
    allowed = (factor * allowed + (1 + stored) * smallest).expand(expected.shape)
    worst = (error / allowed).argmax()
    where = tuple(int(i) for i in torch.unravel_index(worst, expected.shape))
    assert error.flatten()[worst] <= allowed.flatten()[worst], (
        f"{name} {where}: got {got[where]:.9g}, expected {expected[where]:.9g}, "
        f"error {error[where]:.3g}, allowed {allowed[where]:.3g} in {dtype}"
    )


@contextlib.contextmanager
def poisoned():
    """Memory from `torch.empty*` is NaN (−1 in integers) inside: what a kernel forgets shows."""
    owners = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided")]
    owners.append((torch.Tensor, "new_empty"))
    before = [getattr(owner, name) for owner, name in owners]
    for (owner, name), original in zip(owners, before, strict=True):
        setattr(owner, name, _poisoning(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(owners, before, strict=True):
            setattr(owner, name, original)


def _poisoning(original):
    def empty(*args, **kwargs):
        return poison_(original(*args, **kwargs))

    return empty


def poison_(x):
    """Fill x with NaN, or with every bit set where the format has no NaN."""
    if x.dtype == torch.bool:
        return x.fill_(True)
    if x.is_floating_point() and x.itemsize == 1:
        return x.copy_(torch.full(x.shape, float("nan")))
    if x.is_floating_point() or x.is_complex():
        return x.fill_(float("nan"))
    return x.fill_(torch.iinfo(x.dtype).max if not x.dtype.is_signed else -1)


def guarded(shape, dtype, device="cpu", guard=64):
    """A contiguous NaN tensor with `guard` NaN elements on either side, and a check of those.

    Returns (x, intact): intact() is False once anything was written outside x.
    """
    size = 1
    for n in shape:
        size *= n
    whole = poison_(torch.empty(size + 2 * guard, dtype=dtype, device=device))
    x = whole[guard : guard + size].view(shape)
    sides = torch.cat([whole[:guard], whole[guard + size :]])

    def intact():
        now = torch.cat([whole[:guard], whole[guard + size :]])
        return torch.equal(now.view(torch.uint8), sides.view(torch.uint8))

    return x, intact
