"""Where the parameters are and who works on which part: the tables of one launch for all.

    addresses   tensor → where its parameter, gradient and moments start            (tensors, 3 … 5)
    sizes       tensor → its elements;  decays   tensor → its weight decay
    chunks      block → (tensor, which part of it): CHUNK elements each, the last one of a tensor
                fewer, so that all blocks have about the same work

    tensor   |0                          |1 |2              |3                       …
    block    |0      |1      |2      |3  |4 |5      |6      |7      |8      | …

The tables are made once and kept on the GPU as long as the same tensors come again. 124 million
parameters in 148 tensors: 4.7 KB of addresses, 15,200 chunks.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .dtypes import FLOATS, dtype_name

CHUNK = 8192  # elements of a block: 4 rounds of 256 threads with two 16-byte accesses each
KEPT = 32  # tables that are kept at a time
RESERVE = 2**20  # bytes of host memory for tables that are made while a graph is captured


class Layout(NamedTuple):
    """What depends on the sizes alone."""

    sizes: torch.Tensor  # (tensors,) int64
    decays: torch.Tensor  # (tensors,) float32
    chunks: torch.Tensor  # (chunks, 2) int32


class Group(NamedTuple):
    """Tensors of the same formats: one launch."""

    formats: tuple[str, ...]  # of the columns
    columns: tuple[tuple[torch.Tensor, ...], ...]  # parameters, gradients, moments, …
    decays: tuple[float, ...]


_tables: OrderedDict[Any, Any] = OrderedDict()
_captured: list[Any] = []  # a CUDA graph may replay with them at any time: never freed
_pinned: list[torch.Tensor] = []  # one: what is left of the reserve


def groups_of(
    columns: dict[str, Sequence[torch.Tensor]], weight_decay: float | Sequence[float]
) -> list[Group]:
    """The tensors by format, those without elements left out.

    columns: name of the argument → its tensors; the first are the parameters, and the others must
    have their shapes and device. Raises ValueError or TypeError that names the argument.
    """
    (first, params), *_ = columns.items()
    decays = weight_decay
    if isinstance(decays, int | float):
        decays = (float(decays),) * len(params)
    if len(decays) != len(params):
        raise ValueError(
            f"weight_decay: {len(decays)} numbers for {len(params)} tensors; "
            "it must be one number, or one for each."
        )
    for name, tensors in columns.items():
        if len(tensors) != len(params):
            raise ValueError(
                f"{name}: {len(tensors)} tensors, there must be as many as in {first}, "
                f"{len(params)}."
            )
    found: dict[tuple, list] = {}
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        p = row[0]
        for name, t in zip(columns, row, strict=True):
            if t.shape != p.shape or not t.is_contiguous() or t.device != p.device:
                raise ValueError(_problem(f"{name}[{i}]", t, p))
        if p.numel():
            key = p.device, *(t.dtype for t in row)
            found.setdefault(key, []).append((row, float(decays[i])))
    result = []
    for (_, *dtypes), members in found.items():
        formats = tuple(map(dtype_name, dtypes))
        for name, kind in zip(columns, formats, strict=True):
            if kind not in FLOATS:
                raise TypeError(f"{name}: a tensor is {kind}, allowed are {', '.join(FLOATS)}.")
        rows, own = zip(*members, strict=True)
        result.append(Group(formats, tuple(zip(*rows, strict=True)), own))
    return result


def _problem(name: str, t: torch.Tensor, p: torch.Tensor) -> str:
    if t.shape != p.shape:
        return (
            f"{name}: its shape is {tuple(t.shape)}, it must be the parameter's, {tuple(p.shape)}."
        )
    if t.device != p.device:
        return f"{name}: it is on {t.device}, it must be on the parameter's device, {p.device}."
    return f"{name}: it is not contiguous (strides {t.stride()}), it must be."


def layout_of(group: Group) -> Layout:
    device = group.columns[0][0].device
    sizes = tuple(p.numel() for p in group.columns[0])

    def make():
        parts = [-(-n // CHUNK) for n in sizes]
        chunks = torch.empty(sum(parts), 2, dtype=torch.int32)
        counts = torch.tensor(parts)
        chunks[:, 0] = torch.repeat_interleave(torch.arange(len(sizes)), counts)
        begins = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        chunks[:, 1] = torch.arange(len(chunks)) - begins
        tables = torch.tensor(sizes), torch.tensor(group.decays, dtype=torch.float32), chunks
        return Layout(*(_sent(t, device) for t in tables))

    return _kept((sizes, group.decays), device, make)


def addresses_of(group: Group) -> torch.Tensor:
    """(tensors, columns) int64: the address of every tensor."""
    device = group.columns[0][0].device
    pointees = tuple(t for row in zip(*group.columns, strict=True) for t in row)
    pointers = tuple(t.data_ptr() for t in pointees)

    def make():
        table = _sent(torch.tensor(pointers).view(-1, len(group.columns)), device)
        if device.type == "cpu":
            table.pointees = pointees  # the emulator's addresses are its own
        return table

    return make() if device.type == "cpu" else _kept(pointers, device, make)


def _sent(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device; the host does not wait for it.

    In a graph that is being captured the copy is done by each replay: its source is never freed,
    and comes out of memory that was set aside before, for none can be pinned meanwhile.
    """
    if device.type == "cpu":
        return table
    if not torch.cuda.is_current_stream_capturing():
        if not _pinned or _pinned[0].numel() < RESERVE // 2:
            _pinned[:] = [torch.empty(RESERVE, dtype=torch.uint8, pin_memory=True)]
        return table.pin_memory().to(device, non_blocking=True)
    if not _pinned or _pinned[0].numel() < table.nbytes:
        raise RuntimeError(
            f"params: a graph is being captured, and their tables ({table.nbytes} bytes) are not "
            "on the GPU yet; take one step with tensors of these sizes before."
        )
    staged = _pinned[0][: table.nbytes].view(table.dtype).view(table.shape).copy_(table)
    _pinned[0] = _pinned[0][-(-table.nbytes // 16) * 16 :]
    _captured.append(staged)
    return staged.to(device, non_blocking=True)


def _kept(key: Any, device: torch.device, make: Callable[[], Any]) -> Any:
    """What make() returned for this key, device and stream, or returns now.

    While a graph is captured nothing new is put in: it has no contents before the first replay.
    """
    if device.type == "cpu":
        return make()
    key = key, device.index, torch.cuda.current_stream(device).cuda_stream
    capturing = torch.cuda.is_current_stream_capturing()
    found = _tables.get(key)
    if found is None:
        found = make()
        if not capturing:
            _tables[key] = found
            if len(_tables) > KEPT:
                _tables.popitem(last=False)
    else:
        _tables.move_to_end(key)
    if capturing:
        _captured.append(found)
    return found
