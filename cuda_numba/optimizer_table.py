"""Where the parameters are and who works on which part: the tables of one launch for all.

    addresses   tensor → where its parameter, gradient and moments start            (tensors, 3 … 5)
    sizes       tensor → its elements;  decays   tensor → its weight decay
    chunks      block → (tensor, which part of it): equal parts, the last one of a tensor smaller,
                so that all blocks have about the same work

    tensor   |0                          |1 |2              |3                       …
    block    |0      |1      |2      |3  |4 |5      |6      |7      |8      | …

The tables are made once and kept on the GPU as long as the same tensors come again. 124 million
parameters in 148 tensors: 4.7 KB of addresses, 30,400 chunks.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from .dtypes import FLOATS, dtype_name

KEPT = 32  # checks, and tables, that are kept at a time
RESERVE = 2**20  # bytes of host memory for tables that are made while a graph is captured

Columns = Mapping[str, Sequence[torch.Tensor]]  # name of an argument → its tensors


class Layout(NamedTuple):
    """What depends on the sizes alone."""

    sizes: torch.Tensor  # (tensors,) int64
    decays: torch.Tensor  # (tensors,) float32
    chunks: torch.Tensor  # (chunks, 2) int32


class Group(NamedTuple):
    """Tensors of the same formats on one device: one launch. It holds numbers, and no tensor."""

    formats: tuple[str, ...]  # of the columns
    device: torch.device
    members: tuple[int, ...]  # which of the parameters
    sizes: tuple[int, ...]  # their elements
    decays: tuple[float, ...]  # their weight decay
    addresses: tuple[int, ...]  # of a member in every column, then of the next one


class Look(NamedTuple):
    """What the checks of one column look at."""

    addresses: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[torch.Size, ...]
    contiguous: bool  # all of them


_seen: OrderedDict[Any, tuple[tuple[Look, ...], list[Group]]] = OrderedDict()
_tables: OrderedDict[Any, Any] = OrderedDict()
_captured: list[Any] = []  # a CUDA graph may replay with them at any time: never freed
_pinned: list[torch.Tensor] = []  # one: what is left of the reserve
_dtype = attrgetter("dtype")


def groups_of(columns: Columns, weight_decay: float | Sequence[float]) -> list[Group]:
    """The tensors by format, those without elements left out.

    columns: name of the argument → its tensors; the first are the parameters, and the others must
    have their shapes and device. Raises ValueError or TypeError that names the argument.

    What was right is remembered, and by what the tensors are rather than by which objects they
    are: an object may get another shape in place (`p.t_()`, `p.data = …`), and a new one the id and
    the address of one that was freed. So every step reads every address, format and shape, each
    kind for a whole column in one call of `map`, and what follows from them is worked out only when
    one has changed. The device is not read again: no address belongs to two. Nothing is kept alive.
    """
    many = not isinstance(weight_decay, int | float)
    decays = tuple(map(float, weight_decay)) if many else float(weight_decay)
    looks = tuple(_look(name, tensors) for name, tensors in columns.items())
    key = tuple(look.addresses for look in looks), decays
    before = _found(_seen, key)
    if before is not None and before[0] == looks:
        return before[1]
    groups = _checked_groups(columns, looks, decays)
    if all(all(group.addresses) for group in groups):  # "meta" tensors have none to tell them by
        _keep(_seen, key, (looks, groups))
    return groups


def _look(name: str, tensors: Sequence[torch.Tensor]) -> Look:
    try:
        return Look(
            tuple(map(torch.Tensor.data_ptr, tensors)),
            tuple(map(_dtype, tensors)),
            tuple(map(torch.Tensor.size, tensors)),
            all(map(torch.Tensor.is_contiguous, tensors)),
        )
    except TypeError:
        for i, t in enumerate(tensors):
            if not isinstance(t, torch.Tensor):
                raise TypeError(
                    f"{name}[{i}]: got {type(t).__name__}, it must be a tensor."
                ) from None
        raise


def _checked_groups(
    columns: Columns, looks: tuple[Look, ...], decays: float | tuple[float, ...]
) -> list[Group]:
    (first, params), *_ = columns.items()
    if isinstance(decays, float):
        decays = (decays,) * len(params)
    if len(decays) != len(params):
        raise ValueError(
            f"weight_decay: {len(decays)} numbers for {len(params)} tensors; "
            "it must be one number, or one for each."
        )
    devices = [p.device for p in params]
    for (name, tensors), look in zip(columns.items(), looks, strict=True):
        if len(tensors) != len(params):
            raise ValueError(
                f"{name}: {len(tensors)} tensors, there must be as many as in {first}, "
                f"{len(params)}."
            )
        same = look.shapes == looks[0].shapes and [t.device for t in tensors] == devices
        if not same or not look.contiguous:
            raise _problem(name, tensors, params)
    found: dict[tuple, list[int]] = {}
    for i, key in enumerate(zip(devices, *(look.dtypes for look in looks), strict=True)):
        if params[i].numel():
            found.setdefault(key, []).append(i)
    groups = []
    for (device, *dtypes), members in found.items():
        formats = tuple(map(dtype_name, dtypes))
        for name, kind in zip(columns, formats, strict=True):
            if kind not in FLOATS:
                raise TypeError(f"{name}: a tensor is {kind}, allowed are {', '.join(FLOATS)}.")
        sizes = tuple(params[i].numel() for i in members)
        addresses = tuple(look.addresses[i] for i in members for look in looks)
        own = tuple(decays[i] for i in members)
        groups.append(Group(formats, device, tuple(members), sizes, own, addresses))
    return groups


def _problem(
    name: str, tensors: Sequence[torch.Tensor], params: Sequence[torch.Tensor]
) -> Exception:
    """What is wrong with the first tensor of a column that is not as it must be."""
    for i, (t, p) in enumerate(zip(tensors, params, strict=True)):
        if t.shape != p.shape:
            problem = f"its shape is {tuple(t.shape)}, it must be the parameter's, {tuple(p.shape)}"
        elif t.device != p.device:
            problem = f"it is on {t.device}, it must be on the parameter's device, {p.device}"
        elif not t.is_contiguous():
            problem = f"it is not contiguous (strides {t.stride()}), it must be"
        else:
            continue
        return ValueError(f"{name}[{i}]: {problem}.")
    raise AssertionError(f"{name}: nothing is wrong")


def layout_of(group: Group, chunk: int) -> Layout:
    """The tables of a group's sizes; chunk: elements of a block."""

    def make():
        parts = [-(-n // chunk) for n in group.sizes]
        chunks = torch.empty(sum(parts), 2, dtype=torch.int32)
        counts = torch.tensor(parts)
        chunks[:, 0] = torch.repeat_interleave(torch.arange(len(parts)), counts)
        begins = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        chunks[:, 1] = torch.arange(len(chunks)) - begins
        decays = torch.tensor(group.decays, dtype=torch.float32)
        return Layout(
            *(_sent(t, group.device) for t in (torch.tensor(group.sizes), decays, chunks))
        )

    return _kept((group.sizes, group.decays, chunk), group.device, make)


def addresses_of(group: Group, columns: Columns) -> torch.Tensor:
    """(tensors, columns) int64: the address of every tensor of a group of these columns."""

    def make():
        table = torch.tensor(group.addresses).view(len(group.members), len(columns))
        return _sent(table, group.device)

    if group.device.type != "cpu":
        return _kept(group.addresses, group.device, make)
    table = make()  # the emulator's addresses are its own
    table.pointees = tuple(tensors[i] for i in group.members for tensors in columns.values())
    return table


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
    found = _found(_tables, key)
    if found is None:
        found = make()
        if not capturing:
            _keep(_tables, key, found)
    if capturing:
        _captured.append(found)
    return found


def _found(kept: OrderedDict, key: Any) -> Any:
    value = kept.get(key)
    if value is not None:
        kept.move_to_end(key)
    return value


def _keep(kept: OrderedDict, key: Any, value: Any) -> None:
    """Put in, and let go of what has not been used for longest."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > KEPT:
        kept.popitem(last=False)
