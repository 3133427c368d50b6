"""`TrainConfig`: everything that decides how a model is trained, except the model and the data."""

import math
from dataclasses import asdict, dataclass, fields

from .ops import check_backend

DEFAULT_STEPS = 1000
BETAS = {"adamw": (0.9, 0.95), "lion": (0.9, 0.99), "sgd": (0.9, 0.0)}
DTYPES = ("float32", "bfloat16", "float16")
# Fields that may differ when a run goes on: they change what is seen of it or where it runs, not
# what it computes (up to rounding, on another device, backend or number of threads).
FREE = ("device", "threads", "backend", "log_every", "eval_every", "save_every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. ValueError names a field that cannot be, the value it had and what it may be.

    A run lasts `steps` optimizer steps, or as many as fit into `minutes`; with neither, 1,000
    steps.
    """

    steps: int | None = None  # optimizer steps
    minutes: float | None = None  # wall-clock minutes for the whole run, validation included
    batch_size: int = 16  # sequences per step
    context_length: int | None = None  # tokens per sequence, T; None: the model's
    accumulation: int = 1  # parts that a step's batch is cut into, to need less memory at once
    objective: str = "causal"  # "causal" (next token) or "masked" (masked language model)
    mask_p: float = 0.15  # objective="masked": the share of tokens to predict
    mask_id: int | None = None  # objective="masked": the id shown instead; None: <|mask|>'s
    optimizer: str = "adamw"  # "adamw", "lion" or "sgd"
    lr: float = 1e-3  # the highest learning rate
    min_lr: float = 0.0  # the last learning rate
    warmup: int | None = None  # steps until lr is reached; None: steps / 10, at most 1,000
    weight_decay: float = 0.1  # of matrices; biases and norm weights do not decay
    betas: tuple[float, float] | None = None  # None: BETAS; sgd has its momentum in betas[0]
    clip: float | None = 1.0  # the largest gradient norm; None: no clipping
    dtype: str = "float32"  # of the matrix products; the weights stay as they are
    device: str = "auto"  # "auto" (cuda, then mps, then cpu), or a torch device such as "cuda:1"
    backend: str = "torch"  # who computes the operations, see ops.py
    threads: int | None = None  # CPU threads; None: as torch is set
    seed: int = 0  # of the order of the data, dropout and corruption
    log_every: int = 1  # steps between rows of the history
    eval_every: int | None = None  # steps between validations; None: only after the last
    save_every: int | None = 500  # steps between checkpoints; None: only after the last

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise ValueError(f"steps and minutes: give one, got {self.steps} and {self.minutes}")
        if self.steps is None and self.minutes is None:
            object.__setattr__(self, "steps", DEFAULT_STEPS)  # frozen for everyone else
        if self.betas is not None:
            object.__setattr__(self, "betas", tuple(self.betas))  # JSON knows only lists
        self._check_choices()
        self._check_numbers()
        check_backend(self.backend)

    def _check_choices(self) -> None:
        choices = {"objective": ("causal", "masked"), "optimizer": tuple(BETAS), "dtype": DTYPES}
        for name, allowed in choices.items():
            self._check(name, getattr(self, name) in allowed, " or ".join(map(repr, allowed)))
        kind = self.device.partition(":")[0] if isinstance(self.device, str) else None
        known = kind in ("auto", "cpu", "cuda", "mps")
        self._check("device", known, "'auto', 'cpu', 'cuda' or 'mps'")

    def _check_numbers(self) -> None:
        for name in ("batch_size", "accumulation", "log_every"):
            self._check(name, _is_count(getattr(self, name), 1), "a whole number, at least 1")
        for name in ("steps", "context_length", "threads", "eval_every", "save_every"):
            value = getattr(self, name)
            self._check(name, value is None or _is_count(value, 1), "a whole number, at least 1")
        for name in ("warmup", "mask_id"):
            value = getattr(self, name)
            self._check(name, value is None or _is_count(value, 0), "a whole number, at least 0")
        self._check("seed", _is_count(self.seed, 0) and self.seed < 2**32, "0 to 2^32 - 1")
        for name in ("minutes", "clip"):
            value = getattr(self, name)
            self._check(name, value is None or (_is_number(value) and value > 0), "above 0")
        for name in ("lr", "min_lr", "weight_decay"):
            value = getattr(self, name)
            self._check(name, _is_number(value) and value >= 0, "a number, at least 0")
        self._check("min_lr", self.min_lr <= self.lr, f"at most lr = {self.lr}")
        self._check(
            "mask_p", _is_number(self.mask_p) and 0 < self.mask_p <= 1, "above 0, at most 1"
        )
        pair = self.betas is None or (
            len(self.betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in self.betas)
        )
        self._check("betas", pair, "two numbers, each at least 0 and below 1")
        fits = self.accumulation <= self.batch_size
        self._check("accumulation", fits, f"at most batch_size = {self.batch_size}")
        if self.steps is not None and self.warmup is not None:
            self._check("warmup", self.warmup <= self.steps, f"at most steps = {self.steps}")

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name}: must be {allowed}, got {getattr(self, name)!r}")

    def warmup_steps(self, steps: int) -> int:
        """The length of the warm-up in a run of `steps` steps."""
        return min(1000, steps // 10) if self.warmup is None else self.warmup

    def differences(self, stored: "TrainConfig") -> list[str]:
        """The fields in which a run that goes on would compute something else than `stored` did.

        `minutes` was turned into steps when that run began, so it is not compared.
        """
        free = {*FREE, "minutes"} | ({"steps"} if self.minutes is not None else set())
        a, b = self.to_dict(), stored.to_dict()
        return [name for name in a if name not in free and a[name] != b[name]]

    def to_dict(self) -> dict:
        """All fields, ready for JSON."""
        return asdict(self) | {"betas": None if self.betas is None else list(self.betas)}

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """The config of a dict as `to_dict` writes it; ValueError names an unknown field."""
        known = sorted(f.name for f in fields(cls))
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"config: unknown field {unknown[0]!r}, allowed are {known}")
        return cls(**values)


def _is_count(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
