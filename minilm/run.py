"""One training run: its state, one optimizer step, saving and going on.

A step's batch and its learning rate are functions of (seed, step) alone; weights, optimizer, loss
scale and random state are in the checkpoint. So a run that was killed and goes on from its last
checkpoint takes the very same steps.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from .checkpoint import load_training_state, save_checkpoint
from .data import Batch, TokenStream
from .evaluate import batch_loss, count_targets
from .feed import Feed
from .model import MiniLM
from .optim import SGD, AdamW, Lion, grad_norm, parameter_groups, scale_grads, warmup_cosine
from .precision import LossScaler, autocast
from .step_graph import StepGraph
from .tokenizer import Tokenizer
from .trainconfig import BETAS, TrainConfig


class Run:
    """The state of a training run: model, optimizer, loss scaler, step.

    On the numba backend and a GPU a step is a StepGraph, recorded at the first step and replayed,
    where every step has the same shapes and nothing to decide on the host: a TokenStream in equal
    parts, AdamW or Lion, not float16.
    """

    def __init__(
        self,
        model: MiniLM,
        data: TokenStream | Iterable[Batch],
        config: TrainConfig,
        tok: Tokenizer | None,
        out: Path | None,
    ):
        self.config, self.tok, self.out = config, tok, out
        self.feed = Feed(data, config, model.config, tok)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.device = pick_device(config.device)
        self.model = model.to(self.device)
        self.optimizer = make_optimizer(model, config)
        self.scaler = LossScaler() if config.dtype == "float16" else None
        self.graph: StepGraph | None = None  # made at the first step: what is restored comes before
        self.tokens = 0  # seen so far
        self.step_tokens = 0  # of the last step
        self.recent: list[float] = []  # losses, for the message when one is not finite

    def start(self) -> int:
        """Begin at step 0: only the seed is to be set."""
        torch.manual_seed(self.config.seed)
        self.model.train()
        return 0

    def step(self, step: int) -> dict:
        """Optimizer step number `step`, counted from 1; returns its row."""
        c = self.config
        lr = warmup_cosine(
            step, steps=c.steps, warmup=c.warmup_steps(c.steps), lr=c.lr, min_lr=c.min_lr
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = self.feed.batch(step)
        width = batch["ids"].shape[1] - ("targets" not in batch)
        self.step_tokens = batch["ids"].shape[0] * width
        if self._recordable():
            loss, norm = self._replayed(batch, lr)
            self._check_finite(loss, norm, step, lr)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._backward(batch)
            norm = self._clip()
            self._check_finite(loss, norm, step, lr)
            if self.scaler is None or self.scaler.update(norm):
                self.optimizer.step()
            else:
                norm = None  # the scaled gradients overflowed: no step, and no norm to speak of
        self.tokens += self.step_tokens
        return {
            "step": step,
            "tokens": self.tokens,
            "loss": loss,
            "bits_per_byte": self._bits_per_byte(loss),
            "lr": lr,
            "grad_norm": norm,
        }

    def save(self, step: int) -> None:
        """Write the checkpoint after `step` into `out`, if there is one."""
        if self.out is None:
            return
        tensors = {"rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        optimizer_steps = {}
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state[p].items():
                if key == "step":
                    optimizer_steps[name] = value
                else:
                    tensors[f"{key}.{name}"] = value.detach().cpu().contiguous()
        values = {
            "train": self.config.to_dict(),
            "data": self.feed.fingerprint(),
            "step": step,
            "tokens": self.tokens,
            "optimizer_steps": optimizer_steps,
            "scaler": None if self.scaler is None else self.scaler.to_dict(),
        }
        save_checkpoint(self.out, self.model, self.tok, training=(values, tensors))

    def restore(self) -> int:
        """Take everything from the checkpoint in `out`; returns the step it was saved after."""
        if self.out is None:
            raise ValueError("resume: needs `out`, the folder of the run")
        saved, values, tensors = load_training_state(self.out)
        stored = TrainConfig.from_dict(values["train"])
        differ = self.config.differences(stored)
        if differ:
            name = differ[0]
            raise ValueError(
                f"{name}: the run in {self.out} has {getattr(stored, name)!r}, "
                f"got {getattr(self.config, name)!r}"
            )
        if saved.config != self.model.config:
            ours, theirs = self.model.config.to_dict(), saved.config.to_dict()
            name = next(n for n in ours if ours[n] != theirs[n])
            raise ValueError(
                f"{name}: the model in {self.out} has {theirs[name]!r}, got {ours[name]!r}"
            )
        if values["data"] != self.feed.fingerprint():
            raise ValueError(
                f"data: the run in {self.out} was begun with {values['data']}, got "
                f"{self.feed.fingerprint()}"
            )
        self.config = replace(self.config, steps=stored.steps, minutes=None)
        self.model.load_state_dict(saved.state_dict())
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p]
            if name in values["optimizer_steps"]:
                state["step"] = values["optimizer_steps"][name]
            for key in ("m", "v"):
                if f"{key}.{name}" in tensors:
                    # a copy: the tensor as read is a view of the file, which a save replaces
                    state[key] = tensors[f"{key}.{name}"].to(p, copy=True)
        if self.scaler is not None and values["scaler"] is not None:
            self.scaler.restore(values["scaler"])
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.tokens = values["tokens"]
        self.model.train()
        return values["step"]

    def _recordable(self) -> bool:
        """Whether a step is a StepGraph: see the class."""
        c = self.config
        return (
            c.backend == "numba"
            and self.device.type == "cuda"
            and self.scaler is None
            and isinstance(self.feed.data, TokenStream)
            and isinstance(self.optimizer, AdamW | Lion)
            and (c.accumulation == 1 or c.objective == "causal")
            and c.batch_size % c.accumulation == 0
        )

    def _replayed(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One step of the graph: (loss, gradient norm)."""
        if self.graph is None:
            c = self.config
            self.graph = StepGraph(
                self.model, self.optimizer, clip=c.clip, dtype=c.dtype, accumulation=c.accumulation
            )
        loss, norm = torch.stack(self.graph.step(batch, lr)).tolist()  # one wait for the GPU
        return loss, norm

    def _backward(self, batch: Batch) -> float:
        """Gradients of the mean loss over all targets of the batch; gives the loss.

        The batch is computed in `accumulation` parts. Each part's mean counts by its number of
        targets: only so do unequal parts add up to the gradient of the whole batch.
        """
        n = count_targets(batch)
        total = torch.zeros((), device=self.device)  # read once: each reading waits for a GPU
        rows = [t.chunk(self.config.accumulation) for t in batch.values()]
        for parts in zip(*rows, strict=True):
            part = dict(zip(batch, parts, strict=True))
            share = 1.0 if len(rows[0]) == 1 else count_targets(part) / max(n, 1)
            part = {name: t.to(self.device, non_blocking=True) for name, t in part.items()}
            with autocast(self.device, self.config.dtype):
                loss = batch_loss(self.model, part) * share
            (loss if self.scaler is None else loss * self.scaler.scale).backward()
            total = total + loss.detach()
        return total.item()

    def _clip(self) -> float:
        """Bring the gradients to their true size and clip them; returns the norm before that."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        unscale = 1.0 if self.scaler is None else 1 / self.scaler.scale
        norm = float(grad_norm(params)) * unscale
        clip = self.config.clip
        factor = unscale * (clip / norm if clip and math.isfinite(norm) and norm > clip else 1.0)
        if factor != 1.0:
            scale_grads(params, factor)
        return norm

    def _check_finite(self, loss: float, norm: float, step: int, lr: float) -> None:
        self.recent = [*self.recent[-4:], loss]
        if math.isfinite(loss) and (self.scaler is not None or math.isfinite(norm)):
            return
        before = ", ".join(f"{x:.3f}" for x in self.recent[:-1]) or "none"
        raise FloatingPointError(
            f"loss: {loss} at step {step}, gradient norm {norm}, learning rate {lr:.2e} "
            f"(losses before: {before}); lower lr, or clip more"
        )

    def _bits_per_byte(self, loss: float) -> float | None:
        """Of a batch: its loss at the mean number of bytes per token of the whole stream."""
        per_token = self.feed.bytes_per_token
        return loss / math.log(2) / per_token if per_token else None


def pick_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is the first of cuda, mps and cpu that is there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.backends.mps.is_available():
            name = "mps"
    kind = name.partition(":")[0]
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if kind in there and not there[kind]():
        raise ValueError(f"device: {name!r} is not available on this machine; use 'cpu' or 'auto'")
    return torch.device(name)


def make_optimizer(model: MiniLM, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names, over the two parameter groups of `model`."""
    groups = parameter_groups(model, config.weight_decay)
    betas = config.betas or BETAS[config.optimizer]
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=betas[0])
    return {"adamw": AdamW, "lion": Lion}[config.optimizer](groups, lr=config.lr, betas=betas)
