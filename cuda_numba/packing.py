"""Check and pack the arguments of a launch: the code for one signature, written out and compiled.

For `def add(a, b, out, n)` with three float32 pointers and an int32 it is

    def add(a, b, out, n):
        try:
            if current[0] is compiled and not logs and (n.__class__ is int or fits_n(n)):
                result = native(function, gx, …, a, b, out, n)
                if not result:
                    return
            else:
                result = None
        except ERRORS as error:
            result = error
        return otherwise(result, …, hook, (a, b, out, n))

The native function checks the tensors, whose description is one C call each (native.py, dlpack.py).
So a launch that is right costs little more than the driver's own call, and everything else is
sorted out, and explained, in `otherwise` (launch.py).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba.core import types

from . import dlpack
from .arguments import Parameter, argument_type, is_array, number_type
from .dtypes import IN_KERNEL, itemsize
from .native import Tensor

# What a value of the wrong kind, or a kernel with nothing loaded, can raise on the fast path.
ERRORS = (
    AttributeError, BufferError, IndexError, OverflowError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
CONFIG = ("gx", "gy", "gz", "bx", "by", "bz", "shared", "stream", "attributes", "count")


@dataclass(frozen=True)
class Argument:
    """How one argument is checked and passed."""

    parameter: Parameter
    type: Any  # the Numba type
    codes: tuple[str, ...]  # of native.py for numbers, several for a tuple; none for a tensor

    @property
    def name(self) -> str:
        return self.parameter.name

    @property
    def is_array(self) -> bool:
        return isinstance(self.type, types.CPointer | types.Array)

    def dtypes(self) -> list:
        """The torch dtypes of tensors that this argument may be."""
        import torch

        element, allowed = str(self.type.dtype), self.parameter.allowed
        names = [n for n, kernel in IN_KERNEL.items() if kernel == _element_name(element)]
        names = [n for n in names if allowed is None or n in allowed]
        return [getattr(torch, name) for name in names if hasattr(torch, name)]

    def fits(self, value: Any) -> bool:
        """Whether a number is one that this argument's type stands for."""
        try:
            return not is_array(value) and number_type("", self.parameter, value) == self.type
        except (TypeError, ValueError):
            return False

    def problem(self, kernel: str, value: Any, device: int) -> Exception | None:
        """What is wrong with a value, or None."""
        where = f"{kernel}: {self.name}"
        if is_array(value) != self.is_array and isinstance(value, bool | int | float | np.generic):
            return TypeError(f"{where} is a number ({value!r}), expected a tensor")
        if is_array(value) and not self.is_array:
            return TypeError(
                f"{where} is a {type(value).__name__}, expected a number ({self.type})"
            )
        try:
            pointers = isinstance(self.type, types.CPointer)
            kind = argument_type(kernel, self.parameter, value, pointers)
        except (TypeError, ValueError) as error:
            return error
        if is_array(value) and self.is_array:
            if not hasattr(value, "data_ptr"):
                return TypeError(f"{where} is {type(value).__name__}, expected a tensor on a GPU")
            if value.get_device() != device:
                return ValueError(f"{where} is on {value.device}, the launch is on cuda:{device}")
        if kind != self.type and not self._takes(kind):
            return TypeError(f"{where} is {kind}, this kernel was compiled for {self.type}")
        return None

    def _takes(self, kind):
        """Code for any strides runs on a contiguous array as well."""
        mine = self.type
        if not (isinstance(mine, types.Array) and isinstance(kind, types.Array)):
            return False
        same = (mine.dtype, mine.ndim) == (kind.dtype, kind.ndim)
        return same and mine.layout in ("A", kind.layout)


def arguments_of(declared: tuple[Parameter, ...], signature: tuple) -> tuple[Argument, ...]:
    """One `Argument` for each parameter.

    Raises TypeError for a type that cannot be passed to a kernel.
    """
    return tuple(
        Argument(parameter, kind, _codes(parameter.name, kind))
        for parameter, kind in zip(declared, signature, strict=True)
    )


def layout_of(arguments: tuple[Argument, ...], device: int) -> tuple[str | Tensor, ...]:
    """The layout for native.py, of a launch on a device: its index, or −1 for the CPU."""
    return tuple(
        part
        for argument in arguments
        for part in ([_tensor(argument, device)] if argument.is_array else argument.codes)
    )


def _tensor(argument, device):
    kind = argument.type
    formats = tuple(map(dlpack.format_word, argument.dtypes()))
    size = itemsize(_element_name(str(kind.dtype)))
    if isinstance(kind, types.CPointer):
        return Tensor(dlpack.device_word(device), formats, size)
    contiguous = kind.layout == "C"
    return Tensor(dlpack.device_word(device), formats, size, kind.ndim, contiguous)


def _codes(name, kind):
    if isinstance(kind, types.CPointer | types.Array):
        return ()
    if isinstance(kind, types.BaseTuple):
        return tuple(code for part in kind for code in _codes(name, part))
    if isinstance(kind, types.Boolean):
        return ("b1",)
    if isinstance(kind, types.Integer):
        return (f"{'i' if kind.signed else 'u'}{kind.bitwidth // 8}",)
    if isinstance(kind, types.Float):
        return ("u2",) if kind.bitwidth == 16 else (f"f{kind.bitwidth // 8}",)
    raise TypeError(f"{name}: a {kind} cannot be passed to a kernel; pass numbers and tensors")


def _element_name(name):
    return "bool" if name in ("boolean", "bool_") else name


def half_bits(value: float) -> int:
    """A float16 as it lies in memory."""
    return int.from_bytes(struct.pack("<e", value), "little")


def generate(kernel: str, arguments: tuple[Argument, ...], device: int, *, compiled: Any,
             native: Callable, function: int, current_stream: Callable, otherwise: Callable,
             current_device: Callable | None = None) -> Callable:  # fmt: skip
    """The function `bind(gx, gy, gz, bx, by, bz, shared, stream, attributes, count, hook, current,
    logs)`, which returns a launcher for that configuration.

    compiled          what current[0] has to be for the short way
    native            of native.py, for the layout of the arguments
    function          the kernel's CUfunction
    current_stream    device → the raw stream to launch on where `stream` is 0
    current_device    compared with `device` at each launch; None: there is only one
    otherwise         called with (result, configuration, hook, arguments) when a launch is not
                      plainly right: result is the native function's, an exception, or None where a
                      check failed

    current and logs are looked at at each launch: who holds a launcher holds the right one.
    """
    prefix = "_"
    while any(a.name.startswith(prefix) for a in arguments):
        prefix += "_"
    names = {
        "compiled": compiled, "native": native, "function": function, "ERRORS": ERRORS,
        "current_stream": current_stream, "current_device": current_device,
        "otherwise": otherwise, "half": half_bits,
    }  # fmt: skip
    checks, values = [f"{prefix}current[0] is {prefix}compiled", f"not {prefix}logs"], []
    for argument in arguments:
        check, value = _source(argument, prefix, names)
        checks += check
        values += value
    if current_device is not None:
        checks.append(f"{prefix}current_device() == {device}")
    configuration = ", ".join(prefix + name for name in CONFIG)
    chosen = f"{prefix}stream or {prefix}current_stream({device})"
    passed = configuration.replace(f"{prefix}stream", chosen)
    plain = ", ".join(a.name for a in arguments)
    name = kernel if kernel.isidentifier() and not kernel.startswith(prefix) else "kernel"
    lines = [
        f"def {prefix}bind({configuration}, {prefix}hook, {prefix}current, {prefix}logs):",
        f"    def {name}({plain}):",
        "        try:",
        f"            if {' and '.join(checks)}:",
        f"                {prefix}result = {prefix}native(",
        f"                    {', '.join([prefix + 'function', passed, *values])})",
        f"                if not {prefix}result:",
        "                    return",
        "            else:",
        f"                {prefix}result = None",
        f"        except {prefix}ERRORS as {prefix}error:",
        f"            {prefix}result = {prefix}error",
        f"        return {prefix}otherwise({prefix}result, ({configuration}), {prefix}hook, "
        f"({plain}{',' if plain else ''}))",
        f"    return {name}",
    ]
    scope = {prefix + name: value for name, value in names.items()}
    exec(compile("\n".join(lines), f"<launch of {kernel}>", "exec"), scope)
    return scope[prefix + "bind"]


# The class whose values need no closer look, for a Numba type.
def _quick(argument):
    kind, free = argument.type, argument.parameter.allowed is None
    if isinstance(kind, types.Boolean):
        return "bool"
    if isinstance(kind, types.Integer) and (not free or kind == types.int64):
        return "int"
    if isinstance(kind, types.Float) and (not free or kind == types.float64):
        return "float"
    return None


def _source(argument, prefix, names):
    """(conditions, values) as Python source; objects that they name go into `names`."""
    name = argument.name
    if argument.is_array:
        return [], [name]
    label = f"fits_{name}"
    names[label] = argument.fits
    check = f"{prefix}{label}({name})"
    if isinstance(argument.type, types.BaseTuple):
        return [check], [_passed(f"{name}[{i}]", part, prefix) for i, part in
                         enumerate(argument.type)]  # fmt: skip
    if quick := _quick(argument):
        check = f"({name}.__class__ is {quick} or {check})"
    return [check], [_passed(name, argument.type, prefix)]


def _passed(source, kind, prefix):
    is_half = isinstance(kind, types.Float) and kind.bitwidth == 16
    return f"{prefix}half({source})" if is_half else source
