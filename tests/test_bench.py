"""Results files: their schema, and the benchmarks at sizes that take milliseconds."""

import copy
import hashlib
import json
import os

import pytest
import torch

from minilm import bench, bench_command, bench_model
from minilm.model import ModelConfig

SMALL = {"V": 32, "C": 8, "layers": 1, "H": 2, "T": 8, "B": 2}

# A model with nanoGPT's interface, written for this test: embedding and head, nothing between.
PEER = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        print("number of parameters: many")
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, targets):
        logits = self.head(self.embedding(idx))
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        assert device_type == "cpu"
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)
"""


@pytest.fixture
def peer(tmp_path):
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    (folder / "model.py").write_text(PEER, encoding="utf-8")
    return folder


@pytest.fixture
def rows():
    peers = {"other": {"value": 10.0, "seconds": 0.1}}
    return [
        bench.row("train", "step", 12.5, "tokens/s", sources=["model.py"], goal=10, peers=peers),
        bench.row("import", "process", 1.5, "s", sources=["ops.py"], goal=2.0, shape={"cores": 2}),
        bench.row("generate", "cached", 3.0, "tokens/s", sources=["model.py", "ops.py"]),
    ]


def test_what_is_written_is_read(tmp_path, rows):
    path = tmp_path / "new" / "train-cpu.json"
    written = bench.write_results(path, "train", rows)
    assert bench.read_results(path) == written
    assert written["rows"] == rows
    assert [r["met"] for r in rows] == [True, True, None]
    assert written["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing is left beside it
    assert b"\r" not in path.read_bytes()


@pytest.mark.parametrize(
    ("value", "unit", "goal", "expected"),
    [
        (1.60, "bits/byte", 1.60, True),
        (1.61, "bits/byte", 1.60, False),
        (2.1, "s", 2.0, False),
        (21.8e3, "tokens/s", 21.8e3, True),
        (21.7e3, "tokens/s", 21.8e3, False),
        (1.0, "tokens/s", None, None),
    ],
)
def test_met_knows_which_way_is_better(value, unit, goal, expected):
    assert bench.met(value, unit, goal) is expected
    assert bench.row("op", "", value, unit, sources=[], goal=goal)["met"] is expected


def no_device(results):
    del results["device"]


def unknown_key(results):
    results["host"] = "somewhere"


def row_without_peers(results):
    del results["rows"][0]["peers"]


def unknown_row_key(results):
    results["rows"][1]["note"] = "fast"


def value_as_text(results):
    results["rows"][0]["value"] = "12.5"


def value_as_bool(results):
    results["rows"][2]["value"] = True


def untrue_met(results):
    results["rows"][1]["met"] = False


def met_without_goal(results):
    results["rows"][2]["met"] = True


def not_a_number(results):
    results["rows"][2]["value"] = float("nan")


def peer_without_seconds(results):
    results["rows"][0]["peers"]["other"] = {"value": 1.0}


def row_is_a_list(results):
    results["rows"][0] = [1, 2]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (no_device, "'device'"),
        (unknown_key, "'host'"),
        (row_without_peers, r"rows\[0\].*'peers'"),
        (unknown_row_key, r"rows\[1\].*'note'"),
        (value_as_text, r"rows\[0\].*'value'"),
        (value_as_bool, r"rows\[2\].*'value'"),
        (untrue_met, r"rows\[1\].*met"),
        (met_without_goal, r"rows\[2\].*met"),
        (not_a_number, r"rows\[2\].*finite"),
        (peer_without_seconds, r"rows\[0\].*'other'"),
        (row_is_a_list, r"rows\[0\].*list"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_file_that_is_not_as_it_must_be_is_refused(tmp_path, rows, damage, named):
    results = bench.write_results(tmp_path / "x.json", "train", rows)
    bench.check_results(results)
    damaged = copy.deepcopy(results)
    damage(damaged)
    with pytest.raises(ValueError, match=named):
        bench.check_results(damaged)
    (tmp_path / "y.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(ValueError, match="y.json"):
        bench.read_results(tmp_path / "y.json")


def test_a_refused_row_leaves_the_old_file_alone(tmp_path, rows):
    path = tmp_path / "x.json"
    bench.write_results(path, "train", rows)
    before = path.read_bytes()
    rows[0]["value"] = float("inf")
    with pytest.raises(ValueError, match="finite"):
        bench.write_results(path, "train", rows)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_not_json_and_not_there(tmp_path):
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON"):
        bench.read_results(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        bench.read_results(tmp_path / "z.json")


def test_the_source_hash_sees_text_and_order_but_not_line_ends(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    a.write_bytes(b"x = 1\ny = 2\n")
    b.write_bytes(b"x = 1\r\ny = 2\r\n")
    c.write_bytes(b"x = 1\ny = 3\n")
    assert bench.source_sha256(a) == bench.source_sha256(b) != bench.source_sha256(c)
    assert bench.source_sha256(a, c) != bench.source_sha256(c, a)
    assert bench.source_sha256("model.py") == bench.source_sha256(bench.PACKAGE / "model.py")


def test_device_names_become_file_names():
    assert bench.slug("AMD EPYC, 2 cores") == "amd-epyc-2-cores"
    assert bench.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    name = bench.device_name()
    assert name.endswith(f"{bench.cpu_cores()} cores")
    path = bench.default_path("train", name)
    assert path.parts[-3:-1] == ("book", "results")
    assert path.name == f"train-{bench.slug(name)}.json"


def test_interleaved_takes_turns_and_leaves_the_first_round_out(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(bench, "_clock", lambda: clock[0])

    def contender(name, seconds):
        durations = iter(seconds)

        def call():
            calls.append(name)
            clock[0] += next(durations)

        return call

    found = bench.interleaved(
        {"a": contender("a", [99, 1, 5, 2]), "b": contender("b", [99, 7, 7, 7])}, rounds=3
    )
    assert found == {"a": 2, "b": 7}  # medians of the counted rounds
    assert "".join(calls) == "baabbaab"
    with pytest.raises(ValueError, match="rounds.*0"):
        bench.interleaved({}, rounds=0)


def test_train_rows_stand_beside_the_peer(peer, capsys):
    alone = bench_model.train_rows(sizes=(SMALL,), rounds=2)
    beside = bench_model.train_rows({"nanogpt": peer}, sizes=(SMALL, SMALL | {"T": 4}), rounds=2)
    for r in alone + beside:
        assert set(r) == set(bench.ROW_KEYS)
        tokens = r["shape"]["B"] * r["shape"]["T"]
        assert r["value"] == pytest.approx(tokens / r["seconds"])
    assert alone[0]["goal"] is None and alone[0]["peers"] == {}
    found = beside[0]["peers"]["nanogpt"]
    assert beside[0]["goal"] == bench_model.PARITY * found["value"]
    assert found["source_sha256"] == hashlib.sha256(PEER.encode()).hexdigest()
    assert [r["shape"]["T"] for r in beside] == [8, 4]
    assert capsys.readouterr().out == ""


def test_both_sides_learn_in_their_steps(peer):
    """A step that forgot its backward or its update would be fast, and wrong."""
    ids = torch.randint(SMALL["V"], (SMALL["B"], SMALL["T"] + 1))
    ours = bench_model.our_step(SMALL, ids)
    theirs = bench_model.nanogpt_step(peer / "model.py", SMALL, ids)
    for step in (ours, theirs):
        losses = [step() for _ in range(60)]
        assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("peers", "error", "named"),
    [
        ({"nanogpt": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"minbpe": "."}, ValueError, "minbpe"),
    ],
)
def test_peers_that_cannot_be_measured(peers, error, named):
    with pytest.raises(error, match=named):
        bench_model.train_rows(peers, sizes=(SMALL,), rounds=1)


def test_a_peer_that_is_not_nanogpt(tmp_path):
    (tmp_path / "model.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no GPT"):
        bench_model.train_rows({"nanogpt": tmp_path}, sizes=(SMALL,), rounds=1)


def test_generate_rows():
    config = ModelConfig(vocab_size=32, context_length=16, d_model=8, n_layers=1, n_heads=2)
    rows = bench_model.generate_rows(config=config, rounds=2)
    assert [r["pass"] for r in rows] == ["cached", "uncached"]
    assert all(r["value"] * r["seconds"] == pytest.approx(16 - 8) for r in rows)
    with pytest.raises(ValueError, match="generate"):
        bench_model.generate_rows({"other": "x"})


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with bench_model.cpu_threads(1) as n:
        assert n == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def printing(monkeypatch, text, seconds=7.0, code=0):
    calls = []

    def timed(command, **environment):
        calls.append((command, environment))
        return seconds, text

    monkeypatch.setattr(bench_command, "_timed", timed)
    return calls


def test_tiny_rows_read_the_last_line(monkeypatch):
    text = "config: …\nvalidation: 1.58 bits per byte\n"
    calls = printing(monkeypatch, text, seconds=290.0)
    quality, wall = bench_command.tiny_rows(options=("--seed", "3"))
    ((command, environment),) = calls
    assert command[1:6] == ["-m", "minilm", "train", "--preset", "tiny"]
    assert command[-2:] == ["--seed", "3"]
    # tokens of an earlier run must not be found: tokenising counts
    assert environment["MINILM_CACHE"] != os.environ["MINILM_CACHE"]
    assert (quality["value"], quality["unit"], quality["goal"]) == (1.58, "bits/byte", 1.60)
    assert (wall["value"], wall["unit"], wall["goal"]) == (290.0, "s", 300)
    assert quality["met"] and wall["met"]
    printing(monkeypatch, "validation: 1.68 bits per byte\n", seconds=301.0)
    assert [r["met"] for r in bench_command.tiny_rows()] == [False, False]


@pytest.mark.parametrize("text", ["", "done\n", "validation: 1.58 bits per byte\nbye\n"])
def test_tiny_rows_refuse_another_last_line(monkeypatch, text):
    printing(monkeypatch, text)
    with pytest.raises(ValueError, match="last line"):
        bench_command.tiny_rows()


def test_a_command_that_fails_is_no_measurement():
    with pytest.raises(OSError, match="exit code 3"):
        bench_command._timed([bench_command.sys.executable, "-c", "raise SystemExit(3)"])
    code = "import os; print(os.environ['MINILM_CACHE'])"
    argv = [bench_command.sys.executable, "-c", code]
    seconds, output = bench_command._timed(argv, MINILM_CACHE="hé")
    assert output == "hé\n" and 0 < seconds < 30
