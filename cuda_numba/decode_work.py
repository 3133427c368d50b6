"""Who reads which part of which cache: equal shares for all blocks, found on the device.

A *step* is 16 positions of one key/value head. A *row* is a sequence's head; it has the steps that
hold the positions which its queries see, at least one, and takes `margin` places more, since to
end a row costs time as well. All rows stand in one line, sequence by sequence, head by head, and
block i takes the i-th of equal shares of it:

    line     | b 0 h 0   ·| b 0 h 1   ·| b 1 h 0 ·| b 1 h 1 ·| b 2 h 0                ·| …
    shares   |0       |1       |2       |3       |4       |5       |6       |7      |

So a long sequence among short ones keeps no block busy longer than the others, and the host never
reads the lengths. Every warp finds its share by itself: each lane reads the length of a sequence,
and a scan over the lanes gives the places, 32 sequences at a time. Sources: Osama et al. 2023,
"Stream-K" (the division of work), section 4; PTX ISA, "shfl.sync".
"""

from .jit import jit
from .namespace import cuda, int32, uint32
from .warp import LANES

STEP = 16  # positions: the depth of a 16-bit mma; page sizes are multiples of it


@jit(device=True)
def end_of(length, capacity):
    """The number of positions of a sequence: its length, between 0 and what the cache holds."""
    return uint32(max(int32(0), min(int32(length), int32(capacity))))


@jit(device=True)
def start_of(end, queries, window):
    """The first position that any query of the sequence sees."""
    reach = uint32(queries - uint32(1) + window)
    return uint32(end - reach) if end > reach else uint32(0)


@jit(device=True)
def steps_of(end, start):
    """Steps that hold the positions from start to end; a sequence without any gets one."""
    last = uint32(uint32(end + uint32(STEP - 1)) // uint32(STEP))
    return max(uint32(1), uint32(last - uint32(start // uint32(STEP))))


@jit(device=True)
def survey(lengths, first, batch, heads, capacity, queries, window, margin):
    """The lane's sequence, first + lane: (places of one head, places of all sequences up to it).

    A sequence past the last one has none.
    """
    lane = uint32(cuda.threadIdx.x) & uint32(31)
    sequence = uint32(first + lane)
    own = uint32(0)
    if sequence < batch:
        end = end_of(lengths[sequence], capacity)
        own = uint32(steps_of(end, start_of(end, queries, window)) + margin)
    through = uint32(own * heads)
    for k in range(5):
        other = uint32(cuda.shfl_up_sync(LANES, int32(through), 1 << k))
        if lane >= uint32(1 << k):
            through = uint32(through + other)
    return own, through


@jit(device=True)
def broadcast(value, lane):
    """Lane `lane`'s value, in every lane; uint32."""
    return uint32(cuda.shfl_sync(LANES, int32(value), lane))


@jit(device=True)
def count_places(lengths, batch, heads, capacity, queries, window, margin):
    """(places of the whole line; own and through of the first 32 sequences, as of `survey`)."""
    own, through = survey(lengths, uint32(0), batch, heads, capacity, queries, window, margin)
    places = broadcast(through, 31)
    first = uint32(32)
    while first < batch:
        _, more = survey(lengths, first, batch, heads, capacity, queries, window, margin)
        places = uint32(places + broadcast(more, 31))
        first = uint32(first + uint32(32))
    return places, own, through


@jit(device=True)
def seek(
    lengths, batch, heads, capacity, queries, window, margin, place, first, before, own, through
):
    """Whose `place` of the line is: (first, before, own, through, sequence, begin, length).

    first, before, own, through: 32 sequences from `first` on, those before which have `before`
    places, as `survey` has left them; they are kept from call to call, and places only grow.
    begin: the first place of the sequence; length: the places of one of its heads.
    """
    past = cuda.ballot_sync(LANES, uint32(before + through) > place)
    while past == 0:
        before = uint32(before + broadcast(through, 31))
        first = uint32(first + uint32(32))
        own, through = survey(lengths, first, batch, heads, capacity, queries, window, margin)
        past = cuda.ballot_sync(LANES, uint32(before + through) > place)
    owner = uint32(cuda.ffs(past)) - uint32(1)
    begin = uint32(before + broadcast(uint32(through - own * heads), owner))
    return first, before, own, through, uint32(first + owner), begin, broadcast(own, owner)
