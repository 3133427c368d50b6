"""One PTX instruction, defined once: its text, its types in a kernel, and what it means in Python.

An `Instruction` is used in three ways. Under Numba CUDA it is a function with a type and a code
generator, and becomes a line of inline PTX. In the emulator its `meaning` runs. In a notebook its
text, signature and attributes can be read, and a pure one can be evaluated.

Signatures are short strings, `"u32x4(array, index)"`, made of
    u8 u16 u32 u64 s32 s64 f32 f64   numbers, cast to that type when the instruction is called
    pred                             a truth value
    u32x4, f32x128                   a tuple of equal numbers, as parameter or as result
    array                            a contiguous array, or a pointer; elements are counted flat
    element                          of the array: float32 for float16 and bfloat16 (uint16) arrays,
                                     else the array's own type
    f32[]                            a float32 array in registers (`cuda.local.array`)
    index                            any integer; it counts elements
    literal                          an integer known when the kernel is compiled
    void                             no result

Nothing here imports numba.cuda: Numba asks any object that it meets in a kernel for
`_numba_type_`, and that is when the typing is built. The code generator is registered when Numba
CUDA types a call, so types can be inferred where numba-cuda is absent.
"""

import re

import numpy as np

from ..dtypes import dtype_name, kernel_dtype

SCALARS = ("u8", "u16", "u32", "u64", "s32", "s64", "f32", "f64", "pred")
SCOPES = ("pure", "thread", "warp", "warpgroup", "block", "cluster")

_NUMBA = {
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "s32": "int32",
    "s64": "int64",
    "f32": "float32",
    "f64": "float64",
    "pred": "boolean",
}


def _unsigned(bits):
    mask = (1 << bits) - 1
    return lambda value: int(value) & mask


def _signed(bits):
    half, mask = 1 << (bits - 1), (1 << bits) - 1
    return lambda value: ((int(value) + half) & mask) - half


# What the emulator hands to a meaning: integers as Python ints of the width, floats as NumPy's.
_CASTS = {
    "u8": _unsigned(8),
    "u16": _unsigned(16),
    "u32": _unsigned(32),
    "u64": _unsigned(64),
    "s32": _signed(32),
    "s64": _signed(64),
    "f32": np.float32,
    "f64": np.float64,
    "pred": bool,
    "index": int,
    "literal": int,
}


# The formats of most arrays, by a short way: a meaning runs once for every emulated thread.
_NAMES = {np.dtype(name): name for name in ("float32", "float16", "uint16", "uint32", "int32")}


def parse_type(text):
    """`"u32x4"` → `("u32", 4)`, `"u32"` → `("u32", None)`, `"void"` → `("void", None)`."""
    scalar, times, count = text.partition("x")
    if times and scalar in SCALARS and count.isdigit():
        return scalar, int(count)
    if text in (*SCALARS, "array", "element", "f32[]", "index", "literal", "void"):
        return text, None
    raise ValueError(f"signature: {text!r} is no type; allowed are {', '.join(SCALARS)}, …")


def parse_signature(text):
    """`"f32(array, index)"` → `(("f32", None), [("array", None), ("index", None)])`."""
    match = re.fullmatch(r"\s*(\w+)\s*\(([^()]*)\)\s*", text)
    if not match:
        raise ValueError(f"signature: {text!r} is not of the form result(parameter, …)")
    result, inside = match.groups()
    return parse_type(result), [parse_type(p.strip()) for p in inside.split(",") if p.strip()]


def require_dtype(x, name, allowed):
    """The name of the element type that a kernel sees of `x`; TypeError if it is not allowed."""
    dtype = _NAMES.get(x.dtype) or kernel_dtype(dtype_name(x))
    if dtype not in allowed:
        raise TypeError(f"x: ptx.{name} takes arrays of {', '.join(allowed)}, this one is {dtype}.")
    return dtype


def require_space(space, name, needed):
    """TypeError unless an address lies in the space that an instruction can reach."""
    if needed and space != needed:
        raise TypeError(f"x: ptx.{name} reaches {needed} memory; this address is {space} memory.")


def _cast_of(kind):
    scalar, count = kind
    cast = _CASTS.get(scalar)
    if cast is None or count is None:
        return cast

    def cast_all(values):
        # Registers that a wgmma owns or has delivered pass as they are: there are many, they have
        # the right type, and they remember where they come from.
        if getattr(values, "in_registers", False):
            return values
        return tuple(cast(v) for v in values)

    return cast_all


def _preparer(name, signature, parameters):
    """A function that casts a call's arguments, spelled out: emulated threads call it often."""
    casts, parts = {}, []
    for k, kind in enumerate(parameters):
        cast = casts[f"c{k}"] = _cast_of(kind)
        if kind == ("f32", None):
            parts.append(f"a{k} if type(a{k}) is c{k} else c{k}(a{k})")
        elif kind[0] in ("u8", "u16", "u32", "u64") and kind[1] is None:
            parts.append(f"int(a{k}) & {2 ** int(kind[0][1:]) - 1}")
        else:
            parts.append(f"c{k}(a{k})" if cast else f"a{k}")
    count = len(parameters)

    def refuse(given):
        raise TypeError(f"ptx.{name} takes {count} arguments, {signature}; it was given {given}.")

    names = "".join(f"a{k}, " for k in range(count))
    body = f"    {names}= args\n" if count else ""
    source = (
        f"def prepare(args):\n    if len(args) != {count}:\n        refuse(len(args))\n{body}"
        f"    return ({''.join(part + ', ' for part in parts)})\n"
    )
    exec(source, casts | {"refuse": refuse}, found := {})
    return found["prepare"]


class Instruction:
    """A PTX instruction: text, types and Python meaning.

    Attributes
    ----------
    name : str
    text : str, or a code generator `text(emitter, *operands)` where the PTX depends on the types
    signature : str; `result` and `parameters` are its parsed parts
    meaning : function. Called with `(*args)` where scope is "pure"; `(warp, rows)` once for 32
        lanes where it is "warp", rows being their argument tuples, and it returns 32 results;
        `(thread, *args)` otherwise
    pure : bool, the result depends on the arguments alone; such a call may be merged or dropped
    convergent : bool, executed by several threads together: it may not move across a branch
    memory : bool, reads or writes memory: no load or store may move across it
    early : bool, writes a result before it has read its last operand
    tied : int, so many leading operand registers are also the result registers, in order
    cc : tuple, the lowest compute capability, (9, 0, "a") for an architecture's own instructions
    flops : int, floating-point operations of one call (of a whole warp where scope is "warp");
        `tensor` says that tensor cores do them
    scope : str, who takes part: "pure", "thread", "warp", "warpgroup", "block" or "cluster"
    switches : bool, the meaning can make a thread wait
    prepare, cast_result : functions that cast a tuple of arguments and a result to the signature's
        types, as the emulator does around a meaning; `cast_result` is None where there is nothing
        to cast
    ulp : float, the documented distance of the hardware's result from the meaning's, in units of
        the last place; 0 where they agree bit for bit
    """

    def __init__(self, name, text, signature, meaning, *, scope, pure=False, convergent=None,
                 memory=None, early=False, tied=0, cc=(7, 5), flops=0, tensor=False,
                 switches=None, ulp=0):  # fmt: skip
        if scope not in SCOPES:
            raise ValueError(f"scope: {scope!r} is not one of {', '.join(SCOPES)}")
        self.name, self.text, self.signature, self.meaning = name, text, signature, meaning
        self.result, self.parameters = parse_signature(signature)
        self.scope, self.pure, self.early, self.tied = scope, pure, early, tied
        in_step = isinstance(text, str) and (".sync" in text or ".aligned" in text)
        self.convergent = in_step if convergent is None else convergent
        self.memory = (not pure) if memory is None else memory
        self.cc, self.flops, self.tensor, self.ulp = cc, flops, tensor, ulp
        self.switches = scope not in ("pure", "thread") if switches is None else switches
        self.prepare = _preparer(name, signature, self.parameters)
        self.cast_result = _cast_of(self.result)
        self.__name__ = self.__qualname__ = name
        self.__module__ = meaning.__module__
        self.__doc__ = meaning.__doc__
        self._type = None

    def __repr__(self):
        return f"<ptx.{self.name}: {self.signature}>"

    def __call__(self, *args):
        raise TypeError(f"ptx.{self.name} is an instruction: it runs inside a kernel only.")

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return self.name  # the name of a module attribute: pickled by reference

    def evaluate(self, *args):
        """The result of a pure instruction, outside a kernel."""
        if self.scope != "pure":
            raise TypeError(f"ptx.{self.name} needs a thread to run on: only pure ones do not.")
        return self.cast_result(self.meaning(*self.prepare(args)))

    def result_type(self, arguments):
        """The Numba type of the result, given those of the arguments that are arrays."""
        from .lowering import element_type, numba_type

        return element_type(arguments) if self.result[0] == "element" else numba_type(self.result)

    @property
    def _numba_type_(self):
        if self._type is None:
            from .lowering import function_type

            self._type = function_type(self)
        return self._type


def instruction(text, signature, *, scope=None, pure=False, name=None, **options):
    """Decorator: make an `Instruction` of its PTX text and of the function that it decorates.

    `text` holds `$0 …`, the result registers first, then the parameters in order (a tuple counts
    as many). It may be a function `text(emitter, *operands)` instead. The options are the
    attributes of `Instruction`; `scope` is "pure" where `pure=True`, else "thread".

    >>> @instruction("cvt.rn.bf16x2.f32 $0, $2, $1;", "u32(f32, f32)", pure=True, cc=(8, 0))
    ... def pack_bf16(lo, hi):
    ...     return ...
    """
    scope = scope or ("pure" if pure else "thread")

    def define(meaning):
        return Instruction(
            name or meaning.__name__, text, signature, meaning, scope=scope, pure=pure, **options
        )

    return define
