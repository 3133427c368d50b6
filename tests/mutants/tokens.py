"""Wrong answers to the exercises in minilm/exercises/tokens.py."""

from .mutant import simplest, wrong


def pairs(ids):
    return list(zip(ids, ids[1:], strict=False))


@simplest("tokens.encode")
def one_merge(encode):
    return list(encode([97, 98], [(97, 98)]))


@wrong("tokens.encode", "a longer token does not win", right_on_simplest=True)
def longest_match(ids, merges):
    spelled = [(i,) for i in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    out, i = [], 0
    while i < len(ids):
        fits = [t for t in spelled if tuple(ids[i : i + len(t)]) == t]
        out.append(spelled.index(max(fits, key=len)))
        i += len(max(fits, key=len))
    return out


@wrong("tokens.encode", "rank decides, not place", right_on_simplest=True)
def from_the_left(ids, merges):
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) in merges:
            ids = ids[:i] + [256 + merges.index((ids[i], ids[i + 1]))] + ids[i + 2 :]
            i = 0
        else:
            i += 1
    return list(ids)


@wrong("tokens.encode", "until no merge applies", right_on_simplest=True)
def one_step(ids, merges):
    for k, pair in enumerate(merges):
        if pair in pairs(ids):
            i = pairs(ids).index(pair)
            return ids[:i] + [256 + k] + ids[i + 2 :]
    return list(ids)


@wrong("tokens.encode", "goes first, not the last", right_on_simplest=True)
def last_learned_first(ids, merges):
    while known := [k for k, pair in enumerate(merges) if pair in pairs(ids)]:
        i = pairs(ids).index(merges[known[-1]])
        ids = ids[:i] + [256 + known[-1]] + ids[i + 2 :]
    return list(ids)


@wrong("tokens.encode", "that was learned first")
def the_number_of_the_merge(ids, merges):
    for k, pair in enumerate(merges):
        while pair in pairs(ids):
            i = pairs(ids).index(pair)
            ids = ids[:i] + [k] + ids[i + 2 :]
    return list(ids)


@wrong("tokens.encode", "one byte or none", right_on_simplest=True)
def needs_two_bytes(ids, merges):
    while True:
        best = min(pairs(ids), key=lambda pair: merges.index(pair) if pair in merges else 999)
        if best not in merges:
            return list(ids)
        i = pairs(ids).index(best)
        ids = ids[:i] + [256 + merges.index(best)] + ids[i + 2 :]
        if len(ids) == 1:
            return ids


@simplest("tokens.decode")
def ascii_letters(decode):
    return decode([104, 105], [bytes([i]) for i in range(256)])


@wrong("tokens.decode", "join the bytes first", right_on_simplest=True)
def token_by_token(ids, tokens):
    return "".join(tokens[i].decode("utf-8", errors="replace") for i in ids)


@wrong("tokens.decode", "not one letter each", right_on_simplest=True)
def latin(ids, tokens):
    return b"".join(tokens[i] for i in ids).decode("latin-1")


@wrong("tokens.decode", "do not drop bytes", right_on_simplest=True)
def dropping(ids, tokens):
    return b"".join(tokens[i] for i in ids).decode("utf-8", errors="ignore")


@wrong("tokens.decode", "UnicodeDecodeError", right_on_simplest=True)
def strict(ids, tokens):
    return b"".join(tokens[i] for i in ids).decode("utf-8")


@wrong("tokens.decode", "then decode them once")
def only_bytes(ids, tokens):
    return b"".join(tokens[i] for i in ids)
