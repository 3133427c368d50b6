"""The last step of a launch, from Python objects to the driver, as one small native function.

A launch has to turn a dozen Python integers into C values and call `cuLaunchKernel`. ctypes and
Cython bindings spend several microseconds on that; here a function for exactly this list of
parameters is made with LLVM (llvmlite, which Numba brings), and Python calls it as it calls its own
built-ins (PyCFunction, METH_FASTCALL), in a fraction of a microsecond.

    launch(function, gx, gy, gz, bx, by, bz, shared, stream, attributes, count, *values) -> int

function, stream, attributes: addresses (CUfunction, CUstream, CUlaunchAttribute[count]). A grid
counts blocks. There is one value for each parameter of the layout:

    "i4" "u8"  a signed, unsigned integer of so many bytes
    "f4" "f8"  a float;  "b1" a truth value
    Tensor     a tensor, whose device, format, dimensions and contiguity are checked

The result is the driver's CUresult, 0 for success; −1 − k when parameter k is not what the layout
says. A value of the wrong kind raises an exception. Arrays are passed as Numba has them: two null
words, the number of elements, bytes of one, address, shape, strides in bytes, a 64-bit word each.
"""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

from . import dlpack

FIXED = 11  # values before the parameters
METH_FASTCALL = 0x80
CONFIG_BYTES = 56  # sizeof(CUlaunchConfig): 7 × u32, padding, stream, attributes, count
CONFIG_STREAM, CONFIG_ATTRIBUTES, CONFIG_COUNT = 32, 40, 48  # offsets in it


class _MethodDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


@dataclass(frozen=True)
class Tensor:
    """A parameter that is a tensor, and what the tensor must be.

    ndim None: a bare pointer to it, whatever its shape; else a Numba array of so many dimensions.
    """

    device: int  # dlpack.device_word
    formats: tuple[int, ...]  # dlpack.format_word of each that is allowed
    itemsize: int  # bytes of an element
    ndim: int | None = None
    contiguous: bool = True


def words_of(part: "str | Tensor") -> list[int]:
    """The kernel parameters that a parameter of the layout becomes, as sizes in bytes."""
    if isinstance(part, Tensor):
        return [8] if part.ndim is None else [8] * (5 + 2 * part.ndim)
    return [int(part[1:])]


@functools.cache
def launcher(
    layout: "tuple[str | Tensor, ...]", launch_kernel: int, launch_kernel_ex: int
) -> Callable:
    """The native function for a layout; the addresses are those of cuLaunchKernel and …Ex."""
    engine, address = _compile(str(_Emitter(layout, launch_kernel, launch_kernel_ex).module))
    method = _MethodDef(b"launch", address, METH_FASTCALL, None)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    function = make(ctypes.addressof(method), None, None)
    _kept.append((engine, method))  # the function has only their addresses
    return function


_kept: list = []


def _compile(text):
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, engine.get_function_address("launch")


def _python(name):
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value


class _Emitter:
    """Builds the function's LLVM code."""

    def __init__(self, layout, launch_kernel, launch_kernel_ex):
        from llvmlite import ir

        self.ir, self.layout = ir, layout
        self.i1, self.i8, self.i32, self.i64 = map(ir.IntType, (1, 8, 32, 64))
        self.f64, self.pointer = ir.DoubleType(), ir.IntType(8).as_pointer()
        self.kernel, self.kernel_ex = launch_kernel, launch_kernel_ex
        self.module = ir.Module("launch")
        self.contiguous = self._contiguous()
        kind = ir.FunctionType(self.pointer, [self.pointer, self.pointer.as_pointer(), self.i64])
        self.function = ir.Function(self.module, kind, "launch")
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._emit()

    def _emit(self):
        b, args = self.builder, self.function.args
        total = FIXED + len(self.layout)
        with b.if_then(b.icmp_signed("!=", args[2], self.i64(total)), likely=False):
            text = b"launch: the number of values is not that of the layout\0"
            self._c("PyErr_SetString", self.pointer, [self.pointer] * 2)(
                self._exception("TypeError"), self._text(text)
            )
            b.ret(self.null)
        offsets, size = self._offsets()
        self.storage = b.alloca(self.ir.ArrayType(self.i64, max(1, -(-size // 8))))
        table = b.alloca(self.ir.ArrayType(self.pointer, max(1, len(offsets))))
        self.record = self._bytes_of(b.alloca(self.ir.ArrayType(self.i64, dlpack.BYTES // 8)))
        fixed = [self._integer(i) for i in range(FIXED)]
        word = 0
        for k, part in enumerate(self.layout):
            for value in self._parameter(k, part):
                where = self._byte(self.storage, offsets[word])
                b.store(value, b.bitcast(where, value.type.as_pointer()))
                b.store(where, self._slot(table, word))
                word += 1
        b.ret(self._call("PyLong_FromLong", self.pointer, self._long(self._launch(fixed, table))))

    def _offsets(self):
        """Where each kernel parameter lies in the storage, naturally aligned."""
        offsets, at = [], 0
        for size in (size for part in self.layout for size in words_of(part)):
            at = -(-at // size) * size
            offsets.append(at)
            at += size
        return offsets, at

    # ---- from Python objects to values; each leaves the function when Python reports an error

    @property
    def null(self):
        return self.pointer(None)

    def _object(self, place):
        return self.builder.load(self.builder.gep(self.function.args[1], [self.i64(place)]))

    def _checked(self, value, failed):
        """`value`, or a return where it is the error value and an error is set."""
        b = self.builder
        with b.if_then(failed, likely=False):
            error = self._call("PyErr_Occurred", self.pointer)
            with b.if_then(b.icmp_unsigned("!=", error, self.null), likely=False):
                b.ret(self.null)
        return value

    def _integer(self, place, signed=False):
        name = "PyLong_AsLongLong" if signed else "PyLong_AsUnsignedLongLong"
        value = self._call(name, self.i64, self._object(place))
        return self._checked(value, self.builder.icmp_signed("==", value, self.i64(-1)))

    def _require(self, k, holds):
        """A return that names parameter k where something does not hold of it."""
        b = self.builder
        with b.if_then(b.not_(holds), likely=False):
            b.ret(self._call("PyLong_FromLong", self.pointer, self._long(self.i32(-1 - k))))

    def _parameter(self, k, part):
        place = FIXED + k
        if isinstance(part, Tensor):
            return self._tensor(k, part, place)
        size = int(part[1:])
        if part[0] == "b":
            value = self._call("PyObject_IsTrue", self.i32, self._object(place))
            self._checked(value, self.builder.icmp_signed("<", value, self.i32(0)))
            return [self.builder.trunc(value, self.i8)]
        if part[0] == "f":
            value = self._call("PyFloat_AsDouble", self.f64, self._object(place))
            self._checked(value, self.builder.fcmp_ordered("==", value, self.f64(-1.0)))
            return [value if size == 8 else self.builder.fptrunc(value, self.ir.FloatType())]
        return [self._sized(k, part[0] == "i", size, place)]

    def _sized(self, k, signed, size, place):
        b = self.builder
        value = self._integer(place, signed)
        if size == 8:
            return value
        cut = b.trunc(value, self.ir.IntType(8 * size))
        back = b.sext(cut, self.i64) if signed else b.zext(cut, self.i64)
        self._require(k, b.icmp_signed("==", back, value))
        return cut

    def _tensor(self, k, part, place):
        """The words of a tensor, read from its description (dlpack.py) and checked."""
        b = self.builder
        describe = self._at(dlpack.describe_address(), self.i32, [self.pointer] * 2)
        failed = b.icmp_signed("!=", describe(self._object(place), self.record), self.i32(0))
        with b.if_then(failed, likely=False):
            b.ret(self.null)
        self._require(k, b.icmp_signed("==", self._field(dlpack.DEVICE), self.i64(part.device)))
        found, known = self._field(dlpack.FORMAT, self.i32), self.i1(False)
        for word in part.formats:
            known = b.or_(known, b.icmp_signed("==", found, self.i32(word)))
        self._require(k, known)
        ndim = self._field(dlpack.NDIM, self.i32)
        if part.ndim is not None:
            self._require(k, b.icmp_signed("==", ndim, self.i32(part.ndim)))
        shape, strides = (
            self._field(offset, self.i64.as_pointer()) for offset in (dlpack.SHAPE, dlpack.STRIDES)
        )
        if part.contiguous:
            self._require(k, b.call(self.contiguous, [ndim, shape, strides]))
        address = b.add(self._field(dlpack.ADDRESS), self._field(dlpack.OFFSET))
        return [address] if part.ndim is None else self._array(part, address, shape, strides)

    def _array(self, part, address, shape, strides):
        b, axes = self.builder, range(part.ndim)
        shape = [b.load(b.gep(shape, [self.i32(axis)])) for axis in axes]
        itemsize, count = self.i64(part.itemsize), self.i64(1)
        packed = []  # the strides of a contiguous array: those of an axis of 1 may say anything
        for extent in reversed(shape):
            packed.insert(0, b.mul(count, itemsize))
            count = b.mul(count, extent)
        if not part.contiguous:
            packed = [b.mul(b.load(b.gep(strides, [self.i32(axis)])), itemsize) for axis in axes]
        nothing = self.i64(0)
        return [nothing, nothing, count, itemsize, address, *shape, *packed]

    def _field(self, offset, kind=None):
        kind = kind or self.i64
        where = self.builder.gep(self.record, [self.i64(offset)])
        return self.builder.load(self.builder.bitcast(where, kind.as_pointer()))

    def _contiguous(self):
        """The function contiguous(ndim, shape, strides) -> i1, as torch.Tensor.is_contiguous().

        From the last axis to the first each stride is the number of elements behind it, but for
        axes of 1; a tensor without elements is contiguous.
        """
        ir, numbers = self.ir, self.i64.as_pointer()
        kind = ir.FunctionType(self.i1, [self.i32, numbers, numbers])
        function = ir.Function(self.module, kind, "contiguous")
        function.linkage = "internal"
        ndim, shape, strides = function.args
        entry, loop, body, end = map(function.append_basic_block, ("entry", "loop", "body", "end"))
        b = ir.IRBuilder(entry)
        b.branch(loop)
        b.position_at_end(loop)
        left, count, gap = b.phi(self.i32), b.phi(self.i64), b.phi(self.i1)
        for value, first in ((left, ndim), (count, self.i64(1)), (gap, self.i1(False))):
            value.add_incoming(first, entry)
        b.cbranch(b.icmp_signed(">", left, self.i32(0)), body, end)
        b.position_at_end(body)
        axis = b.sub(left, self.i32(1))
        extent, stride = (b.load(b.gep(array, [axis])) for array in (shape, strides))
        wrong = b.icmp_signed("!=", stride, count)
        wrong = b.and_(wrong, b.icmp_signed("!=", extent, self.i64(1)))
        left.add_incoming(axis, body)
        count.add_incoming(b.mul(count, extent), body)
        gap.add_incoming(b.or_(gap, wrong), body)
        b.branch(loop)
        b.position_at_end(end)
        b.ret(b.or_(b.not_(gap), b.icmp_signed("==", count, self.i64(0))))
        return function

    # ---- the call

    def _launch(self, fixed, table):
        """cuLaunchKernel where there are no attributes, else cuLaunchKernelEx; without the lock."""
        b = self.builder
        function, stream, attributes = (fixed[i] for i in (0, 8, 9))
        sizes = [b.trunc(fixed[i], self.i32) for i in range(1, 8)]
        count = b.trunc(fixed[10], self.i32)
        table = b.bitcast(table, self.pointer)
        config = b.alloca(self.ir.ArrayType(self.i64, CONFIG_BYTES // 8))
        for i, size in enumerate(sizes):
            self._put(config, 4 * i, size)
        self._put(config, CONFIG_STREAM, stream)
        self._put(config, CONFIG_ATTRIBUTES, attributes)
        self._put(config, CONFIG_COUNT, count)
        state = self._call("PyEval_SaveThread", self.pointer)
        with b.if_else(b.icmp_unsigned("==", count, self.i32(0)), likely=True) as (plain, extended):
            with plain:
                kinds = [self.i64, *[self.i32] * 7, self.i64, self.pointer, self.pointer]
                call = self._at(self.kernel, self.i32, kinds)
                first = call(function, *sizes, stream, table, self.null)
                first_block = b.block
            with extended:
                kinds = [self.pointer, self.i64, self.pointer, self.pointer]
                call = self._at(self.kernel_ex, self.i32, kinds)
                second = call(b.bitcast(config, self.pointer), function, table, self.null)
                second_block = b.block
        result = b.phi(self.i32)
        result.add_incoming(first, first_block)
        result.add_incoming(second, second_block)
        self._call("PyEval_RestoreThread", self.ir.VoidType(), state)
        return result

    # ---- LLVM

    def _at(self, address, result, kinds):
        """A function at a fixed address."""
        kind = self.ir.FunctionType(result, kinds).as_pointer()
        target = self.builder.inttoptr(self.i64(address), kind)
        return lambda *args: self.builder.call(target, args)

    def _c(self, name, result, kinds):
        return self._at(_python(name), result, kinds)

    def _call(self, name, result, *args):
        return self._c(name, result, [a.type for a in args])(*args)

    def _long(self, value):
        """A C long: 32 bits on Windows, else 64."""
        bits = 8 * ctypes.sizeof(ctypes.c_long)
        return value if bits == 32 else self.builder.sext(value, self.ir.IntType(bits))

    def _bytes_of(self, array):
        return self.builder.bitcast(array, self.pointer)

    def _byte(self, array, offset):
        return self.builder.gep(self._bytes_of(array), [self.i64(offset)])

    def _put(self, array, offset, value):
        where = self._byte(array, offset)
        self.builder.store(value, self.builder.bitcast(where, value.type.as_pointer()))

    def _slot(self, table, index):
        return self.builder.gep(table, [self.i64(0), self.i64(index)])

    def _exception(self, name):
        variable = ctypes.c_void_p.in_dll(ctypes.pythonapi, f"PyExc_{name}").value
        return self.builder.inttoptr(self.i64(variable), self.pointer)

    def _text(self, data):
        kind = self.ir.ArrayType(self.i8, len(data))
        variable = self.ir.GlobalVariable(self.module, kind, "message")
        variable.global_constant, variable.linkage = True, "internal"
        variable.initializer = self.ir.Constant(kind, bytearray(data))
        return self.builder.bitcast(variable, self.pointer)
