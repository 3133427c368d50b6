"""Reads of memory that nothing has written: shared and local memory, and marked global arrays.

Shared and local memory hold leftovers when a block starts. A byte whose first access, in that block
or thread, reads it was never given a value. Where the word also races, the race says why.
"""

import numpy as np

from .race_ledger import quote
from .requests import groups, order_of, pack, split, starts
from .trace import ADDRESS, BLOCK, GLOBAL_BITS, SITE, THREAD, Finding, Trace
from .words import Words, cut_words, sites_where


def find_uninitialised(trace: Trace, racing: Words) -> list[Finding]:
    """One finding for each line that reads such bytes. racing: words that race, left out."""
    if not len(trace.accesses):
        return []
    rows = []
    for space in ("shared", "local"):
        chosen = np.flatnonzero(sites_where(trace, lambda s, space=space: s.space == space))
        if len(chosen):
            rows.append(_first_is_read(trace, cut_words(trace, chosen), racing))
    if trace.written:
        rows.append(_global_reads(trace))
    rows = np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
    return _findings(trace, rows)


def _first_is_read(trace: Trace, words: Words, racing: Words) -> np.ndarray:
    """Rows that read some byte before anything wrote it."""
    reads = np.array([s.kind != "store" for s in trace.sites])[trace.accesses[words.row, SITE]]
    known = len(words)
    memory = np.concatenate((words.memory, racing.memory))
    key = pack(memory, *split(np.concatenate((words.word, racing.word))))
    key, race_keys = key[:known], key[known:]
    if len(words) and (words.mask == words.mask[0]).all():  # no word in parts
        first = groups(key)[0]
        first = first[reads[first]]
        return words.row[first[~np.isin(key[first], race_keys)]]
    order = order_of(key)
    at = np.flatnonzero(starts(key[order]))
    mask = words.mask[order]
    even = np.minimum.reduceat(mask, at) == np.maximum.reduceat(mask, at)
    first = order[at[reads[order[at]]]]
    # Words of which different accesses touch different bytes: byte by byte.
    mixed = order[np.repeat(~even, np.diff(np.append(at, known)))]
    of, byte = np.nonzero((words.mask[mixed, None] >> np.arange(4)) & 1)
    entry = mixed[of]
    by_byte = key[entry] * 4 + byte
    by_time = np.lexsort((entry, by_byte))
    head = by_time[starts(by_byte[by_time])]
    first = np.concatenate((first, entry[head][reads[entry[head]]]))
    return words.row[first[~np.isin(key[first], race_keys)]]


def _global_reads(trace: Trace) -> np.ndarray:
    """Rows that read bytes of marked arrays before anything wrote them."""
    found = []
    on_global = sites_where(trace, lambda s: s.space == "global")
    allocation = (trace.accesses[:, ADDRESS] >> GLOBAL_BITS) - 1
    nothing = Words(*(np.zeros(0, np.int64) for _ in range(4)))
    for number, written in sorted(trace.written.items()):
        written = np.asarray(written, bool)
        rows = np.flatnonzero(on_global & (allocation == number))
        words = cut_words(trace, rows)
        base = (number + 1) << GLOBAL_BITS
        byte = (words.word * 4 - base)[:, None] + np.arange(4)
        valid = np.zeros(byte.shape, bool)
        inside = (byte >= 0) & (byte < len(written))
        valid[inside] = written[byte[inside]]
        words.mask &= ~(valid @ (1 << np.arange(4)))  # bytes that had a value anyway
        left = words.of(words.mask != 0)
        if len(left):
            found.append(_first_is_read(trace, left, nothing))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _findings(trace: Trace, rows: np.ndarray) -> list[Finding]:
    sites = trace.accesses[rows, SITE]
    places: dict[tuple, list[int]] = {}
    for site in np.unique(sites).tolist():
        s = trace.sites[site]
        places.setdefault((s.filename, s.function, s.line, s.array, s.space), []).append(site)
    found = []
    for members in places.values():
        here = rows[np.isin(sites, members)]
        row = trace.accesses[here[0]]
        site = trace.sites[row[SITE]]
        thread, block = trace.thread(row[THREAD]), trace.block(row[BLOCK])
        name = f"{site.space} array {site.array}" if site.array else f"{site.space} memory"
        message = (
            f"{quote(trace, site)} by thread {thread} of block {block} reads {name} where nothing "
            f"has been written"
        )
        if len(here) > 1:
            message += f" ({len(here):,} times)"
        found.append(Finding("uninitialised", message, (site.line,), (thread,), block, len(here)))
    return sorted(found, key=lambda f: (f.lines, f.message))
