"""Every figure of the course. Each function takes data and an Axes, and returns the Axes.

    from minilm import plots
    plots.attention_map(weights, labels)          # makes a figure of its own
    plots.attention_map(weights, labels, ax=ax)   # draws into yours

Figures of several panels (`attention_growth`, `attention_steps`, `score_steps`) take and return a
row of Axes: `axes=`. All look the same on light and dark pages; `plots.style()` makes that look the
default for your own figures too. Data are NumPy arrays, CPU tensors without gradients, or lists.
"""

from .figure import DASHES, GREY, HEAT, PALETTE, heat_map, style
from .plots_attention import attention_map, attention_steps, score_steps, score_variance
from .plots_flash import attention_growth, errors_of_both, tile_order
from .plots_kernels import (
    access_timeline,
    bank_map,
    languages,
    launch_floor,
    registers,
    rung_speeds,
    rungs_under_roof,
    stride_sectors,
    traffic,
)
from .plots_matmul import (
    accumulator_map,
    flop_ladder,
    fragment_map,
    pipeline_timeline,
    tile_roofline,
    tile_walk,
)
from .plots_model import head_shapes, ladder, next_token_bars, pipeline
from .plots_step import memory_parts, step_treemap, token_ladder
from .plots_text import batch_grid, token_strip
from .plots_tokenizer import compression, merges, stage_times, token_lengths
from .plots_training import (
    gradient_norms,
    learning_rate_sweep,
    lines,
    loss_curves,
    schedule,
    update_ratios,
    weight_histograms,
)

__all__ = [
    "DASHES",
    "GREY",
    "HEAT",
    "PALETTE",
    "access_timeline",
    "accumulator_map",
    "attention_growth",
    "attention_map",
    "attention_steps",
    "bank_map",
    "batch_grid",
    "compression",
    "errors_of_both",
    "flop_ladder",
    "fragment_map",
    "gradient_norms",
    "head_shapes",
    "heat_map",
    "ladder",
    "languages",
    "launch_floor",
    "learning_rate_sweep",
    "lines",
    "loss_curves",
    "memory_parts",
    "merges",
    "next_token_bars",
    "pipeline",
    "pipeline_timeline",
    "registers",
    "rung_speeds",
    "rungs_under_roof",
    "schedule",
    "score_steps",
    "score_variance",
    "stage_times",
    "step_treemap",
    "stride_sectors",
    "style",
    "tile_order",
    "tile_roofline",
    "tile_walk",
    "token_ladder",
    "token_lengths",
    "token_strip",
    "traffic",
    "update_ratios",
    "weight_histograms",
]
