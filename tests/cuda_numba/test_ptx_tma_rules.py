"""Boxes that TMA can copy, byte by byte, and boxes that break a rule of the documentation."""

import functools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from ptx_tiles import boxes, devices, line_of

from cuda_numba import jit, ptx
from cuda_numba.emulator.bulk_write import ADDABLE
from cuda_numba.emulator.errors import InvalidUse, Misaligned
from cuda_numba.namespace import cuda, uint32, uint64
from cuda_numba.ptx.descriptor import DRIVER_TYPES


@jit(device=True)
def load(map, x, y, place, bar):
    ptx.mbarrier_arrive_expect_tx(bar, 256)
    ptx.tma_load_2d(place, map, x, y, bar)
    ptx.mbarrier_wait(bar, 0)


@jit(device=True)
def store(map, x, y, place, bar):
    ptx.tma_store_2d(map, x, y, place)
    ptx.bulk_commit()
    ptx.bulk_wait(0)


@jit(device=True)
def add(map, x, y, place, bar):
    ptx.tma_reduce_add_2d(map, x, y, place)
    ptx.bulk_commit()
    ptx.bulk_wait(0)


@jit(device=True)
def prefetch(map, x, y, place, bar):
    ptx.tma_prefetch_2d(map, x, y)


HOW = {f.function.__name__: f for f in (load, store, add, prefetch)}
NAMES = {
    "load": "tma_load_2d",
    "store": "tma_store_2d",
    "add": "tma_reduce_add_2d",
    "prefetch": "tma_prefetch_2d",
}


@functools.cache
def asks_for_a_box(how):
    """Thread 7 asks for the box at (y, x), with its tile `shift` bytes from a multiple of 128."""
    copy = HOW[how]

    @jit
    def kernel(map: "uint64", x: "int32", y: "int32", shift: "uint32", words):  # noqa: F821
        tile = cuda.shared.array(96, uint32, alignment=128)
        bars = cuda.shared.array(1, uint64)
        i, bar = cuda.threadIdx.x, ptx.shared_address(bars)
        if i == 7:
            for k in range(64):
                tile[k + shift // uint32(4)] = words[k]
            ptx.mbarrier_init(bar, 1)
            ptx.fence_proxy_async()
            copy(map, x, y, ptx.shared_address(tile) + shift, bar)
            for k in range(64):
                words[k] = tile[k + shift // uint32(4)]

    return kernel


class Box:
    """A tensor of 8 × 128 bytes, and a tile for a box of 4 × 64 bytes, both of small numbers."""

    def __init__(self, device, dtype=torch.int32):
        torch.manual_seed(0)
        self.x = torch.randint(1, 50, (8, 128 // dtype.itemsize)).to(dtype)
        self.new = torch.randint(50, 100, (4, 64 // dtype.itemsize)).to(dtype)
        self.tensor = self.x.clone().to(device)
        self.tile = self.new.clone().to(device)

    def ask(self, how, x=4, y=1, shift=0):
        """Ask for the box at (y, x); raises what goes wrong."""
        map = ptx.tensor_map(self.tensor, tuple(self.tile.shape))
        words = self.tile.view(torch.uint32).reshape(-1)
        asks_for_a_box(how)[1, 32](map, x, y, shift, words)
        if self.tensor.is_cuda:
            torch.cuda.synchronize()

    def check(self, how=None, x=4, y=1):
        """Tensor and tile hold the bytes that the copy gives them; how None: nothing has moved."""
        tensor, tile = bits(self.x).copy(), bits(self.new)
        rows, columns = slice(y, y + tile.shape[0]), slice(x, x + tile.shape[1])
        inside = tensor[rows, columns].shape  # of a box that is written, which begins inside
        if how == "load":
            tile = boxes(tensor, tile.shape, (y, x))
        if how == "store":
            tensor[rows, columns] = tile[: inside[0], : inside[1]]
        if how == "add":
            total = self.x[rows, columns].double() + self.new[: inside[0], : inside[1]].double()
            tensor[rows, columns] = bits(total.to(self.x.dtype))
        np.testing.assert_array_equal(bits(self.tensor), tensor)
        np.testing.assert_array_equal(bits(self.tile), tile)


def bits(tensor):
    """A tensor's elements as unsigned integers."""
    kind = getattr(torch, f"uint{8 * tensor.dtype.itemsize}")
    return tensor.cpu().contiguous().view(kind).numpy()


@devices
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("x", "y"), [(4, 1), (28, 6), (32, 0), (0, 8)])
def test_a_box_that_can_be_copied(device, how, x, y):
    """Inside, over two ends, and beside the tensor in either dimension."""
    box = Box(device)
    box.ask(how, x, y)
    box.check(how, x, y)


@devices
@pytest.mark.parametrize("how", ["load", "prefetch"])
@pytest.mark.parametrize(("x", "y"), [(-4, 0), (0, -1), (-16, 0), (0, -4)])
def test_a_box_that_is_read_may_begin_before_the_tensor(device, how, x, y):
    box = Box(device)
    box.ask(how, x, y)
    box.check(how, x, y)


BETWEEN = "the innermost coordinate must be a multiple of 4, for 16 bytes"
# A GPU ends these, with "illegal instruction": how, x, our words.
FATAL = [
    ("load", 1, f"begins at element 1 of a row, 4 bytes each: {BETWEEN}"),
    ("load", -1, f"begins at element -1 of a row, 4 bytes each: {BETWEEN}"),
    ("store", 2, f"begins at element 2 of a row, 4 bytes each: {BETWEEN}"),
    ("add", 7, f"begins at element 7 of a row, 4 bytes each: {BETWEEN}"),
]


def check_refused(error, message, how, x=4, y=1, shift=0, dtype=torch.int32):
    """The thread and the line are named, and nothing has been copied."""
    box = Box("cpu", dtype)
    with pytest.raises(error, match=f"{NAMES[how]}: .*{message}") as raised:
        box.ask(how, x, y, shift)
    assert raised.value.thread == (7, 0, 0)
    assert raised.value.line == line_of(HOW[how].function, f"ptx.{NAMES[how]}(")
    box.check()


@pytest.mark.parametrize(("how", "x", "message"), FATAL)
def test_a_box_between_two_pieces(how, x, message):
    check_refused(Misaligned, message, how, x)


@pytest.mark.gpu
@pytest.mark.parametrize(("how", "x"), [row[:2] for row in FATAL])
def test_a_gpu_refuses_it_too(how, x):
    """In a process of its own: after such an error nothing more runs on the GPU from there."""
    code = f"import test_ptx_tma_rules as t; t.Box('cuda').ask({how!r}, {x})"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode
    assert re.search("illegal instruction|misaligned address", ran.stderr), ran.stderr


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_pieces_are_counted_in_bytes(dtype):
    piece = 16 // dtype.itemsize
    box = Box("cpu", dtype)
    box.ask("load", piece)
    box.check("load", piece)
    message = f"multiple of {piece}, for 16 bytes"
    check_refused(Misaligned, message, "load", piece - 1, dtype=dtype)


@devices
@pytest.mark.parametrize("dtype", ADDABLE)
def test_numbers_that_bulk_copies_add(device, dtype):
    kind = getattr(torch, dtype)
    box = Box(device, kind)
    box.ask("add", 16 // kind.itemsize)
    box.check("add", 16 // kind.itemsize)


# ---- what one H100 let pass and no document allows: refused, and not asked of a GPU


@pytest.mark.parametrize("x", [1, -2, 33])
def test_a_prefetch_of_a_box_between_two_pieces(x):
    """The rule is of the box, whatever is done with it."""
    check_refused(Misaligned, f"begins at element {x} of a row, .*{BETWEEN}", "prefetch", x)


@pytest.mark.parametrize("how", ["load", "store", "add"])
@pytest.mark.parametrize("shift", [16, 64])
def test_a_tile_that_is_not_aligned(how, shift):
    message = "the shared address is 0x.*, it must be a multiple of 128"
    check_refused(Misaligned, message, how, shift=shift)


@pytest.mark.parametrize("how", ["store", "add"])
@pytest.mark.parametrize(("x", "y"), [(-4, 0), (0, -1), (-16, 0), (0, -4)])
def test_a_box_that_is_written_begins_inside(how, x, y):
    """Over the beginning and wholly before it."""
    message = re.escape(f"the box begins at ({x}, {y}), innermost first: the programming guide")
    check_refused(InvalidUse, message, how, x, y)


UNLISTED = ("uint8", "int8", "float8_e4m3fn", "float8_e5m2", "uint16", "int16", "float64")


@pytest.mark.parametrize("dtype", UNLISTED)
def test_numbers_that_bulk_copies_do_not_add(dtype):
    assert {*UNLISTED, *ADDABLE} == {*DRIVER_TYPES}
    dtype = getattr(torch, dtype)
    x = 16 // dtype.itemsize
    box = Box("cpu", dtype)
    box.ask("store", x)
    box.check("store", x)
    message = "the PTX ISA lists sums of uint32, int32, uint64, int64, float32, float16, bfloat16,"
    check_refused(InvalidUse, message, "add", x, dtype=dtype)
