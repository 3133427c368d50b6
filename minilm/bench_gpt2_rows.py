"""The rows of the GPT-2 benchmark: values, peers and goals out of seconds, curves and gradients."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from . import bench_gpt2_curves as curves
from . import bench_gpt2_gradients as gradients
from . import bench_gpt2_kernels as kernels
from . import bench_gpt2_steps as steps
from .bench import PACKAGE, row
from .bench_model import peer_file
from .data import TokenStream
from .model import MiniLM

OP = "gpt2_training"
GOAL = 1.15  # times nanoGPT compiled
SIZES = ({"B": 16} | steps.GPT2, {"B": 64} | steps.GPT2)
CROWDED = 64  # from this B on, contenders give their memory back between turns
TURNS = {16: (6, 10), 64: (4, 5)}  # B → turns of each contender, steps in a turn
DATA_SHEET = 989e12  # FLOP/s of an H100's tensor cores in bfloat16
COMPILED, EAGER, TORCH = "nanogpt compiled", "nanogpt eager", "torch eager"


def _sources() -> tuple[str, ...]:
    """Our step, and every kernel file of cuda_numba: not its benchmarks, not its emulator."""
    folder = PACKAGE.parent / "cuda_numba"
    found = [*folder.glob("*.py"), *folder.glob("ptx/*.py")]
    others = ("bench", "sanitizer", "record", "stopwatch", "nsight", "machine_code", "instrument")
    others += ("sources",)  # a list of names
    files = (path for path in found if not path.name.startswith(others))
    names = sorted(f"../cuda_numba/{path.relative_to(folder).as_posix()}" for path in files)
    model = ("step_graph.py", "model.py", "attention.py", "layers.py", "ops.py", "backends.py")
    return (*model, "loss.py", "optim.py", "precision.py", *names)


SOURCES = {OP: _sources()}  # operation → the files that are measured


def gpt2_row(pass_: str, value: float, unit: str, size: dict, **options) -> dict:
    """A row of this benchmark; its details say when it was measured."""
    stamp = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    details = stamp | options.pop("details", {})
    return row(
        OP, pass_, value, unit, shape=size, dtype=options.pop("dtype", "bfloat16"), details=details,
        sources=SOURCES[OP], **options,
    )  # fmt: skip


# ---- step


def step_rows(
    peers: dict[str, Path],
    rounds: int | None = None,
    sizes: Iterable[dict] = SIZES,
    device: str = "cuda",
) -> Iterator[dict]:
    """A row for each size: StepGraph's tokens/s beside its peers', in turns in one process."""
    for size in sizes:
        batches = steps.make_batches(size, device)
        product, product_flops = steps.matrix_product(device, 8192 if device == "cuda" else 32)
        makers = contenders(peers, size, batches, device) | {"product": lambda p=product: p}
        turns, count = TURNS.get(size["B"], (2, 2))
        turns = turns if rounds is None else rounds
        options = {"rounds": turns, "count": count, "clear": size["B"] >= CROWDED}
        seconds, peaks, too_large = steps.measure_together(makers, **options)
        roof = product_flops / seconds.pop("product")
        steps.free()
        alone = {}
        for name in too_large:  # by itself it may have room
            times, peak, still = steps.measure_together({name: makers[name]}, **options)
            steps.free()
            seconds, peaks = seconds | times, peaks | peak
            alone[name] = still.get(name)
        yield step_row(size, seconds, peaks, roof, alone, peers)


def contenders(
    peers: dict[str, Path], size: dict, batches: list, device: str
) -> dict[str, Callable[[], steps.Step]]:
    """name → function that makes its step. nanoGPT compiled comes right after ours."""

    def ours() -> steps.Step:
        model = steps.make_model(size, device)
        return steps.graph_step(model, steps.make_optimizer(model), batches)

    def torch_eager() -> steps.Step:
        model = steps.make_model(size, device)
        return steps.eager_step(model, steps.make_optimizer(model), batches)

    found = {"minilm": ours}
    for name, path in peers.items():
        path = peer_file(name, path)
        for compiled in (True, False):
            found[COMPILED if compiled else EAGER] = lambda path=path, compiled=compiled: (
                steps.nanogpt_step(path, size, batches, compiled)
            )
    return found | {TORCH: torch_eager}


def step_row(
    size: dict,
    seconds: dict[str, float],
    peaks: dict[str, int],
    roof: float,
    alone: dict[str, str | None],
    peers: dict[str, Path],
) -> dict:
    """The row of a size. seconds, peaks: of a step, in bytes, by contender; roof: FLOP/s.

    alone: those for whom there was no room beside the others, and the error where there was none
    at all.
    """
    tokens = size["B"] * size["T"]
    rate = {name: tokens / s for name, s in seconds.items()}
    flops, as_nanogpt = flops_per_token(size)
    found = {}
    for name in seconds:
        if name != "minilm":
            found[name] = {"value": rate[name], "seconds": seconds[name], "peak_bytes": peaks[name]}
            found[name] |= {"measured": "alone"} if name in alone else {}
        if name in (COMPILED, EAGER):
            file = peer_file("nanogpt", peers["nanogpt"])
            found[name]["source_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    no_room = {name: error for name, error in alone.items() if error}
    details = {
        "peak_bytes": peaks["minilm"],
        "matrix_rate": roof,
        "flops_per_token": flops,
        "attention": "counted without the causal half",
        "mfu_of_data_sheet": rate["minilm"] * as_nanogpt / DATA_SHEET,
        "mfu_of_data_sheet_counts": "6 N + 12 L H D T as nanoGPT, of 989 TFLOP/s",
        "timed": "turns of steps until the device is idle; batches are on it, no loss is read",
    }
    return gpt2_row(
        "step",
        rate["minilm"],
        "tokens/s",
        size,
        seconds=seconds["minilm"],
        of_roof=rate["minilm"] * flops / roof,
        peers=found,
        goal=GOAL * rate[COMPILED] if COMPILED in rate else None,
        details=details | ({"out_of_memory": no_room} if no_room else {}),
    )


def flops_per_token(size: dict) -> tuple[int, int]:
    """FLOPs to train on a token: as MiniLM counts them, and as nanoGPT's estimate_mfu does."""
    with torch.device("meta"):
        model = MiniLM(steps.model_config(size))
    n = model.num_parameters() - model.position_embedding.weight.numel()
    return model.flops_per_token(), 6 * n + 12 * size["layers"] * size["C"] * size["T"]


# ---- kernels, curves, gradients


def kernel_rows(size: dict, rounds: int = 3, device: str = "cuda") -> Iterator[dict]:
    """Tokens/s as operations become ours, each beside the row before; then as each is left out."""
    tokens, before = size["B"] * size["T"], {}
    for name, seconds in kernels.times_with(size, device, rounds).items():
        rate = tokens / seconds
        name = TORCH if name == "torch" else name
        yield gpt2_row(name, rate, "tokens/s", size, seconds=seconds, peers=before)
        before = {"before": {"value": rate, "seconds": seconds}}
    steps.free()
    if torch.device(device).type == "cuda":  # the other way there is a graph in every row
        for name, (seconds, whole) in kernels.times_without(size, device, rounds).items():
            peer = {"whole step": {"value": tokens / whole, "seconds": whole}}
            yield gpt2_row(
                name, tokens / seconds, "tokens/s", size, seconds=seconds, peers=peer,
                details={"speedup": seconds / whole},
            )  # fmt: skip
    steps.free()


def curve_rows(
    size: dict, data: TokenStream, device: str = "cuda", n: int = curves.STEPS
) -> Iterator[dict]:
    """How far our loss curve is from PyTorch's, beside how far those are from one another; bits.

    n: steps of each training.
    """
    size = size | {"V": data.vocab_size}
    found, differences = curves.all_curves(size, data, device, n)
    # as they are stored, so that a reader finds the same distances
    found = {name: [round(x, 5) for x in losses] for name, losses in found.items()}
    yield gpt2_row("loss curve", size=size | {"steps": n}, **curve_result(found, len(data.ids)))
    yield gpt2_row(
        "same bits",
        differences,
        "differences",
        size | {"steps": n},
        goal=0,
        details={"compared": "two runs: the loss of each step, and every weight after the last"},
    )


def curve_result(found: dict[str, list[float]], tokens: int) -> dict:
    """What the row of loss curves says of curves by name; tokens: of the text.

    Like is compared with like: the largest of our distances with the largest among PyTorch's.
    """
    ours, among = curves.distances(found)
    noise = max(among.values())
    return {
        "value": max(ours.values()),
        "unit": "nats",
        "peers": {"torch among itself": {"value": noise, "seconds": None}},
        "goal": noise,
        "details": {
            "distance": f"of two curves: largest difference of their means over {curves.WINDOW} "
            "steps; the value is the largest from PyTorch's four, the goal the largest among them",
            "ours": ours,
            "among_torch": among,
            "data": f"{tokens} tokens of Python sources",
            "curves": found,
        },
    }


def gradient_rows(size: dict, device: str = "cuda") -> Iterator[dict]:
    """The largest error of a gradient of ours and of PyTorch's; the table stands in the details."""
    table = gradients.gradient_table(size, device)
    worst = {who: max(r[who] for r in table) for who in ("ours", "torch", "ours_float32")}
    shape = size | {"tensors": len(table)}
    peer = {"torch autocast": {"value": worst["torch"], "seconds": None}}
    yield gpt2_row(
        "gradients", worst["ours"], "relative", shape, peers=peer, error=worst["ours"],
        details={"against": "PyTorch, float32, 2-norms", "tensors": table},
    )  # fmt: skip
    yield gpt2_row(
        "gradients", worst["ours_float32"], "relative", shape, dtype="float32",
        error=worst["ours_float32"],
    )  # fmt: skip
