"""The product on a T4's tensor cores: m16n8k8 of float16, and tiles that pass through registers.

Turing has no `cp.async`. A thread loads its pieces of the next tile into registers, multiplies the
present tile, and only then stores the pieces into shared memory: between the load and its use lie
the products of a whole tile. Two tiles fit in 64 KB with room to spare, so that one barrier does.

    fetch: next tile → registers │ step 0 │ keep: registers → the other slot │ barrier │ step 1

Its tensor instruction takes 8 of k; two of them use the very fragments of one m16n8k16. Tiles,
swizzle and the way out are those of `matmul_warp_kernel`.
"""

import functools

from . import matmul_warp_registers as registers
from . import ptx
from .jit import jit
from .matmul_order import corner
from .matmul_warp_epilogue import Epilogue, writer
from .matmul_warp_kernel import ALIGNMENT, Tile
from .matmul_warp_tiles import Operand, fragments, lanes, mover
from .namespace import cuda, float32, uint32, uint64


@functools.cache
def turing_kernel(dtype: str, tile: Tile, a_form: Operand, b_form: Operand, end: Epilogue):
    """The kernel for operands and a result of one form. Grid: tiles, 1, batches."""
    THREADS = tile.threads
    WARP_M, WARP_N, WARPS_N = tile.warp_m, tile.warp_n, tile.n // tile.warp_n
    SIZE_A, STAGE = a_form.nbytes, a_form.nbytes + b_form.nbytes
    KEPT, DEPTH = end.nbytes, tile.k
    OUT, BIAS = end.out, end.bias or end.out
    TILE_M, TILE_N, EXACT_M, EXACT_N = tile.m, tile.n, a_form.exact, b_form.exact
    begin_a, place_a, advance_a, _, fetch_a, keep_a, PASSES_A = mover(a_form, THREADS)
    begin_b, place_b, advance_b, _, fetch_b, keep_b, PASSES_B = mover(b_form, THREADS)
    shape = registers.Shape(WARP_M // 16, WARP_N // 8, dtype, False)
    lanes_a, (a0, a1) = lanes(a_form), fragments(a_form)
    lanes_b, (b0, b1) = lanes(b_form), fragments(b_form)
    first = registers.first(shape, a0, b0)
    walk_0, walk_1 = registers.walk(shape, True, a1, b1), registers.walk(shape, False, a0, b0)
    corner_of, write = corner(tile.m, tile.n), writer(end, shape)

    @jit(pointers=True, launch_bounds=(THREADS, tile.blocks))
    def matmul_turing(a: dtype, b: dtype, out: OUT, bias: BIAS, M: "uint32", N: "uint32",
                      K: "uint32", pitch_a: "uint32", pitch_b: "uint32", pitch_out: "uint32",
                      batch_a: "uint64", batch_b: "uint64", batch_out: "uint64",
                      beta: "float32"):  # fmt: skip
        words_a = cuda.local.array((PASSES_A, 4), uint32)
        words_b = cuda.local.array((PASSES_B, 4), uint32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = thread & uint32(31), thread >> uint32(5)
        z = uint64(cuda.blockIdx.z)
        top, side = corner_of(uint32(cuda.blockIdx.x), M, N)
        row = min(top, uint32(M - uint32(TILE_M))) if EXACT_M else top
        column = min(side, uint32(N - uint32(TILE_N))) if EXACT_N else side
        start = ptx.shared_address(cuda.shared.array(0, uint32))
        ring = uint32((start + uint32(ALIGNMENT - 1)) // uint32(ALIGNMENT)) * uint32(ALIGNMENT)
        at = ptx.global_address(a) + uint64(2) * z * batch_a
        from_a = begin_a(at, pitch_a, row, M, K, thread)
        at = ptx.global_address(b) + uint64(2) * z * batch_b
        from_b = begin_b(at, pitch_b, column, N, K, thread)
        to_a = uint32(ring + place_a(thread))
        to_b = uint32(ring + uint32(SIZE_A) + place_b(thread))
        fetch_a(words_a, from_a)
        fetch_b(words_b, from_b)
        keep_a(words_a, to_a)
        keep_b(words_b, to_b)
        cuda.syncthreads()
        own_m = uint32(warp // uint32(WARPS_N)) * uint32(WARP_M)
        own_n = uint32(warp % uint32(WARPS_N)) * uint32(WARP_N)
        first_a = uint32(ring + lanes_a(lane, own_m))
        first_b = uint32(ring + uint32(SIZE_A) + lanes_b(lane, own_n))
        state = first(first_a, first_b)
        slot = uint32(0)
        tiles = uint32((K + uint32(DEPTH - 1)) // uint32(DEPTH))
        while tiles > uint32(0):
            tiles -= uint32(1)
            if tiles > uint32(0):
                from_a, from_b = advance_a(from_a), advance_b(from_b)
                fetch_a(words_a, from_a)
                fetch_b(words_b, from_b)
            state = walk_0(state, first_a + slot, first_b + slot)
            if tiles > uint32(0):
                slot = uint32(uint32(STAGE) - slot)
                keep_a(words_a, to_a + slot)
                keep_b(words_b, to_b + slot)
            cuda.syncthreads()
            state = walk_1(state, first_a + slot, first_b + slot)
        cuda.syncthreads()
        warp = registers.thread_again() >> uint32(5)
        write(
            state, ring + warp * uint32(KEPT), out, z * batch_out, pitch_out, top, side,
            row + uint32(warp // uint32(WARPS_N)) * uint32(WARP_M),
            column + uint32(warp % uint32(WARPS_N)) * uint32(WARP_N), M, N, bias, beta,
        )  # fmt: skip

    return matmul_turing
