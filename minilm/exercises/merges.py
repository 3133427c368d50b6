"""Exercises of notebook 01: how byte-pair encoding learns its merges."""

import random

from .exercise import exercise

NOTEBOOK = "01_bytes_to_tokens"


@exercise(
    notebook=NOTEBOOK,
    minutes=5,
    difficulty=1,
    hints=(
        "`zip(ids, ids[1:])` walks over the neighbours of one word.",
        "A word that occurs 7 times brings each of its pairs 7 times.",
        "pairs[pair] = pairs.get(pair, 0) + count",
    ),
)
def my_count_pairs(words):
    """Count the pairs of neighbouring tokens.

    words: dict from a word, a tuple of ids, to how often it occurs in the text.
    Return a dict from a pair (left, right) to how often it occurs. Every position counts: the word
    (5, 5, 5) holds the pair (5, 5) twice. Pairs do not reach from one word into the next.
    """
    # solution:
    pairs = {}
    for ids, count in words.items():
        for pair in zip(ids, ids[1:], strict=False):
            pairs[pair] = pairs.get(pair, 0) + count
    return pairs
    # end


@my_count_pairs.checked_by
def _(count_pairs, trial):
    def pairs(words, weighted=True):
        found = {}
        for ids, count in words.items():
            for i in range(len(ids) - 1):
                found[ids[i], ids[i + 1]] = found.get((ids[i], ids[i + 1]), 0) + (
                    count if weighted else 1
                )
        return found

    def apart(words):  # the windows do not overlap
        found = {}
        for ids, count in words.items():
            i = 0
            while i + 1 < len(ids):
                pair = ids[i], ids[i + 1]
                found[pair] = found.get(pair, 0) + count
                i += 2 if ids[i + 1 : i + 3] == (ids[i], ids[i]) else 1
        return found

    def positive(counts):  # a pair with count 0 is as good as none
        return {tuple(pair): n for pair, n in dict(counts).items() if n}

    trial.on_error = "a word may hold a single id, or none: it then has no pairs."
    draw = random.Random(0)
    for words in (
        {(1, 2, 3): 1},
        {(5, 5, 5, 5): 1},
        {(1, 2): 3, (2, 1, 2): 4},
        {(7,): 2, (): 1, (8, 9): 1},
        {tuple(draw.choices(range(3), k=draw.randrange(8))): draw.randrange(1, 9) for _ in "x" * 9},
    ):
        line = tuple(token for ids in words for token in ids)
        mistakes = [
            (apart(words), "count every position: (5, 5, 5, 5) holds the pair (5, 5) three times."),
            (pairs(words, weighted=False), "a word that occurs n times brings its pairs n times."),
            (pairs({line: 1}), "no pair reaches from the end of one word into the next."),
        ]
        got = count_pairs(words)
        hint = "take each word for itself: positions 0 and 1, then 1 and 2, up to the end."
        trial.equal(positive(got), pairs(words), hint, mistakes)


@exercise(
    notebook=NOTEBOOK,
    minutes=5,
    difficulty=1,
    hints=(
        "Walk from left to right with a position of your own; a `for` loop cannot jump.",
        "Where the pair starts, append new_id and move on by 2; elsewhere by 1.",
        "The last id has no right neighbour and must not get lost.",
    ),
)
def my_merge(ids, pair, new_id):
    """Replace every occurrence of a pair by a new token, from left to right, without overlap.

    ids: list of ids; pair: (left, right). Return a new list.
    my_merge([1, 1, 1], (1, 1), 9) is [9, 1].
    """
    # solution:
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out
    # end


@my_merge.checked_by
def _(merge, trial):
    def by_text(ids, pair, new_id):  # str.replace works from left to right, without overlap
        text = "".join(map(chr, ids)).replace("".join(map(chr, pair)), chr(new_id))
        return [ord(letter) for letter in text]

    def from_right(ids, pair, new_id):
        return by_text(ids[::-1], pair[::-1], new_id)[::-1]

    trial.on_error = "the last id has no right neighbour: look before you read ids[i + 1]."
    draw = random.Random(1)
    cases = [
        ([1, 2], (1, 2), 9),
        ([3, 1, 2, 3, 1, 2], (1, 2), 9),
        ([1, 1, 1], (1, 1), 9),
        ([1, 1, 1, 1], (1, 1), 9),
        ([1, 2, 1], (1, 2), 9),
        ([2, 1, 1, 2], (1, 2), 9),
        ([1], (1, 1), 9),
        ([], (1, 2), 9),
    ]
    cases += [(draw.choices(range(1, 3), k=k), (1, draw.randrange(1, 3)), 9) for k in range(3, 15)]
    for ids, pair, new_id in cases:
        once = [i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) == pair][:1]
        first = next((ids[:i] + [new_id] + ids[i + 2 :] for i in once), ids)
        want = by_text(ids, pair, new_id)
        mistakes = [
            (want[:-1], "the last id is lost."),
            (from_right(ids, pair, new_id), "go from left to right: 1 1 1 becomes 9 1, not 1 9."),
            (first, "every occurrence is replaced, not only the first."),
        ]
        hint = "a merged pair is used up: the next pair starts behind both of its ids."
        trial.equal(list(merge(ids, pair, new_id)), want, hint, mistakes)


@exercise(
    notebook=NOTEBOOK,
    minutes=4,
    difficulty=2,
    hints=(
        "max(counts, key=counts.get) takes the first of equally frequent pairs that it meets.",
        "Python compares tuples from left to right: (1, 9) < (2, 0).",
        "min(counts, key=lambda pair: (-counts[pair], pair))",
    ),
)
def my_choose(counts):
    """Which pair is merged next? The most frequent one.

    Of equally frequent pairs the smallest, compared by left id, then by right id, whatever the
    order in which they were counted: who trains on the same text must get the same tokenizer.
    counts: dict from a pair (left, right) to its count. Return a pair, or None if counts is empty.
    """
    # solution:
    if not counts:
        return None
    return min(counts, key=lambda pair: (-counts[pair], pair))
    # end


@my_choose.checked_by
def _(choose, trial):
    draw = random.Random(2)
    cases = [
        {(1, 2): 3, (2, 3): 5},
        {(50, 4): 5, (11, 5): 5, (2, 9): 5, (1, 1): 4, (90, 3): 5, (7, 0): 5, (60, 6): 5},
        {(4, 4): 2, (4, 1): 2, (9, 0): 1},
        {(2, 5): 7, (1, 8): 7},
        {(1, 8): 7, (2, 5): 7},
        {(300, 2): 4, (2, 300): 4, (31, 0): 4},
    ]
    for _ in range(10):
        pairs = [(draw.randrange(12), draw.randrange(12)) for _ in range(8)]
        cases.append({pair: draw.randrange(1, 4) for pair in pairs})
    tie = "of equally frequent pairs take the smallest, not the one that was "
    for counts in cases:
        want = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[0][0]
        top = [pair for pair, n in counts.items() if n == max(counts.values())]
        mistakes = [
            (top[0], f"{tie}counted first."),
            (top[-1], f"{tie}counted last."),
            (max(top), "of equally frequent pairs take the smallest, not the largest."),
            (min(counts), "the count comes first; the ids only settle ties."),
            (min(top, key=str), "compare ids as numbers: as text, 31 is below 4."),
            (min(top, key=lambda pair: pair[::-1]), "compare the left ids before the right ids."),
        ]
        if len(top) == 1:
            mistakes = [(min(counts, key=counts.get), "the most frequent, not the rarest.")]
        hint = "compare counts first, then the left ids, then the right ids."
        trial.equal(choose(counts), want, hint, mistakes)
    nothing = "no pair is left in a text of single tokens: return None for empty counts."
    trial.on_error = nothing
    got = trial.call_or_none({})
    trial.equal(got, None, nothing)
