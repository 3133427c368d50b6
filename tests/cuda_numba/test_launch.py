"""The launch: argument checks, packing, configuration; on a fake driver, and on a GPU."""

import ctypes
import struct
import threading
import types as python_types

import fake_driver
import numpy as np
import pytest
import torch
from numba.core import types

from cuda_numba import dlpack, driver, launch, native
from cuda_numba.arguments import parameters
from cuda_numba.build import Code
from cuda_numba.compiler import Options
from cuda_numba.configuration import launch_shape, raw_stream
from cuda_numba.dtypes import IN_KERNEL
from cuda_numba.inspect import Cubin
from cuda_numba.launch import Compiled
from cuda_numba.launch_paths import time_host_parts
from cuda_numba.namespace import cuda, float32, int32  # noqa: F401  named in annotations
from cuda_numba.native import Tensor
from cuda_numba.packing import arguments_of, layout_of

HERE = -1  # get_device() of a CPU tensor: the fake driver's only device
STREAM = 0xABC0
F32, U16, U8 = (types.CPointer(t) for t in (types.float32, types.uint16, types.uint8))


def scale(x: "float32", y: "float32", n: "int32", s: "float32"): ...


SCALE = (F32, F32, types.int32, types.float32)


@pytest.fixture
def make(monkeypatch):
    """make(function, signature) → (Compiled, FakeDriver); CPU tensors pass for the device's."""

    def compiled(fn, signature, shared=0, **options):
        log = f"Used 32 registers, used 0 barriers, {shared} bytes smem"
        cubin = Cubin(b"\x7fELF", log, "none", "sm_90a", fn.__name__)
        code = Code(fn.__name__, signature, (9, 0, "a"), Options(**options), "", cubin)
        fake = fake_driver.FakeDriver(layout_of(arguments_of(parameters(fn), signature), HERE))
        monkeypatch.setattr(driver, "library", lambda: fake)
        return Compiled(code, parameters(fn), HERE), fake

    monkeypatch.setattr(launch, "_current_stream", lambda: lambda device: STREAM)
    monkeypatch.setattr(launch, "_current_device", lambda: None)
    driver.primary_context.cache_clear()
    yield compiled
    driver.primary_context.cache_clear()


def word(value):
    return struct.pack("<q", value)


# ---- the native function


CPU = dlpack.device_word(HERE)
FLOAT, HALF = dlpack.format_word(torch.float32), dlpack.format_word(torch.float16)
FIXED = (1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)


def test_every_kind_of_parameter_arrives():
    layout = (
        Tensor(CPU, (FLOAT,), 4), "i4", "f4", Tensor(CPU, (FLOAT,), 4, 2),
        Tensor(CPU, (FLOAT, HALF), 2, 2, contiguous=False), "b1", "u8", "f8", "i2", "u1", "i8",
    )  # fmt: skip
    fake = fake_driver.FakeDriver(layout)
    address = [ctypes.cast(f, ctypes.c_void_p).value
               for f in (fake.cuLaunchKernel, fake.cuLaunchKernelEx)]  # fmt: skip
    call = native.launcher(layout, *address)
    x, y = torch.zeros(7)[2:], torch.zeros(3, 4)
    z = torch.zeros(6, 5, dtype=torch.float16).t()
    values = (x, -5, 1.5, y, z, True, 2**64 - 1, -2.25, -300, 255, -(2**63))
    assert call(0xF0, 1, 2, 3, 4, 5, 6, 7, STREAM, 0, 0, *values) == 0
    (seen,) = fake.launches
    assert (seen["function"], seen["grid"], seen["block"]) == (0xF0, (1, 2, 3), (4, 5, 6))
    assert (seen["shared"], seen["stream"], seen["attributes"]) == (7, STREAM, [])
    assert seen["words"] == [
        word(x.data_ptr()), struct.pack("<i", -5), struct.pack("<f", 1.5),
        *map(word, (0, 0, 12, 4, y.data_ptr(), 3, 4, 16, 4)),  # meminfo, parent, n, itemsize, …
        *map(word, (0, 0, 30, 2, z.data_ptr(), 5, 6, 2, 10)),
        b"\1", b"\xff" * 8, struct.pack("<d", -2.25), struct.pack("<h", -300), b"\xff",
        word(-(2**63)),
    ]  # fmt: skip


def quiet_call(layout, answer=0):
    """The native function of a layout, over a driver that only answers."""
    driver_call = fake_driver.LAUNCH(lambda *_: answer)
    address = ctypes.cast(driver_call, ctypes.c_void_p).value
    kept.append(driver_call)
    return native.launcher(layout, address, address)


kept = []


def test_values_that_do_not_fit():
    matrix = Tensor(CPU, (FLOAT,), 4, 2)
    call = quiet_call((Tensor(CPU, (FLOAT,), 4), "i4", "u2", "f4", matrix), answer=77)
    good = (torch.zeros(3), 2, 3, 4.0, torch.zeros(2, 3))
    assert call(*FIXED, *good) == 77
    wrong = [
        (0, torch.zeros(3, dtype=torch.int32), -1), (0, torch.zeros(4, 4).t(), -1),
        (1, 2**31, -2), (1, -(2**31) - 1, -2), (2, 65536, -3),
        (4, torch.zeros(2), -5), (4, torch.zeros(2, 3, 1), -5), (4, torch.zeros(3, 2).t(), -5),
        (0, torch.zeros(3, device="meta"), RuntimeError), (0, [1.0], RuntimeError),
        (0, None, RuntimeError), (0, np.zeros(3, np.float32), RuntimeError),
        (1, 2**64, OverflowError), (1, 2.5, TypeError), (2, -1, OverflowError),
        (3, "x", TypeError), (4, 3, RuntimeError),
    ]  # fmt: skip
    for place, value, answer in wrong:
        values = (*good[:place], value, *good[place + 1 :])
        if isinstance(answer, int):
            assert call(*FIXED, *values) == answer
        else:
            with pytest.raises(answer):
                call(*FIXED, *values)
    with pytest.raises(TypeError, match="number of values is not that of the layout"):
        call(*FIXED, *good[:-1])


def test_another_device_does_not_fit():
    call = quiet_call((Tensor(dlpack.device_word(1), (FLOAT,), 4),))
    assert call(*FIXED, torch.zeros(3)) == -1


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(()), torch.zeros(0), torch.zeros(3, 0, 2).transpose(0, 2), torch.zeros(5),
        torch.zeros(5)[::2], torch.zeros(6, 5)[2:4], torch.zeros(6, 5)[:, 2:4],
        torch.zeros(1, 5).t(), torch.zeros(4, 1, 5)[:, :, ::5], torch.zeros(3).expand(2, 3),
        torch.zeros(3).expand(1, 3), torch.zeros(2, 3, 4, 5).permute(0, 2, 3, 1),
        torch.nn.Parameter(torch.zeros(3, 4)), torch.zeros(8).as_strided((1, 2), (7, 1)),
    ],
    ids=lambda x: f"{tuple(x.shape)}-{x.stride()}",
)  # fmt: skip
def test_contiguous_means_what_torch_means(x):
    call = quiet_call((Tensor(CPU, (FLOAT,), 4),))
    assert (call(*FIXED, x) == 0) == x.is_contiguous()


def test_every_format_is_told_from_the_others():
    dtypes = [getattr(torch, name) for name in IN_KERNEL if hasattr(torch, name)]
    assert len({dlpack.format_word(dtype) for dtype in dtypes}) == len(dtypes) > 10


def test_an_unknown_version_of_dlpack_is_refused(monkeypatch):
    dlpack.describe_address.cache_clear()
    monkeypatch.setattr(dlpack, "VERSION", 2)
    with pytest.raises(
        RuntimeError, match=r"its DLPack is version 1\.\d+, a launch needs version 2"
    ):
        dlpack.describe_address()


def test_a_launch_lets_other_threads_run():
    """The driver may make a launch wait; the interpreter's lock is free meanwhile."""
    reached, released = threading.Event(), threading.Event()

    def wait(*_):
        reached.set()
        return 0 if released.wait(10) else 1

    blocking = fake_driver.LAUNCH(wait)
    address = ctypes.cast(blocking, ctypes.c_void_p).value
    call = native.launcher((), address, address)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call(1, *[1] * 6, 0, 0, 0, 0)))
    thread.start()
    assert reached.wait(10)
    released.set()
    thread.join(10)
    assert answers == [0]


# ---- checks and packing


def test_a_launch(make):
    compiled, fake = make(scale, SCALE)
    x, y = torch.zeros(4), torch.zeros(4)
    compiled.launch(3, (32, 2), (x, y, 7, 0.5))
    (seen,) = fake.launches
    assert seen["function"] == 0xF0 and seen["stream"] == STREAM
    assert (seen["grid"], seen["block"], seen["shared"]) == ((3, 1, 1), (32, 2, 1), 0)
    assert seen["words"] == [
        word(x.data_ptr()), word(y.data_ptr()), struct.pack("<i", 7), struct.pack("<f", 0.5)
    ]  # fmt: skip
    assert [args[1].value for args in fake.called("cuModuleLoadData")] == [b"\x7fELF"]


def test_numbers_are_cast_as_annotated(make):
    compiled, fake = make(scale, SCALE)
    x = torch.zeros(4)
    for n, s in ((7, 2), (np.int64(7), np.float32(2)), (np.uint8(7), np.int32(2)), (True, True)):
        compiled.launch(1, 32, (x, x, n, s))
        expected = [struct.pack("<i", int(n)), struct.pack("<f", float(s))]
        assert fake.launches[-1]["words"][2:] == expected


@pytest.mark.parametrize(
    ("place", "value", "error", "text"),
    [
        (0, torch.zeros(4, dtype=torch.float64), TypeError, "scale: x is float64, allowed are flo"),
        (1, torch.zeros(4, 4).t(), ValueError, "scale: y is not contiguous"),
        (0, np.zeros(4, np.float32), TypeError, "scale: x is ndarray, expected a tensor on a GPU"),
        (1, [1.0], TypeError, "scale: y is list, expected a tensor, array or number"),
        (1, 1.0, TypeError, "scale: y is a number .1.0., expected a tensor"),
        (2, 2**31, ValueError, "scale: n is 2147483648, which does not fit int32"),
        (2, 1.5, TypeError, "scale: n is 1.5, expected an integer"),
        (2, torch.tensor(3), TypeError, "scale: n is a Tensor, expected a number .int32"),
        (3, "fast", TypeError, "scale: s is str"),
        (3, None, TypeError, "scale: s is NoneType"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(place, value, error, text, make):
    compiled, fake = make(scale, SCALE)
    args = [torch.zeros(4), torch.zeros(4), 1, 1.0]
    compiled.launch(1, 32, args)
    args[place] = value
    with pytest.raises(error, match=text):
        compiled.launch(1, 32, args)
    assert len(fake.launches) == 1


def test_the_wrong_device_is_named(make):
    compiled, fake = make(scale, SCALE)
    there = torch.zeros(4, device="meta")
    there.get_device = lambda: 0  # of itself a meta tensor says −1, as one on the CPU does
    text = f"scale: y is on meta, the launch is on cuda:{HERE}"
    with pytest.raises(ValueError, match=text):
        compiled.launch(1, 32, (torch.zeros(4), there, 1, 1.0))
    assert not fake.launches


def test_the_wrong_number_of_arguments(make):
    compiled, _ = make(scale, SCALE)
    with pytest.raises(TypeError, match=r"scale\(\) missing 1 required positional argument: 's'"):
        compiled.launch(1, 32, (torch.zeros(4), torch.zeros(4), 1))
    with pytest.raises(TypeError, match="takes 4 positional arguments but 5 were given"):
        compiled.launch(1, 32, (torch.zeros(4), torch.zeros(4), 1, 1.0, 1))


def test_arrays(make):
    def both(a, b):
        pass

    signature = (types.Array(types.float32, 2, "C"), types.Array(types.uint16, 1, "A"))
    compiled, fake = make(both, signature)
    a, b = torch.zeros(3, 5), torch.zeros(12, dtype=torch.bfloat16)[::4]
    compiled.launch(1, 32, (a, b))
    assert fake.launches[0]["words"] == [
        *map(word, (0, 0, 15, 4, a.data_ptr(), 3, 5, 20, 4)),
        *map(word, (0, 0, 3, 2, b.data_ptr(), 3, 8)),
    ]
    compiled.launch(1, 32, (a, b.contiguous()))  # code for any strides takes these as well
    assert fake.launches[1]["words"][-1] == word(2)
    with pytest.raises(TypeError, match=r"both: a is array\(float32, 2d, A\), .*compiled for"):
        compiled.launch(1, 32, (torch.zeros(5, 3).t(), b))
    with pytest.raises(TypeError, match=r"both: a is array\(float32, 1d, C\), .*compiled for"):
        compiled.launch(1, 32, (torch.zeros(15), b))
    assert len(fake.launches) == 2


def test_formats_that_share_a_type(make):
    def free(x, y):
        pass

    def bound(x: "bfloat16", y: "float8_e5m2"):  # noqa: F821
        pass

    half, words = torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.uint16)
    small, octets = torch.zeros(4, dtype=torch.float8_e5m2), torch.zeros(4, dtype=torch.uint8)
    compiled, fake = make(free, (U16, U8))
    for x in (half, words):
        for y in (small, octets, torch.zeros(4, dtype=torch.float8_e4m3fn)):
            compiled.launch(1, 32, (x, y))
    assert len(fake.launches) == 6
    compiled, fake = make(bound, (U16, U8))
    compiled.launch(1, 32, (half, small))
    for args, name in (((words, small), "x is uint16"), ((half, octets), "y is uint8")):
        with pytest.raises(TypeError, match=f"bound: {name}, allowed are"):
            compiled.launch(1, 32, args)


def test_unannotated_numbers_have_their_own_types(make):
    def plain(n, s, on):
        pass

    compiled, fake = make(plain, (types.int64, types.float64, types.boolean))
    compiled.launch(1, 32, (2**40, 0.1, True))
    assert fake.launches[0]["words"] == [word(2**40), struct.pack("<d", 0.1), b"\1"]
    for args in ((1.0, 0.1, True), (1, 1, True), (np.int32(1), 0.1, True), (True, 0.1, True)):
        with pytest.raises(TypeError, match="this kernel was compiled for"):
            compiled.launch(1, 32, args)
    other, seen = make(plain, (types.int32, types.float32, types.boolean))
    other.launch(1, 32, (np.int32(-1), np.float32(0.1), False))
    assert seen.launches[0]["words"] == [b"\xff" * 4, struct.pack("<f", 0.1), b"\0"]


def test_float16_numbers_and_tuples(make):
    def pair(h: "float16", t, _: "int32"):  # noqa: F821
        pass

    compiled, fake = make(
        pair, (types.float16, types.Tuple([types.int64, types.float64]), types.int32)
    )
    compiled.launch(1, 32, (1.5, (3, 0.25), 4))
    assert fake.launches[0]["words"] == [
        np.float16(1.5).tobytes(), word(3), struct.pack("<d", 0.25), struct.pack("<i", 4)
    ]  # fmt: skip
    with pytest.raises(TypeError, match="pair: t is UniTuple"):
        compiled.launch(1, 32, (1.5, (3, 4), 4))
    with pytest.raises(TypeError, match="c: a complex64 cannot be passed"):
        arguments_of(parameters(lambda c: None), (types.complex64,))


def test_another_signature_may_take_the_arguments(make):
    compiled, fake = make(scale, SCALE)
    others = []
    launcher = compiled.bind(1, 32, otherwise=lambda *args: others.append(args))
    x = torch.zeros(4)
    launcher(x, x, 1, 1.0)
    wrong = (x, x.double(), 1, 1.0)
    launcher(*wrong)
    launcher(x, x, 2**31, 1.0)
    assert others == [wrong, (x, x, 2**31, 1.0)] and len(fake.launches) == 1


def test_a_kernel_finds_the_signature_that_fits(make, monkeypatch):
    def twice(x: ("float32", "float16"), n: "int32"):  # noqa: F821
        pass

    made = {}

    def load(fn, signature, device, options, declared):
        return made.setdefault(signature, make(fn, signature))[0]

    monkeypatch.setattr(launch, "load", load)
    monkeypatch.setattr(launch, "is_cuda", lambda value: isinstance(value, torch.Tensor))
    kernel = python_types.SimpleNamespace(
        name="twice", function=twice, parameters=parameters(twice), pointers=True, options=None
    )
    single, half = torch.zeros(4), torch.zeros(4, dtype=torch.float16)
    f16 = types.CPointer(types.float16)
    for x, pointer in ((single, F32), (half, f16), (half, f16), (single, F32)):
        assert launch.launch(kernel, 1, 32, (x, 3)) == (pointer, types.int32)
        assert kernel.known[0].signature == (pointer, types.int32)
    assert len(kernel.known) == 2
    assert [len(fake.launches) for _, fake in made.values()] == [2, 2]
    with pytest.raises(TypeError, match="twice: x is float64, allowed are float32, float16"):
        launch.launch(kernel, 1, 32, (single.double(), 3))
    with pytest.raises(ValueError, match="twice: no argument is a tensor on a GPU"):
        launch.device_of("twice", kernel.parameters, (1, 2))


# ---- configuration


def test_shapes_of_grids_and_blocks():
    assert launch_shape(5, 64) == (5, 1, 1, 64, 1, 1)
    assert launch_shape((1, 2, 3), (np.int32(4), 5)) == (1, 2, 3, 4, 5, 1)
    for grid, block, text in (
        (0, 1, "grid: got"), (1, (0, 1), "block: got"), (-1, 1, "grid"), (1, 1025, "block: "),
        (1, (32, 33), "at most 1024 in all"), ((1, 65536), 1, "axis y has 65536"),
        (2**31, 1, "axis x"), (1, (1, 1, 65), "64 along the last axis"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            launch_shape(grid, block)
    for grid, block in ((1.5, 1), ("2", 1), (1, (1, 1, 1, 1)), ((), 1)):
        with pytest.raises(TypeError, match="must be an integer or up to three"):
            launch_shape(grid, block)


def test_streams(make):
    assert raw_stream(None) == raw_stream(0) == 0 and raw_stream(0x77) == 0x77
    assert raw_stream(python_types.SimpleNamespace(cuda_stream=0x88)) == 0x88
    assert raw_stream(python_types.SimpleNamespace(cuda_stream=0)) == 1  # the legacy stream
    assert raw_stream(python_types.SimpleNamespace(__cuda_stream__=lambda: (0, 0x99))) == 0x99
    with pytest.raises(TypeError, match="stream: got str"):
        raw_stream("main")
    compiled, fake = make(scale, SCALE)
    x = torch.zeros(4)
    for stream, expected in ((0, STREAM), (None, STREAM), (0x77, 0x77)):
        compiled.launch([2, 1], [32], (x, x, 1, 1.0), stream=stream)
        assert fake.launches[-1]["stream"] == expected and fake.launches[-1]["grid"] == (2, 1, 1)


def test_the_current_stream_is_looked_up_at_each_launch(make, monkeypatch):
    now = [1]
    monkeypatch.setattr(launch, "_current_stream", lambda: lambda device: now[0])
    compiled, fake = make(scale, SCALE)
    launcher, x = compiled.bind(1, 32), torch.zeros(4)
    for now[0] in (0x10, 0x20):
        launcher(x, x, 1, 1.0)
    assert [seen["stream"] for seen in fake.launches] == [0x10, 0x20]


def test_shared_memory_is_allowed_once(make):
    compiled, fake = make(scale, SCALE, shared=1024)
    x = torch.zeros(4)
    for smem in (1024, 47 * 1024, 48 * 1024, 100_000, 99_000, 200_000, 200_000):
        compiled.launch(1, 32, (x, x, 1, 1.0), smem=smem)
        assert fake.launches[-1]["shared"] == smem
    allowed = [(a[1].value, a[2].value) for a in fake.called("cuFuncSetAttribute")]
    assert allowed == [(8, 48 * 1024), (8, 100_000), (8, 200_000)]
    with pytest.raises(ValueError, match="smem is 232000 bytes, a block has 231424 on this GPU"):
        compiled.launch(1, 32, (x, x, 1, 1.0), smem=232_000)


def test_clusters_cooperation_and_dependent_launches(make):
    compiled, fake = make(scale, SCALE)
    args = (torch.zeros(4), torch.zeros(4), 1, 1.0)
    compiled.launch((4, 2), 32, args, cluster=(2, 2))
    compiled.launch(4, 32, args, cluster=[2], cooperative=True, pdl=True)
    compiled.launch(32, 32, args, cluster=16)
    compiled.launch(32, 32, args, cluster=16)

    def three(*values):
        return struct.pack("<3I", *values).ljust(64, b"\0")

    yes = struct.pack("<I", 1).ljust(64, b"\0")
    assert [seen["attributes"] for seen in fake.launches] == [
        [(4, three(2, 2, 1))],
        [(4, three(2, 1, 1)), (2, yes), (6, yes)],
        [(4, three(16, 1, 1))],
        [(4, three(16, 1, 1))],
    ]
    assert fake.launches[0]["grid"] == (4, 2, 1) and fake.launches[0]["stream"] == STREAM
    larger = [(a[1].value, a[2].value) for a in fake.called("cuFuncSetAttribute")]
    assert larger == [(14, 1)]  # more than 8 blocks are not portable: allowed once
    with pytest.raises(ValueError, match=r"grid is \(4, 1, 1\) blocks, which the cluster \(3, 1,"):
        compiled.launch(4, 32, args, cluster=3)


# ---- errors of the driver, devices


def test_an_error_of_the_driver_is_told(make):
    compiled, fake = make(scale, SCALE, launch_bounds=(64, 1))
    fake.results = [1]
    text = r"scale: launch of \(2, 1, 1\) blocks of \(128, 1, 1\) threads .*\(64, 1\).*CUDA_ERROR_1"
    with pytest.raises(driver.DriverError, match=text) as caught:
        compiled.launch(2, 128, (torch.zeros(4), torch.zeros(4), 1, 1.0))
    assert caught.value.code == 1


def test_a_thread_that_has_no_context_yet_gets_one(make):
    compiled, fake = make(scale, SCALE)
    fake.results = [driver.INVALID_CONTEXT]
    compiled.launch(1, 32, (torch.zeros(4), torch.zeros(4), 1, 1.0))
    assert len(fake.launches) == 2 and len(fake.called("cuCtxSetCurrent")) == 1
    assert fake.launches[0] == fake.launches[1]
    fake.results = [driver.INVALID_CONTEXT, driver.INVALID_CONTEXT]
    with pytest.raises(driver.DriverError, match="CUDA_ERROR_201"):
        compiled.launch(1, 32, (torch.zeros(4), torch.zeros(4), 1, 1.0))


def test_without_a_driver_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(driver, "library", lambda: None)
    driver.primary_context.cache_clear()
    with pytest.raises(RuntimeError, match="There is no NVIDIA driver on this machine"):
        driver.compute_capability(0)
    assert driver.driver_version() is None


def test_loading_during_a_capture_is_refused(monkeypatch):
    monkeypatch.setattr(launch, "_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="scale: a kernel cannot be loaded while a CUDA graph"):
        launch.load(scale, SCALE, 0)


def test_our_part_of_a_launch_is_timed_part_by_part():
    parts = {row["part"]: row["seconds"] for row in time_host_parts()}
    assert list(parts)[:3] == ["kernel[grid, block](…)", "launcher", "native call"]
    assert all(seconds > 0 for seconds in parts.values())
