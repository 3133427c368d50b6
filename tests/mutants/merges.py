"""Wrong answers to the exercises in minilm/exercises/merges.py."""

from collections import Counter

from .mutant import simplest, wrong


@simplest("merges.count_pairs")
def one_word_of_different_letters(count_pairs):
    return count_pairs({(1, 2, 3): 1})


@wrong("merges.count_pairs", "count every position", right_on_simplest=True)
def without_overlap(words):
    pairs = Counter()
    for ids, count in words.items():
        i = 0
        while i + 1 < len(ids):
            pairs[ids[i], ids[i + 1]] += count
            i += 2 if ids[i + 1 : i + 3] == (ids[i], ids[i]) else 1
    return pairs


@wrong("merges.count_pairs", "brings its pairs n times", right_on_simplest=True)
def each_word_once(words):
    pairs = Counter()
    for ids in words:
        pairs.update(zip(ids, ids[1:], strict=False))
    return pairs


@wrong("merges.count_pairs", "into the next", right_on_simplest=True)
def across_words(words):
    line = [token for ids in words for token in ids]
    return Counter(zip(line, line[1:], strict=False))


@wrong("merges.count_pairs", "take each word for itself", right_on_simplest=True)
def as_a_set(words):
    pairs = {}
    for ids, count in words.items():
        for pair in set(zip(ids, ids[1:], strict=False)):
            pairs[pair] = pairs.get(pair, 0) + count
    return pairs


@wrong("merges.count_pairs", "take each word for itself")
def last_pair_lost(words):
    pairs = {}
    for ids, count in words.items():
        for i in range(len(ids) - 2):
            pairs[ids[i], ids[i + 1]] = pairs.get((ids[i], ids[i + 1]), 0) + count
    return pairs


@wrong("merges.count_pairs", "of another kind")
def a_number(words):
    return sum(words.values())


@simplest("merges.merge")
def one_pair(merge):
    return list(merge([1, 2], (1, 2), 9))


@wrong("merges.merge", "from left to right", right_on_simplest=True)
def from_the_right(ids, pair, new_id):
    out, i = [], len(ids) - 1
    while i >= 0:
        if i > 0 and (ids[i - 1], ids[i]) == pair:
            out.append(new_id)
            i -= 2
        else:
            out.append(ids[i])
            i -= 1
    return out[::-1]


@wrong("merges.merge", "used up", right_on_simplest=True)
def overlapping(ids, pair, new_id):
    out = []
    for i, token in enumerate(ids):
        if (token, *ids[i + 1 : i + 2]) == pair:
            out.append(new_id)
        elif i == 0 or (ids[i - 1], token) != pair:
            out.append(token)
    return out


@wrong("merges.merge", "the last id is lost", right_on_simplest=True)
def without_the_last(ids, pair, new_id):
    out, i = [], 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


@wrong("merges.merge", "not only the first", right_on_simplest=True)
def the_first_only(ids, pair, new_id):
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            return ids[:i] + [new_id] + ids[i + 2 :]
    return list(ids)


@wrong("merges.merge", "look before you read", right_on_simplest=True)
def past_the_end(ids, pair, new_id):
    out, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and ids[i + 1] == pair[1]:
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


@wrong("merges.merge", "changed its argument ids", right_on_simplest=True)
def in_place(ids, pair, new_id):
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            ids[i : i + 2] = [new_id]
        i += 1
    return ids


@wrong("merges.merge", "minilm.bpe.merge")
def the_package(ids, pair, new_id):
    from minilm.bpe import merge

    return list(merge(tuple(ids), pair, new_id))


@simplest("merges.choose")
def no_tie(choose):
    return choose({(1, 2): 3, (2, 3): 5})


@wrong("merges.choose", "counted first", right_on_simplest=True)
def first_seen(counts):
    return max(counts, key=counts.get, default=None)


@wrong("merges.choose", "counted last", right_on_simplest=True)
def last_seen(counts):
    return max(reversed(counts), key=counts.get, default=None)


@wrong("merges.choose", "not the largest", right_on_simplest=True)
def largest(counts):
    return max(counts, key=lambda pair: (counts[pair], pair), default=None)


@wrong("merges.choose", "the left ids before the right", right_on_simplest=True)
def by_the_right_id(counts):
    return min(counts, key=lambda pair: (-counts[pair], pair[::-1]), default=None)


@wrong("merges.choose", "as text", right_on_simplest=True)
def as_text(counts):
    return min(counts, key=lambda pair: (-counts[pair], str(pair)), default=None)


@wrong("merges.choose", "not the rarest")
def rarest(counts):
    return min(counts, key=lambda pair: (counts[pair], pair), default=None)


@wrong("merges.choose", "return None for empty", right_on_simplest=True)
def needs_a_pair(counts):
    return min(counts, key=lambda pair: (-counts[pair], pair))
