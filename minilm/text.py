"""Ids in, text out, piece by piece: never half a character, never past a stop text.

One character may be spread over several tokens ("é" is two bytes), and so may a stop text. What
could still become either is held back until it is certain.
"""

import codecs
from collections.abc import Generator, Iterable, Sequence


def stream_text(
    new_ids: Iterable[int], tok, stop: Sequence[str] = ()
) -> Generator[str, None, str | None]:
    """Yield the text of `new_ids` as soon as it is certain; no piece is empty.

    new_ids  ids of `tok`, as `stream` gives them. It is not asked for more than is needed.
    stop     texts that end the stream, wherever token boundaries fall; they are not part of what
             is yielded. ValueError for an empty one.
    The pieces together are tok.decode of the ids, up to the first stop text. Bytes that are not
    UTF-8 become U+FFFD. The iterator's value is "stop", or else that of `new_ids` (None for a
    list).
    """
    if isinstance(stop, str) or "" in stop:
        raise ValueError(f"stop: must be a list of texts that are not empty, got {stop!r}")
    return _pieces(iter(new_ids), tok, list(stop))


def _pieces(new_ids, tok, stops: list[str]) -> Generator[str, None, str | None]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held, ended, reason = "", False, None
    while not ended:
        try:
            held += decoder.decode(tok.id_to_bytes(next(new_ids)))
        except StopIteration as end:
            ended, reason = True, end.value
            held += decoder.decode(b"", final=True)
        found = [(at + len(s), at) for s in stops if (at := held.find(s)) >= 0]
        if found:  # the one that is complete first, however the characters came in tokens
            held, ended, reason = held[: min(found)[1]], True, "stop"
        certain = len(held) if ended else len(held) - _n_possible(held, stops)
        if certain:
            yield held[:certain]
            held = held[certain:]
    return reason


def _n_possible(held: str, stops: list[str]) -> int:
    """How many of the last characters of `held` are the beginning of a stop text, at most."""
    for n in range(len(held), 0, -1):
        if any(len(s) > n and s.startswith(held[-n:]) for s in stops):
            return n
    return 0
