"""Which files of this package each operation of the results files is measured on."""

from pathlib import Path

NORM = ("norm.py", "norm_access.py", "norm_forward.py", "norm_backward.py", "norm_staged.py")
NORM += ("norm_weights.py", "norm_passes.py", "norm_arguments.py")

ACTIVATION = ("activation.py", "activation_kernels.py", "activation_curve.py", "access.py")

EMBEDDING_GRADIENT = ("embedding_gradient.py", "embedding_plan.py", "embedding_split.py")
EMBEDDING_GRADIENT += ("embedding_order.py", "embedding_places.py", "embedding_gather.py")

CROSS_ENTROPY = ("cross_entropy.py", "cross_entropy_launch.py", "cross_entropy_fused.py")
CROSS_ENTROPY += ("cross_entropy_row.py", "softmax_rows.py", "warp.py")

LAUNCH = ("jit.py", "launch.py", "launch_log.py", "packing.py", "native.py", "native_function.py")
LAUNCH += ("dlpack.py", "driver.py")

HOPPER_PRODUCT = ("matmul_hopper.py", "matmul_sums.py", "hopper_choice.py", "hopper_epilogue.py")
HOPPER_PRODUCT += ("hopper_fragments.py", "hopper_load.py", "hopper_operand.py")
HOPPER_PRODUCT += ("hopper_output.py", "hopper_product.py", "hopper_schedule.py")
HOPPER_PRODUCT += ("hopper_row_sums.py", "hopper_split.py", "hopper_tile.py", "hopper_turns.py")

MATMUL = ("matmul.py", "matmul_operands.py", "matmul_order.py", "matmul_simt.py")
MATMUL += ("matmul_simt_registers.py", "matmul_simt_tile.py", "matmul_warp.py")
MATMUL += ("matmul_warp_epilogue.py", "matmul_warp_kernel.py", "matmul_warp_registers.py")
MATMUL += ("matmul_warp_tiles.py", "rounded.py", *HOPPER_PRODUCT)

LINEAR_CROSS_ENTROPY = ("linear_cross_entropy.py", "rounded.py", *CROSS_ENTROPY, *HOPPER_PRODUCT)


def family(prefix: str) -> tuple[str, ...]:
    """All files of the package whose names begin with `prefix`."""
    return tuple(sorted(path.name for path in Path(__file__).parent.glob(f"{prefix}*.py")))


QUANTIZED = (*family("quantize"), "warp.py")

SOURCES = {
    "softmax": ("softmax.py", "softmax_rows.py", "softmax_long.py", "warp.py"),
    "layer_norm": ("layer_norm.py", *NORM, "warp.py"),
    "rms_norm": ("rms_norm.py", *NORM, "warp.py"),
    "gelu": ACTIVATION,
    "swiglu": ACTIVATION,
    "rope": ("rope.py", "access.py"),
    "embedding": ("embedding.py", "rounded.py", *EMBEDDING_GRADIENT),
    "cross_entropy": CROSS_ENTROPY,
    "adamw": ("optimizer.py", "optimizer_kernel.py", "optimizer_table.py"),
    "lion": ("optimizer.py", "optimizer_kernel.py", "optimizer_table.py"),
    "launch": LAUNCH,
    "matmul": MATMUL,
    "attention": family("attention"),
    "linear_cross_entropy": LINEAR_CROSS_ENTROPY,
    "decode_attention": family("decode"),
    "int8_linear": QUANTIZED,
    "int4_linear": QUANTIZED,
    "fp8_linear": QUANTIZED,
}
