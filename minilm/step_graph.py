"""A whole training step on our kernels, recorded once as a CUDA graph and replayed.

    forward → loss → backward → gradient norm → clipping factor → AdamW or Lion, which also writes
    the parameters once more, rounded, for the next step's products

A step of GPT-2 124M is some 400 kernels of 5 to 500 µs. Launched one by one from Python they leave
the GPU waiting; a graph launches them all at once. What a graph has recorded are addresses: so the
batch, the learning rate, the number of the step and the clipping factor are read from device
memory, where each step leaves new values, and nothing waits for the host.

Parameters, gradients and moments are float32; activations and the copies that the products read
have the step's dtype (Micikevicius et al. 2018, section 3.1: a master copy of the weights).
"""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from . import ops
from .data import Batch
from .evaluate import batch_loss
from .model import MiniLM
from .optim import AdamW, Lion, grad_norm
from .precision import autocast

WARM_UP = 2  # steps before the recording: kernels are compiled, tables uploaded, memory is found
RULES = {AdamW: "adamw_step", Lion: "lion_step"}


class StepGraph:
    """One optimizer step of `model`, the same kernels at the same addresses every time.

    optimizer: an AdamW or Lion of this model. Its state is the graph's: moments and the number of
        steps stand in `optimizer.state` as ever, and what is there at the start is gone on with.
        The learning rate comes with each step instead of from the parameter groups.
    clip: the largest gradient norm; None: no clipping.
    dtype: of the products, "float32" or "bfloat16" (float16 needs a loss scale, which decides about
        a step on the host).
    only: operations that are computed by our kernels, the optimizer's step among them; None: all.
    accumulation: parts that a batch is cut into, to need less memory at once.
    capture: record and replay. None: on a GPU. Without, the same step is launched kernel by kernel,
        on CPU tensors by the emulator.

    Raises ValueError for what cannot be recorded.
    """

    def __init__(
        self,
        model: MiniLM,
        optimizer: AdamW | Lion,
        *,
        clip: float | None = 1.0,
        dtype: str = "bfloat16",
        only: Iterable[str] | None = None,
        accumulation: int = 1,
        capture: bool | None = None,
    ):
        self.rule = RULES.get(type(optimizer))
        if self.rule is None:
            raise ValueError(
                f"optimizer: got {type(optimizer).__name__}, there are kernels for AdamW and Lion"
            )
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: must be float32 or bfloat16, got {dtype!r}")
        self.only = None if only is None else frozenset(only)
        if self.only is not None and self.rule not in self.only:
            raise ValueError(f"only: {self.rule!r} must be among the operations")
        self.moments = ("m", "v") if self.rule == "adamw_step" else ("m",)
        self.model, self.optimizer, self.dtype = model, optimizer, dtype
        self.clip, self.accumulation = clip, accumulation
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.params[0].device
        if capture and self.device.type != "cuda":
            raise ValueError(f"capture: a CUDA graph needs a GPU, the model is on {self.device}")
        self.capture = self.device.type == "cuda" if capture is None else capture
        self.copies: dict[Tensor, Tensor] = {}
        if dtype != "float32":
            wide = [p for p in self.params if p.ndim >= 2]
            self.copies = {p: p.detach().to(getattr(torch, dtype)) for p in wide}
        self.lr = torch.zeros((), device=self.device)
        self.count = torch.full((), float(self._prepare_state()), device=self.device)
        self.batch: Batch = {}
        self.graph: torch.cuda.CUDAGraph | None = None
        self.results: tuple[Tensor, Tensor] | None = None

    def step(self, batch: Batch | Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Take one step: (loss, gradient norm before clipping), float32 scalars on the device.

        batch: {"ids": (B, T + 1), …} as `train` has it, or the ids alone; of one shape in every
        call. The results lie where the next step's will lie: read them before it. The gradients,
        not clipped, are in `.grad` afterwards. A loss or a norm that is not finite has ruined the
        parameters: look at both.
        """
        batch = {"ids": batch} if isinstance(batch, Tensor) else batch
        self._take(batch)
        self.lr.fill_(lr)
        if not self.capture:
            self.results = self._compute()
        else:
            if self.graph is None:
                self._record()
            self.graph.replay()
        for p in self.params:
            self.optimizer.state[p]["step"] += 1
        return self.results

    def refresh(self) -> None:
        """Make the copies anew: after parameters were changed by somebody else."""
        for p, copy in self.copies.items():
            copy.copy_(p.detach())

    # ---- what a step is

    def _compute(self) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        with ops.use_backend("numba", self.only), ops.use_rounded(self.copies):
            loss = self._backward()
            norm = grad_norm(self.params)
            factor = torch.ones((), device=self.device)
            if self.clip is not None:
                factor = (self.clip / norm).clamp(max=1.0)  # NaN where the norm is NaN
            self.count += 1
            for group in self.optimizer.param_groups:
                self._update(group, factor)
        return loss, norm

    def _backward(self) -> Tensor:
        """Gradients of the mean loss of the batch; its parts are equal, so each has one share."""
        parts = [t.chunk(self.accumulation) for t in self.batch.values()]
        total = torch.zeros((), device=self.device)
        for tensors in zip(*parts, strict=True):
            with autocast(self.device, self.dtype):
                loss = batch_loss(self.model, dict(zip(self.batch, tensors, strict=True)))
            loss = loss if self.accumulation == 1 else loss / self.accumulation
            loss.backward()
            total = total + loss.detach()
        return total

    def _update(self, group: dict, factor: Tensor) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        options = {"betas": group["betas"], "weight_decay": group["weight_decay"]}
        if self.rule == "adamw_step":
            options |= {"eps": group["eps"], "step": self.count}
        for copied in (True, False):
            some = [p for p in params if (p in self.copies) == copied]
            if not some:
                continue
            moments = [[self.optimizer.state[p][name] for p in some] for name in self.moments]
            copies = {"copies": [self.copies[p] for p in some]} if copied else {}
            ops.step_kernel(self.rule, some)(
                some, [p.grad for p in some], *moments,
                lr=self.lr, grad_scale=factor, **options, **copies,
            )  # fmt: skip

    # ---- what is recorded

    def _record(self) -> None:
        """Warm up, put everything back, record."""
        kept = [(t, t.detach().clone()) for t in self._changed()]
        random = torch.cuda.get_rng_state(self.device)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream), warnings.catch_warnings():
            # Outside of a recording autograd may wait for a second stream; that is all it warns of.
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
            for _ in range(WARM_UP):
                self._compute()
            for tensor, before in kept:
                tensor.detach().copy_(before)
            del kept
            self.optimizer.zero_grad(set_to_none=True)
        stream.synchronize()
        torch.cuda.set_rng_state(random, self.device)
        self.graph = torch.cuda.CUDAGraph()
        # the same stream: workspaces belong to one, and were made in the warm-up
        with torch.cuda.graph(self.graph, stream=stream):
            self.results = self._compute()

    def _changed(self) -> list[Tensor]:
        """All that a step changes, but for gradients."""
        moments = [
            t for p in self.params for t in self.optimizer.state[p].values() if torch.is_tensor(t)
        ]
        return [*self.params, *self.copies.values(), *moments, self.count]

    def _prepare_state(self) -> int:
        """Moments for every parameter; the number of steps that they have seen."""
        for p in self.params:
            state = self.optimizer.state[p]
            if not state:
                state["step"] = 0
                state.update({name: torch.zeros_like(p) for name in self.moments})
        steps = {self.optimizer.state[p]["step"] for p in self.params}
        if len(steps) > 1:
            raise ValueError(
                f"optimizer: its parameters have taken {min(steps)} to {max(steps)} steps, in a "
                "graph all take the same"
            )
        return steps.pop()

    def _take(self, batch: Batch) -> None:
        """The batch into the memory that the graph reads."""
        if not self.batch:
            rows = batch["ids"].shape[0]
            if rows % self.accumulation:
                raise ValueError(
                    f"accumulation: {self.accumulation} must divide the batch of {rows} rows"
                )
            if self.accumulation > 1 and set(batch) != {"ids"}:
                raise ValueError(
                    "accumulation: parts of a batch with masks or segments have unequal numbers "
                    "of targets, and a graph does not count; use accumulation=1"
                )
            self.batch = {name: t.to(self.device, copy=True) for name, t in batch.items()}
            return
        shapes = {name: tuple(t.shape) for name, t in batch.items()}
        if shapes != (known := {name: tuple(t.shape) for name, t in self.batch.items()}):
            raise ValueError(f"batch: its shapes are {shapes}, the graph's are {known}")
        for name, t in batch.items():
            self.batch[name].copy_(t, non_blocking=True)
