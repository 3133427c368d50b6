"""Raw words: 4, 8 or 16 bytes at once, unconverted, by array and index or by address.

`load_128(x, i)` returns four 32-bit words, `load_64` two, `load_32` one. A suffix is a cache hint,
see `memory.py`. `_at` takes an address instead: a global u64, or for `load_shared_128_at` and its
kin a shared u32. The address must be a multiple of the bytes moved. Source: PTX ISA, sections
"ld", "ld.global.nc" and "st".
"""

import numpy as np

from .instruction import instruction, require_space
from .memory import LOAD_HINTS, NEEDS, STORE_HINTS, fetch, fetch_at, put, put_at


def _words(data):
    words = data.view(np.uint32).tolist()
    return tuple(words) if len(words) > 1 else words[0]


def _bytes(words):
    return np.array(words, np.uint32).view(np.uint8)


def _load_words(bits, hint="", at=None):
    words = bits // 32
    place = {None: "", "global": "_at", "shared": "_at"}[at]
    name = f"load_{'shared_' if at == 'shared' else ''}{bits}{hint}{place}"
    result = f"u32x{words}" if words > 1 else "u32"

    def lower(e, first, i=None):
        if at:
            got = fetch_at(e, first.value, words, LOAD_HINTS[hint], at)
        else:
            got = fetch(e, first.element(i), words, LOAD_HINTS[hint])
        return got if words > 1 else got[0]

    if at:
        signature = f"{result}({'u32' if at == 'shared' else 'u64'})"

        def meaning(t, address):
            return _words(t.read(at, address, bits // 8))

    else:
        signature = f"{result}(array, index)"

        def meaning(t, x, i):
            space, address, _ = t.locate(x, i)
            require_space(space, name, "global" if hint else None)
            return _words(t.read(space, address, bits // 8))

    where = f"a {at} address" if at else "element `i` on"
    meaning.__doc__ = f"{bits // 8} bytes from {where} as 32-bit words, in one instruction."
    return instruction(lower, signature, name=name, cc=NEEDS.get(hint, (7, 5)))(meaning)


def _store_words(bits, hint="", at=None):
    words = bits // 32
    place = {None: "", "global": "_at", "shared": "_at"}[at]
    name = f"store_{'shared_' if at == 'shared' else ''}{bits}{hint}{place}"

    def lower(e, first, *rest):
        if at:
            put_at(e, first.value, [w.value for w in rest], STORE_HINTS[hint], at)
        else:
            put(e, first.element(rest[0]), [w.value for w in rest[1:]], STORE_HINTS[hint])

    parameters = ", ".join(["u32"] * words)
    if at:
        signature = f"void({'u32' if at == 'shared' else 'u64'}, {parameters})"

        def meaning(t, address, *values):
            t.write(at, address, _bytes(values))

    else:
        signature = f"void(array, index, {parameters})"

        def meaning(t, x, i, *values):
            space, address, _ = t.locate(x, i)
            require_space(space, name, "global" if hint else None)
            t.write(space, address, _bytes(values), bits // 8)

    where = f"a {at} address" if at else "element `i` on"
    meaning.__doc__ = f"Write {words} 32-bit words to {where}, in one instruction."
    return instruction(lower, signature, name=name)(meaning)


@instruction("ld.global.u16 $0, [$1];", "u16(u64)")
def load_16_at(t, address):
    """2 bytes from a global address."""
    return int(t.read("global", address, 2).view(np.uint16)[0])


@instruction("st.global.u16 [$0], $1;", "void(u64, u16)")
def store_16_at(t, address, value):
    """Write 2 bytes to a global address."""
    t.write("global", address, np.array([value], np.uint16).view(np.uint8))


def _family():
    for bits in (32, 64, 128):
        for hint in LOAD_HINTS:
            yield from (_load_words(bits, hint), _load_words(bits, hint, "global"))
        for hint in STORE_HINTS:
            yield from (_store_words(bits, hint), _store_words(bits, hint, "global"))
        yield from (_load_words(bits, at="shared"), _store_words(bits, at="shared"))


# load_128, load_128_nc, load_128_at, store_64_cs, load_shared_128_at, …
_FAMILY = {ins.name: ins for ins in _family()}
globals().update(_FAMILY)
__all__ = ["load_16_at", "store_16_at", *_FAMILY]  # noqa: PLE0604
