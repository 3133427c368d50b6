"""A CUDA driver that runs nothing: it keeps what it was called with, parameter bytes included."""

import ctypes
import struct
from ctypes import CFUNCTYPE, POINTER, c_int, c_uint, c_void_p

from cuda_numba.native import words_of

LAUNCH = CFUNCTYPE(c_int, c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p))
LAUNCH_EX = CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(c_void_p), POINTER(c_void_p))
OPTIN = 232448  # shared memory of an H100's block, in bytes


class FakeDriver:
    """Stands for `driver.library()`.

    launches  dicts: function, grid, block, shared, stream, attributes [(id, value bytes)], words
    results   what the next launches return instead of 0
    calls     (name, arguments) of everything else
    """

    def __init__(self, layout):
        self.sizes = [size for part in layout for size in words_of(part)]
        self.launches, self.results, self.calls = [], [], []
        self.cuLaunchKernel = LAUNCH(self._launch)
        self.cuLaunchKernelEx = LAUNCH_EX(self._launch_ex)

    def _launch(self, function, gx, gy, gz, bx, by, bz, shared, stream, values, extra):
        return self._keep(function, (gx, gy, gz), (bx, by, bz), shared, stream, [], values)

    def _launch_ex(self, config, function, values, extra):
        gx, gy, gz, bx, by, bz, shared, stream, address, count = struct.unpack(
            "<7I4xQQI4x", ctypes.string_at(config, 56)
        )
        attributes = []
        for i in range(count):
            record = ctypes.string_at(address + 72 * i, 72)
            attributes.append((struct.unpack_from("<I", record)[0], record[8:]))
        return self._keep(function, (gx, gy, gz), (bx, by, bz), shared, stream, attributes, values)

    def _keep(self, function, grid, block, shared, stream, attributes, values):
        words = [ctypes.string_at(values[i], size) for i, size in enumerate(self.sizes)]
        self.launches.append(
            dict(function=function, grid=grid, block=block, shared=shared, stream=stream or 0,
                 attributes=attributes, words=words)
        )  # fmt: skip
        return self.results.pop(0) if self.results else 0

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*args):
            self.calls.append((name, args))
            if name in ("cuDevicePrimaryCtxRetain", "cuModuleLoadData"):
                args[0]._obj.value = 0xC0
            elif name == "cuModuleGetFunction":
                args[0]._obj.value = 0xF0
            elif name == "cuDeviceGetAttribute":
                args[0]._obj.value = {75: 9, 76: 0, 97: OPTIN}[args[1].value]
            elif name == "cuGetErrorName":
                args[1]._obj.value = b"CUDA_ERROR_%d" % args[0].value
            elif name == "cuGetErrorString":
                args[1]._obj.value = b"as the fake driver says"
            return 0

        return call

    def called(self, name):
        return [args for n, args in self.calls if n == name]
