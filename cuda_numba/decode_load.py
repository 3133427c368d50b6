"""The loads of decoding: a lane takes 16 or 8 bytes of a cached row, or zeros where it has ended.

Positions at and past the length of a sequence hold whatever was there before, perhaps NaN, and
0 · NaN is NaN: such rows must never reach a product. A load that is not to happen costs no branch:
the instruction is predicated, and its registers have been cleared.

Nothing of a cache is read twice by a warp, so that nothing is kept in L1; where another warp reads
the same, for further query rows, keeping it made that slower on an H100 (64 → 69 µs). L2 fetches
256 bytes (128 before sm_80), which made calls 1 to 2 % faster there. Source: PTX ISA, sections
"Predicated Execution" and "ld".
"""

import functools

from .jit import jit
from .ptx.instruction import instruction


def _guarded(words, fetched):
    registers = ", ".join(f"${k}" for k in range(words))
    clear = " ".join(f"mov.u32 ${k}, 0;" for k in range(words))
    load = f"ld.global.nc.L1::no_allocate.L2::{fetched}B.v{words}.u32 {{{registers}}}, [${words}];"
    text = f"{{ .reg .pred p; setp.ne.u32 p, ${words + 1}, 0; {clear} @p {load} }}"
    name = f"load_{32 * words}_where_{fetched}"
    cc = (8, 0) if fetched == 256 else (7, 5)

    @instruction(text, f"u32x{words}(u64, pred)", name=name, early=True, cc=cc)
    def meaning(t, address, there):
        if not there:
            return (0,) * words
        return tuple(t.read("global", address, 4 * words).view("uint32").tolist())

    meaning.__doc__ = f"{4 * words} bytes at a global address where `there`, else zeros, unread."
    return meaning


@functools.cache
def pieces(depth: int = 16):
    """(load_piece, load_half_piece); depth: of an mma, 8 before sm_80."""
    fetched = 256 if depth == 16 else 128
    load_128, load_64 = (_guarded(words, fetched) for words in (4, 2))

    @jit(device=True)
    def load_piece(words, place, address, there):
        """words[place : place + 4] = 16 bytes."""
        a, b, c, d = load_128(address, there)
        words[place] = a
        words[place + 1] = b
        words[place + 2] = c
        words[place + 3] = d

    @jit(device=True)
    def load_half_piece(words, place, address, there):
        """words[place : place + 2] = 8 bytes."""
        a, b = load_64(address, there)
        words[place] = a
        words[place + 1] = b

    return load_piece, load_half_piece
