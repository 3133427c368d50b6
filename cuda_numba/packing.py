"""Check and pack the arguments of a launch: the code for one signature, written out and compiled.

For `def add(a, b, out, n)` with three float32 pointers and an int32 it is

    def add(a, b, out, n):
        try:
            if (a.dtype is float32 and a.get_device() == 0 and a.is_contiguous() and …
                and (n.__class__ is int or fits(n))):
                result = native(function, gx, …, a.data_ptr(), b.data_ptr(), out.data_ptr(), n)
                if not result:
                    return
            else:
                result = None
        except ERRORS as error:
            result = error
        return otherwise(result, …, (a, b, out, n))

so that a launch that is right costs the checks and one call, and everything else is sorted out, and
explained, in `otherwise` (launch.py).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba.core import types

from .arguments import Parameter, argument_type, is_array, number_type
from .dtypes import IN_KERNEL, itemsize

# What a value of the wrong kind can raise on the fast path.
ERRORS = (AttributeError, TypeError, ValueError, OverflowError, RuntimeError)
CONFIG = ("gx", "gy", "gz", "bx", "by", "bz", "shared", "stream", "attributes", "count")


@dataclass(frozen=True)
class Argument:
    """How one argument is checked and passed."""

    parameter: Parameter
    type: Any  # the Numba type
    codes: tuple[str, ...]  # of native.py; several for a tuple

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


def layout_of(arguments: tuple[Argument, ...]) -> tuple[str, ...]:
    """The layout for native.py."""
    return tuple(code for argument in arguments for code in argument.codes)


def _codes(name, kind):
    if isinstance(kind, types.CPointer):
        return ("p",)
    if isinstance(kind, types.Array):
        size = itemsize(_element_name(str(kind.dtype)))
        return (f"{'c' if kind.layout == 'C' else 'a'}{kind.ndim}:{size}",)
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


def generate(kernel: str, arguments: tuple[Argument, ...], device: int, *, native: Callable,
             function: int, current_stream: Callable, otherwise: Callable,
             current_device: Callable | None = None) -> Callable:  # fmt: skip
    """The function `bind(gx, gy, gz, bx, by, bz, shared, stream, attributes, count, hook)`, which
    returns a launcher for that configuration.

    native            of native.py, for the layout of the arguments
    function          the kernel's CUfunction
    current_stream    device → the raw stream to launch on where `stream` is 0
    current_device    compared with `device` at each launch; None: there is only one
    otherwise         called with (result, configuration, hook, arguments) when a launch is not
                      plainly right: result is the native function's, an exception, or None where a
                      check failed
    """
    prefix = "_"
    while any(a.name.startswith(prefix) for a in arguments):
        prefix += "_"
    names = {
        "native": native, "function": function, "current_stream": current_stream,
        "current_device": current_device, "otherwise": otherwise, "ERRORS": ERRORS,
        "half": half_bits,
    }  # fmt: skip
    checks, values = [], []
    for argument in arguments:
        check, value = _source(argument, device, prefix, names)
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
        f"def {prefix}bind({configuration}, {prefix}hook):",
        f"    def {name}({plain}):",
        "        try:",
        f"            if {' and '.join(checks) or 'True'}:",
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


def _source(argument, device, prefix, names):
    """(conditions, values) as Python source; objects that they name go into `names`."""
    name = argument.name
    if argument.is_array:
        dtypes = argument.dtypes()
        for dtype in dtypes:
            names[_dtype_label(dtype)] = dtype
        same = " or ".join(f"{name}.dtype is {prefix}{_dtype_label(d)}" for d in dtypes)
        checks = [f"({same})" if len(dtypes) > 1 else same or "False"]
        checks.append(f"{name}.get_device() == {device}")
        values = [f"{name}.data_ptr()"]
        if isinstance(argument.type, types.Array):
            values.append(f"{name}.shape")
        if argument.codes[0].startswith("a"):
            values.append(f"{name}.stride()")
        else:
            checks.append(f"{name}.is_contiguous()")
        return checks, values
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


def _dtype_label(dtype):
    return str(dtype).replace(".", "_")
