"""Training steps of GPT-2 124M by different hands, with equal settings, and how they are timed.

Ours is `StepGraph`; beside it stand nanoGPT's model, compiled and eager, and our model computed by
PyTorch. Every one has float32 parameters, bfloat16 products by autocast (StepGraph: by its own
copies), no dropout, biases, tied embeddings, AdamW and a gradient norm clipped at 1.

Time is taken over many steps between two moments at which the GPU has nothing left to do. Nobody
reads a loss between them, so the host may run ahead of the GPU as far as a step lets it. Our eager
step reads its gradient norm, as `train` does on PyTorch's kernels, and waits for it.
"""

import contextlib
import gc
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from . import ops
from .bench import cpu_cores
from .bench_model import CLIP, load_peer
from .model import MiniLM, ModelConfig
from .optim import AdamW, clip_grad_norm, parameter_groups
from .precision import autocast
from .step_graph import StepGraph

GPT2 = {"V": 50304, "C": 768, "layers": 12, "H": 12, "T": 1024}  # V: 50,257 rounded up to 64s
BATCHES = 4  # different ones, in turn
LR, BETAS, WEIGHT_DECAY = 6e-4, (0.9, 0.95), 0.1
WARM_UP = 3  # steps of a contender before any is timed

Step = Callable[[], Tensor | None]  # launches a step; the loss, still on the device


@dataclass
class Contender:
    step: Step
    peak: int  # bytes: most memory while it was built and took its first steps, less that before


def model_config(size: dict) -> ModelConfig:
    """GPT-2 of these sizes: V, C, layers, H, T."""
    return ModelConfig.gpt2(
        vocab_size=size["V"],
        context_length=size["T"],
        d_model=size["C"],
        n_layers=size["layers"],
        n_heads=size["H"],
    )


def make_model(size: dict, device: torch.device | str, seed: int = 0) -> MiniLM:
    """A fresh model; the same numbers for a seed, whatever was drawn before."""
    torch.manual_seed(seed)
    with torch.device(device):
        return MiniLM(model_config(size))


def make_optimizer(model: MiniLM, lr: float = LR) -> AdamW:
    return AdamW(parameter_groups(model, WEIGHT_DECAY), lr=lr, betas=BETAS)


def make_batches(size: dict, device: torch.device | str, seed: int = 1) -> list[Tensor]:
    """Random ids (B, T + 1) int64: how fast a step is does not depend on what they say."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size["B"], size["T"] + 1)
    return [torch.randint(size["V"], shape, generator=generator).to(device) for _ in range(BATCHES)]


# ---- the steps


def graph_step(
    model: MiniLM,
    optimizer: AdamW,
    batches: list[Tensor],
    only: Iterable[str] | None = None,
    capture: bool | None = None,
    dtype: str = "bfloat16",
) -> Step:
    """Our step: StepGraph, with the operations in `only` on our kernels (None: all)."""
    graph = StepGraph(model, optimizer, clip=CLIP, dtype=dtype, only=only, capture=capture)
    turns = itertools.cycle(batches)
    return lambda: graph.step(next(turns), LR)[0]


def eager_step(
    model: MiniLM, optimizer: AdamW, batches: list[Tensor], only: Iterable[str] = ()
) -> Step:
    """The step that `train` takes, launched kernel by kernel; PyTorch computes all but `only`."""
    params, turns, only = list(model.parameters()), itertools.cycle(batches), frozenset(only)

    def step() -> Tensor:
        ids = next(turns)
        with ops.use_backend("numba", only) if only else contextlib.nullcontext():
            with autocast(ids.device, "bfloat16"):
                loss = model.loss(ids)
            loss.backward()
            clip_grad_norm(params, CLIP)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def nanogpt_step(path: Path, size: dict, batches: list[Tensor], compiled: bool) -> Step:
    """nanoGPT's model in the loop of its train.py: its optimizer (fused AdamW on a GPU), autocast.

    compiled: by torch.compile, as train.py does by default.
    """
    module, device = load_peer(path), batches[0].device
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its number of parameters
        config = module.GPTConfig(
            block_size=size["T"],
            vocab_size=size["V"],
            n_layer=size["layers"],
            n_head=size["H"],
            n_embd=size["C"],
            dropout=0.0,
            bias=True,
        )
        with device:  # as on the CPU and moved, but for the seconds that takes
            model = module.GPT(config)
        optimizer = model.configure_optimizers(WEIGHT_DECAY, LR, BETAS, device.type)
    params = list(model.parameters())
    if compiled:
        torch._dynamo.reset()  # else a second batch size would be compiled for any size, and slower
        model = torch.compile(model)
    turns = itertools.cycle([(b[:, :-1].contiguous(), b[:, 1:].contiguous()) for b in batches])

    def step() -> Tensor:
        inputs, targets = next(turns)
        with autocast(device, "bfloat16"):
            _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def build(make: Callable[[], Step], warm_up: int = WARM_UP) -> Contender:
    """Make a contender and let it take its first steps: what it compiles is compiled then."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    step = make()
    for _ in range(warm_up):
        step()
    return Contender(step, torch.cuda.max_memory_allocated() - before if on_gpu else 0)


# ---- timing


def time_in_turns(
    steps: dict[str, Step], rounds: int, count: int, clear: bool = False
) -> dict[str, float]:
    """Median seconds of a step of each contender, over turns of `count` steps, in one process.

    A turn: one step that is not counted, wait, `count` steps, wait. The turns change direction from
    round to round, so that a clock that drifts meets all alike. clear: give unused memory back
    before each turn, so that contenders whose memory does not fit beside one another have room; it
    is found again in the step that is not counted.
    """
    if rounds < 1 or count < 1:
        raise ValueError(f"rounds and count: must be at least 1, got {rounds} and {count}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in _turns(steps, rounds):
        if clear and torch.cuda.is_available():
            torch.cuda.empty_cache()
        step()
        start = _clock()
        for _ in range(count):
            step()
        seconds[name].append((_clock() - start) / count)
    return {name: statistics.median(found) for name, found in seconds.items()}


def measure_together(
    makers: dict[str, Callable[[], Step]], rounds: int, count: int, clear: bool = False
) -> tuple[dict[str, float], dict[str, int], dict[str, str]]:
    """Build all and time them in turns: seconds of a step, peak bytes, and who did not fit.

    Who finds too little memory beside the others is left out, by name with the error.
    """
    built, too_large = {}, {}
    for name, make in makers.items():
        try:
            built[name] = build(make)
        except torch.OutOfMemoryError as error:
            too_large[name] = str(error).split("\n")[0]
        free()
    turns = {name: contender.step for name, contender in built.items()}
    seconds = time_in_turns(turns, rounds, count, clear) if turns else {}
    return seconds, {name: contender.peak for name, contender in built.items()}, too_large


def free() -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _turns(steps: dict[str, Step], rounds: int) -> Iterator[tuple[str, Step]]:
    for n in range(rounds):
        yield from steps.items() if n % 2 == 0 else reversed(steps.items())


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_product(device: torch.device | str, n: int = 8192, calls: int = 8) -> tuple[Step, float]:
    """PyTorch's bfloat16 product of n³ (cuBLAS on a GPU) as a contender, and its step's FLOPs."""
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in "ab")
    out = torch.empty_like(a)

    def step() -> None:
        for _ in range(calls):
            torch.mm(a, b.T, out=out)

    return step, calls * 2.0 * n**3


# ---- compiling ahead


@dataclass(frozen=True)
class Job:
    """A step whose kernels are to be compiled: of `StepGraph`, or launched one by one."""

    batch: int  # B
    only: frozenset[str] | None = None  # the operations on our kernels; None: all
    graph: bool = True
    dtype: str = "bfloat16"  # of a graph's products
    vocab: int | None = None  # V; None: GPT-2's


def compile_ahead(jobs: Iterable[Job], size: dict = GPT2, workers: int = 8) -> list[str]:
    """Compile kernels in processes side by side; they are then on disk. The errors, as text.

    What fails here fails again where it is measured, and is reported there. Peers are left out:
    they choose their kernels by time, which must be taken on a GPU that does nothing else.
    """
    jobs = list(dict.fromkeys(jobs))
    workers = max(1, min(workers, len(jobs), cpu_cores()))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = {job: pool.submit(_compile, job, size) for job in jobs}
        return [f"{job}: {e}" for job, future in futures.items() if (e := future.exception())]


def _compile(job: Job, size: dict) -> None:
    """Two steps of two layers: every kernel of the model at its real width."""
    size = size | {"layers": 2, "B": job.batch, "V": job.vocab or size["V"]}
    model, batches = make_model(size, "cuda"), make_batches(size, "cuda")
    optimizer = make_optimizer(model)
    if job.graph:
        step = graph_step(model, optimizer, batches, job.only, capture=False, dtype=job.dtype)
    else:
        step = eager_step(model, optimizer, batches, job.only)
    step()
    step()
    del model, batches, optimizer, step
    free()  # the process goes on with another job
