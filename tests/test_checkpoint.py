"""Checkpoints: what is written is read back, and what is not whole is refused with one sentence."""

import errno
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm import checkpoint
from minilm.checkpoint import load, load_training_state, save_checkpoint
from minilm.model import MiniLM, ModelConfig
from minilm.tokenizer import Tokenizer

CONFIG = ModelConfig(vocab_size=300, context_length=16, d_model=16, n_layers=2, n_heads=2)


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["to be or not to be, that is the question"] * 3, 300)


def equal(a: MiniLM, b: MiniLM) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_what_is_saved_is_loaded(tmp_path, tok):
    model = MiniLM(CONFIG)
    save_checkpoint(tmp_path / "a", model, tok)
    loaded, loaded_tok = load(tmp_path / "a")
    assert equal(model, loaded) and loaded.config == CONFIG and not loaded.training
    assert loaded_tok.encode("to be") == tok.encode("to be")
    with torch.no_grad():
        loaded.token_embedding.weight[0, 0] += 1  # control: `equal` sees one number
    assert not equal(model, loaded)


@pytest.mark.parametrize("tied", [True, False])
def test_bf16_is_widened_and_tied_weights_are_stored_once(tmp_path, tied):
    model = MiniLM(ModelConfig.from_dict(CONFIG.to_dict() | {"tied": tied}))
    save_checkpoint(tmp_path / "a", model, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert sum(t.numel() for t in stored.values()) == model.num_parameters()
    loaded, no_tok = load(tmp_path / "a")
    assert no_tok is None
    for name, t in loaded.state_dict().items():
        assert t.dtype == torch.float32
        assert torch.equal(t, model.state_dict()[name].bfloat16().float())
    half, _ = load(tmp_path / "a", dtype=torch.bfloat16)
    assert half.head_weight.dtype == torch.bfloat16


def test_loading_draws_no_random_numbers(tmp_path):
    save_checkpoint(tmp_path / "a", MiniLM(CONFIG))
    torch.manual_seed(1)
    load(tmp_path / "a")
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))


def damage_truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def damage_flip(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))


def edit_config(change):
    def damage(folder):
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        change(values)
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")

    return damage


def unsigned(change):
    """Edit the config without its checksum, as another program might have written it."""
    return edit_config(lambda values: (values.pop("sha256"), change(values)))


DAMAGES = [
    (damage_truncate, ValueError, "damaged"),
    (damage_flip, ValueError, "SHA-256"),
    (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors"),
    (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json"),
    (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), ValueError, "not JSON"),
    (edit_config(lambda v: v.update(format=99)), ValueError, "format 99"),
    (edit_config(lambda v: v["model"].update(colour=1)), ValueError, "colour"),
    (edit_config(lambda v: v["model"].update(n_heads=3)), ValueError, "d_ff|n_heads|head_dim|n_kv"),
    (unsigned(lambda v: v["model"].update(d_ff=32)), ValueError, r"mlp.*32\)"),
    (unsigned(lambda v: v["model"].update(n_layers=3)), ValueError, "blocks.2"),
    (unsigned(lambda v: v["model"].update(n_layers=1)), ValueError, "blocks.1"),
]


@pytest.mark.parametrize("damage, error, message", DAMAGES)
def test_a_bad_checkpoint_is_one_sentence(tmp_path, damage, error, message):
    folder = tmp_path / "a"
    save_checkpoint(folder, MiniLM(CONFIG))
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_truncated_without_a_checksum(tmp_path):
    save_checkpoint(tmp_path / "a", MiniLM(CONFIG))
    damage_truncate(tmp_path / "a")
    edit_config(lambda values: values.pop("sha256"))(tmp_path / "a")
    with pytest.raises(ValueError, match="truncated or damaged"):
        load(tmp_path / "a")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(FileNotFoundError, match="'no-such-model' is neither"):
        load("no-such-model")
    for name in checkpoint.shipped_models():
        model, tok = load(name)
        assert tok is not None and model.config.vocab_size == tok.vocab_size


def test_training_state_comes_back(tmp_path):
    model = MiniLM(CONFIG)
    tensors = {"rng.cpu": torch.get_rng_state(), "m.x": torch.randn(3)}
    save_checkpoint(tmp_path / "a", model, training=({"step": 7}, tensors))
    saved, values, rest = load_training_state(tmp_path / "a")
    assert equal(model, saved) and values["step"] == 7
    assert torch.equal(rest["m.x"], tensors["m.x"])
    with pytest.raises(FileNotFoundError, match="no training run"):
        load_training_state(tmp_path)


@pytest.mark.parametrize("failing", range(4))
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, tok, failing):
    """The write number `failing` runs out of space: old files stay, no new ones lie about."""
    old = MiniLM(CONFIG)
    save_checkpoint(tmp_path / "a", old, tok, training=({"step": 1}, {}))
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    calls, real = [], os.fsync

    def fsync(handle):
        calls.append(handle)
        if len(calls) == failing + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="could not be written"):
        save_checkpoint(tmp_path / "a", MiniLM(CONFIG), tok, training=({"step": 2}, {}))
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    assert equal(load(tmp_path / "a")[0], old)


def test_a_kill_between_two_moves_leaves_a_run_that_can_go_on(tmp_path, monkeypatch):
    """Whatever move is the last one done, training.safetensors is wholly old or wholly new."""
    for moves in range(4):
        folder = tmp_path / str(moves)
        models = [MiniLM(CONFIG), MiniLM(CONFIG)]
        save_checkpoint(folder, models[0], training=({"step": 0}, {}))
        done, real = [], os.replace

        def replace(a, b, moves=moves, done=done, real=real):
            if len(done) == moves:
                raise SystemExit  # as sudden as it gets inside one process
            done.append(b)
            real(a, b)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                save_checkpoint(folder, models[1], training=({"step": 1}, {}))
            except SystemExit:
                pass
        saved, values, _ = load_training_state(folder)
        assert equal(saved, models[values["step"]])
        assert any(equal(load(folder)[0], m) for m in models)  # nor is the model lost for use


def test_a_truncated_run_is_one_sentence(tmp_path):
    folder = tmp_path / "a"
    save_checkpoint(folder, MiniLM(CONFIG), training=({"step": 1}, {}))
    data = (folder / "training.safetensors").read_bytes()
    for n in (0, 5, len(data) // 2, len(data) - 1):
        (folder / "training.safetensors").write_bytes(data[:n])
        with pytest.raises(ValueError, match="truncated or damaged") as caught:
            load_training_state(folder)
        assert "\n" not in str(caught.value)


def test_float64_weights_keep_their_bits(tmp_path):
    model = MiniLM(CONFIG).double()
    with torch.no_grad():
        model.head_weight.add_(torch.rand(model.head_weight.shape).double() * 1e-12)
    save_checkpoint(tmp_path / "a", model, training=({"step": 1}, {}))
    assert equal(load_training_state(tmp_path / "a")[0], model)
    assert load(tmp_path / "a")[0].head_weight.dtype == torch.float32
    assert equal(load(tmp_path / "a", dtype=torch.float64)[0], model)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_the_system_refuses_to_write(tmp_path):
    """Not a stand-in for a full disk but a real refusal, in the middle of a file."""
    import resource

    old = MiniLM(CONFIG)
    save_checkpoint(tmp_path, old, training=({"step": 1}, {}))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["model.safetensors"]) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written") as caught:
            save_checkpoint(tmp_path, MiniLM(CONFIG), training=({"step": 2}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_file_of_another_program_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "a" / "training.safetensors")
    with pytest.raises(ValueError, match="not a training run of this package"):
        load_training_state(tmp_path / "a")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077], ids=oct)
def test_files_are_open_to_whom_the_umask_lets(tmp_path, tok, umask):
    """Weights on a shared disk: the library that writes them would keep them to their owner."""
    before = os.umask(umask)
    try:
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors.new")  # as after a kill
        save_checkpoint(tmp_path, MiniLM(CONFIG), tok, training=({"step": 1}, {}))
        tok.save(tmp_path / "alone.json")
        (tmp_path / "like any").write_text("", encoding="utf-8")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 6 and set(modes.values()) == {0o666 & ~umask}
