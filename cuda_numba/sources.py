"""Which files of this package each operation of the results files is measured on."""

NORM = ("norm.py", "norm_access.py", "norm_forward.py", "norm_backward.py", "norm_staged.py")
NORM += ("norm_weights.py", "norm_passes.py", "norm_arguments.py")

ACTIVATION = ("activation.py", "activation_kernels.py", "activation_curve.py", "access.py")

EMBEDDING_GRADIENT = ("embedding_gradient.py", "embedding_plan.py", "embedding_split.py")
EMBEDDING_GRADIENT += ("embedding_order.py", "embedding_places.py", "embedding_gather.py")

CROSS_ENTROPY = ("cross_entropy.py", "cross_entropy_launch.py", "cross_entropy_fused.py")
CROSS_ENTROPY += ("cross_entropy_row.py", "softmax_rows.py", "warp.py")

LAUNCH = ("jit.py", "launch.py", "launch_log.py", "packing.py", "native.py", "native_function.py")
LAUNCH += ("dlpack.py", "driver.py")

SOURCES = {
    "softmax": ("softmax.py", "softmax_rows.py", "softmax_long.py", "warp.py"),
    "layer_norm": ("layer_norm.py", *NORM, "warp.py"),
    "rms_norm": ("rms_norm.py", *NORM, "warp.py"),
    "gelu": ACTIVATION,
    "swiglu": ACTIVATION,
    "rope": ("rope.py", "access.py"),
    "embedding": ("embedding.py", *EMBEDDING_GRADIENT),
    "cross_entropy": CROSS_ENTROPY,
    "adamw": ("optimizer.py", "optimizer_kernel.py", "optimizer_table.py"),
    "lion": ("optimizer.py", "optimizer_kernel.py", "optimizer_table.py"),
    "launch": LAUNCH,
}
