"""Decode attention against float64, on the emulator and on a GPU."""

import importlib

import pytest
import torch
from decode_cases import Problem, expected, make
from tolerance import check, poisoned

from cuda_numba.decode import (
    RUNGS,
    decode_attention,
    decode_attention_reference,
    decode_one_launch,
    launch_stream,
    shape_of,
)
from cuda_numba.decode_arguments import look_at

module = importlib.import_module("cuda_numba.decode")
DTYPES = [torch.float16, torch.bfloat16]
# Steps have 16 positions and blocks 8 warps: lengths at the edges of both, and nothing at all.
SMALL = [
    Problem(1, 1, 1, 32, (1,)),
    Problem(2, 1, 1, 64, (7, 0, 33)),
    Problem(4, 2, 1, 128, (16, 17), T_max=40),
    Problem(2, 2, 2, 40, (130, 129)),
    Problem(6, 1, 3, 96, (33, 1)),  # 18 query rows: two groups of warps
    Problem(4, 2, 8, 64, (47, 5), window=9),
    Problem(4, 2, 1, 64, (40, 0, 77), page=16),
    Problem(2, 1, 2, 72, (100, 33), page=48, window=20),
    Problem(1, 1, 1, 128, (64,), page=64, window=1),
    Problem(2, 1, 1, 40, (150, 100), page=16, window=60),  # first seen: 90 and 40, inside steps
]
LARGE = [
    Problem(16, 16, 1, 128, (4096, 4095, 1, 2049)),
    Problem(32, 8, 1, 128, (4096, 0, 700, 3001)),
    Problem(32, 8, 1, 64, tuple(range(1, 4000, 97))),  # 42 sequences: two rounds of the scan
    Problem(32, 8, 4, 128, (1500, 1499, 33), page=16),
    Problem(64, 8, 8, 128, (2000, 900), page=64),  # 64 query rows
    Problem(128, 1, 8, 64, (1000, 300)),  # 1024 query rows: several blocks for each
    Problem(8, 1, 1, 128, (40000,)),
    Problem(8, 2, 2, 96, (3000, 10), window=1000, page=48),
    Problem(4, 4, 5, 40, (777, 2, 4)),
]
exact_weights = ("naive", "split")  # the others round the weights to 16 bits before V


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


def compare(problem, given, k64, v64, rung, **options):
    o = RUNGS[rung](*given, window=problem.window, **options)
    check(
        "o", o, expected(problem, given[0], k64, v64), scale=3.0, stored=rung not in exact_weights
    )  # fmt: skip
    return o


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_against_float64(problem, rung):
    given, caches = make(problem, DTYPES[len(problem.lengths) % 2])
    compare(problem, given, *caches, rung)


@pytest.mark.parametrize("problem", [SMALL[2], SMALL[6]], ids=str)
def test_other_format(problem):
    given, caches = make(problem, DTYPES[(len(problem.lengths) + 1) % 2])
    compare(problem, given, *caches, "one launch")


class TestControls:
    """What a wrong kernel would compute is rejected by the same comparison."""

    problem = Problem(2, 1, 2, 64, (40, 33), window=20)

    @pytest.mark.parametrize(
        ("lengths", "window"), [((39, 33), 20), ((40, 33), 21), ((40, 33), None)]
    )
    def test_wrong_mask(self, lengths, window):
        given, (k64, v64) = make(self.problem, torch.bfloat16)
        wrong = Problem(2, 1, 2, 64, lengths, window=window)
        o = expected(wrong, given[0], k64, v64)
        with pytest.raises(AssertionError):
            check("o", o, expected(self.problem, given[0], k64, v64), torch.bfloat16, stored=1)

    def test_dropped_step(self):
        given, (k64, v64) = make(self.problem, torch.bfloat16)
        dropped = k64.clone()
        dropped[:, :, 32:33] = -k64[:, :, 32:33]
        o = expected(self.problem, given[0], dropped, v64)
        with pytest.raises(AssertionError):
            check("o", o, expected(self.problem, given[0], k64, v64), torch.bfloat16, stored=1)


class TestShares:
    """The line of work, cut into shares of every size: the result does not depend on it."""

    problem = Problem(2, 2, 1, 32, (70, 0, 300, 5, 16))

    @pytest.mark.parametrize("sms", [1, 3, 7])
    def test_any_number_of_blocks(self, monkeypatch, sms):
        monkeypatch.setattr(module, "EMULATED_SMS", sms)
        given, caches = make(self.problem, torch.float16)
        compare(self.problem, given, *caches, "one launch")

    def test_more_sequences_than_lanes(self):
        problem = Problem(1, 1, 1, 32, tuple((5 * k) % 23 for k in range(70)))
        given, caches = make(problem, torch.float16)
        compare(problem, given, *caches, "one launch")

    def test_blocks_of_query_rows(self):
        """136 rows: a second block for the last eight."""
        problem = Problem(17, 1, 8, 32, (40,))
        given, caches = make(problem, torch.float16)
        compare(problem, given, *caches, "one launch")

    def test_counters_are_left_at_zero(self):
        given, _ = make(self.problem, torch.float16)
        first, second = (decode_one_launch(*given) for _ in range(2))
        assert torch.equal(first, second)
        assert all((c.view(torch.int32) == 0).all() for c in module._counters.values())

    def test_shallow_products(self):
        """As on sm_75: two mma of depth 8 for one of 16."""
        given, (k64, v64) = make(self.problem, torch.float16)
        call = look_at(*given)
        shape = shape_of(call, given[0].device)._replace(depth=8)
        o = launch_stream(call, shape, *given)
        check("o", o, expected(self.problem, given[0], k64, v64), scale=3.0, stored=1)


@pytest.mark.parametrize("rung", RUNGS)
class TestProperties:
    def test_equal_keys_give_the_mean(self, rung):
        q = torch.randn(1, 2, 1, 32).half()
        k, v = torch.ones(1, 1, 33, 32).half(), torch.randn(1, 1, 33, 32).half()
        o = RUNGS[rung](q, k, v, torch.tensor([33], dtype=torch.int32))
        check("o", o, v.double().mean(2, keepdim=True).expand(1, 2, 1, 32), scale=3.0, stored=1)

    def test_large_scores(self, rung):
        """Weights of 0 and 1, and differences of scores past what 2^x can hold."""
        q, k = torch.zeros(1, 1, 1, 32).half(), torch.zeros(1, 1, 40, 32).half()
        v = torch.randn(1, 1, 40, 32).half()
        q[..., 0], k[..., 0], k[0, 0, 17, 0] = 200, -200, 300
        o = RUNGS[rung](q, k, v, torch.tensor([40], dtype=torch.int32))
        assert torch.equal(o[0, 0, 0], v[0, 0, 17])

    def test_scale(self, rung):
        problem = Problem(2, 1, 1, 32, (20,))
        given, (k64, v64) = make(problem, torch.float16)
        for scale in (0.0, -0.3):
            o = RUNGS[rung](*given, scale=scale)
            right = decode_attention_reference(given[0].double(), k64, v64, given[3], scale=scale)
            check("o", o, right, scale=3.0, stored=1)

    def test_views_of_a_cache(self, rung):
        """(B, T, H_kv, D) transposed, one half of a larger D, every second sequence; q as well."""
        problem = Problem(4, 2, 2, 32, (20, 33))
        (q, k, v, lengths, _), (k64, v64) = make(problem, torch.bfloat16)
        whole = torch.full((4, 33, 2, 2, 64), float("nan"), dtype=torch.bfloat16)
        kv = whole[::2, :, :, :, 32:].permute(2, 0, 3, 1, 4)
        kv[0], kv[1] = k, v
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
        assert not (q.is_contiguous() or kv[0].is_contiguous())
        compare(problem, (q, kv[0], kv[1], lengths, None), k64, v64, rung)

    def test_longer_than_the_cache(self, rung):
        given, _ = make(Problem(1, 1, 1, 32, (20,)), torch.float16)
        more = given[3] + 100
        assert torch.equal(RUNGS[rung](*given[:3], more), RUNGS[rung](*given))
        o = RUNGS[rung](*given[:3], given[3] - 100)
        assert (o == 0).all()

    @pytest.mark.parametrize("shape", [(0, 4, 2, 5), (2, 4, 2, 0)])
    def test_empty(self, rung, shape):
        B, H, H_kv, T = shape
        q, k = torch.randn(B, H, 1, 32).half(), torch.randn(B, H_kv, T, 32).half()
        o = RUNGS[rung](q, k, k, torch.zeros(B, dtype=torch.int32))
        assert o.shape == q.shape and (o == 0).all()


class TestRefusals:
    given, _ = make(Problem(4, 2, 1, 32, (20, 33)), torch.float16)

    @pytest.mark.parametrize(
        ("place", "change", "error", "text"),
        [
            (0, lambda q: q.float(), TypeError, "q: its dtype is float32"),
            (0, lambda q: q[..., :30], ValueError, "q: D is 30"),
            (0, lambda q: q.repeat(1, 1, 9, 1), ValueError, "q: Tq is 9"),
            (0, lambda q: q[:, :3], ValueError, "q: 3 heads"),
            (0, lambda q: q[0], ValueError, "q: its shape"),
            (1, lambda k: k.bfloat16(), TypeError, "k_cache: its dtype is bfloat16"),
            (1, lambda k: k[:1], ValueError, "k_cache: its shape"),
            (1, lambda k: k.transpose(2, 3).contiguous().transpose(2, 3), ValueError, "strides"),
            (2, lambda v: v[:, :, :32], ValueError, "v_cache: its shape"),
            (3, lambda n: n.long(), TypeError, "lengths: its dtype is int64"),
            (3, lambda n: n[:1], ValueError, "lengths: its shape"),
        ],
    )
    def test_arguments(self, place, change, error, text):
        given = list(self.given)
        given[place] = change(given[place])
        with pytest.raises(error, match=text):
            decode_attention(*given)

    def test_page_size(self):
        q, k, v, lengths, _ = self.given
        table = torch.zeros(2, 3, dtype=torch.int32)
        with pytest.raises(ValueError, match="page size is 33"):
            decode_attention(q, k, v, lengths, table)

    def test_window(self):
        with pytest.raises(ValueError, match="window: got 0"):
            decode_attention(*self.given, window=0)

    def test_no_gradient(self):
        given = list(self.given)
        given[0] = given[0].clone().requires_grad_()
        with pytest.raises(ValueError, match="no backward pass"):
            decode_attention(*given)
        with torch.no_grad():
            assert not decode_attention(*given).requires_grad


@pytest.mark.gpu
class TestOnGPU:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("rung", RUNGS)
    @pytest.mark.parametrize("problem", SMALL + LARGE, ids=str)
    def test_against_float64(self, problem, rung, dtype):
        given, caches = make(problem, dtype, "cuda")
        compare(problem, given, *caches, rung)

    @pytest.mark.parametrize("problem", LARGE, ids=str)
    def test_deterministic(self, problem):
        given, _ = make(problem, torch.bfloat16, "cuda")
        first = decode_attention(*given, window=problem.window)
        for _ in range(20):
            assert torch.equal(first, decode_attention(*given, window=problem.window))

    def test_graph_with_other_lengths(self):
        """Captured once; lengths, queries and caches are what they are at each replay."""
        problem = Problem(8, 2, 1, 64, (700, 30, 0), T_max=1000)
        given, _ = make(problem, torch.bfloat16, "cuda")
        decode_attention(*given)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            o = decode_attention(*given)
        for seed, lengths in enumerate([(1, 1000, 17), (0, 0, 0), (999, 998, 997)]):
            other = Problem(8, 2, 1, 64, lengths, T_max=1000)
            new, (k64, v64) = make(other, torch.bfloat16, "cuda", seed)
            for to, x in zip(given[:4], new[:4], strict=True):
                to.copy_(x)
            for _ in range(3):
                graph.replay()
            check("o", o, expected(other, new[0], k64, v64), scale=3.0, stored=1)

    def test_two_streams(self):
        """Counters belong to a stream: calls side by side do not disturb each other."""
        problem = Problem(8, 2, 1, 64, (3000, 2999))
        given, _ = make(problem, torch.bfloat16, "cuda")
        right = decode_attention(*given)
        streams = [torch.cuda.Stream() for _ in range(3)]
        torch.cuda.synchronize()
        results = []
        for _ in range(20):
            for stream in streams:
                with torch.cuda.stream(stream):
                    results.append(decode_attention(*given))
        torch.cuda.synchronize()
        assert all(torch.equal(right, o) for o in results)
