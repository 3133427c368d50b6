"""One training run: its state, one optimizer step, saving and going on.

A step's batch, its corruption and its learning rate are functions of (seed, step) alone. So a run
that was killed and goes on from its last checkpoint takes the very same steps.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from .checkpoint import load_training_state, save_checkpoint
from .corruption import corrupt
from .data import Batch, TokenStream
from .evaluate import batch_loss, count_targets
from .model import MiniLM
from .optim import SGD, AdamW, Lion, grad_norm, parameter_groups, scale_grads, warmup_cosine
from .precision import LossScaler, autocast
from .tokenizer import Tokenizer
from .trainconfig import BETAS, TrainConfig

MASK_TOKEN = "<|mask|>"


class Run:
    """The state of a training run: model, optimizer, loss scaler, step."""

    def __init__(
        self,
        model: MiniLM,
        data: TokenStream | Iterable[Batch],
        config: TrainConfig,
        tok: Tokenizer | None,
        out: Path | None,
    ):
        self.data, self.config, self.tok, self.out = data, config, tok, out
        self.T = config.context_length or model.config.context_length
        self._check(model)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.device = pick_device(config.device)
        self.model = model.to(self.device)
        self.optimizer = make_optimizer(model, config)
        self.scaler = LossScaler() if config.dtype == "float16" else None
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
        self.optimizer.zero_grad(set_to_none=True)
        loss, self.step_tokens = self._backward(self._batch(step))
        norm = self._clip()
        self._check_finite(loss, norm, step, lr)
        if self.scaler is None or self.scaler.update(norm):
            self.optimizer.step()
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
        self.config = replace(self.config, steps=stored.steps, minutes=None)
        self.model.load_state_dict(saved.state_dict())
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p]
            if name in values["optimizer_steps"]:
                state["step"] = values["optimizer_steps"][name]
            for key in ("m", "v"):
                if f"{key}.{name}" in tensors:
                    state[key] = tensors[f"{key}.{name}"].to(p)
        if self.scaler is not None and values["scaler"] is not None:
            self.scaler.restore(values["scaler"])
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.tokens = values["tokens"]
        self.model.train()
        return values["step"]

    def _batch(self, step: int) -> Batch:
        c = self.config
        if isinstance(self.data, TokenStream):
            batch = self.data.batch_at(step - 1, c.batch_size, self.T, c.seed)
        else:
            batch = self._next_batch(step)
        if c.objective == "masked" and "targets" not in batch:
            batch = self._masked(batch, step)
        return {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}

    def _next_batch(self, step: int) -> Batch:
        """Batch number `step` of data that are not a stream, started over when they run out."""
        if not hasattr(self, "_batches"):
            self._batches = _endless(self.data)
            for _ in range(step - 1):  # a resumed run skips what it has had
                next(self._batches)
        return next(self._batches)

    def _masked(self, batch: Batch, step: int) -> Batch:
        """Hidden tokens are predicted in place: no shift, so T tokens, not T + 1."""
        ids = batch["ids"][:, : self.T]
        special = self.tok.special_ids if self.tok is not None else ()
        generator = torch.Generator().manual_seed(self.config.seed * 2**31 + step)
        inputs, mask = corrupt(
            ids,
            mask_id=self._mask_id(),
            vocab_size=self.model.config.vocab_size,
            generator=generator,
            p=self.config.mask_p,
            special_ids=special,
        )
        return {"ids": inputs, "targets": ids, "mask": mask}

    def _mask_id(self) -> int | None:
        if self.config.mask_id is not None or self.tok is None:
            return self.config.mask_id
        return self.tok.special_tokens.get(MASK_TOKEN)

    def _backward(self, batch: Batch) -> tuple[float, int]:
        """Gradients of the mean loss over all targets of the batch; gives (loss, tokens seen).

        The batch is computed in `accumulation` parts. Each part's mean counts by its number of
        targets: only so do unequal parts add up to the gradient of the whole batch.
        """
        n = count_targets(batch)
        total = 0.0
        rows = [t.chunk(self.config.accumulation) for t in batch.values()]
        for parts in zip(*rows, strict=True):
            part = dict(zip(batch, parts, strict=True))
            share = 1.0 if len(rows[0]) == 1 else count_targets(part) / max(n, 1)
            with autocast(self.device, self.config.dtype):
                loss = batch_loss(self.model, part) * share
            (loss if self.scaler is None else loss * self.scaler.scale).backward()
            total += loss.item()
        width = batch["ids"].shape[1] - ("targets" not in batch)
        return total, batch["ids"].shape[0] * width

    def _clip(self) -> float:
        """Bring the gradients to their true size and clip them; returns the norm before clipping."""
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
        stream = isinstance(self.data, TokenStream) and self.config.objective == "causal"
        if not stream or not self.data.n_bytes:
            return None
        return loss / math.log(2) * len(self.data) / self.data.n_bytes

    def _check(self, model: MiniLM) -> None:
        c, m = self.config, model.config
        if self.T > m.context_length and m.position == "learned":
            raise ValueError(
                f"context_length: the model has learned {m.context_length} positions, got {self.T}"
            )
        if c.objective == "masked" and m.causal:
            raise ValueError("objective: 'masked' needs a model with causal=False")
        if c.objective == "causal" and not m.causal:
            raise ValueError("objective: 'causal' needs a model with causal=True")
        if c.objective == "masked" and self._mask_id() is None:
            raise ValueError(
                f"mask_id: give one, or a tokenizer with the special token {MASK_TOKEN}"
            )
        V = getattr(self.data, "vocab_size", None)
        if V is not None and V > m.vocab_size:
            raise ValueError(f"data: its tokenizer has {V} tokens, the model only {m.vocab_size}")


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


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    if iter(batches) is batches:  # an iterator can be read once only
        yield from batches
        raise ValueError("data: the iterator ended before the run; give a list, or a TokenStream")
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("data: holds no batch")
