"""The last step of a launch, from Python objects to the driver, as one small native function.

A launch has to turn a dozen Python integers into C values and call `cuLaunchKernel`. ctypes and
Cython bindings spend several microseconds on that; here a function for exactly this list of
parameters is made with LLVM (llvmlite, which Numba brings), and Python calls it as it calls its own
built-ins (PyCFunction, METH_FASTCALL), in a fraction of a microsecond.

    launch(function, gx, gy, gz, bx, by, bz, shared, stream, attributes, count, *values) -> int

function, stream, attributes: addresses (CUfunction, CUstream, CUlaunchAttribute[count]). A grid
counts blocks. The values, for each parameter of the layout:

    "p"        a pointer: its address
    "i4" "u8"  a signed, unsigned integer of so many bytes
    "f4" "f8"  a float;  "b1" a truth value
    "c2:4"     a C-contiguous array, 2-D, 4 bytes an element: its address and its shape (a tuple)
    "a2:4"     an array with any strides: address, shape and strides, these in elements

The result is the driver's CUresult, 0 for success; −1 − k when parameter k does not fit its type.
Wrong types raise as int() and float() do. Arrays are passed as Numba has them: two null words, the
number of elements, bytes of one, address, shape, strides in bytes, a 64-bit word each.
"""

import ctypes
import functools
from collections.abc import Callable

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


def values_of(code: str) -> int:
    """How many values a parameter takes: 1, 2 or 3."""
    return {"c": 2, "a": 3}.get(code[0], 1)


def words_of(code: str) -> list[int]:
    """The kernel parameters that a parameter becomes, as sizes in bytes."""
    if code[0] in "ca":
        return [8] * (5 + 2 * int(code[1 : code.index(":")]))
    return [8] if code == "p" else [int(code[1:])]


@functools.cache
def launcher(layout: tuple[str, ...], launch_kernel: int, launch_kernel_ex: int) -> Callable:
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
        self.i8, self.i32, self.i64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
        self.f64, self.pointer = ir.DoubleType(), ir.IntType(8).as_pointer()
        self.kernel, self.kernel_ex = launch_kernel, launch_kernel_ex
        self.module = ir.Module("launch")
        kind = ir.FunctionType(self.pointer, [self.pointer, self.pointer.as_pointer(), self.i64])
        self.function = ir.Function(self.module, kind, "launch")
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._emit()

    def _emit(self):
        b, args = self.builder, self.function.args
        total = FIXED + sum(map(values_of, self.layout))
        with b.if_then(b.icmp_signed("!=", args[2], self.i64(total)), likely=False):
            text = b"launch: the number of values is not that of the layout\0"
            self._c("PyErr_SetString", self.pointer, [self.pointer] * 2)(
                self._exception("TypeError"), self._text(text)
            )
            b.ret(self.null)
        offsets, size = self._offsets()
        self.storage = b.alloca(self.ir.ArrayType(self.i64, max(1, -(-size // 8))))
        table = b.alloca(self.ir.ArrayType(self.pointer, max(1, len(offsets))))
        fixed = [self._integer(i) for i in range(FIXED)]
        place, word = FIXED, 0
        for k, code in enumerate(self.layout):
            words = self._parameter(k, code, place)
            for value in words:
                where = self._byte(self.storage, offsets[word])
                b.store(value, b.bitcast(where, value.type.as_pointer()))
                b.store(where, self._slot(table, word))
                word += 1
            place += values_of(code)
        b.ret(self._call("PyLong_FromLong", self.pointer, self._long(self._launch(fixed, table))))

    def _offsets(self):
        """Where each kernel parameter lies in the storage, naturally aligned."""
        offsets, at = [], 0
        for size in (size for code in self.layout for size in words_of(code)):
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
        return self._as_integer(name, self._object(place))

    def _as_integer(self, name, item):
        value = self._call(name, self.i64, item)
        return self._checked(value, self.builder.icmp_signed("==", value, self.i64(-1)))

    def _parameter(self, k, code, place):
        if code[0] in "ca":
            return self._array(k, code, place)
        if code == "p":
            return [self._integer(place)]
        size = int(code[1:])
        if code[0] == "b":
            value = self._call("PyObject_IsTrue", self.i32, self._object(place))
            self._checked(value, self.builder.icmp_signed("<", value, self.i32(0)))
            return [self.builder.trunc(value, self.i8)]
        if code[0] == "f":
            value = self._call("PyFloat_AsDouble", self.f64, self._object(place))
            self._checked(value, self.builder.fcmp_ordered("==", value, self.f64(-1.0)))
            return [value if size == 8 else self.builder.fptrunc(value, self.ir.FloatType())]
        return [self._sized(k, code[0] == "i", size, place)]

    def _sized(self, k, signed, size, place):
        b = self.builder
        value = self._integer(place, signed)
        if size == 8:
            return value
        narrow = self.ir.IntType(8 * size)
        cut = b.trunc(value, narrow)
        back = b.sext(cut, self.i64) if signed else b.zext(cut, self.i64)
        with b.if_then(b.icmp_signed("!=", back, value), likely=False):
            b.ret(self._call("PyLong_FromLong", self.pointer, self._long(self.i32(-1 - k))))
        return cut

    def _array(self, k, code, place):
        ndim, _, itemsize = code[1:].partition(":")
        ndim, itemsize = int(ndim), self.i64(int(itemsize))
        address = self._integer(place)
        shape = self._tuple(k, place + 1, ndim)
        b, count, strides = self.builder, self.i64(1), []
        if code[0] == "a":
            strides = [b.mul(s, itemsize) for s in self._tuple(k, place + 2, ndim)]
            for extent in shape:
                count = b.mul(count, extent)
        else:
            for extent in reversed(shape):
                strides.insert(0, b.mul(count, itemsize))
                count = b.mul(count, extent)
        nothing = self.i64(0)
        return [nothing, nothing, count, itemsize, address, *shape, *strides]

    def _tuple(self, k, place, length):
        """The integers of a tuple; one of another length counts as a value that does not fit."""
        b, item = self.builder, self._object(place)
        size = self._call("PyTuple_Size", self.i64, item)
        self._checked(size, b.icmp_signed("==", size, self.i64(-1)))
        with b.if_then(b.icmp_signed("!=", size, self.i64(length)), likely=False):
            b.ret(self._call("PyLong_FromLong", self.pointer, self._long(self.i32(-1 - k))))
        parts = []
        for i in range(length):
            part = self._c("PyTuple_GetItem", self.pointer, [self.pointer, self.i64])
            parts.append(self._as_integer("PyLong_AsLongLong", part(item, self.i64(i))))
        return parts

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

    def _byte(self, array, offset):
        return self.builder.gep(self.builder.bitcast(array, self.pointer), [self.i64(offset)])

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
