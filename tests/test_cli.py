"""The command line: what each command does, and what bad input gets: one line, exit code 2."""

import argparse
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minilm import bench, command_bench, command_train, commands
from minilm.__main__ import build_parser, main
from minilm.checkpoint import load, load_training_state
from minilm.corpus import is_held_out
from minilm.run import Run
from minilm.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--vocab-size 300 --context-length 16 --d-model 16 --n-layers 1 --n-heads 2".split()
SMALL += "--batch-size 2 --threads 1 --device cpu".split()
TEXT = (
    "def add_{0}(a, b):\n    # é\n    return a + b + {0}\n\n\nfor i in range({0}):\n    print(i)\n"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sixty small files; some of them are held out."""
    folder = tmp_path_factory.mktemp("corpus")
    names = [f"file{i}.py" for i in range(60)]
    assert 0 < sum(map(is_held_out, names)) < 30
    for i, name in enumerate(names):
        (folder / name).write_text(TEXT.format(i), encoding="utf-8", newline="\n")
    return folder


def train(corpus, out, *flags):
    return ["train", "--data", str(corpus), "--out", str(out), *SMALL, "--steps", "3", *flags]


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """The folder of a finished run of three steps."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert main(train(corpus, out)) == 0
    return out


@pytest.fixture
def copy(run, tmp_path):
    """A copy of that folder which may be damaged, without what a run needs to go on."""
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    (folder / "training.safetensors").unlink()
    return folder


def parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_every_flag_is_documented():
    flags = [(p.prog, a.dest, a.help) for p in parsers(build_parser()) for a in p._actions]
    without = [
        (prog, dest) for prog, dest, text in flags if not text and dest not in ("command", "action")
    ]
    assert without == []
    assert len(flags) > 50  # the control: they have been found


def test_what_is_listed_is_what_there_is():
    (choice,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert list(choice.choices) == ["tokenizer", "train", "eval", "generate", "bench", "doctor"]


@pytest.mark.parametrize("command", [[], ["train"], ["generate"], ["tokenizer", "train"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    assert exit.value.code == 0
    assert "usage: minilm" in capsys.readouterr().out


# ------------------------------------------------------------------ what the commands do


def test_tokenizer_train(corpus, tmp_path, capsys):
    out = tmp_path / "tokenizer.json"
    flags = ["--vocab-size", "280", "--pattern", "gpt2", "--special", "<|a|>", "<|b|>"]
    assert main(["tokenizer", "train", str(corpus), "--out", str(out), *flags]) == 0
    tok = Tokenizer.load(out)
    assert (tok.vocab_size, tok.pattern) == (280, "gpt2")
    assert tok.special_tokens == {"<|a|>": 0, "<|b|>": 1}
    assert "280 tokens" in capsys.readouterr().out
    texts = [path.read_text(encoding="utf-8") for path in sorted(corpus.iterdir())]
    expected = Tokenizer.train(texts, 280, special_tokens=("<|a|>", "<|b|>"), pattern="gpt2")
    assert tok.merges == expected.merges


def test_train_from_text_to_checkpoint(corpus, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(train(corpus, out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"validation: \d+\.\d\d bits per byte", lines[-1])
    for line in ("  world_size: 1", "  steps: 3", "  d_model: 16", "  head_dim: 8", "  d_ff: 64"):
        assert line in lines
    model, tok = load(out)
    assert model.config.vocab_size == tok.vocab_size <= 300
    assert (model.config.n_heads, model.config.d_model) == (2, 16)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in history] == [1, 2, 3]
    # `eval` measures the saved model on the same files
    assert main(["eval", "--model", str(out), "--data", str(corpus), "--device", "cpu"]) == 0
    text = capsys.readouterr().out.splitlines()[-1]
    assert text == lines[-1].replace("validation", "heldout")
    assert main(["eval", "--model", str(out), "--data", str(corpus), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bits_per_byte"] == pytest.approx(history[-1]["valid_bits_per_byte"], rel=1e-4)


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [io.TextIOWrapper, Terminal])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(corpus, tmp_path, monkeypatch, kind):
    """What has left the buffers is looked at before each step: a log is read while it grows."""
    written, seen, step = io.BytesIO(), [], Run.step

    def look(self, n):
        seen.append(written.getvalue().decode())
        return step(self, n)

    monkeypatch.setattr(Run, "step", look)
    stdout = kind(written, encoding="utf-8", newline="\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert main(train(corpus, tmp_path / "run", "--eval-every", "2")) == 0
    stdout.flush()
    text = written.getvalue().decode()
    lines = [line for line in text.splitlines() if line.startswith("step ")]
    if kind is Terminal:
        assert "\r" in text and lines == []
        return
    assert "\r" not in text and len(lines) == 3
    number = r"\d[\d.,e+-]*"
    pattern = rf"step \d/3 \| loss {number} \| {number} bits per byte \| lr {number} \| "
    pattern += rf"{number} tokens/s( \| validation {number})?"
    assert all(re.fullmatch(pattern, line) for line in lines)
    assert ["validation" in line for line in lines] == [False, True, True]
    assert "data: " in seen[0] and "step 1/3" not in seen[0]
    assert "step 1/3" in seen[1] and "step 2/3" in seen[2]


@pytest.mark.parametrize(("steps", "told"), [(1, 1), (7, 7), (199, 199), (1000, 101), (4321, 102)])
def test_a_long_run_has_about_a_hundred_lines_of_progress(steps, told):
    rows = [{"step": step} for step in range(1, steps + 1)]
    numbers = [row["step"] for row in rows if command_train.is_told(row, steps)]
    assert len(numbers) == told and (numbers[0], numbers[-1]) == (1, steps)
    assert command_train.is_told({"step": 13, "valid_loss": 1.0}, 10_000)
    assert not command_train.is_told({"step": 13}, 10_000)


def test_the_same_seed_gives_the_same_run_and_another_does_not(corpus, run, tmp_path):
    assert main(train(corpus, tmp_path / "same")) == 0
    assert main(train(corpus, tmp_path / "other", "--seed", "1")) == 0
    files = [(f / "history.jsonl").read_text("utf-8") for f in (run, tmp_path / "same")]
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in files]
    assert losses[0] == losses[1]
    weights = [load(f)[0].head_weight for f in (run, tmp_path / "same", tmp_path / "other")]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_short_text_makes_a_small_vocabulary(corpus, tmp_path, capsys):
    """Else the model could sample ids that the tokenizer does not have."""
    flags = ["--vocab-size", "5000"]
    assert main(train(corpus, tmp_path / "run", *flags)) == 0
    model, tok = load(tmp_path / "run")
    assert model.config.vocab_size == tok.vocab_size < 5000


def test_a_given_tokenizer_is_used(corpus, tmp_path):
    tok = Tokenizer.train(["abc " * 50], 258)
    tok.save(tmp_path / "t.json")
    argv = train(corpus, tmp_path / "run", "--tokenizer", str(tmp_path / "t.json"))
    where = argv.index("--vocab-size")
    assert main(argv[:where] + argv[where + 2 :]) == 0
    model, stored = load(tmp_path / "run")
    assert stored.sha256() == tok.sha256()
    assert model.config.vocab_size == 258


def test_files_of_which_none_is_held_out(tmp_path, capsys):
    name = next(f"{i}.txt" for i in range(9) if not is_held_out(f"{i}.txt"))
    (tmp_path / name).write_text(TEXT * 20, encoding="utf-8")
    assert main(train(tmp_path / name, tmp_path / "run")) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("validation: none")
    assert main(train(tmp_path / name, tmp_path / "2", "--ship", str(tmp_path / "s"))) == 2
    assert "--ship" in capsys.readouterr().err and not (tmp_path / "2").exists()


def test_ship_writes_a_small_model_with_its_card(corpus, tmp_path):
    assert main(train(corpus, tmp_path / "run", "--ship", str(tmp_path / "shipped"))) == 0
    names = {path.name for path in (tmp_path / "shipped").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "card.md"} <= names
    assert "training.safetensors" not in names
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in ("run", "shipped")]
    assert sizes[1] < 0.7 * sizes[0]
    whole, small = load(tmp_path / "run")[0], load(tmp_path / "shipped")[0]
    assert torch.equal(small.head_weight, whole.head_weight.bfloat16().float())
    card = (tmp_path / "shipped" / "card.md").read_text("utf-8")
    assert corpus.name in card and str(corpus) not in card


def test_minutes_become_steps_and_are_kept(corpus, tmp_path, capsys):
    argv = train(corpus, tmp_path / "run")
    argv[argv.index("--steps") :] = ["--minutes", "0.03"]
    assert main(argv) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("  steps: ")]
    steps = int(line.split()[1])
    assert steps > 3
    _, values, _ = load_training_state(tmp_path / "run")
    assert (values["step"], values["train"]["steps"]) == (steps, steps)


def interrupt_at(step, monkeypatch):
    """Press Ctrl-C in the middle of a step."""
    whole = Run.step

    def pressed(self, n):
        if n == step:
            signal.raise_signal(signal.SIGINT)
        return whole(self, n)

    monkeypatch.setattr(Run, "step", pressed)


def losses_in(folder):
    lines = (folder / "history.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_ctrl_c_saves_and_resume_goes_on_as_if_nothing_had_been(
    corpus, run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        assert main(train(corpus, out)) == 130
    captured = capsys.readouterr()
    assert f"--resume {out}" in captured.err and "Traceback" not in captured.err
    assert len(losses_in(out)) == 2
    monkeypatch.chdir(tmp_path)  # the data are found from another folder too
    assert main(["train", "--resume", str(out), "--threads", "1", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "going on after step 2" in lines
    assert re.fullmatch(r"validation: .* bits per byte", lines[-1])
    assert losses_in(out) == losses_in(run)
    assert torch.equal(load(out)[0].head_weight, load(run)[0].head_weight)


def test_resuming_what_is_finished_says_how_good_it_is(run, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    assert main(["train", "--resume", str(out), "--device", "cpu"]) == 0
    assert "bits per byte" in capsys.readouterr().out.splitlines()[-1]
    assert losses_in(out) == losses_in(run)


def test_ctrl_c_before_the_training(corpus, tmp_path, monkeypatch, capsys):
    def pressed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "train", pressed)
    assert main(train(corpus, tmp_path / "run")) == 130
    assert capsys.readouterr().err.strip() == "minilm: interrupted"
    assert not (tmp_path / "run").exists()


def generated(run, capsys, *flags):
    argv = ["generate", "--model", str(run), "--device", "cpu", "--max-new-tokens", "12", *flags]
    assert main(argv) == 0
    return capsys.readouterr().out


def test_generate(run, capsys):
    text = generated(run, capsys, "--prompt", "def é", "--seed", "1")
    assert text.startswith("def é") and len(text) > len("def é") + 1
    assert generated(run, capsys, "--prompt", "def é", "--seed", "1") == text
    assert generated(run, capsys, "--prompt", "def é", "--seed", "2") != text
    new = generated(run, capsys, "--prompt", "def é", "--seed", "1", "--new-only")
    assert "def é" + new == text
    assert generated(run, capsys, "--seed", "1", "--max-new-tokens", "0") == "\n"


def test_generate_stops_before_a_text(run, capsys):
    text = generated(run, capsys, "--prompt", "x", "--seed", "1", "--new-only")
    stop = text[3:5]
    stopped = generated(
        run, capsys, "--prompt", "x", "--seed", "1", "--new-only", "--stop", stop, "--stop", "\x00!"
    )
    assert stopped == text[: text.index(stop)] + "\n"


def test_generate_sees_special_tokens_in_a_prompt_as_text(run, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        commands, "stream", lambda model, prompt, *a, **k: seen.append(prompt) or iter(())
    )
    generated(run, capsys, "--prompt", "<|endoftext|>")
    tok = Tokenizer.load(run / "tokenizer.json")
    (ids,) = seen
    assert ids[0] == tok.eot_id and tok.eot_id not in ids[1:]  # a file starts behind the token
    assert tok.decode(ids[1:]) == "<|endoftext|>"


def test_bench_writes_a_results_file(tmp_path, capsys):
    path = tmp_path / "import.json"
    assert main(["bench", "import", "--rounds", "1", "--json", str(path)]) == 0
    results = bench.read_results(path)
    assert results["command"] == "import"
    (row,) = results["rows"]
    assert row["goal"] == 2.0 and row["met"] == (row["value"] <= 2.0)
    assert "goal 2: " in capsys.readouterr().out


def test_bench_without_a_name_runs_what_fits_into_a_coffee_break(tmp_path, monkeypatch, capsys):
    ran = []
    row = bench.row("op", "pass", 1.0, "s", sources=[])

    class Module:
        def __getattr__(self, function):
            return lambda peers: ran.append(function) or [row]

    monkeypatch.setattr(command_bench, "has_nvidia", lambda: False)  # a GPU has a train of its own
    monkeypatch.setattr(command_bench.importlib, "import_module", lambda name: Module())
    monkeypatch.setattr(
        command_bench, "default_path", lambda name, device: tmp_path / f"{name}.json"
    )
    assert main(["bench"]) == 0
    assert ran == ["rows", "train_rows", "generate_rows", "import_rows", "tiny_rows"]
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{n}.json" for n in ("tokenizer", "train", "generate", "import", "tiny")
    }
    assert main(["bench", "choices"]) == 0
    assert ran[-1] == "choice_rows"


@pytest.mark.parametrize("ok", [True, False])
def test_doctor_tells_by_its_exit_code(ok, monkeypatch, capsys):
    monkeypatch.setattr(commands, "doctor", lambda file: {"ok": ok, "findings": []})
    assert main(["doctor", "--json"]) == (0 if ok else 1)
    assert json.loads(capsys.readouterr().out) == {"ok": ok, "findings": []}


# ------------------------------------------------------------------ what bad input gets


def refused(argv, capsys, *named):
    """Exit code 2, and one line on standard error that names the thing."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minilm: ") and error.count("\n") == 1, error
    assert "Traceback" not in error
    for name in named:
        assert str(name) in error, error


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--vocab-size", "100"], ["vocab_size", "257", "100"]),
        (["--n-heads", "3"], ["d_model", "n_heads = 3", "16"]),
        (["--d-model", "-4"], ["d_model", "-4"]),
        (["--context-length", "100000"], ["context_length", "100000", "tokens"]),
        (["--context-length", "0"], ["context_length", "0"]),
        (["--steps", "0"], ["steps", "0"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--minutes", "1"], ["--minutes", "--steps"]),
        (["--batch-size", "0"], ["batch_size", "0"]),
        (["--accumulation", "3"], ["accumulation", "3", "batch_size = 2"]),
        (["--lr", "-1"], ["lr", "-1"]),
        (["--lr", "1e-3", "--min-lr", "1"], ["min_lr", "lr = 0.001"]),
        (["--warmup", "9"], ["warmup", "steps = 3"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--optimizer", "adam"], ["--optimizer", "adam", "lion"]),
        (["--dtype", "int8"], ["--dtype", "int8", "bfloat16"]),
        (["--preset", "huge"], ["--preset", "huge", "small"]),
        (["--backend", "jax"], ["--backend", "jax", "numba"]),
        (["--backend", "numba", "--device", "cpu"], ["--backend", "emulator", "--emulate"]),
        (["--emulate"], ["--emulate", "--backend numba"]),
        (["--backend", "torch", "--emulate"], ["--emulate", "--backend numba"]),
        (
            ["--backend", "numba", "--emulate", "--device", "cuda"],
            ["--emulate", "CPU", "--device cuda"],
        ),
        (["--lr", "1e30", "--steps", "40"], ["loss", "step"]),
        (["--no-such-flag"], ["--no-such-flag", "--help"]),
        (["--tokenizer", "nowhere.json", "--vocab-size", "300"], ["--vocab-size", "--tokenizer"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_bad_flags_of_train(corpus, tmp_path, capsys, flags, named):
    out = tmp_path / "run"
    refused(train(corpus, out, *flags), capsys, *named)
    if "1e30" not in flags:  # a run that goes wrong later keeps its history
        assert not out.exists()


def test_training_on_the_emulator(corpus, tmp_path, capsys):
    """Two steps with the kernels give what two steps with torch give; --resume keeps the choice."""
    sizes = ["--context-length", "8", "--d-model", "8", "--n-layers", "1", "--n-heads", "2"]
    sizes += ["--vocab-size", "264", "--steps", "2", "--save-every", "1", "--eval-every", "9"]
    rows = {}
    for backend in (["--backend", "torch"], ["--backend", "numba", "--emulate"]):
        out = tmp_path / backend[1]
        assert main([*train(corpus, out)[:-2], *sizes, *backend]) == 0
        assert f"backend: {backend[1]}" in capsys.readouterr().out
        lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
        rows[backend[1]] = [json.loads(line) for line in lines]
    assert len(rows["numba"]) == 2
    for ours, theirs in zip(rows["numba"], rows["torch"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    if not torch.cuda.is_available():
        out = str(tmp_path / "numba")
        refused(["train", "--resume", out], capsys, "--backend", "--emulate")
        refused(["train", "--resume", out, "--device", "mps"], capsys, "device", "mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", ["train", "generate", "eval"])
def test_a_device_that_is_not_there(corpus, tmp_path, capsys, command):
    refused([command, "--device", "cuda"], capsys, "device", "cuda", "cpu")


def test_minutes_that_are_too_few(corpus, tmp_path, capsys):
    argv = train(corpus, tmp_path / "run")
    argv[argv.index("--steps") :] = ["--minutes", "0.00001"]
    refused(argv, capsys, "minutes", "1e-05")
    assert not (tmp_path / "run").exists()


def test_bad_data(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").write_text("text", encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    out = tmp_path / "run"
    for data in ("folder", "nowhere"):
        refused(train(tmp_path / data, out), capsys, tmp_path / data)
    for data in ("empty.txt", "latin.txt"):
        refused(train(tmp_path / data, out), capsys, "text")
        argv = ["tokenizer", "train", tmp_path / data, "--vocab-size", "300", "--out"]
        refused([*argv, tmp_path / "t.json"], capsys, "text")
    assert not out.exists() and not (tmp_path / "t.json").exists()


def test_eval_on_files_without_text(run, tmp_path, capsys):
    name = next(f"{i}.py" for i in range(99) if is_held_out(f"{i}.py"))
    (tmp_path / name).touch()
    refused(["eval", "--model", run, "--data", tmp_path / name], capsys, "heldout", "text")
    argv = ["eval", "--model", run, "--data", tmp_path / name, "--split", "train"]
    refused(argv, capsys, "train", "text")


def test_a_tokenizer_that_is_not_bpe(corpus, run, tmp_path, capsys):
    path = tmp_path / "words.json"
    values = json.loads((run / "tokenizer.json").read_text("utf-8"))
    values["model"] = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    path.write_text(json.dumps(values), encoding="utf-8")
    argv = train(corpus, tmp_path / "out", "--tokenizer", path)
    where = argv.index("--vocab-size")
    argv = argv[:where] + argv[where + 2 :]
    refused(argv, capsys, path, "WordPiece", "BPE")
    path.write_text('{"version": ', encoding="utf-8")
    refused(argv, capsys, path, "is not a tokenizer.json")
    path.unlink()
    refused(argv, capsys, path)
    assert not (tmp_path / "out").exists()


def test_tokenizer_train_with_a_bad_size_or_place(corpus, tmp_path, capsys):
    argv = ["tokenizer", "train", corpus, "--vocab-size", "256", "--out"]
    refused([*argv, tmp_path / "t.json"], capsys, "vocab_size", "257", "256")
    refused([*argv, tmp_path / "no" / "t.json"], capsys, "--out", tmp_path / "no")
    assert list(tmp_path.iterdir()) == []
    refused(["tokenizer"], capsys, "ACTION")


USERS = {
    "generate": ["generate", "--max-new-tokens", "2"],
    "eval": ["eval"],
}


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "model.safetensors"


def weights_gone(folder):
    (folder / "model.safetensors").unlink()
    return "model.safetensors"


def config_gone(folder):
    (folder / "config.json").unlink()
    return "config.json"


def config_cut(folder):
    text = (folder / "config.json").read_text("utf-8")
    (folder / "config.json").write_text(text[:40], encoding="utf-8")
    return "config.json"


def tokenizer_gone(folder):
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json"


def with_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["model"] |= changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def another_config(folder):
    with_config(folder, n_layers=2)
    return "blocks.1"


def impossible_config(folder):
    with_config(folder, n_heads=3, head_dim=None)
    return "d_model"


def config_of_the_future(folder):
    with_config(folder, experts=8)
    return "'experts'"


@pytest.mark.parametrize("command", USERS)
@pytest.mark.parametrize(
    "damage",
    [
        cut,
        weights_gone,
        config_gone,
        config_cut,
        tokenizer_gone,
        another_config,
        impossible_config,
        config_of_the_future,
    ],
    ids=lambda f: f.__name__,
)
def test_a_damaged_checkpoint(corpus, copy, capsys, damage, command):
    argv = [*USERS[command], "--model", copy, "--device", "cpu"]
    argv += ["--data", corpus] if command == "eval" else []
    assert main([str(a) for a in argv]) == 0  # the control: as it was, it works
    refused(argv, capsys, damage(copy))


@pytest.mark.parametrize("command", USERS)
def test_a_model_that_is_not_there(command, capsys):
    refused([*USERS[command], "--model", "nobody"], capsys, "nobody", "tiny")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--top-k", "0"], "top_k"),
        (["--top-p", "2"], "top_p"),
        (["--max-new-tokens", "-1"], "max_new_tokens"),
        (["--stop", ""], "stop"),
    ],
)
def test_bad_flags_of_generate(run, capsys, flags, named):
    refused(["generate", "--model", run, *flags], capsys, named, flags[1] or "''")
    assert capsys.readouterr().out == ""


def test_a_run_is_not_overwritten(corpus, run, tmp_path, capsys):
    before = (run / "history.jsonl").read_bytes()
    refused(train(corpus, run), capsys, run, "--resume")
    assert (run / "history.jsonl").read_bytes() == before


def test_bad_resumes(copy, run, tmp_path, capsys):
    refused(["train", "--resume", tmp_path / "no"], capsys, tmp_path / "no")
    refused(["train", "--resume", copy], capsys, copy, "training.safetensors")
    whole = (run / "training.safetensors").read_bytes()
    (copy / "training.safetensors").write_bytes(whole[:-100])
    refused(["train", "--resume", copy], capsys, "training.safetensors")
    (copy / "training.safetensors").write_bytes(whole)
    (copy / "source.json").unlink()
    refused(["train", "--resume", copy], capsys, "source.json")


@pytest.mark.parametrize(
    "flags",
    ["--lr 1", "--seed 0", "--steps 9", "--preset tiny", "--data .", "--d-model 8", "--out x"],
)
def test_a_run_that_goes_on_keeps_its_own(run, capsys, flags):
    refused(["train", "--resume", run, *flags.split()], capsys, flags.split()[0])


def test_resuming_with_data_that_changed(corpus, run, tmp_path, capsys):
    mine, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(corpus, mine)
    assert main(train(mine, out)) == 0
    (mine / "file1.py").write_text("x = 1\n" * 99, encoding="utf-8")
    refused(["train", "--resume", out, "--device", "cpu"], capsys, "data", out)


def test_a_cache_that_cannot_be_written(corpus, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINILM_CACHE", str(tmp_path / "file" / "cache"))
    refused(train(corpus, tmp_path / "run"), capsys, tmp_path / "file", "MINILM_CACHE")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_keeps_the_old_checkpoint(corpus, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert main(train(corpus, out)) == 130
    names = ("model.safetensors", "training.safetensors", "config.json")
    before = [(out / name).read_bytes() for name in names]

    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("minilm.checkpoint.save_file", full)
        refused(["train", "--resume", out, "--device", "cpu"], capsys, out, "No space left")
    assert [(out / name).read_bytes() for name in names] == before
    assert main(["train", "--resume", str(out), "--device", "cpu"]) == 0


def test_a_package_that_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setattr("minilm.bench_tokenizer.corpus_prefix", lambda size: ["a b a b"])
    refused(["bench", "tokenizer"], capsys, "pip install", "tokenizers")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["nothing"], "nothing"),
        (["train", "--peer", "nanogpt"], "NAME=PATH"),
        (["train", "--peer", "nanogpt=nowhere"], "nowhere"),
        (["train", "--peer", "minbpe=."], "minbpe"),
        (["import", "--peer", "x=."], "import"),
        (["import", "--rounds", "0"], "--rounds"),
        (["tiny", "--rounds", "2"], "--rounds"),
        (["--json", "x.json"], "--json"),
        (["import", "--json", "no/x.json"], "no"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_bad_flags_of_bench(flags, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(["bench", *flags], capsys, named)
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_missing_or_unknown(capsys):
    refused([], capsys, "COMMAND", "--help")
    refused(["serve"], capsys, "serve", "train")


def test_a_traceback_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("MINILM_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["generate", "--model", "nobody"])


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(commands, "doctor", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


# ------------------------------------------------------------------ as a process


def test_the_module_runs_and_passes_its_exit_code_on():
    argv = [sys.executable, "-m", "minilm", "generate", "--model", "nobody"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("minilm: ") and done.stderr.count("\n") == 1


def test_a_reader_that_has_gone_is_no_error(run):
    argv = [sys.executable, "-m", "minilm", "generate", "--model", str(run), "--seed", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert error == b""
    assert process.returncode == 1
