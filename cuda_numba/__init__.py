"""CUDA kernels in Python: the operations of a language model, and an emulator to watch them run.

    from cuda_numba import jit, cuda, ptx, emulate, launches
    from cuda_numba import softmax, layer_norm, gelu, …

Every name is imported when it is first used, so that `import cuda_numba` itself costs next to
nothing. Where a function has the name of its module, `cuda_numba.softmax` is the function, in
whatever order things are imported; the module is `importlib.import_module("cuda_numba.softmax")`.
"""

import sys
from importlib import import_module
from types import ModuleType

# name → module that defines it
_NAMES = {
    "Kernel": "jit",
    "jit": "jit",
    "launches": "jit",
    "emulate": "emulator",
    "cuda": "namespace",
    "adamw_step": "optimizer",
    "attention": "attention",
    "cross_entropy": "cross_entropy",
    "cross_entropy_": "cross_entropy",
    "decode_attention": "decode",
    "embedding": "embedding",
    "fp8_linear": "quantized",
    "gelu": "activation",
    "int4_linear": "quantized",
    "int8_linear": "quantized",
    "layer_norm": "layer_norm",
    "layer_norm_residual": "layer_norm",
    "linear": "matmul",
    "linear_cross_entropy": "linear_cross_entropy",
    "lion_step": "optimizer",
    "matmul": "matmul",
    "mlp": "mlp",
    "packed_attention": "packed_attention",
    "quantize_fp8": "quantize",
    "quantize_int4": "quantize",
    "quantize_int8": "quantize",
    "reduce_max": "reduction",
    "reduce_sum": "reduction",
    "rms_norm": "rms_norm",
    "rms_norm_residual": "rms_norm",
    "rope": "rope",
    "row_sum": "reduction",
    "softmax": "softmax",
    "swiglu": "activation",
    "vector_add": "vector_add",
}
_MODULES = ("emulator", "ptx")

__all__ = sorted([*_NAMES, *_MODULES])


class _Package(ModuleType):
    """A package whose functions are not hidden by the modules that they come from."""

    def __setattr__(self, name: str, value: object) -> None:
        # The import system sets `cuda_numba.softmax` to the module once it has loaded it.
        if isinstance(value, ModuleType) and name in _NAMES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str):
    if name in _NAMES:
        value = getattr(import_module(f".{_NAMES[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
