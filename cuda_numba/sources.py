"""Which files of this package each operation of the results files is measured on."""

NORM = ("norm.py", "norm_access.py", "norm_forward.py", "norm_backward.py", "norm_staged.py")
NORM += ("norm_weights.py", "norm_passes.py")

SOURCES = {
    "softmax": ("softmax.py", "softmax_rows.py", "softmax_long.py", "warp.py"),
    "layer_norm": ("layer_norm.py", *NORM, "warp.py"),
    "rms_norm": ("rms_norm.py", *NORM, "warp.py"),
    "gelu": ("activation.py", "activation_curve.py"),
    "swiglu": ("activation.py", "activation_curve.py"),
    "rope": ("rope.py",),
    "embedding": ("embedding.py", "embedding_gradient.py", "embedding_plan.py"),
    "cross_entropy": ("cross_entropy.py", "cross_entropy_fused.py", "cross_entropy_row.py"),
    "adamw": ("optimizer.py", "optimizer_kernel.py", "optimizer_table.py"),
    "lion": ("optimizer.py", "optimizer_kernel.py", "optimizer_table.py"),
    "launch": ("jit.py", "launch.py", "native.py", "packing.py", "driver.py"),
}
