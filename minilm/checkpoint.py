"""Checkpoints: one folder with a model, its tokenizer, and what a training run needs to go on.

    config.json            format version, ModelConfig, and the SHA-256 of model.safetensors
    model.safetensors      the weights, tied ones once
    tokenizer.json         in Hugging Face's format
    training.safetensors   only for a run that can go on: weights, optimizer, random state, step

Nothing is pickled, so loading runs no code. Every file is written beside its place, flushed to the
disk, and moved there in one step. All that a run needs to go on is in *one* file: whenever the
process is killed, that file is either the old one or the new one, and never half of each. (Killed
between two moves, model.safetensors may be newer than config.json: then `load` too takes the
weights from that file.)
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .model import MiniLM, ModelConfig
from .tokenizer import Tokenizer

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
TRAINING = "training.safetensors"
SHIPPED = Path(__file__).parent / "models"


def shipped_models() -> list[str]:
    """The names that `load` knows: the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def holds_run(folder: Path) -> bool:
    """Is there a training run in `folder` that could go on?"""
    return (folder / TRAINING).is_file()


def save_checkpoint(
    folder: str | os.PathLike,
    model: MiniLM,
    tok: Tokenizer | None = None,
    *,
    dtype: torch.dtype | None = None,
    training: tuple[dict, dict[str, Tensor]] | None = None,
) -> None:
    """Write `model` and `tok` into `folder`, which is made if need be.

    dtype: store the weights as this floating-point type (None: as they are). training: (JSON
    values, tensors) for `load_training_state`. Everything is on the disk before any old file is
    replaced, so a full disk or a kill leaves the old checkpoint. Raises OSError when the folder
    cannot be written.
    """
    folder = Path(folder)
    weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    stored = weights if dtype is None else {name: t.to(dtype) for name, t in weights.items()}
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written.append(_write_tensors(folder / WEIGHTS, stored))
        config = {
            "format": FORMAT,
            "model": model.config.to_dict(),
            "sha256": hashlib.sha256(written[-1].read_bytes()).hexdigest(),
        }
        text = json.dumps(config, indent=1) + "\n"
        written.append(_write_bytes(folder / CONFIG, text.encode("utf-8")))
        if tok is not None:
            written.append(_write_bytes(folder / TOKENIZER, tok.to_json()))
        if training is not None:
            values, tensors = training
            tensors = tensors | {f"model.{name}": t for name, t in weights.items()}
            values = values | {"format": FORMAT, "model": model.config.to_dict()}
            written.append(_write_tensors(folder / TRAINING, tensors, json.dumps(values)))
        for path in written:
            os.replace(path, path.with_name(path.name.removesuffix(".new")))
        _flush_folder(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"folder: the checkpoint {folder} could not be written ({error})") from error
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def load(
    name_or_path: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[MiniLM, Tokenizer | None]:
    """(model, tokenizer) of a shipped model's name or of a checkpoint folder.

    The weights are converted to `dtype`, so a model stored as bf16 is widened. The model is in
    evaluation mode; the tokenizer is None where the folder has none. Raises FileNotFoundError for
    an unknown name, ValueError naming the file and the field when the folder does not hold a whole
    checkpoint of this version.
    """
    folder = _find(name_or_path)
    config, digest = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {folder} has no {WEIGHTS}")
    if digest is None or hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        model = build(config, _read_tensors(path)[0], path)
    elif holds_run(folder):
        model, _, _ = load_training_state(folder)
    else:
        raise ValueError(
            f"checkpoint: {path} is damaged or of another model, its SHA-256 is not {CONFIG}'s"
        )
    model = model.to(device=device, dtype=dtype).eval()
    tokenizer = folder / TOKENIZER
    return model, Tokenizer.load(tokenizer) if tokenizer.is_file() else None


def load_training_state(folder: str | os.PathLike) -> tuple[MiniLM, dict, dict[str, Tensor]]:
    """(model, JSON values, tensors) of a run that can go on, from training.safetensors alone.

    Raises FileNotFoundError or ValueError with one sentence when it is not there or not whole.
    """
    path = Path(folder) / TRAINING
    if not path.is_file():
        raise FileNotFoundError(
            f"resume: {folder} holds no training run to go on with ({TRAINING})"
        )
    tensors, metadata = _read_tensors(path)
    try:
        values = json.loads(metadata)
        _check_format(values, path)
        config = ModelConfig.from_dict(values.pop("model"))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint: {path} is not a training run of this package") from error
    prefix = "model."
    weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    rest = {name: t for name, t in tensors.items() if not name.startswith(prefix)}
    return build(config, weights, path), values, rest


def build(config: ModelConfig, tensors: dict[str, Tensor], path: Path) -> MiniLM:
    """A model with these weights; ValueError names the first one that does not fit."""
    with torch.random.fork_rng(devices=[]):  # the fresh weights are thrown away: draw no randomness
        model = MiniLM(config)
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"checkpoint: {path} does not fit its config: {name} must be "
                f"{wanted.get(name, 'absent')}, is {found.get(name, 'absent')}"
            )
    if any(t.dtype == torch.float64 for t in tensors.values()):
        model.double()  # every other type fits into float32
    model.load_state_dict(tensors)
    return model


def _find(name_or_path: str | os.PathLike) -> Path:
    folder = Path(name_or_path)
    if str(name_or_path) in shipped_models():
        return SHIPPED / str(name_or_path)
    if folder.is_dir():
        return folder
    names = ", ".join(map(repr, shipped_models())) or "none"
    raise FileNotFoundError(
        f"model: {str(name_or_path)!r} is neither a folder nor a shipped model (there is {names})"
    )


def _read_config(path: Path) -> tuple[ModelConfig, str | None]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path.parent} has no {path.name}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint: {path} is not JSON ({error})") from error
    _check_format(values, path)
    if not isinstance(values.get("model"), dict):
        raise ValueError(f"checkpoint: {path} has no field 'model'")
    return ModelConfig.from_dict(values["model"]), values.get("sha256")


def _check_format(values: object, path: Path) -> None:
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise ValueError(f"checkpoint: {path} has format {version!r}, this version reads {FORMAT}")


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """All tensors of a file, and the JSON text that was stored with them."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, (file.metadata() or {}).get("minilm")
    except SafetensorError as error:
        raise ValueError(f"checkpoint: {path} is truncated or damaged ({error})") from error


def _write_tensors(path: Path, tensors: dict[str, Tensor], text: str | None = None) -> Path:
    """Write beside `path`, onto the disk; returns where."""
    with _beside(path) as new:
        mode = new.stat().st_mode
        save_file(tensors, new, metadata=None if text is None else {"minilm": text})
        new.chmod(mode)  # save_file puts a file of its own there, for the user's eyes only
    return new


def _write_bytes(path: Path, data: bytes) -> Path:
    """Write beside `path`, onto the disk; returns where."""
    with _beside(path) as new:
        new.write_bytes(data)
    return new


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new file beside `path`, open to whom the umask lets; flushed to the disk at the end."""
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)  # left by a process that was killed
        new.touch(exist_ok=False)
        yield new
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Make the moves themselves durable; Windows has no such call and does not need it."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
