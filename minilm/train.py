"""The training loop.

    for each step:
        batch    → B rows of T + 1 tokens
        loss     → forward, shifted cross-entropy
        gradient → backward, clipped
        weights  → optimizer step, at the learning rate of the schedule

One step is `Run.step` in run.py. Here stands what is around it: how many steps, validation, rows of
the history, checkpoints, and Ctrl-C.
"""

import copy
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from . import ops
from .checkpoint import holds_run
from .data import Batch, TokenStream
from .evaluate import evaluate
from .history import History
from .model import MiniLM
from .run import Run
from .tokenizer import Tokenizer
from .trainconfig import TrainConfig

IN_HAND = 0.05  # of the minutes: what is kept back for surprises
CALIBRATION = 0.03  # of the minutes: how long steps are timed before the run
CALIBRATION_STEPS = (12, 100)  # how many at least, and at most
DISK_RATE = 100e6  # bytes per second: what a slow disk still writes


def train(
    model: MiniLM,
    data: TokenStream | Iterable[Batch],
    config: TrainConfig,
    *,
    tok: Tokenizer | None = None,
    valid: TokenStream | Iterable[Batch] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    callback: Callable[[MiniLM, dict], None] | None = None,
    progress: bool | None = None,
    started: float | None = None,
) -> list[dict]:
    """Train `model` in place; returns the history, a list of rows.

    data      a TokenStream (rows of context_length + 1 tokens, every window once per epoch), or
              batches {"ids", "mask"?, "segments"?}, started over when they run out
    tok       stored in the checkpoint; for the masked objective its <|mask|> token is used
    valid     like data, evaluated every eval_every steps and after the last
    out       the run's folder: checkpoint and history.jsonl. It must not hold another run
    resume    go on from the checkpoint in `out`; model, data and config must be the run's
    callback  called as callback(model, row) for each row, gradients still in place
    progress  a bar on standard output; None: where that is a terminal
    started   time.perf_counter() at the start of what `minutes` counts; None: now

    A row has: step, tokens (seen so far), loss (nats per target), bits_per_byte (of the step's
    batch, at the stream's mean bytes per token; None where unknown), lr, grad_norm (before
    clipping; None where float16 overflowed and the step was skipped), tokens_per_second, and after
    a validation valid_loss and valid_bits_per_byte.

    Sets torch's global seed. Raises FloatingPointError when the loss is no longer finite,
    ValueError when the arguments do not fit together. Ctrl-C ends the run after the step in
    progress: it is saved in `out`, and KeyboardInterrupt follows.
    """
    out = Path(out) if out is not None else None
    if not resume and out is not None and holds_run(out):
        raise ValueError(
            f"out: {out} holds a run; go on with it (--resume {out}) or take another folder"
        )
    threads = torch.get_num_threads()
    if not resume:
        config = fix_steps(model, data, config, tok=tok, valid=valid, started=started)
    run = Run(model, data, config, tok, out)
    begin = run.restore() if resume else run.start()
    steps = run.config.steps
    history = History(out, steps, keep_until=begin, progress=progress)
    try:
        with ops.use_backend(config.backend), _interrupts() as interrupted:
            clock = Clock()
            for step in range(begin + 1, steps + 1):
                row = run.step(step)
                last = step == steps
                if _is_due(step, config.eval_every, last) and valid is not None:
                    with clock.paused():
                        result = evaluate(
                            model, run.feed.validation(valid), context_length=run.feed.T
                        )
                    row |= {"valid_loss": result.loss, "valid_bits_per_byte": result.bits_per_byte}
                row["tokens_per_second"] = clock.rate(run.step_tokens)
                if _is_due(step, config.log_every, last) or "valid_loss" in row:
                    history.add(row)
                    if callback is not None:
                        with clock.paused():
                            callback(model, row)
                if _is_due(step, config.save_every, last) or interrupted:
                    with clock.paused():
                        history.flush()
                        run.save(step)
                history.advance()
                if interrupted:
                    raise KeyboardInterrupt(_how_to_go_on(step, steps, out))
    finally:
        history.close()
        torch.set_num_threads(threads)
    return history.rows


def fix_steps(
    model: MiniLM,
    data: TokenStream | Iterable[Batch],
    config: TrainConfig,
    *,
    tok: Tokenizer | None = None,
    valid: TokenStream | Iterable[Batch] | None = None,
    started: float | None = None,
) -> TrainConfig:
    """`config` with a number of steps in place of minutes; as it is where it has no minutes.

    So many steps that the whole run since `started` (None: now) ends in time, validation and saving
    included. A copy of the model takes a few steps and looks at a part of the validation set to
    find out how long they take; neither counts as training. ValueError when no step would fit.
    """
    if config.minutes is None:
        return config
    started = time.perf_counter() if started is None else started
    least, most = CALIBRATION_STEPS
    trial = Run(
        copy.deepcopy(model),
        data,
        replace(config, minutes=None, steps=most, warmup=None),
        tok,
        None,
    )
    trial.start()
    seconds: list[float] = []
    with ops.use_backend(config.backend):
        while len(seconds) < least or (
            sum(seconds) < CALIBRATION * config.minutes * 60 and len(seconds) < most
        ):
            begin = time.perf_counter()
            trial.step(1 + len(seconds))
            seconds.append(time.perf_counter() - begin)
        validation = _validation_seconds(trial, valid)
    # A machine slows down as it warms up and shares itself out: believe its slower steps.
    per_step = statistics.quantiles(seconds, n=4)[2]
    saving = _saving_seconds(model)
    after = validation + saving
    for seconds_each, every in ((validation, config.eval_every), (saving, config.save_every)):
        per_step += seconds_each / every if every else 0.0
    left = config.minutes * 60 * (1 - IN_HAND) - (time.perf_counter() - started) - after
    steps = int(left / per_step)
    if steps < 1:
        raise ValueError(
            f"minutes: {config.minutes} are over before the first step (a step takes "
            f"{per_step:.2f} s, validation {after:.0f} s); give more"
        )
    return replace(config, steps=steps, minutes=None)


def _validation_seconds(trial: Run, valid: TokenStream | Iterable[Batch] | None) -> float:
    """How long one validation takes, from a part of it."""
    if valid is None:
        return 0.0
    T = trial.feed.T
    if isinstance(valid, TokenStream):
        whole = len(valid)
        part = TokenStream(valid.ids[: 64 * T + 1])
        size = len(part)
    else:
        whole = sum(1 for _ in valid)
        part = list(islice(valid, 4))
        size = len(part)
    begin = time.perf_counter()
    evaluate(trial.model, trial.feed.validation(part), context_length=T)
    return (time.perf_counter() - begin) * whole / size


def _saving_seconds(model: MiniLM) -> float:
    """How long a checkpoint takes: weights twice and two buffers of the optimizer, 4 bytes each."""
    return 0.2 + 16 * model.num_parameters() / DISK_RATE


def _how_to_go_on(step: int, steps: int, out: Path | None) -> str:
    if out is None:
        return f"stopped after step {step} of {steps}; nothing was saved, there is no `out`"
    return (
        f"stopped after step {step} of {steps} and saved; go on with "
        f"train(…, out={str(out)!r}, resume=True) or minilm train --resume {out}"
    )


class Clock:
    """Tokens per second of the training steps alone: validation and saving stop the clock."""

    def __init__(self):
        self.mark = time.perf_counter()

    def rate(self, tokens: int) -> float:
        """Tokens per second since the last call."""
        now = time.perf_counter()
        seconds, self.mark = now - self.mark, now
        return tokens / seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.mark += time.perf_counter() - begin


@contextmanager
def _interrupts() -> Iterator[list]:
    """A list that is no longer empty once Ctrl-C was pressed; a second Ctrl-C interrupts at once.

    An interrupt in the middle of a step would leave half of the weights updated.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # only the main thread may handle signals
        return

    def on_interrupt(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _is_due(step: int, every: int | None, last: bool) -> bool:
    return last or (every is not None and step % every == 0)
