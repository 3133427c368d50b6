"""Generation: ask for the next token, append it, ask again, until a stop or a count says enough.

    ids → logits of the next token → temperature, top-k, top-p → one id → append → …

`max_new_tokens` is a gate in this loop and nothing else: it changes no weight and no probability,
so the first N ids are the same for every limit of at least N. What the model can see is another
thing, the context length T: once there are more than T ids, the model is shown the last T only.

The cost. Up to T ids a key/value cache makes a new token cost one pass over one token. Past T the
window slides by one at each token: every id in it moves to a new position, the cached keys are
those of the old positions, and a new token costs a pass over T tokens.
"""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from operator import index

import numpy as np
import torch
from torch import Tensor

from . import ops
from .model import MiniLM


def generate(
    model: MiniLM,
    prompt_ids: Sequence[int] | Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Iterable[int | Sequence[int]] = (),
    seed: int | None = None,
    cache: bool = True,
) -> list[int] | list[list[int]]:
    """Continue a prompt; the new ids only.

    prompt_ids      at least one id (list, tuple, 1-D array or tensor); or a list of prompts of
                    any lengths, which gives a list of results. Prompt i is then run alone, with
                    seed + i: its result does not depend on its neighbours, not even by rounding.
    max_new_tokens  at most so many new ids.
    temperature, top_k, top_p   see `sample_next`; temperature=0 takes the most probable id.
    stop            ids, or sequences of ids, that end the text. What stopped it is not returned,
                    be it one id or several. Only the new ids are searched, not the prompt.
    seed            the same seed gives the same ids; None draws from torch's global generator.
    cache           False recomputes everything for each token: the same ids, slower.

    With the same seed, generate(N) is a prefix of generate(M > N). One exception: where the gate
    falls inside what may be a stop sequence, its first ids are returned, and with a larger limit
    they may turn out to be one. Past context_length T the model sees the last T ids, as positions
    0 … T − 1, for learned and rotary positions alike. The model is left in the mode (train or
    eval) that it was in; no gradients are kept.
    Raises ValueError or TypeError naming the argument.
    """
    many = _is_list_of_prompts(prompt_ids)
    options = (max_new_tokens, temperature, top_k, top_p, stop)
    streams = [
        stream(model, prompt, *options, None if seed is None else seed + i, cache)
        for i, prompt in enumerate(prompt_ids if many else [prompt_ids])
    ]
    results = [list(new_ids) for new_ids in streams]
    return results if many else results[0]


def stream(
    model: MiniLM,
    prompt_ids: Sequence[int] | Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Iterable[int | Sequence[int]] = (),
    seed: int | None = None,
    cache: bool = True,
) -> Generator[int, None, str]:
    """The ids of `generate` for one prompt, each as soon as it is certain.

    An id that may be the beginning of a stop sequence is held back until it cannot be. The iterator
    ends with the reason as its value: "stop" or "length" (`reason = yield from stream(…)`).
    Arguments are checked here, before the first id is asked for.
    """
    if not model.config.causal:
        raise ValueError("model: generation needs a model with causal=True, got causal=False")
    prompt = _check_prompt(prompt_ids, model.config.vocab_size)
    limit = _check_count("max_new_tokens", max_new_tokens, 0)
    _check_sampling(temperature, top_k, top_p)
    stops = _check_stop(stop)
    generator = None if seed is None else torch.Generator().manual_seed(seed)

    def sampled() -> Iterator[int]:
        context = _Context(model, prompt, limit, cache)  # its cache only when it is needed
        for _ in range(limit):
            new_id = int(sample_next(context.logits(), temperature, top_k, top_p, generator))
            context.ids.append(new_id)
            yield new_id

    return _until_stop(sampled(), stops)


def sample_next(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw ids from logits. logits (V) or (B, V) → int64 () or (B), on the CPU.

    temperature  logits are divided by it; 0 takes the largest (the lowest id among equals).
    top_k        only the k most probable ids stay (of equal ones the lower ids; Fan et al. 2018).
    top_p        of those, only the most probable ids whose probabilities, renormalised, add up to
                 at least p: the id that crosses p stays, so one always does (Holtzman et al. 2020).
    generator    a CPU generator; it gives one number per row. None: torch's global one.

    An id with logit −inf is never drawn; ValueError when a row has NaN, +inf, or nothing but −inf.
    """
    probabilities = next_probabilities(logits, temperature, top_k, top_p)
    if temperature == 0:
        return probabilities.argmax(dim=-1)
    # One uniform number per row, looked up in the cumulative probabilities: whose share holds it?
    cumulative = probabilities.cumsum(dim=-1)
    u = torch.rand(logits.shape[:-1] + (1,), generator=generator, dtype=torch.float64)
    return torch.searchsorted(cumulative, u * cumulative[..., -1:], right=True)[..., 0]


def next_probabilities(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """What `sample_next` draws from: logits (..., V) → float64 (..., V) on the CPU, row sums 1."""
    _check_sampling(temperature, top_k, top_p)
    logits = logits.detach().to("cpu", torch.float64)
    largest = logits.amax(dim=-1, keepdim=True)
    if not largest.isfinite().all():
        raise ValueError(f"logits: the largest must be a finite number, got {largest.min().item()}")
    if temperature == 0:
        first = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, first, 1.0)
    probabilities = torch.softmax((logits - largest) / temperature, dim=-1)
    if top_k is None and top_p is None:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[..., top_k:] = 0
    if top_p is not None and top_p < 1:
        before = ordered.cumsum(dim=-1) - ordered  # probability of all more probable ids
        ordered[before >= top_p * ordered.sum(dim=-1, keepdim=True)] = 0
    ordered /= ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(ordered).scatter(-1, order, ordered)


class _Context:
    """The ids so far, and the logits of the next one from the last context_length of them."""

    def __init__(self, model: MiniLM, prompt: list[int], n_new: int, use_cache: bool):
        self.model, self.ids = model, prompt
        self.limit = model.config.context_length
        fits = use_cache and len(prompt) <= self.limit
        self.cache = model.new_cache(1, min(self.limit, len(prompt) + n_new)) if fits else None

    def logits(self) -> Tensor:
        """(V), of the id that follows `ids`."""
        if len(self.ids) > self.limit:
            self.cache = None  # from here on the window slides
        seen = 0 if self.cache is None else self.cache.length
        new = self.ids[-self.limit :][seen:]
        with _evaluation(self.model):
            weight = self.model.head_weight
            hidden = self.model.hidden(torch.tensor([new], device=weight.device), cache=self.cache)
            return ops.linear(hidden[0, -1], weight)


@contextmanager
def _evaluation(model: MiniLM) -> Iterator[None]:
    """No dropout and no gradients, around one pass: nothing leaks between two ids of a stream."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _until_stop(new_ids: Iterator[int], stops: list[list[int]]) -> Generator[int, None, str]:
    held: list[int] = []  # may be the beginning of a stop sequence
    for new_id in new_ids:
        held.append(new_id)
        ended = [len(s) for s in stops if held[-len(s) :] == s]
        if ended:
            yield from held[: -max(ended)]
            return "stop"
        n = _n_possible(held, stops)
        yield from held[: len(held) - n]
        del held[: len(held) - n]
    yield from held
    return "length"


def _n_possible(held: list[int], stops: list[list[int]]) -> int:
    """How many of the last ids of `held` are the beginning of a stop sequence, at most."""
    for n in range(len(held), 0, -1):
        if any(s[:n] == held[-n:] for s in stops):
            return n
    return 0


def _is_list_of_prompts(prompt_ids: object) -> bool:
    if isinstance(prompt_ids, Tensor | np.ndarray):
        return prompt_ids.ndim == 2
    _check_iterable("prompt_ids", prompt_ids)
    return any(isinstance(item, list | tuple | np.ndarray) or _is_row(item) for item in prompt_ids)


def _check_prompt(prompt_ids: object, vocab_size: int) -> list[int]:
    ids = _to_ids("prompt_ids", prompt_ids)
    if not ids:
        raise ValueError("prompt_ids: must hold at least one id, got an empty prompt")
    for bad in (min(ids), max(ids)):
        if not 0 <= bad < vocab_size:
            raise ValueError(f"prompt_ids: ids must be 0 to {vocab_size - 1}, got {bad}")
    return ids


def _check_stop(stop: object) -> list[list[int]]:
    if _is_id(stop):
        return [[index(stop)]]
    _check_iterable("stop", stop)
    stops = [[index(item)] if _is_id(item) else _to_ids("stop", item) for item in stop]
    if [] in stops:
        raise ValueError("stop: a stop sequence must hold at least one id, got an empty one")
    return stops


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not (_is_real(temperature) and 0 <= temperature < math.inf):
        raise ValueError(f"temperature: must be 0 or a positive number, got {temperature!r}")
    if top_k is not None:
        _check_count("top_k", top_k, 1)
    if top_p is not None and not (_is_real(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p: must be above 0 and at most 1, got {top_p!r}")


def _check_count(name: str, value: int, lowest: int) -> int:
    if not _is_id(value) or value < lowest:
        raise ValueError(f"{name}: must be a whole number of at least {lowest}, got {value!r}")
    return index(value)


def _is_id(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_row(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _to_ids(name: str, values: object) -> list[int]:
    _check_iterable(name, values)
    values = values.tolist() if isinstance(values, Tensor | np.ndarray) else list(values)
    for value in values:
        if not _is_id(value):
            raise TypeError(f"{name}: ids must be whole numbers, got {value!r}")
    return [index(value) for value in values]


def _check_iterable(name: str, values: object) -> None:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: must be ids (encode text first), got {values!r}")
