r"""The splitter, compiled: cuts bytes where a pattern does, by a table instead of a regex engine.

A split pattern asks only for kinds of characters and never looks far ahead, so a finite-state
machine can do its work. It reads one character at a time and says where the text before it is cut.
Whether white space belongs to the word behind it is only known when that word comes, so a cut can
be in three places:

    x \n ␣ ␣ w        w is being read: cut at NEWLINE and BEFORE, the pieces are x, \n, ␣, ␣w
        │ │ └ HERE       before the character that is being read
        │ └── BEFORE     before the one in front of it
        └──── NEWLINE    behind the last newline

The table has a row for each state and a column for each ASCII character. Any other character is
looked up as its twin (unicode_classes.py). A byte that is no UTF-8 is a character of its own, `.`.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
from numba import types

from .compiled import BYTES, I64, U16, helper, kernel
from .patterns import GPT2, Pattern
from .unicode_classes import OTHER, twins

CHUNK_BYTES = 1 << 17  # cut about this much at a time: text and cuts stay in the processor's cache

# States: what has been read since the last cut.
(
    START,  # nothing, at the start of a text
    DONE,  # a piece that nothing can lengthen
    LETTERS,  # letters, perhaps behind one other character
    DIGIT,  # one digit, of three at most
    DIGITS,  # two digits, of three at most
    NUMBER,  # digits, any number of them
    PREFIX,  # one character that letters may follow
    OTHERS,  # characters that are neither letter, number nor space
    OTHERS_END,  # the same, then newlines
    QUOTE,  # an apostrophe that begins a piece
    QUOTE_L,  # 'l
    QUOTE_VR,  # 'v or 'r
    SPACE,  # one space
    BLANK,  # one white space that is no space
    SPACES,  # several white spaces, a space last
    BLANKS,
    LINE,  # white space with a newline last
    LINE_SPACE,  # the same, then the four as above
    LINE_BLANK,
    LINE_SPACES,
    LINE_BLANKS,
) = range(21)
STATE_BITS = 0x1F
NEWLINE, BEFORE, HERE = 1 << 8, 1 << 9, 1 << 10  # cuts

# Kinds of characters, and the end of the text.
LETTER, NUMERAL, APOSTROPHE, SYMBOL, BLANK_SPACE, WHITE, LINE_END, END = range(8)
END_COLUMN = 128
INVALID = ord(OTHER)  # the twin of a byte that is no UTF-8

MORE_SPACE = {
    BLANK_SPACE: {LINE: LINE_SPACE} | dict.fromkeys((SPACE, BLANK, SPACES, BLANKS), SPACES),
    WHITE: {LINE: LINE_BLANK} | dict.fromkeys((SPACE, BLANK, SPACES, BLANKS), BLANKS),
}
for _state in (LINE_SPACE, LINE_BLANK, LINE_SPACES, LINE_BLANKS):
    MORE_SPACE[BLANK_SPACE][_state] = LINE_SPACES
    MORE_SPACE[WHITE][_state] = LINE_BLANKS
CONTRACTION = dict.fromkeys("sdmt", DONE) | {"l": QUOTE_L, "v": QUOTE_VR, "r": QUOTE_VR}


def kind_of(char: str) -> int:
    if char.isalpha():
        return LETTER
    if char.isdigit():
        return NUMERAL
    kinds = {"'": APOSTROPHE, " ": BLANK_SPACE, "\n": LINE_END, "\r": LINE_END}
    return kinds.get(char, WHITE if char in "\t\v\f" else SYMBOL)


def step(gpt4: bool, state: int, char: str) -> int:
    """The next state, with the cuts, when `char` (ASCII, or "" for the end) is read in `state`."""
    kind = kind_of(char) if char else END
    if kind == LINE_END and not gpt4:
        kind = WHITE
    begin = {
        LETTER: LETTERS,
        NUMERAL: DIGIT if gpt4 else NUMBER,
        APOSTROPHE: QUOTE,
        SYMBOL: PREFIX if gpt4 else OTHERS,
        BLANK_SPACE: SPACE,
        WHITE: BLANK,
        LINE_END: LINE,
        END: START,
    }[kind]
    if state == START:
        return begin
    if state in MORE_SPACE[WHITE]:
        return _after_white(gpt4, state, kind, begin)
    if state in (QUOTE, QUOTE_L, QUOTE_VR):
        letter = char.lower() if gpt4 else char
        if state == QUOTE and letter in CONTRACTION:
            return CONTRACTION[letter]
        if (state, letter) in ((QUOTE_L, "l"), (QUOTE_VR, "e")):
            return DONE
        if kind == LETTER and gpt4:
            return LETTERS  # an apostrophe can be the one character before letters
        if state != QUOTE and not gpt4:
            return BEFORE | (LETTERS if kind == LETTER else begin | HERE)
    longer = {
        LETTER: {LETTERS: LETTERS, PREFIX: LETTERS},
        NUMERAL: {DIGIT: DIGITS, DIGITS: DONE, NUMBER: NUMBER},
        SYMBOL: {PREFIX: OTHERS, QUOTE: OTHERS, OTHERS: OTHERS},
        LINE_END: dict.fromkeys((PREFIX, QUOTE, OTHERS, OTHERS_END), OTHERS_END),
    }
    longer[APOSTROPHE] = longer[SYMBOL]
    return longer.get(kind, {}).get(state, begin | HERE)


def _after_white(gpt4: bool, state: int, kind: int, begin: int) -> int:
    if kind == LINE_END:
        return LINE
    if kind in MORE_SPACE:
        return MORE_SPACE[kind][state]
    cut = NEWLINE if state in (LINE_SPACE, LINE_BLANK, LINE_SPACES, LINE_BLANKS) else 0
    if kind == END:
        return cut | HERE | begin
    if state in (SPACES, BLANKS, LINE_SPACES, LINE_BLANKS):
        cut |= BEFORE  # the last of several white spaces stands with what follows, or alone
    space = state in (SPACE, SPACES, LINE_SPACE, LINE_SPACES)
    if kind == LETTER and (space or (gpt4 and state != LINE)):
        return cut | LETTERS
    if kind in (SYMBOL, APOSTROPHE) and space:
        return cut | OTHERS
    if kind == NUMERAL and space and not gpt4:
        return cut | NUMBER
    return cut | HERE | begin


@cache
def table(pattern: Pattern) -> np.ndarray:
    """uint16, one row of 256 for each state: 128 ASCII characters, then the end of the text."""
    rows = np.zeros((STATE_BITS + 1, 256), dtype=np.uint16)
    for state in range(LINE_BLANKS + 1):
        for code in range(128):
            rows[state, code] = step(pattern is not GPT2, state, chr(code))
        rows[state, END_COLUMN] = step(pattern is not GPT2, state, "")
    return rows.ravel()


@cache
def twin_bytes() -> np.ndarray:
    return np.frombuffer(twins().encode("ascii"), dtype=np.uint8)


def cut(
    pattern: Pattern, buffer: np.ndarray, bounds: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Cut texts into pieces: yields `(start, ends)` for one run of pieces after the other.

    buffer  uint8; text k is `buffer[bounds[k] : bounds[k + 1]]`, with bounds[0] = 0
    ends    int64, where each piece ends; the first begins at `start`, the others where the one
            before ends. The array is used again for the next run.
    """
    ends = np.empty(CHUNK_BYTES + 8, dtype=np.int64)
    text = start = 0
    while text < len(bounds) - 1:
        n, text, going_on = _cut(
            buffer, bounds, text, start, start + CHUNK_BYTES, table(pattern), twin_bytes(), ends
        )
        if n:
            yield start, ends[:n]
        start = going_on


@helper
def _continues(byte):
    return byte & 0xC0 == 0x80


@helper
def _twin(buffer, i, stop, twin_of):
    """The twin of the character that begins at `i`, and its length in bytes."""
    first = np.int64(buffer[i])
    length = 2 if first < 0xE0 else (3 if first < 0xF0 else 4)
    if first < 0xC2 or first > 0xF4 or i + length > stop:
        return np.int64(INVALID), 1
    code = first & (0x7F >> length)
    for k in range(i + 1, i + length):
        if not _continues(buffer[k]):
            return np.int64(INVALID), 1
        code = (code << 6) | (np.int64(buffer[k]) & 0x3F)
    too_long = (length == 3 and code < 0x800) or (length == 4 and code < 0x10000)
    if too_long or 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        return np.int64(INVALID), 1
    return np.int64(twin_of[code]), length


@kernel(BYTES, I64, types.int64, types.int64, types.int64, U16, BYTES, I64)
def _cut(buffer, bounds, text, start, limit, table, twin_of, ends):
    """Cut until `limit` is passed; returns the number of cuts, and where to go on: text and start.

    Three cuts are written for each character and only kept if they count: no branches.
    """
    n = 0
    while text < bounds.size - 1:
        stop = bounds[text + 1]
        i = before = newline = start
        state = np.int64(START)
        while i < stop and (i < limit or n == 0):
            column = np.int64(buffer[i])
            length = 1
            if column >= 128:
                column, length = _twin(buffer, i, stop, twin_of)
            move = np.int64(table[state << 8 | column])
            ends[n] = newline
            n += move >> 8 & 1
            ends[n] = before
            n += move >> 9 & 1
            ends[n] = i
            n += move >> 10 & 1
            before = i
            i += length
            newline = i if column == 10 or column == 13 else newline
            state = move & STATE_BITS
        if i < stop:
            return n, text, max(start, ends[n - 1])
        move = np.int64(table[state << 8 | END_COLUMN])
        for place, bit in ((newline, 8), (before, 9), (stop, 10)):
            ends[n] = place
            n += move >> bit & 1
        text += 1
        start = stop
    return n, text, start
