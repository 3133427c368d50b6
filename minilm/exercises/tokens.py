"""Exercises of notebook 01: from text to tokens and back, once the merges are learned."""

import random

from .exercise import exercise, predict

NOTEBOOK = "01_bytes_to_tokens"


@exercise(
    notebook=NOTEBOOK,
    minutes=8,
    difficulty=2,
    hints=(
        "Encoding replays training: what was learned first is merged first.",
        "The rank of a pair is its place in `merges`. Look for the pair with the lowest rank.",
        "Simplest: for each merge in the order learned, replace it everywhere in the piece.",
    ),
)
def my_encode(ids, merges):
    """Turn the bytes of one piece of text into tokens.

    ids: list of single-byte ids (0 to 255); merges: list of pairs in the order in which they were
    learned; merge number k makes the token 256 + k. Return the list of tokens that is left when no
    merge applies any more. Order of learning decides, not the length of a token.
    """
    # solution:
    for k, pair in enumerate(merges):
        out = []
        for token in ids:
            if out and (out[-1], token) == pair:
                out[-1] = 256 + k
            else:
                out.append(token)
        ids = out
    return list(ids)
    # end


@my_encode.checked_by
def _(encode, trial):
    trial.on_error = "a piece may have one byte or none, and merges may be empty."
    draw = random.Random(3)
    a, b, c, d = 97, 98, 99, 100
    cases = [
        ([a, b], [(a, b)]),
        ([a, a, a, a, a, a, c], [(a, a), (256, a), (256, 257), (a, c)]),  # each slip shows here
        ([a, b, c], [(a, b), (256, c)]),
        ([a, a, a], [(a, a)]),
        ([a, a, a, a, a], [(a, a), (256, 256)]),
        ([a, b, c], [(b, c), (a, b), (257, c)]),  # by rank: a, bc; the longest match is abc
        (
            [a, b, c, d],
            [(b, c), (a, b), (c, d)],
        ),  # ab, cd is what a reader from the left would take
        ([d], [(a, b)]),
        ([], [(a, b)]),
        ([a, b, a], []),
    ]
    for size in range(2, 12):
        merges = _learn(draw, size)
        cases += [(draw.choices([a, b, c], k=draw.randrange(2, 12)), merges) for _ in range(3)]
    for ids, merges in cases:
        want = _by_rank(ids, merges)
        mistakes = [
            (
                _longest(ids, merges),
                "rank decides: a longer token does not win over an earlier one.",
            ),
            (
                _leftmost(ids, merges),
                "rank decides, not place: of the whole piece, what was learned first goes first.",
            ),
            (_by_rank(ids, merges, steps=1), "go on until no merge applies any more."),
            (_latest(ids, merges), "the merge that was learned first goes first, not the last."),
        ]
        hint = "again and again: find the pair that was learned first, and merge it."
        trial.equal(list(encode(ids, merges)), want, hint, mistakes)


def _pairs(ids):
    return list(zip(ids, ids[1:], strict=False))


def _learn(draw, n):
    """Merges as training makes them: of bytes a, b, c and of tokens that exist already."""
    merges = []
    while len(merges) < n:
        known = [97, 98, 99, *range(256, 256 + len(merges))]
        pair = draw.choice(known), draw.choice(known)
        if pair not in merges:
            merges.append(pair)
    return merges


def _by_rank(ids, merges, steps=10**6):
    rank = {pair: k for k, pair in enumerate(merges)}
    for _ in range(steps):
        i = min(range(len(ids) - 1), key=lambda i: rank.get(_pairs(ids)[i], 10**6), default=None)
        if i is None or _pairs(ids)[i] not in rank:
            break
        ids = ids[:i] + [256 + rank[_pairs(ids)[i]]] + ids[i + 2 :]
    return ids


def _leftmost(ids, merges):
    while places := [i for i, pair in enumerate(_pairs(ids)) if pair in merges]:
        i = places[0]
        ids = ids[:i] + [256 + merges.index(_pairs(ids)[i])] + ids[i + 2 :]
    return ids


def _latest(ids, merges):
    while known := [pair for pair in merges if pair in _pairs(ids)]:
        i = _pairs(ids).index(known[-1])
        ids = ids[:i] + [256 + merges.index(known[-1])] + ids[i + 2 :]
    return ids


def _longest(ids, merges):
    tokens = {(i,): i for i in range(256)}
    spelled = [(i,) for i in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
        tokens[spelled[-1]] = len(spelled) - 1
    out, i = [], 0
    while i < len(ids):
        end = next(e for e in range(len(ids), i, -1) if tuple(ids[i:e]) in tokens)
        out.append(tokens[tuple(ids[i:end])])
        i = end
    return out


@exercise(
    notebook=NOTEBOOK,
    minutes=3,
    difficulty=1,
    hints=(
        "A token is a run of bytes, and a letter like ï takes two: it can be cut in the middle.",
        'b"".join(...) first, then one .decode for all of it.',
        'bytes.decode("utf-8", errors="replace") puts � where bytes are no text.',
    ),
)
def my_decode(ids, tokens):
    """Turn ids back into text.

    ids: list of ids; tokens: list in which tokens[id] are the bytes of a token. Return a str.
    Bytes that are not UTF-8, as when generation stops inside a letter, become � (U+FFFD).
    """
    # solution:
    data = b"".join(tokens[token] for token in ids)
    return data.decode("utf-8", errors="replace")
    # end


@my_decode.checked_by
def _(decode, trial):
    tokens = [bytes([i]) for i in range(256)] + [b" the", "naïve".encode(), "語".encode()[:2]]
    trial.on_error = "generation may stop inside a letter: bytes that are no text become �."
    cases = [
        [104, 105],
        [256, 257],
        list("naïve".encode()),
        [258, "語".encode()[2]],
        [],
        [104, 195],
    ]
    for ids in cases:
        data = [tokens[i] for i in ids]
        mistakes = [
            (
                "".join(part.decode("utf-8", "replace") for part in data),
                "join the bytes first: one letter may be spread over two tokens.",
            ),
            (b"".join(data).decode("latin-1"), "the bytes are UTF-8, not one letter each."),
            (b"".join(data).decode("utf-8", "ignore"), 'do not drop bytes: errors="replace".'),
        ]
        hint = "join the bytes of all tokens, then decode them once."
        trial.equal(decode(ids, tokens), b"".join(data).decode("utf-8", "replace"), hint, mistakes)


@predict(
    notebook=NOTEBOOK,
    minutes=2,
    difficulty=1,
    hints=(
        "Where does the split pattern cut `say hello`: before the space or behind it?",
        "It cuts `say| hello`. Merges are learned inside pieces.",
    ),
    choices={
        "same": "the same token as `hello`: spaces are put back when decoding",
        "two": "two tokens, one for the space and then the one of `hello`",
        "marked": "the token of `hello` with a mark that says: a space goes before it",
        "own": "one token of its own, with another id than that of `hello`",
    },
    mistakes={
        "same": "then `hello` and ` hello` could not be told apart when decoding.",
        "two": "that costs two tokens a word; the pattern keeps a space with the word behind it.",
        "marked": "ids are plain numbers without marks: other bytes, another token.",
    },
    because="Most words stand behind a space, so the vocabulary holds them with it; the model has "
    "to learn that the two belong together.",
)
def my_space():
    """A tokenizer was trained on text in which `hello` is frequent, with and without a space before
    it. What is " hello" to it?
    """
    from minilm import Tokenizer

    text = "hello\nhello hello\nhello hello\n" * 20
    tok = Tokenizer.train([text], vocab_size=270, special_tokens=())
    bare, spaced = tok.encode("hello"), tok.encode(" hello")
    if spaced == bare:
        return "same"
    return "two" if spaced[1:] == bare else "own" if len(spaced) == 1 else "marked"
