"""`minilm bench trace`: where the time of one GPT-2 step goes, kernel by kernel, on a GPU.

Two sides take the same step, GPT-2 124M in bfloat16: `torch`, PyTorch's kernels launched one by one
under autocast, and `graph`, our kernels in a StepGraph. Each is a row: the seconds of a step, the
median, without a profiler, and in its details

    kernels   name, class, calls and seconds of each kernel in one step, as the profiler saw it.
              profiled: seconds from the first kernel to the end of the last, busy: those in which
              a kernel ran, launches: how many did
    memory    bytes by part (`step_memory`)
    work      bytes and FLOPs by class and name. torch: its operations one by one (`profile_ops`).
              graph: our kernels by formula (`step_bytes`), and what PyTorch does between them

Results: cuda_numba/results/step_trace-<device>.json.
"""

import contextlib
import statistics
from collections.abc import Iterable, Iterator

import torch

from . import ops
from .bench import row
from .bench_gpt2_rows import SOURCES as GPT2_SOURCES
from .kernel_classes import CLASSES
from .kernel_trace import kernel_rows, timed, traced, union
from .model import MiniLM, ModelConfig
from .optim import AdamW, clip_grad_norm, parameter_groups
from .precision import autocast
from .profile_ops import Profile, profile
from .step_bytes import kernel_work
from .step_graph import StepGraph
from .step_memory import CudaMeter, memory_parts

OP = "step_trace"
SOURCES = {OP: GPT2_SOURCES["gpt2_training"]}
SIDES = ("torch", "graph")
WORK = {"torch": "unfused", "graph": "fused"}  # what a side's bytes are called
B, T, V = 16, 1024, 50304
ROUNDS, WARM_UP = 10, 3
# our classes of operations → those of kernels
OF_OPERATION = {"softmax/reduction": "reduction/norm", "copy": "copy/layout", None: "other"}
OF_LOSS = ("softmax", "nll_loss")  # operations of the class softmax/reduction or gather


def by_class(rows: Iterable[dict], what: str = "seconds") -> dict[str, float]:
    """Class → the sum of a key over rows of kernels or of work, in the order of CLASSES."""
    sums = dict.fromkeys(CLASSES, 0)
    for r in rows:
        sums[r["class"]] += r[what]
    return sums


def trace_rows(
    peers: dict | None = None, *, rounds: int = ROUNDS, batch: int = B, length: int = T, **changes
) -> list[dict]:
    """Both sides, one after the other. changes: of GPT-2's configuration. Needs a GPU."""
    if peers:
        raise ValueError(f"--peer: 'trace' has no peers, got {', '.join(peers)}")
    if not torch.cuda.is_available():
        raise ValueError("trace: it needs an NVIDIA GPU, and PyTorch finds none")
    config = ModelConfig.gpt2(**{"vocab_size": V, "context_length": length} | changes)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (batch, length + 1), generator=generator).cuda()
    rows = []
    for side in SIDES:
        rows.append(packed(side, side_rows(side, config, ids, rounds)))
        torch.cuda.empty_cache()
    theirs, ours = rows
    ours["peers"] = {"torch": {"value": theirs["value"], "seconds": theirs["seconds"]}}
    return rows


def packed(side: str, found: list[dict]) -> dict:
    """One row of a results file; everything but the seconds of a step is in its details."""
    (step,) = (r for r in found if r["kind"] == "step")
    parts: dict[str, list[dict]] = {"kernel": [], "work": [], "memory": []}
    for r in found:
        if r["kind"] in parts:
            parts[r["kind"]].append({k: v for k, v in r.items() if k not in ("kind", "side")})
    details = {name: step[name] for name in ("profiled", "busy", "launches")} | {
        "kernels": parts["kernel"],
        "work": parts["work"],
        "memory": {r["part"]: r["bytes"] for r in parts["memory"]},
    }
    return row(
        OP, side, step["seconds"], "s", shape=step["shape"], dtype="bfloat16",
        seconds=step["seconds"], details=details, sources=SOURCES[OP],
    )  # fmt: skip


def side_rows(side: str, config: ModelConfig, ids: torch.Tensor, rounds: int) -> list[dict]:
    rows: list[dict] = []
    step = Step(side, config, ids.device)
    rows += memory_rows(side, step, ids)
    rows += work_rows(side, step, ids)
    del step
    torch.cuda.empty_cache()
    step = Step(side, config, ids.device)  # a fresh one, as a training would have it
    for _ in range(WARM_UP):
        step(ids)
    seconds = statistics.median(timed(lambda: step(ids)) for _ in range(rounds))
    events = traced(lambda: step(ids))
    shape = {"B": len(ids), "T": ids.shape[1] - 1, "C": config.d_model, "layers": config.n_layers}
    shape |= {"H": config.n_heads, "V": config.vocab_size}
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events]
    rows.append({
        "kind": "step", "side": side, "shape": shape, "seconds": seconds,
        "profiled": (max(e for _, e in spans) - min(s for s, _ in spans)) / 1e6,
        "busy": union(spans) / 1e6, "launches": len(events),
    })  # fmt: skip
    return rows + kernel_rows(side, events)


class Step:
    """One step of GPT-2 on a side: step(ids)."""

    def __init__(self, side: str, config: ModelConfig, device: torch.device | str):
        torch.manual_seed(0)
        self.side, self.device = side, torch.device(device)
        self.model = MiniLM(config).to(device).train()
        self.optimizer = AdamW(
            parameter_groups(self.model, 0.1), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1
        )
        self.graph = StepGraph(self.model, self.optimizer) if side == "graph" else None

    def __call__(self, ids: torch.Tensor) -> None:
        if self.graph is not None:
            self.graph.step(ids, 1e-4)
            return
        with autocast(self.device, "bfloat16"):
            loss = self.model.loss(ids)
        loss.backward()
        self.update()

    def update(self) -> None:
        """Clip, step, and let the gradients go."""
        clip_grad_norm(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """The backend and the formats of this side, for one that goes by hand."""
        with contextlib.ExitStack() as stack:
            if self.graph is not None:
                stack.enter_context(ops.use_backend("numba"))
                stack.enter_context(ops.use_rounded(self.graph.copies))
            stack.enter_context(autocast(self.device, "bfloat16"))
            yield

    def moments(self) -> list[torch.Tensor]:
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in values if torch.is_tensor(value)]


def memory_rows(side: str, step: Step, ids: torch.Tensor, meter=None) -> list[dict]:
    """The second of two steps, taken by hand: the first makes the moments, the workspaces, …"""

    def update() -> None:
        rule = ops.use_backend("numba") if side == "graph" else contextlib.nullcontext()
        with rule:
            step.update()
        if step.graph is not None:
            step.graph.refresh()

    copies = () if step.graph is None else step.graph.copies.values()
    for _ in range(2):
        with step.computing():
            parts = memory_parts(
                step.model, ids, update,
                copies=copies, moments=step.moments, meter=meter or CudaMeter(),
            )  # fmt: skip
    return [{"kind": "memory", "side": side, "part": p, "bytes": n} for p, n in parts.items()]


def work_rows(side: str, step: Step, ids: torch.Tensor) -> list[dict]:
    """What a step moves and computes: `unfused` for torch, `fused` for our kernels."""
    if side == "torch":
        return _of_profile("unfused", profile(lambda: step(ids)))
    by_hand = StepGraph(step.model, step.optimizer, capture=False)
    found = profile(lambda: by_hand.step(ids, 1e-4))
    step.graph.refresh()
    wide = {p.ndim >= 2: 0 for p in step.model.parameters()}
    for p in step.model.parameters():
        wide[p.ndim >= 2] += p.numel()
    sizes = {"matrices": wide[True], "vectors": wide[False]}
    B, T = ids.shape[0], ids.shape[1] - 1
    ours = [
        {"kind": "work", "side": "fused", "class": work.kind, "name": work.name,
         "calls": work.calls, "bytes": work.bytes, "flops": work.flops}
        for work in kernel_work(step.model.config, B, T, sizes)
    ]  # fmt: skip
    return ours + _of_profile("fused", found)


def _of_profile(side: str, found: Profile) -> list[dict]:
    """The operations of one name and class together."""
    sums: dict[tuple[str, str], list[int]] = {}
    for r in found.rows:
        name = r.name.removeprefix("aten.").partition(".")[0].strip("_").removeprefix("foreach_")
        kind = OF_OPERATION.get(r.kind, r.kind)
        if any(part in name for part in OF_LOSS):
            kind = "softmax/loss"
        total = sums.setdefault((kind, name), [0, 0, 0])
        for i, n in enumerate((1, r.bytes, r.flops)):
            total[i] += n
    return [
        {"kind": "work", "side": side, "class": kind, "name": name,
         "calls": calls, "bytes": moved, "flops": flops}
        for (kind, name), (calls, moved, flops) in sums.items()
    ]  # fmt: skip
