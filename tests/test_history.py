"""What is left of a run: rows, the JSONL file, TensorBoard's events, the bar."""

import json
import os
import sys
import types

import pytest

from minilm.history import History


def make_row(step: int, **changes) -> dict:
    row = {"step": step, "tokens": 32 * step, "loss": 3.25, "bits_per_byte": 1.75, "lr": 0.1}
    return row | {"grad_norm": None, "tokens_per_second": 1234.5} | changes


def lines(folder) -> list[dict]:
    text = (folder / "history.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_rows_stand_in_the_file_as_soon_as_they_are_added(tmp_path):
    history = History(tmp_path / "run", 3, progress=False)
    for step in (1, 2):
        history.add(make_row(step, loss=1 / 3))
        assert lines(tmp_path / "run") == history.rows and len(history.rows) == step
    history.close()
    assert History(None, 3, progress=False).rows == []


def test_a_run_that_goes_on_drops_later_rows_and_a_torn_one(tmp_path):
    history = History(tmp_path, 9, progress=False)
    for step in range(1, 8):
        history.add(make_row(step))
    history.close()
    with open(tmp_path / "history.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 8, "tok')  # killed while it wrote
    torn = (tmp_path / "history.jsonl").read_bytes()
    history = History(tmp_path, 9, keep_until=7, progress=False)
    history.close()
    assert len(lines(tmp_path)) == 7
    (tmp_path / "history.jsonl").write_bytes(torn)
    history = History(tmp_path, 9, keep_until=5, progress=False)
    history.add(make_row(6, loss=9.0))
    history.close()
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert lines(tmp_path)[-1]["loss"] == 9.0 and lines(tmp_path) == history.rows


def test_flush_reaches_the_disk(tmp_path, monkeypatch):
    flushed, history = [], History(tmp_path, 1, progress=False)
    monkeypatch.setattr(os, "fsync", flushed.append)
    history.flush()
    assert flushed == [history._file.fileno()]
    history.close()
    History(None, 1, progress=False).flush()  # without a file there is nothing to do


def test_the_bar_shows_what_matters_on_standard_output(capsys):
    history = History(None, 50, keep_until=10, progress=True)
    for step in range(11, 31):
        history.add(make_row(step))
        history.advance()
    history._bar.refresh()
    history.close()
    out, err = capsys.readouterr()
    assert "30/50" in out and "loss=3.250" in out and "bits/byte=1.75" in out
    assert "tok/s=1,23" in out and "<" in out  # elapsed<left
    assert err == ""
    quiet = History(None, 50)  # captured output is no terminal
    quiet.add(make_row(1))
    quiet.advance()
    quiet.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_is_written_where_it_is_installed(tmp_path, monkeypatch, installed):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module if installed else None)
    history = History(tmp_path, 9, keep_until=4, progress=False)
    history.add(make_row(5))
    history.close()
    if not installed:
        assert written == []
        return
    assert written[0] == (str(tmp_path / "tensorboard"), 5) and written[-1] == "closed"
    assert ("loss", 3.25, 5) in written
    assert all(value is not None for _, value, _ in written[1:-1])
    assert len(written) == 2 + 5  # of the seven, not the step and not the missing norm
