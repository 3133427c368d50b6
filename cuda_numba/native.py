"""The last step of a launch, from Python objects to the driver, as one small native function.

A launch has to turn a dozen Python integers into C values and call `cuLaunchKernel`. ctypes and
Cython bindings spend several microseconds on that; here a function for exactly this list of
parameters is made (native_function.py), which takes a fraction of a microsecond.

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

import functools
from collections.abc import Callable
from dataclasses import dataclass

from . import dlpack
from .native_function import NativeFunction

FIXED = 11  # values before the parameters
CONFIG_BYTES = 56  # sizeof(CUlaunchConfig): 7 × u32, padding, stream, attributes, count
CONFIG_STREAM, CONFIG_ATTRIBUTES, CONFIG_COUNT = 32, 40, 48  # offsets in it


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
    return _Launch(layout, launch_kernel, launch_kernel_ex).callable()


class _Launch(NativeFunction):
    """The function for one layout."""

    def __init__(self, layout, launch_kernel, launch_kernel_ex):
        super().__init__("launch")
        self.layout = layout
        self.kernel, self.kernel_ex = launch_kernel, launch_kernel_ex
        self.contiguous = self._contiguous()
        self._emit()

    def _emit(self):
        b, total = self.builder, FIXED + len(self.layout)
        with b.if_then(b.icmp_signed("!=", self.count, self.i64(total)), likely=False):
            self.fail("TypeError", "launch: the number of values is not that of the layout")
        offsets, size = self._offsets()
        storage = self.words(max(1, -(-size // 8)))
        table = self.words(max(1, len(offsets)))
        self.record = self.words(dlpack.BYTES // 8)
        fixed = [self.integer(i) for i in range(FIXED)]
        word = 0
        for k, part in enumerate(self.layout):
            for value in self._parameter(k, part):
                self.put(table, 8 * word, self.put(storage, offsets[word], value))
                word += 1
        self.give(self._launch(fixed, table))

    def _offsets(self):
        """Where each kernel parameter lies in the storage, naturally aligned."""
        offsets, at = [], 0
        for size in (size for part in self.layout for size in words_of(part)):
            at = -(-at // size) * size
            offsets.append(at)
            at += size
        return offsets, at

    # ---- parameters

    def _require(self, k, holds):
        """A return that names parameter k where something does not hold of it."""
        with self.builder.if_then(self.builder.not_(holds), likely=False):
            self.give(self.i32(-1 - k))

    def _parameter(self, k, part):
        """The words of parameter k, as `words_of` lists them."""
        place = FIXED + k
        if isinstance(part, Tensor):
            return self._tensor(k, part, place)
        size = int(part[1:])
        if part[0] == "b":
            return [self.truth(place)]
        if part[0] == "f":
            value = self.double(place)
            return [value if size == 8 else self.builder.fptrunc(value, self.f32)]
        return [self._sized(k, part[0] == "i", size, place)]

    def _sized(self, k, signed, size, place):
        b = self.builder
        value = self.integer(place, signed)
        if size == 8:
            return value
        cut = b.trunc(value, self.ir.IntType(8 * size))
        back = b.sext(cut, self.i64) if signed else b.zext(cut, self.i64)
        self._require(k, b.icmp_signed("==", back, value))
        return cut

    def _tensor(self, k, part, place):
        """The words of a tensor, read from its description (dlpack.py) and checked."""
        b = self.builder
        describe = self.at(dlpack.describe_address(), self.i32, [self.pointer] * 2)
        failed = b.icmp_signed("!=", describe(self.object(place), self.record), self.i32(0))
        with b.if_then(failed, likely=False):
            self.give_up()
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
        return self.get(self.record, offset, kind or self.i64)

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
        config = self.words(CONFIG_BYTES // 8)
        for i, size in enumerate(sizes):
            self.put(config, 4 * i, size)
        self.put(config, CONFIG_STREAM, stream)
        self.put(config, CONFIG_ATTRIBUTES, attributes)
        self.put(config, CONFIG_COUNT, count)
        state = self.call("PyEval_SaveThread", self.pointer)
        with b.if_else(b.icmp_unsigned("==", count, self.i32(0)), likely=True) as (plain, extended):
            with plain:
                kinds = [self.i64, *[self.i32] * 7, self.i64, self.pointer, self.pointer]
                call = self.at(self.kernel, self.i32, kinds)
                first = call(function, *sizes, stream, table, self.null)
                first_block = b.block
            with extended:
                kinds = [self.pointer, self.i64, self.pointer, self.pointer]
                call = self.at(self.kernel_ex, self.i32, kinds)
                second = call(config, function, table, self.null)
                second_block = b.block
        result = b.phi(self.i32)
        result.add_incoming(first, first_block)
        result.add_incoming(second, second_block)
        self.call("PyEval_RestoreThread", self.ir.VoidType(), state)
        return result
