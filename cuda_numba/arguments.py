"""The arguments of a launch: what each may be, and the Numba type that the kernel is compiled for.

A parameter's annotation, if it is a string or a tuple of strings, is checked at every launch. For a
tensor it names the formats that are allowed; for a number it is the type that the number is cast
to, so that `n: "int32"` keeps 64-bit arithmetic out of a kernel. Unannotated numbers are int64 and
float64, as in Numba.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba.core import types

from .dtypes import IN_KERNEL, dtype_name, kernel_dtype

SCALARS = {
    name: getattr(types, name)
    for name in (
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
} | {"bool": types.boolean}
NUMBERS = bool | int | float | np.generic


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel; allowed: the formats of its annotation, None where it has none."""

    name: str
    allowed: tuple[str, ...] | None


def parameters(fn: Any) -> tuple[Parameter, ...]:
    """The parameters of a kernel's function, with what their annotations allow.

    Raises TypeError for an annotation that names no format.
    """
    found = []
    for name, parameter in inspect.signature(fn).parameters.items():
        note = parameter.annotation
        if isinstance(note, str):
            note = (note,)
        is_names = isinstance(note, tuple) and all(isinstance(n, str) for n in note)
        if is_names and (unknown := [n for n in note if n not in IN_KERNEL]):
            raise TypeError(
                f"{fn.__name__}: parameter {name} is annotated {unknown[0]!r}, "
                f"allowed are {', '.join(IN_KERNEL)}"
            )
        found.append(Parameter(name, note if is_names else None))
    return tuple(found)


def is_array(value: Any) -> bool:
    """Whether a value is a tensor or an array, not a number."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, np.generic)


def is_cuda(value: Any) -> bool:
    """Whether a value lives on a GPU."""
    return bool(getattr(value, "is_cuda", False)) or hasattr(value, "__cuda_array_interface__")


@cache
def array_type(dtype: str, ndim: int, contiguous: bool) -> types.Array:
    return types.Array(scalar_type(dtype), ndim, "C" if contiguous else "A")


@cache
def pointer_type(dtype: str) -> types.CPointer:
    return types.CPointer(scalar_type(dtype))


def scalar_type(dtype: str) -> Any:
    """The Numba type of an element in a kernel."""
    name = kernel_dtype(dtype)
    return (
        types.complex64
        if name == "complex64"
        else (types.complex128 if name == "complex128" else SCALARS[name])
    )


def is_contiguous(value: Any) -> bool:
    if hasattr(value, "is_contiguous"):
        return value.is_contiguous()
    flags = getattr(value, "flags", None)
    return flags is None or bool(flags["C_CONTIGUOUS"])


def argument_type(kernel: str, parameter: Parameter, value: Any, pointers: bool) -> Any:
    """The Numba type of one argument.

    Raises TypeError or ValueError that names the kernel and the parameter.
    """
    if is_array(value):
        name = dtype_name(value)
        where = f"{kernel}: {parameter.name}"
        if parameter.allowed is not None and name not in parameter.allowed:
            raise TypeError(f"{where} is {name}, allowed are {', '.join(parameter.allowed)}")
        if name not in IN_KERNEL:
            raise TypeError(f"{where} is {name}, kernels take {', '.join(IN_KERNEL)}")
        contiguous = is_contiguous(value)
        if pointers:
            if not contiguous:
                raise ValueError(
                    f"{where} is not contiguous (strides {tuple(strides(value))}), but the kernel "
                    f"takes a bare pointer to it; pass {parameter.name}.contiguous()"
                )
            return pointer_type(name)
        return array_type(name, len(value.shape), contiguous)
    return number_type(kernel, parameter, value)


def strides(value: Any) -> Any:
    return value.stride() if callable(getattr(value, "stride", None)) else value.strides


def number_type(kernel: str, parameter: Parameter, value: Any) -> Any:
    where = f"{kernel}: {parameter.name}"
    if isinstance(value, tuple):
        for i, part in enumerate(value):
            if not isinstance(part, NUMBERS | tuple):
                raise TypeError(
                    f"{where} is a tuple whose part {i} is {type(part).__name__}; a tuple may hold "
                    "numbers only: pass tensors and arrays as arguments of their own"
                )
        return types.Tuple([number_type(kernel, Parameter(parameter.name, None), v) for v in value])
    if not isinstance(value, NUMBERS):
        raise TypeError(f"{where} is {type(value).__name__}, expected a tensor, array or number")
    if parameter.allowed is not None:
        if len(parameter.allowed) > 1 or parameter.allowed[0] not in SCALARS:
            raise TypeError(f"{where} is a number, expected a tensor of {parameter.allowed}")
        wanted = SCALARS[parameter.allowed[0]]
        if isinstance(wanted, types.Integer):
            if not isinstance(value, int | np.integer):
                raise TypeError(f"{where} is {value!r}, expected an integer ({wanted})")
            if not wanted.minval <= value <= wanted.maxval:
                raise ValueError(f"{where} is {value}, which does not fit {wanted}")
        return wanted
    if isinstance(value, np.generic):
        return SCALARS[value.dtype.name]
    if isinstance(value, bool):
        return types.boolean
    return types.int64 if isinstance(value, int) else types.float64


def signature_of(
    kernel: str, declared: tuple[Parameter, ...], args: tuple[Any, ...], pointers: bool = False
) -> tuple[Any, ...]:
    """The Numba types of all arguments."""
    if len(args) != len(declared):
        raise TypeError(
            f"{kernel} takes {len(declared)} arguments "
            f"({', '.join(p.name for p in declared)}), it was given {len(args)}"
        )
    return tuple(
        argument_type(kernel, p, value, pointers) for p, value in zip(declared, args, strict=True)
    )


def declared_type(kernel: str, parameter: Parameter, given: Any, pointers: bool) -> Any:
    """The type of a parameter for compiling without arguments.

    given: a Numba type, the name of a format ("float32" for a number or, with [:] added as often as
    it has dimensions, for an array: "float32[:, :]"), or None for what the annotation says.
    """
    if isinstance(given, types.Type):
        return given
    if given is None:
        if parameter.allowed is None:
            raise TypeError(f"{kernel}: no type is known for {parameter.name}; give a signature")
        given = parameter.allowed[0]
    base, bracket, rest = given.partition("[")
    if not bracket:
        return scalar_type(base)
    return pointer_type(base) if pointers else array_type(base, rest.count(":"), True)
