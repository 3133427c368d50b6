"""Attention forward on Hopper: which keys a tile reads, who computes it, and the values."""

import math

import numpy as np
import pytest
import torch
from ptx_tiles import devices, findings
from tolerance import check, poisoned

from cuda_numba import attention_schedule as schedules
from cuda_numba.attention_hopper import FEW, L2, LONG, PLANS, forward, forward_kernel, plan_of
from cuda_numba.attention_tiles import end_key, end_tile, first_key, first_tile, reach, tile_of

REACHES = [(True, None), (False, None), (True, 1), (True, 5), (False, 3), (False, 40)]


def mask_of(queries, keys, causal, window):
    """Straight from the contract, in Python."""
    seen = np.zeros((queries, keys), bool)
    for t in range(queries):
        position = t + keys - queries
        for s in range(keys):
            seen[t, s] = (s <= position or not causal) and (
                window is None or abs(position - s) < window
            )
    return seen


class TestTiles:
    """All small sizes, against the mask."""

    @pytest.mark.parametrize(("causal", "window"), REACHES)
    def test_keys_of_a_query(self, causal, window):
        behind, ahead = reach(causal, window)
        for keys in range(1, 24):
            for queries in range(1, keys + 1):
                seen = mask_of(queries, keys, causal, window)
                for t in range(queries):
                    position = t + keys - queries
                    first = int(first_key.function(position, behind))
                    end = int(end_key.function(position, ahead, keys))
                    assert list(np.flatnonzero(seen[t])) == list(range(first, end))

    @pytest.mark.parametrize(("causal", "window"), REACHES)
    def test_tiles_of_a_tile(self, causal, window):
        """A tile of queries reads just the tiles of keys in which one of its queries sees a key."""
        behind, ahead = reach(causal, window)
        size = 50
        for keys in (1, 63, 64, 65, 130, 200):
            for queries in {1, keys // 2 + 1, max(keys - 1, 1), keys}:
                seen = mask_of(queries, keys, causal, window)
                for tile in range(-(-queries // 128)):
                    start, groups = (int(n) for n in tile_of.function(tile, queries, 2))
                    own = seen[start : start + 64 * groups]
                    first = start + keys - queries
                    last = first + len(own) - 1
                    tiles = range(
                        int(first_tile.function(first, behind, size)),
                        int(end_tile.function(last, ahead, keys, size)),
                    )
                    needed = sorted({s // size for s in np.flatnonzero(own.any(0))})
                    assert list(tiles) == needed
                    count = schedules.reads(tile, 2, size, queries, keys, behind, ahead)
                    assert count == len(needed)

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_every_query_is_in_one_tile(self, size):
        for queries in range(1, 900, 7):
            tiles = -(-queries // (64 * size))
            spans = [tile_of.function(n, queries, size) for n in range(tiles)]
            starts = [int(start) for start, _ in spans]
            ends = [int(start) + 64 * int(groups) for start, groups in spans]
            assert starts == [0, *ends[:-1]] and ends[-1] - 64 < queries <= ends[-1]
            assert all(int(groups) == size for _, groups in spans[1:])

    @pytest.mark.parametrize(("causal", "window"), REACHES)
    def test_tiles_without_a_mask(self, causal, window):
        """From the last query's first key to the first one's last, every query sees every key."""
        behind, ahead = reach(causal, window)
        for keys in range(1, 20):
            seen = mask_of(keys, keys, causal, window)
            for first in range(keys):
                for last in range(first, min(first + 4, keys)):
                    inner = range(
                        int(first_key.function(last, behind)),
                        int(end_key.function(first, ahead, keys)),
                    )
                    assert seen[first : last + 1, list(inner)].all()


class TestSchedule:
    @pytest.mark.parametrize(("heads", "most"), [(1, 1), (5, 2), (6, 100), (7, 3)])
    @pytest.mark.parametrize("blocks", [1, 3, 8])
    def test_every_tile_once(self, heads, most, blocks):
        costs = [1.0, 2.0, 5.0, 3.0]
        found = schedules.lists(costs, heads, most, blocks)
        assert sorted(sum(found, [])) == list(range(heads * len(costs)))

    def test_sections(self):
        assert schedules.sections(7, 2, 3) == [range(0, 2), range(2, 4), range(4, 7)]
        assert schedules.sections(7, 2, 4) == [range(0, 2), range(2, 7)]
        assert schedules.sections(2, 5, 9) == [range(0, 2)]

    @pytest.mark.parametrize(
        "shape", [(192, 1024, 64), (128, 2048, 64), (64, 4096, 128), (16, 16384, 64)], ids=str
    )
    def test_no_block_waits_long(self, shape):
        """The measured shapes on 132 multiprocessors: the longest list is 2.5 % over the mean."""
        heads, T, D = shape
        plan = PLANS[D]
        costs = [
            1.0 + schedules.reads(t, plan.consumers, plan.keys, T, T, 1 << 30, 0)
            for t in range(-(-T // plan.rows))
        ]
        most = max(L2 // (4 * T * D), 1)
        found = schedules.lists(costs, heads, most, 132)
        sums = [sum(costs[tile // heads] for tile in tiles) for tiles in found]
        assert max(sums) <= 1.025 * np.mean(sums)
        # The control: the same tiles dealt out in turn, one head after another.
        in_turn = [c for _ in range(heads) for c in reversed(costs)]
        dealt = [sum(in_turn[b::132]) for b in range(132)]
        assert max(dealt) > 1.05 * np.mean(dealt)

    def test_table(self):
        table = schedules.schedule(torch.device("cpu"), 2, 3, 8, 1, 64, 100, 130, 1 << 30, 0)
        assert table[:3].tolist()[0] == 3 and table[2] == len(table) == 3 + 6
        assert sorted(table[3:].tolist()) == list(range(6))


def operands(B, H, H_kv, Tq, Tk, D, dtype, device="cpu", seed=0):
    make = torch.Generator().manual_seed(seed)
    shapes = ((B, H, Tq, D), (B, H_kv, Tk, D), (B, H_kv, Tk, D))
    return [torch.randn(*s, generator=make).to(dtype).to(device) for s in shapes]


def reference(q, k, v, causal, window, scale):
    """(o, lse to base 2) in float64, and Σ p |v|, which the rounding of p scales with."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), *(x.double().repeat_interleave(group, 1) for x in (k, v))
    s = q @ k.transpose(-1, -2) * scale
    mask = torch.from_numpy(mask_of(*s.shape[-2:], causal, window)).to(s.device)
    s = s.masked_fill(~mask, -math.inf)
    p = s.softmax(-1)
    return p @ v, s.logsumexp(-1) / math.log(2), p @ v.abs()


def verify(q, k, v, causal=True, window=None, scale=None, **options):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o, lse, size = reference(q, k, v, causal, window, scale)
    with poisoned():
        got, got_lse = forward(q, k, v, causal=causal, window=window, scale=scale, **options)
    check("o", got, o, scale=size, stored=1)
    check("lse", got_lse, lse, scale=4.0)
    assert got.transpose(1, 2).is_contiguous()
    return got, got_lse


BF16, F16 = torch.bfloat16, torch.float16
#        B, H, H_kv, Tq, Tk, D, dtype, causal, window
CASES = [
    (1, 1, 1, 1, 1, 64, BF16, True, None),
    (1, 2, 1, 65, 129, 64, F16, True, None),
    (1, 1, 1, 33, 130, 32, BF16, False, None),
    (1, 1, 1, 7, 257, 128, F16, True, 100),
    (2, 1, 1, 130, 130, 128, BF16, True, None),
    (1, 1, 1, 64, 200, 72, BF16, False, 20),
]
GPU_CASES = [
    (2, 4, 2, 1024, 1024, 64, BF16, True, None),
    (2, 2, 1, 333, 777, 128, BF16, True, None),
    (1, 2, 2, 500, 1111, 96, F16, True, 150),
    (1, 2, 1, 640, 640, 120, BF16, False, 70),
    (1, 2, 2, 1500, 1500, 40, F16, False, None),
    (1, 3, 3, 383, 385, 64, BF16, True, 129),
    (1, 1, 1, 129, 2000, 128, F16, True, None),
]


class TestForward:
    @devices
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_values(self, device, case):
        *shape, dtype, causal, window = case
        plan = PLANS[-(-shape[-1] // 32) * 32]
        verify(*operands(*shape, dtype, device), causal, window, plan=plan)

    @pytest.mark.gpu
    @pytest.mark.parametrize("case", GPU_CASES, ids=str)
    def test_values_at_length(self, case):
        *shape, dtype, causal, window = case
        width = -(-shape[-1] // 32) * 32
        for table in (PLANS, FEW, LONG):
            if plan := table.get(width):
                first = verify(*operands(*shape, dtype, "cuda"), causal, window, plan=plan)
                again = verify(*operands(*shape, dtype, "cuda"), causal, window, plan=plan)
                assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_long_tiles(self):
        """Tiles of 160 keys, which are no multiple of 64."""
        case = operands(1, 1, 1, 40, 330, 128, BF16)
        verify(*case, window=170, plan=LONG[128])

    @pytest.mark.parametrize(
        ("D", "queries", "keys", "heads", "plan"),
        [
            (64, 1024, 1024, 192, PLANS[64]), (64, 1024, 1024, 12, FEW[64]),
            (40, 256, 256, 400, FEW[64]), (32, 4096, 4096, 64, PLANS[32]),
            (128, 8191, 8191, 16, PLANS[128]), (104, 1, 8192, 1, LONG[128]),
            (64, 16384, 16384, 16, PLANS[64]), (72, 9000, 9000, 1, PLANS[96]),
        ],
    )  # fmt: skip
    def test_which_plan(self, D, queries, keys, heads, plan):
        assert plan_of(D, queries, keys, heads, 132) == plan

    @pytest.mark.gpu
    @pytest.mark.parametrize("edge", [-1, 0, 1])
    @pytest.mark.parametrize("D", [64, 128])
    def test_edges_of_tiles(self, D, edge):
        for T in (64, 128, 192, 384):
            verify(*operands(1, 2, 1, T + edge, T + edge, D, BF16, "cuda"))
            verify(*operands(1, 1, 1, 64 + edge, T + 65, D, BF16, "cuda"), window=T)

    @devices
    def test_packed_views(self, device):
        """q, k and v out of one (B, T, 3, H, D) tensor, read in place."""
        x = torch.randn(2, 70, 3, 2, 64).to(BF16).to(device)
        verify(*(x[:, :, i].transpose(1, 2) for i in range(3)))

    @pytest.mark.gpu
    def test_captured_in_a_graph(self):
        """After a warm-up; each replay reads the operands anew."""
        q, k, v = operands(2, 4, 2, 300, 300, 64, BF16, "cuda")
        options = {"causal": True, "window": None, "scale": 0.125}
        forward(q, k, v, **options)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="relaxed"):
            o, lse = forward(q, k, v, **options)
        for _ in range(2):
            q.copy_(torch.randn_like(q))
            o.zero_()
            graph.replay()
            right = forward(q, k, v, **options)
            assert torch.equal(o, right[0]) and torch.equal(lse, right[1])

    def test_a_large_maximum_at_the_end(self):
        """Rows whose maximum rises far from tile to tile: o has to be rescaled."""
        q, k, v = operands(1, 1, 1, 64, 256, 64, BF16)
        k *= torch.linspace(12, 0.1, 256)[:, None].to(BF16)  # tiles come from the last to the first
        verify(q, k, v, causal=False)

    @pytest.mark.parametrize("what", ["other keys", "a tile dropped", "another scale"])
    def test_the_check_rejects(self, what):
        q, k, v = operands(1, 1, 1, 40, 150, 64, BF16)
        right = reference(q, k, v, True, None, 0.125)
        wrong = {
            "other keys": lambda: reference(q, k.roll(1, 2), v, True, None, 0.125),
            "a tile dropped": lambda: reference(q, k, v, True, 128, 0.125),
            "another scale": lambda: reference(q, k, v, True, None, 0.14),
        }[what]()
        with pytest.raises(AssertionError):
            check("o", wrong[0].float(), right[0], BF16, scale=right[2], stored=1)
        with pytest.raises(AssertionError):
            check("lse", wrong[1].float(), right[1], scale=4.0)

    @pytest.mark.parametrize("seed", [None, 1])
    def test_without_findings(self, seed):
        """Two blocks, a list of tiles each: no races, nothing read before it was written."""
        q, k, v = operands(1, 3, 1, 70, 140, 32, BF16)
        calls = []
        kernel = forward_kernel("bfloat16", PLANS[32])

        def report(*args):
            calls.append(args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(kernel), "__getitem__", lambda self, configuration: report)
            plan = PLANS[32]
            o, lse = forward(q, k, v, causal=True, window=None, scale=0.2, plan=plan)
        found = kernel.report(2, plan.threads, *calls[0], smem=plan.shared, seed=seed)
        assert findings(found) == []
        expected, expected_lse, size = reference(q, k, v, True, None, 0.2)
        check("o", o, expected, scale=size, stored=1)
        check("lse", lse, expected_lse, scale=4.0)
