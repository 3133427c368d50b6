"""What tests of copies and tensor cores share: tiles, devices, and what a report found."""

import inspect

import numpy as np
import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
devices = pytest.mark.parametrize("device", DEVICES)


def findings(report):
    """What a report found wrong."""
    return [f for f in report.findings if f.kind != "untyped"]


def line_of(kernel, text):
    """The line of a kernel's file that holds `text` first."""
    lines, first = inspect.getsourcelines(kernel)
    return first + next(k for k, line in enumerate(lines) if text in line)


def on(device, *arrays):
    """Tensors there, over copies of the arrays."""
    return [torch.from_numpy(a.copy()).to(device) for a in arrays]


def boxes(x, box, place):
    """The box of `x` that begins at `place`, zeros outside."""
    out = np.zeros(box, x.dtype)
    inside = tuple(
        slice(max(p, 0), max(min(p + b, n), 0)) for p, b, n in zip(place, box, x.shape, strict=True)
    )
    found = x[inside]
    if found.size:
        at = tuple(
            slice(max(-p, 0), max(-p, 0) + n) for p, n in zip(place, found.shape, strict=True)
        )
        out[at] = found
    return out


def swizzle(data, span):
    """Bytes in rows of `span` as the manual's tables put them: 16-byte piece c of 128-byte line l
    goes to piece c ^ (l mod 8), with 64 and 32 bytes fewer bits of the line number."""
    mask = {32: 1, 64: 3, 128: 7}[span]
    lines = data.reshape(-1).view(np.uint8).reshape(-1, 8, 16)
    out = np.empty_like(lines)
    for number, line in enumerate(lines):
        for piece in range(8):
            out[number, piece ^ (number & mask)] = line[piece]
    return out.reshape(-1)
