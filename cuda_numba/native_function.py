"""A function of machine code that Python calls as it calls its own built-ins.

It is written with LLVM (llvmlite, which Numba brings) and works with Python's C API. Python hands
it the arguments as an array of objects and their number (PyCFunction, METH_FASTCALL), so a call
costs a fraction of a microsecond:

    PyObject *name(PyObject *self, PyObject *const *objects, Py_ssize_t count)

Nothing is linked: every C function is called at the address that it has in this process.
"""

import ctypes
from collections.abc import Callable
from typing import Any

METH_FASTCALL = 0x80


class _MethodDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


class NativeFunction:
    """A function in the making: methods add instructions to its end, `callable` compiles it.

    Attributes: builder, of llvmlite; module; ir, which is llvmlite.ir; i1 … i64, f32, f64, pointer,
    the types. Values are llvmlite's.
    """

    def __init__(self, name: str):
        from llvmlite import ir

        self.ir, self.name, self.module = ir, name, ir.Module(name)
        self.i1, self.i8, self.i32, self.i64 = map(ir.IntType, (1, 8, 32, 64))
        self.f32, self.f64, self.pointer = ir.FloatType(), ir.DoubleType(), self.i8.as_pointer()
        self.null = self.pointer(None)
        kind = ir.FunctionType(self.pointer, [self.pointer, self.pointer.as_pointer(), self.i64])
        function = ir.Function(self.module, kind, name)
        _, self.objects, self.count = function.args
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))

    def callable(self) -> Callable:
        """The finished function, for Python."""
        engine, address = _compile(str(self.module), self.name)
        method = _MethodDef(self.name.encode(), address, METH_FASTCALL, None)
        make = ctypes.pythonapi.PyCFunction_NewEx
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
        function = make(ctypes.addressof(method), None, None)
        _kept.append((engine, method))  # the function has only their addresses
        return function

    # ---- from Python objects to values; each leaves the function when Python reports an error

    def object(self, place: int) -> Any:
        return self.builder.load(self.builder.gep(self.objects, [self.i64(place)]))

    def integer(self, place: int, signed: bool = False) -> Any:
        """The object as 64 bits."""
        name = "PyLong_AsLongLong" if signed else "PyLong_AsUnsignedLongLong"
        value = self.call(name, self.i64, self.object(place))
        return self._checked(value, self.builder.icmp_signed("==", value, self.i64(-1)))

    def double(self, place: int) -> Any:
        value = self.call("PyFloat_AsDouble", self.f64, self.object(place))
        return self._checked(value, self.builder.fcmp_ordered("==", value, self.f64(-1.0)))

    def truth(self, place: int) -> Any:
        """The object as one byte, 0 or 1."""
        value = self.call("PyObject_IsTrue", self.i32, self.object(place))
        self._checked(value, self.builder.icmp_signed("<", value, self.i32(0)))
        return self.builder.trunc(value, self.i8)

    def _checked(self, value, failed):
        """`value`, or a return where it is the error value and an error is set."""
        b = self.builder
        with b.if_then(failed, likely=False):
            error = self.call("PyErr_Occurred", self.pointer)
            with b.if_then(b.icmp_unsigned("!=", error, self.null), likely=False):
                self.give_up()
        return value

    # ---- the end of the function

    def give(self, number: Any) -> None:
        """Return 32 bits as a Python integer."""
        self.builder.ret(self.call("PyLong_FromLong", self.pointer, self._long(number)))

    def give_up(self) -> None:
        """Return with the error that is set."""
        self.builder.ret(self.null)

    def fail(self, exception: str, text: str) -> None:
        """Set an error, of a built-in exception, and return."""
        variable = ctypes.c_void_p.in_dll(ctypes.pythonapi, f"PyExc_{exception}").value
        kind = self.builder.inttoptr(self.i64(variable), self.pointer)
        self.call("PyErr_SetString", self.ir.VoidType(), kind, self._text(text.encode() + b"\0"))
        self.give_up()

    # ---- C functions

    def at(self, address: int, result: Any, kinds: list) -> Callable:
        """The C function at an address: called with values, it adds the call."""
        kind = self.ir.FunctionType(result, kinds).as_pointer()
        target = self.builder.inttoptr(self.i64(address), kind)
        return lambda *args: self.builder.call(target, args)

    def call(self, name: str, result: Any, *args: Any) -> Any:
        """Call a function of Python's C API."""
        return self.at(_python(name), result, [a.type for a in args])(*args)

    def _long(self, value):
        """A C long: 32 bits on Windows, else 64."""
        bits = 8 * ctypes.sizeof(ctypes.c_long)
        return value if bits == 32 else self.builder.sext(value, self.ir.IntType(bits))

    # ---- memory

    def words(self, count: int) -> Any:
        """Room for so many 64-bit words on the stack."""
        return self.bytes_of(self.builder.alloca(self.ir.ArrayType(self.i64, count)))

    def byte(self, start: Any, offset: int) -> Any:
        return self.builder.gep(start, [self.i64(offset)])

    def get(self, start: Any, offset: int, kind: Any) -> Any:
        """The value of a type that lies `offset` bytes further."""
        where = self.byte(start, offset)
        return self.builder.load(self.builder.bitcast(where, kind.as_pointer()))

    def put(self, start: Any, offset: int, value: Any) -> Any:
        """Write a value; its address."""
        where = self.byte(start, offset)
        self.builder.store(value, self.builder.bitcast(where, value.type.as_pointer()))
        return where

    def _text(self, data):
        kind = self.ir.ArrayType(self.i8, len(data))
        variable = self.ir.GlobalVariable(self.module, kind, "message")
        variable.global_constant, variable.linkage = True, "internal"
        variable.initializer = self.ir.Constant(kind, bytearray(data))
        return self.bytes_of(variable)

    def bytes_of(self, array: Any) -> Any:
        return self.builder.bitcast(array, self.pointer)


_kept: list = []


def _compile(text, name):
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, engine.get_function_address(name)


def _python(name):
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
