"""A run that was stopped, killed or interrupted goes on as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from minilm import checkpoint
from minilm.data import TokenStream
from minilm.history import History
from minilm.model import MiniLM, ModelConfig
from minilm.run import Run
from minilm.train import train
from minilm.trainconfig import TrainConfig

STEPS = 24
MODEL = {
    "vocab_size": 40,
    "context_length": 8,
    "d_model": 16,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.1,  # so that the random state matters
}


def make_config(**changes) -> TrainConfig:
    return TrainConfig(**({"steps": STEPS, "batch_size": 2, "lr": 1e-2, "save_every": 5} | changes))


def make_model(**changes) -> MiniLM:
    torch.manual_seed(3)
    return MiniLM(ModelConfig(**(MODEL | changes)))


def make_stream() -> TokenStream:
    return TokenStream(np.random.default_rng(0).integers(0, 40, 500), 1500, 40)


def exact(rows: list[dict]) -> list[tuple]:
    """What must be equal bit for bit: everything but the clock."""
    return [(r["step"], r["tokens"], r["loss"], r["lr"], r["grad_norm"]) for r in rows]


@pytest.fixture(scope="module")
def whole() -> dict:
    """The run that is never stopped."""
    rows = {}
    for dtype in ("float32", "float16"):
        for optimizer in ("adamw", "lion"):
            config = make_config(dtype=dtype, optimizer=optimizer)
            rows[dtype, optimizer] = exact(train(make_model(), make_stream(), config))
    return rows


class Stop(Exception):
    pass


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
@pytest.mark.parametrize("stop", [5, 7, 23])
def test_a_stopped_run_goes_on(tmp_path, whole, dtype, optimizer, stop):
    config = make_config(dtype=dtype, optimizer=optimizer)

    def halt(model, row):
        if row["step"] == stop:
            raise Stop

    with pytest.raises(Stop):
        train(make_model(), make_stream(), config, out=tmp_path, callback=halt)
    if not checkpoint.holds_run(tmp_path):  # stopped before the first checkpoint
        rows = train(make_model(), make_stream(), config, out=tmp_path)
    else:
        torch.manual_seed(99)  # a fresh process is in another random state
        model = MiniLM(ModelConfig(**MODEL))
        rows = train(model, make_stream(), config, out=tmp_path, resume=True)
    assert exact(rows) == whole[dtype, optimizer]
    lines = (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert exact(map(json.loads, lines)) == whole[dtype, optimizer]


def test_without_the_optimizer_state_it_would_be_another_run(tmp_path, whole, monkeypatch):
    """Control: the comparison above can fail."""

    def halt(model, row):
        if row["step"] == 7:
            raise Stop

    with pytest.raises(Stop):
        train(make_model(), make_stream(), make_config(), out=tmp_path, callback=halt)
    real = checkpoint.load_training_state

    def forgetful(folder):
        model, values, tensors = real(folder)
        return model, values | {"optimizer_steps": {}}, {"rng.cpu": tensors["rng.cpu"]}

    monkeypatch.setattr("minilm.run.load_training_state", forgetful)
    rows = train(make_model(), make_stream(), make_config(), out=tmp_path, resume=True)
    assert exact(rows) != whole["float32", "adamw"]


def test_another_stream_is_refused(tmp_path):
    train(make_model(), make_stream(), make_config(steps=2), out=tmp_path)
    ids = make_stream().ids.copy()
    ids[-1] ^= 1
    for other in (TokenStream(ids, 1500, 40), TokenStream(ids[1:], 1500, 40)):
        with pytest.raises(ValueError, match="data: the run in .* was begun with a stream of 500"):
            train(make_model(), other, make_config(steps=2), out=tmp_path, resume=True)


def test_what_was_read_is_no_view_of_the_file(tmp_path, monkeypatch):
    """A save replaces the file, which Windows allows only where nothing is mapped from it."""
    train(make_model(), make_stream(), make_config(steps=2), out=tmp_path)
    real, read = checkpoint.load_training_state, {}

    def watch(folder):
        model, values, tensors = real(folder)
        read.update(tensors)
        return model, values, tensors

    monkeypatch.setattr("minilm.run.load_training_state", watch)
    run = Run(make_model(), make_stream(), make_config(steps=2), None, tmp_path)
    run.restore()
    states = run.optimizer.state.values()
    kept = {t.data_ptr() for state in states for t in state.values() if torch.is_tensor(t)}
    assert len(kept) == 2 * len(list(run.model.parameters()))
    assert kept.isdisjoint(t.data_ptr() for t in read.values())


def test_the_loss_scale_goes_on_too(tmp_path):
    config = make_config(steps=2, dtype="float16")
    run = Run(make_model(), make_stream(), config, None, tmp_path)
    run.scaler.scale, run.scaler.good_steps = 8.0, 3
    run.save(1)
    run = Run(make_model(), make_stream(), config, None, tmp_path)
    assert run.restore() == 1
    assert run.scaler.to_dict() == {"scale": 8.0, "good_steps": 3}


def test_the_history_is_on_the_disk_before_the_checkpoint(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(History, "flush", lambda self: order.append(len(self.rows)))
    monkeypatch.setattr(Run, "save", lambda self, step: order.append(f"save {step}"))
    train(make_model(), make_stream(), make_config(steps=7), out=tmp_path)
    assert order == [5, "save 5", 7, "save 7"]


def test_given_batches_go_on_where_they_were(tmp_path):
    batches = [make_stream().batch_at(step, 2, 8) for step in range(7)]
    config = make_config(steps=17)
    straight = train(make_model(), batches, config)

    def halt(model, row):
        if row["step"] == 12:
            raise Stop

    with pytest.raises(Stop):
        train(make_model(), batches, config, out=tmp_path, callback=halt)
    assert exact(train(make_model(), batches, config, out=tmp_path, resume=True)) == exact(straight)


def test_minutes_are_not_measured_again(tmp_path):
    config = make_config(steps=None, minutes=0.03, save_every=2)
    rows = train(make_model(), make_stream(), config, out=tmp_path)
    steps = rows[-1]["step"]
    _, values, _ = checkpoint.load_training_state(tmp_path)
    assert values["train"]["steps"] == steps and values["train"]["minutes"] is None
    again = train(make_model(), make_stream(), config, out=tmp_path, resume=True)
    assert exact(again) == exact(rows)


def test_another_run_is_not_gone_on_with(tmp_path):
    train(make_model(), make_stream(), make_config(steps=2), out=tmp_path)
    for config, model, message in [
        (make_config(steps=2, lr=1e-3), make_model(), "lr: the run in .* has 0.01, got 0.001"),
        (make_config(steps=3), make_model(), "steps: the run in"),
        (make_config(steps=2), make_model(d_model=32), "d_model: the model in .* has 16, got 32"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(model, make_stream(), config, out=tmp_path, resume=True)
    with pytest.raises(FileNotFoundError, match="no training run"):
        train(make_model(), make_stream(), make_config(), out=tmp_path / "b", resume=True)
    with pytest.raises(ValueError, match="out"):
        train(make_model(), make_stream(), make_config(), resume=True)


def test_ctrl_c_ends_after_the_step_and_saves(tmp_path, whole):
    def press(model, row):
        if row["step"] == 8:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"after step 8 of 24 and saved.*resume=True\)"):
        train(make_model(), make_stream(), make_config(), out=tmp_path, callback=press)
    assert checkpoint.load_training_state(tmp_path)[1]["step"] == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rows = train(make_model(), make_stream(), make_config(), out=tmp_path, resume=True)
    assert exact(rows) == whole["float32", "adamw"]
    with pytest.raises(KeyboardInterrupt, match="after step 8 of 24; nothing was saved"):
        train(make_model(), make_stream(), make_config(), callback=press)


CHILD = """
import sys
sys.path[:0] = {path!r}
from test_resume import make_config, make_model, make_stream
from minilm.checkpoint import holds_run
from minilm.train import train
from pathlib import Path
import torch
torch.set_num_threads(1)
out = Path(sys.argv[1])
print("ready", flush=True)
train(make_model(), make_stream(), make_config(save_every=1, steps={steps}), out=out,
      resume=holds_run(out))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kill_9_at_random_moments(tmp_path):
    """A process that saves after every step is killed again and again, often while it saves."""
    steps = 300
    here = Path(__file__).resolve().parent
    code = CHILD.format(path=[str(here), str(here.parent)], steps=steps)
    moments = random.Random(0)
    for attempt in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with child:
            assert child.stdout.readline() == "ready\n"
            if attempt < 4:
                time.sleep(moments.uniform(0.05, 0.4))
                child.kill()
    assert child.returncode == 0
    lines = (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    torch.set_num_threads(1)
    rows = train(make_model(), make_stream(), make_config(save_every=None, steps=steps))
    assert exact(map(json.loads, lines)) == exact(rows)
