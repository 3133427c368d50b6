"""From an `Instruction` to Numba: the type of a call, and the LLVM code with the inline PTX.

Only `numba` is needed for types; `numba.cuda` is imported when it asks for code.
"""

import functools
import warnings

from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.core.typing import signature as typed
from numba.core.typing.templates import AbstractTemplate

from .instruction import _NUMBA

LLVM = {
    "u8": ir.IntType(8),
    "u16": ir.IntType(16),
    "u32": ir.IntType(32),
    "u64": ir.IntType(64),
    "s32": ir.IntType(32),
    "s64": ir.IntType(64),
    "f32": ir.FloatType(),
    "f64": ir.DoubleType(),
}
CONSTRAINT = {
    "u16": "h", "u32": "r", "u64": "l", "s32": "r", "s64": "l", "f32": "f", "f64": "d",
}  # fmt: skip
GLOBAL, SHARED = 1, 3  # LLVM address spaces


def numba_type(kind):
    """The Numba type of a parsed signature type that stands for itself."""
    scalar, count = kind
    if scalar == "void":
        return types.void
    single = getattr(types, _NUMBA[scalar])
    return single if count is None else types.UniTuple(single, count)


def element_type(arguments):
    """What an `element` is, given the Numba types of a call's arguments."""
    array = next(a for a in arguments if isinstance(a, types.Array | types.CPointer))
    return types.float32 if array.dtype in (types.float16, types.uint16) else array.dtype


def _argument_type(instruction, position, arguments):
    """The type to which Numba casts an argument, or an error that says what is allowed."""
    what = f"argument {position + 1} of ptx.{instruction.name}"
    scalar, count = instruction.parameters[position]
    given = arguments[position]
    if scalar == "array":
        if isinstance(given, types.CPointer):
            return given
        if not isinstance(given, types.Array):
            raise TypingError(f"{what} is {given}; it must be an array or a pointer.")
        if given.layout != "C" and not (given.layout == "F" and given.ndim == 1):
            raise TypingError(f"{what} is {given}; it must be a contiguous array.")
        return given
    if scalar == "f32[]":
        if not isinstance(given, types.Array) or (given.dtype, given.ndim) != (types.float32, 1):
            raise TypingError(f"{what} is {given}; it must be a 1-D local array of float32.")
        return given
    if scalar == "index":
        if not isinstance(given, types.Integer):
            raise TypingError(f"{what} is {given}; it must be an integer.")
        return types.unliteral(given)
    if scalar == "literal":
        if not isinstance(given, types.Integer):
            raise TypingError(f"{what} is {given}; it must be a constant integer.")
        # `STAGES - 2` is no literal to Numba, but LLVM folds it before it needs the constant.
        return given if isinstance(given, types.IntegerLiteral) else types.int32
    if count is not None:
        if not isinstance(given, types.BaseTuple) or len(given) != count:
            raise TypingError(f"{what} is {given}; it must be a tuple of {count} {_NUMBA[scalar]}.")
    elif not isinstance(given, types.Number | types.Boolean):
        wanted = "the array's type" if scalar == "element" else _NUMBA[scalar]
        raise TypingError(f"{what} is {given}; it must be a number, cast to {wanted}.")
    return element_type(arguments) if scalar == "element" else numba_type((scalar, count))


def function_type(instruction):
    """The Numba type of an instruction as a callable.

    A code generator is registered when Numba CUDA types a call. Numba's own typing, which needs
    the types only, can use the same object.
    """
    keys, known = {}, set()

    class Template(AbstractTemplate):
        key = instruction
        prefer_literal = any(p[0] == "literal" for p in instruction.parameters)

        def generic(self, args, kws):
            if kws or len(args) != len(instruction.parameters):
                raise TypingError(
                    f"ptx.{instruction.name} takes {len(instruction.parameters)} positional "
                    f"arguments, {instruction.signature}; it was given {len(args) + len(kws)}."
                )
            cast = [_argument_type(instruction, i, args) for i in range(len(args))]
            if instruction.result[0] == "element":
                return typed(element_type(args), *cast)
            return typed(numba_type(instruction.result), *cast)

        def get_impl_key(self, sig):
            if sig.args not in keys:
                keys[sig.args] = _generator(instruction)
            if type(self.context).__module__.startswith("numba.cuda") and sig.args not in known:
                from numba.cuda.core.imputils import lower_builtin

                lower_builtin(keys[sig.args], *sig.args)(keys[sig.args])
                known.add(sig.args)
            return keys[sig.args]

        def get_template_info(self):
            return {
                "kind": "ptx",
                "name": instruction.name,
                "sig": instruction.signature,
                "filename": instruction.__module__,
                "lines": (0, 0),
                "docstring": instruction.__doc__,
            }

    Template.__name__ = f"ptx_{instruction.name}"
    return types.Function(Template)


def _generator(instruction):
    """The code generator of calls of one signature."""

    def generate(context, builder, sig, args):
        return Emitter(instruction, context, builder).call(sig, args)

    return generate


@functools.cache
def _refuse_dropped_instructions():
    """Where LLVM finds no constant it drops the instruction, with no more than a warning."""
    from numba.cuda.cudadrv.nvvm import NvvmWarning

    warnings.filterwarnings("error", ".*invalid operand for inline asm", NvvmWarning)


class Operand:
    """An argument of a call while its code is generated: the Numba type and the LLVM value."""

    def __init__(self, emitter, kind, type, value):
        self.emitter, self.kind, self.type, self.value = emitter, kind, type, value

    @property
    def dtype(self):
        """The name of an array's or pointer's element type, as "uint16"."""
        return str(self.type.dtype)

    def require(self, allowed):
        """The name of the element type, as "uint16"; an error if it is not allowed."""
        if self.dtype not in allowed:
            raise TypingError(
                f"x: ptx.{self.emitter.instruction.name} takes arrays of {', '.join(allowed)}, "
                f"this one is {self.dtype}."
            )
        return self.dtype

    @property
    def data(self):
        """The LLVM pointer to the first element of an array or pointer."""
        if isinstance(self.type, types.CPointer):
            return self.value
        make = self.emitter.context.make_array(self.type)
        return make(self.emitter.context, self.emitter.builder, value=self.value).data

    @property
    def constant(self):
        """A literal argument as 32 bits: known to Numba, or left for LLVM to fold."""
        if isinstance(self.type, types.IntegerLiteral):
            return ir.Constant(LLVM["s32"], self.type.literal_value)
        _refuse_dropped_instructions()
        return self.value

    @property
    def i64(self):
        """An integer argument as 64 bits, extended as its type says."""
        if isinstance(self.type, types.IntegerLiteral):
            return ir.Constant(LLVM["s64"], self.type.literal_value)
        extend = self.emitter.builder.sext if self.type.signed else self.emitter.builder.zext
        return self.value if self.type.bitwidth == 64 else extend(self.value, LLVM["s64"])

    def element(self, index):
        """The LLVM pointer to element `index`, an `Operand` or a 64-bit value."""
        index = index.i64 if isinstance(index, Operand) else index
        return self.emitter.builder.gep(self.data, [index])


class Emitter:
    """Generates the code of one call: `builder` is LLVM's, `cc` the target's capability."""

    def __init__(self, instruction, context, builder):
        from numba.cuda.core.targetconfig import ConfigStack

        self.instruction, self.context, self.builder = instruction, context, builder
        self.cc = tuple(ConfigStack().top().compute_capability)
        self._check_capability()

    def _check_capability(self):
        need = self.instruction.cc
        own = len(need) == 3  # an instruction of one architecture, as sm_90a
        if self.cc[:2] < need[:2] or (own and self.cc != need):
            raise TypingError(
                f"ptx.{self.instruction.name} needs compute capability {_dotted(need)}"
                f"{'' if own else ' or newer'}; the kernel is compiled for {_dotted(self.cc)}."
            )

    def call(self, sig, args):
        """The value of the call, for Numba."""
        kinds = self.instruction.parameters
        operands = [Operand(self, k, t, v) for k, t, v in zip(kinds, sig.args, args, strict=True)]
        text = self.instruction.text
        if callable(text):
            value = text(self, *operands)
        else:
            value = self._inline(text, operands)
        if self.instruction.result[0] == "void":
            return self.context.get_dummy_value()
        return self.pack(value) if self.instruction.result[1] is not None else value

    def _inline(self, text, operands):
        flat = []
        for operand in operands:
            scalar, count = operand.kind
            if scalar == "literal":
                flat.append(("literal", operand.constant))
            elif scalar == "index":
                flat.append(("s64", operand.i64))
            elif count is None:
                flat.append((scalar, operand.value))
            else:
                parts = [self.builder.extract_value(operand.value, i) for i in range(count)]
                flat += [(scalar, part) for part in parts]
        scalar, count = self.instruction.result
        results = [] if scalar == "void" else [scalar] * (count or 1)
        values = self.asm(text, results, flat)
        return values if count is not None else values[0] if values else None

    def asm(self, text, results, operands, *, pure=None, memory=None, early=None):
        """Inline PTX: `results` are type names, `operands` (type name, LLVM value) pairs, in the
        order of `$0 …`; returns the list of result values. The instruction's attributes hold
        unless given."""
        pure = self.instruction.pure if pure is None else pure
        memory = self.instruction.memory if memory is None else memory
        early = self.instruction.early if early is None else early
        wide = [_REGISTER.get(r, r) for r in results]
        constraints = [("=&" if early else "=") + _constraint(r) for r in results]
        values = []
        for position, (scalar, value) in enumerate(operands):
            tied = position < self.instruction.tied
            constraints.append(str(position) if tied else _constraint(scalar))
            values.append(self._widen(scalar, value))
        if memory:
            constraints.append("~{memory}")
        returned = _returned([LLVM[r] for r in wide])
        function = ir.FunctionType(returned, [v.type for v in values])
        code = ir.InlineAsm(function, text, ",".join(constraints), side_effect=not pure)
        attributes = ["nounwind"] + ["readnone"] * (pure and not memory)
        attributes += ["convergent"] * self.instruction.convergent
        out = self.builder.call(code, values, attrs=tuple(attributes))
        parts = [out] if len(results) == 1 else [
            self.builder.extract_value(out, i) for i in range(len(results))
        ]  # fmt: skip
        return [self._narrow(r, v) for r, v in zip(results, parts, strict=True)]

    def _widen(self, scalar, value):
        """PTX has no 8-bit and no predicate registers at an inline boundary."""
        register = _REGISTER.get(scalar)
        return value if register is None else self.builder.zext(value, LLVM[register])

    def _narrow(self, scalar, value):
        if scalar == "pred":
            return self.builder.icmp_unsigned("!=", value, ir.Constant(value.type, 0))
        return self.builder.trunc(value, LLVM[scalar]) if scalar in _REGISTER else value

    def pack(self, values):
        """LLVM values of one type as the value of a Numba tuple."""
        from numba.cuda import cgutils

        return cgutils.pack_array(self.builder, values)

    def integer(self, value, kind="s64"):
        return ir.Constant(LLVM[kind], value)

    def address(self, pointer, space=GLOBAL):
        """A generic LLVM pointer as an integer: the u64 global or the u32 shared address."""
        b = self.builder
        pointer = b.bitcast(pointer, ir.IntType(8).as_pointer())
        pointer = b.addrspacecast(pointer, ir.IntType(8).as_pointer(space))
        return b.ptrtoint(pointer, LLVM["u32" if space == SHARED else "u64"])


_REGISTER = {"u8": "u16", "pred": "u32"}


def _constraint(scalar):
    return "n" if scalar == "literal" else CONSTRAINT[_REGISTER.get(scalar, scalar)]


def _returned(results):
    if not results:
        return ir.VoidType()
    return results[0] if len(results) == 1 else ir.LiteralStructType(results)


def _dotted(cc):
    return ".".join(map(str, cc[:2])) + "".join(cc[2:])
