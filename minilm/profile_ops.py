"""What a training step is made of: every tensor operation, its class, its bytes and its FLOPs.

    GEMM               matrix products                              work grows faster than data
    softmax/reduction  sums, maxima, norms, softmax                 every element is read, few stay
    element-wise       additions, activations, optimizer            every element is on its own
    gather/scatter     embedding, picking the target's logit        ids say which rows
    copy               copies, conversions, concatenation, filling  no arithmetic at all

The counts are those of the operations one by one, as PyTorch runs them: whoever fuses two of them
saves what the first writes and the second reads. Attention is taken apart into its two products and
its softmax. Operations that only look at the same memory in another way (view, transpose, slice)
move nothing and are not counted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from . import ops

GEMM, REDUCTION, ELEMENTWISE = "GEMM", "softmax/reduction", "element-wise"
GATHER, COPY = "gather/scatter", "copy"
CLASSES = (GEMM, REDUCTION, ELEMENTWISE, GATHER, COPY)

# Class → operation → arithmetic operations per element (of the largest tensor), where an addition,
# a product, a comparison and a function such as exp or √ count as one each. In-place forms
# (`add_`) and those for lists of tensors (`_foreach_add`) go by the same name.
_TABLE = {
    GEMM: dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), 0),  # by their shapes instead
    REDUCTION: {
        **dict.fromkeys(("sum", "mean", "amax", "amin", "max", "min", "argmax", "all", "any"), 1),
        **dict.fromkeys(("aminmax", "norm", "linalg_vector_norm", "var", "logsumexp"), 2),
        **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), 5),
        **dict.fromkeys(("_softmax_backward_data", "_log_softmax_backward_data"), 4),
        "native_layer_norm": 8,
        "native_layer_norm_backward": 14,
        "_fused_rms_norm": 5,
        "_fused_rms_norm_backward": 10,
    },
    ELEMENTWISE: {
        **dict.fromkeys(
            ("add", "sub", "rsub", "mul", "div", "neg", "abs", "sign", "reciprocal"), 1
        ),
        **dict.fromkeys(("exp", "log", "sqrt", "rsqrt", "pow", "sin", "cos", "tanh", "erf"), 1),
        **dict.fromkeys(("sigmoid", "clamp", "clamp_min", "maximum", "minimum"), 1),
        **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "bitwise_and", "bitwise_or"), 1),
        **dict.fromkeys(("bitwise_not", "logical_and", "logical_not", "isfinite"), 1),
        **dict.fromkeys(("where", "masked_fill", "tril", "triu", "bernoulli"), 1),
        **dict.fromkeys(("lerp", "addcmul", "addcdiv"), 3),
        **{"gelu": 5, "gelu_backward": 10, "silu": 4, "silu_backward": 8},
        **{"native_dropout": 2, "native_dropout_backward": 2, "tanh_backward": 3},
    },
    GATHER: {
        **dict.fromkeys(("embedding", "index", "index_select", "gather"), 0),
        **dict.fromkeys(("embedding_dense_backward", "index_put", "index_add", "scatter"), 1),
        **dict.fromkeys(("scatter_add", "nll_loss_forward", "nll_loss_backward"), 1),
    },
    COPY: dict.fromkeys(
        "clone copy _to_copy cat stack slice_backward select_backward constant_pad_nd repeat fill "
        "zero zeros ones full zeros_like ones_like full_like new_zeros arange scalar_tensor "
        "_local_scalar_dense lift_fresh".split(),
        0,
    ),
}
OPERATIONS = {name: (kind, n) for kind, table in _TABLE.items() for name, n in table.items()}
# Nothing is moved: views that do not say so in their signature, and memory without contents.
NO_WORK = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
OVERWRITES = {"copy_", "fill_", "zero_", "bernoulli_"}  # in place, without reading the old contents


class Row(NamedTuple):
    """One executed operation. kind: a class, or None where `OPERATIONS` does not know it."""

    name: str
    kind: str | None
    bytes_read: int
    bytes_written: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written


class Total(NamedTuple):
    """The operations of one class together."""

    calls: int
    bytes: int
    flops: int

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass
class Profile:
    """All operations of a run, in order."""

    rows: list[Row] = field(default_factory=list)

    @property
    def unknown(self) -> list[str]:
        """The names of operations without a class."""
        return sorted({row.name for row in self.rows if row.kind is None})

    def check(self) -> "Profile":
        """The profile itself; ValueError names the operations that have no class."""
        if self.unknown:
            raise ValueError(f"profile: no class is known for {', '.join(self.unknown)}")
        return self

    def total(self, kind: str | None = None) -> Total:
        """The sum over one class, or over everything."""
        rows = [row for row in self.rows if kind is None or row.kind == kind]
        return Total(len(rows), sum(row.bytes for row in rows), sum(row.flops for row in rows))

    def by_class(self) -> dict[str, Total]:
        """The sum over each class, in the order of `CLASSES`; ValueError as `check`."""
        self.check()
        return {kind: self.total(kind) for kind in CLASSES}

    def __str__(self) -> str:
        head = f"{'class':<18} {'calls':>6} {'bytes':>15} {'FLOPs':>17} {'FLOPs/byte':>11}"
        lines = [
            f"{kind:<18} {t.calls:>6} {t.bytes:>15,} {t.flops:>17,} {t.intensity:>11.2f}"
            for kind, t in self.by_class().items()
        ]
        return "\n".join([head, *lines])


def profile(function: Callable[[], Any]) -> Profile:
    """Run function() and note each tensor operation in it, those of its backward passes included.

    It sees what PyTorch computes; kernels of the numba backend, which PyTorch does not run, count
    themselves (`Kernel.report`), so that ValueError is raised inside that backend.
    """
    if ops.backend() != "torch":
        raise ValueError(f"backend: must be 'torch' for a profile, got {ops.backend()!r}")
    recorder = _Recorder()
    with sdpa_kernel(SDPBackend.MATH), recorder:
        function()
    return recorder.profile


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.profile = Profile()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function.namespace != "profiler" and not _is_free(function):
            self.profile.rows.append(_row(function, args, kwargs, result))
        return result


def _base_name(function) -> str:
    """aten.add_.Tensor and aten._foreach_add.List are both "add"."""
    name = function._schema.name.partition("::")[2]
    return name.removeprefix("_foreach_").removesuffix("_")


def _is_free(function) -> bool:
    """Whether the operation moves nothing: a view, or memory without contents."""
    looks = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
    return looks or _base_name(function) in NO_WORK


def _row(function, args: tuple, kwargs: dict, result: Any) -> Row:
    name = _base_name(function)
    kind, per_element = OPERATIONS.get(name, (None, 0))
    read, written, sizes = [], [], [0]
    schema = function._schema
    given = [*zip(schema.arguments, args, strict=False)]
    given += [(a, kwargs[a.name]) for a in schema.arguments if a.name in kwargs]
    for argument, value in given:
        tensors = list(_tensors(value))
        changed = argument.alias_info is not None and argument.alias_info.is_write
        written += tensors if changed else []
        if not (changed and schema.name.partition("::")[2] in OVERWRITES):
            read += tensors
        sizes.append(sum(t.numel() for t in tensors))
    results = (result,) if len(schema.returns) == 1 else result or ()
    for declared, value in zip(schema.returns, results, strict=True):
        if declared.alias_info is None:
            written += _tensors(value)
    sizes.append(sum(t.numel() for t in written))
    if name.endswith("_like") or name.startswith("new_"):
        read = []  # of the model only the shape is read
    bytes_read = sum(map(_bytes, read)) - _not_read(name, args, result)
    flops = _gemm_flops(name, args, result) if kind == GEMM else per_element * max(sizes)
    if name.startswith("nll_loss"):
        flops = per_element * _nll_targets(name, args).numel()
    elif name == "embedding_dense_backward":
        flops = per_element * args[0].numel()
    return Row(str(function), kind, bytes_read, sum(map(_bytes, written)), flops)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _bytes(t: Tensor) -> int:
    """Bytes of the distinct elements: an expanded axis (stride 0) is one and the same memory."""
    n = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        n *= size if stride or not size else 1
    return n * t.itemsize


def _nll_targets(name: str, args: tuple) -> Tensor:
    return args[1] if name == "nll_loss_forward" else args[2]


def _not_read(name: str, args: tuple, result: Any) -> int:
    """Bytes of arguments that a gather does not touch: of the table only the chosen rows count."""
    if name in ("embedding", "index", "index_select", "gather"):
        return _bytes(args[0]) - result.numel() * result.itemsize
    if name == "nll_loss_forward":
        return _bytes(args[0]) - args[1].numel() * args[0].itemsize
    if name == "nll_loss_backward":
        return _bytes(args[1])
    return 0


def _gemm_flops(name: str, args: tuple, result: Tensor) -> int:
    """2 M N K, and one addition for each element of what is added."""
    added = name in ("addmm", "baddbmm")
    return result.numel() * (2 * args[added].shape[-1] + added)
