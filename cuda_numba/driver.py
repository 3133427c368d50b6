"""The CUDA driver, called through ctypes: contexts, modules, function attributes, its linker.

Only what a launch needs, and never imported or loaded where there is no NVIDIA driver. PyTorch uses
each device's primary context, and so does this. Names and numbers: CUDA Driver API, cuda.h.
"""

import contextlib
import ctypes
import functools
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p

INVALID_CONTEXT = 201

# CUfunction_attribute
MAX_DYNAMIC_SHARED, NON_PORTABLE_CLUSTER = 8, 14
# CUdevice_attribute
CC_MAJOR, CC_MINOR, SHARED_OPTIN = 75, 76, 97
# CUjit_option, CUjitInputType
JIT_MAX_REGISTERS, JIT_INFO, JIT_INFO_SIZE, JIT_ERROR, JIT_ERROR_SIZE = 0, 3, 4, 5, 6
JIT_LINEINFO, JIT_VERBOSE = 13, 12
INPUT_PTX = 1
LOG_BYTES = 1 << 16


class DriverError(RuntimeError):
    """The driver's answer to a call; `code` is its CUresult."""

    def __init__(self, what: str, code: int):
        super().__init__(f"{what}: {error_text(code)}")
        self.code = code


@functools.cache
def library():
    """The driver's library, or None where there is none."""
    name = {"win32": "nvcuda.dll", "darwin": None}.get(sys.platform, "libcuda.so.1")
    try:
        return name and ctypes.CDLL(name)
    except OSError:
        return None


def error_text(code: int) -> str:
    """ "CUDA_ERROR_INVALID_VALUE, invalid argument" for 1."""
    parts = []
    for name in ("cuGetErrorName", "cuGetErrorString"):
        text = c_char_p()
        if getattr(library(), name)(c_int(code), byref(text)) == 0 and text.value:
            parts.append(text.value.decode())
    return ", ".join(parts) or f"CUDA error {code}"


def call(name: str, *args) -> None:
    """One call; raises DriverError for anything but success."""
    if library() is None:
        raise RuntimeError(
            "There is no NVIDIA driver on this machine: kernels run on the emulator."
        )
    if code := getattr(library(), name)(*args):
        raise DriverError(name, code)


def address(name: str) -> int:
    """Where a function of the driver starts."""
    return ctypes.cast(getattr(library(), name), c_void_p).value


def driver_version() -> int | None:
    """13000 for CUDA 13.0; None where there is no driver."""
    version = c_int()
    if library() is None or library().cuDriverGetVersion(byref(version)):
        return None
    return version.value


@functools.cache
def primary_context(device: int) -> int:
    """The context that PyTorch uses on this device, kept for the life of the process."""
    call("cuInit", c_uint(0))
    context = c_void_p()
    call("cuDevicePrimaryCtxRetain", byref(context), c_int(device))
    return context.value


def use_context(device: int) -> None:
    """Make the device's context the calling thread's own."""
    call("cuCtxSetCurrent", c_void_p(primary_context(device)))


@contextlib.contextmanager
def context(device: int):
    """The device's context inside a with block, the previous one after it."""
    call("cuCtxPushCurrent_v2", c_void_p(primary_context(device)))
    try:
        yield
    finally:
        call("cuCtxPopCurrent_v2", byref(c_void_p()))


def device_attribute(device: int, attribute: int) -> int:
    primary_context(device)  # initialises the driver
    value = c_int()
    call("cuDeviceGetAttribute", byref(value), c_int(attribute), c_int(device))
    return value.value


def compute_capability(device: int) -> tuple[int, int]:
    return device_attribute(device, CC_MAJOR), device_attribute(device, CC_MINOR)


def load_function(code: bytes, entry: str, device: int) -> int:
    """Load a cubin and return its kernel as a CUfunction; it is never unloaded."""
    module, function = c_void_p(), c_void_p()
    with context(device):
        call("cuModuleLoadData", byref(module), c_char_p(code))
        call("cuModuleGetFunction", byref(function), module, c_char_p(entry.encode()))
    return function.value


def set_attribute(function: int, attribute: int, value: int) -> None:
    call("cuFuncSetAttribute", c_void_p(function), c_int(attribute), c_int(value))


def link(ptx: str, max_registers: int | None = None, *, lineinfo: bool = False,
         device: int = 0) -> tuple[bytes, str]:  # fmt: skip
    """(cubin, log) of the driver's own compiler, for a GPU of this machine.

    Raises RuntimeError with the compiler's words.
    """
    info, errors = (ctypes.create_string_buffer(LOG_BYTES) for _ in range(2))
    options = {
        JIT_INFO: ctypes.addressof(info),
        JIT_INFO_SIZE: LOG_BYTES,
        JIT_ERROR: ctypes.addressof(errors),
        JIT_ERROR_SIZE: LOG_BYTES,
        JIT_VERBOSE: 1,
        JIT_LINEINFO: int(lineinfo),
    }
    if max_registers is not None:
        options[JIT_MAX_REGISTERS] = max_registers
    count = len(options)
    keys, values = (c_int * count)(*options), (c_void_p * count)(*options.values())
    text = ptx.encode() + b"\0"
    state, code, size = c_void_p(), c_void_p(), c_size_t()
    with context(device):
        call("cuLinkCreate_v2", c_uint(count), keys, values, byref(state))
        try:
            add = (c_int(INPUT_PTX), c_char_p(text), c_size_t(len(text)), c_char_p(b"kernel"))
            call("cuLinkAddData_v2", state, *add, c_uint(0), None, None)
            call("cuLinkComplete", state, byref(code), byref(size))
            return ctypes.string_at(code, size.value), info.value.decode(errors="replace").strip()
        except DriverError as error:
            raise RuntimeError(
                f"{error} {errors.value.decode(errors='replace')}".strip()
            ) from error
        finally:
            library().cuLinkDestroy(state)
