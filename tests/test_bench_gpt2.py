"""The GPT-2 benchmark: its rows, goals and files, at sizes that a CPU has done in a moment.

StepGraph takes seconds a step on the emulator. Where its numbers are not the point, a stand-in that
computes with PyTorch has its place; `test_gradients…` uses the real one.
"""

import contextlib
import copy
import hashlib
import itertools

import numpy as np
import pytest
import torch

from book import measured
from minilm import (
    bench,
    bench_gpt2,
    bench_gpt2_curves,
    bench_gpt2_gradients,
    bench_gpt2_kernels,
    bench_gpt2_rows,
    bench_gpt2_steps,
    command_bench,
)
from minilm.__main__ import main
from minilm.data import TokenStream
from minilm.optim import clip_grad_norm
from minilm.precision import autocast

SMALL = {"B": 2, "V": 32, "C": 16, "layers": 1, "H": 2, "T": 4}

# A model with nanoGPT's interface, written for this test: embedding and head, nothing between.
PEER = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.bias and config.dropout == 0
        print("number of parameters: many")
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, targets):
        logits = self.head(self.embedding(idx))
        assert logits.dtype == torch.bfloat16
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        assert device_type == "cpu" and betas == (0.9, 0.95) and weight_decay == 0.1
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)
"""


class StandIn:
    """StepGraph's interface, computed by PyTorch. `fault`: what it does to the gradients."""

    fault = staticmethod(lambda graph: None)
    made: list["StandIn"] = []

    def __init__(self, model, optimizer, *, clip=1.0, dtype, only=None, capture=None):
        self.model, self.optimizer, self.dtype = model, optimizer, dtype
        self.only, self.capture, self.clip = only, capture, clip
        self.result, self.n = torch.zeros(()), 0
        StandIn.made.append(self)

    def step(self, ids, lr):
        self.optimizer.zero_grad(set_to_none=True)
        with autocast("cpu", self.dtype):
            loss = self.model.loss(ids)
        loss.backward()
        self.n += 1
        type(self).fault(self)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        params = list(self.model.parameters())
        found = [p.grad.clone() for p in params]
        norm = torch.tensor(clip_grad_norm(params, self.clip))
        self.optimizer.step()
        for p, grad in zip(params, found, strict=True):  # not clipped afterwards
            p.grad = grad
        self.result.copy_(loss.detach())  # static memory, as the graph's
        return self.result, norm


@pytest.fixture
def stand_in(monkeypatch):
    for module in (bench_gpt2_steps, bench_gpt2_curves, bench_gpt2_gradients):
        monkeypatch.setattr(module, "StepGraph", StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    return StandIn


@pytest.fixture
def peer(tmp_path):
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    (folder / "model.py").write_text(PEER, encoding="utf-8")
    return folder


@pytest.fixture
def uncompiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    return compiled


def made(pass_, value=1.0, unit="tokens/s", **options):
    return bench_gpt2_rows.gpt2_row(pass_, value, unit, SMALL, **options)


# ---- step


class TestStep:
    def test_a_row_beside_its_peers(self, stand_in, peer, uncompiled, capsys):
        sizes = (SMALL, SMALL | {"B": 3})
        rows = list(bench_gpt2_rows.step_rows({"nanogpt": peer}, 2, sizes, "cpu"))
        assert [r["shape"]["B"] for r in rows] == [2, 3]
        assert len(uncompiled) == 2  # one model for each size
        for r in rows:
            assert r["value"] == pytest.approx(r["shape"]["B"] * 4 / r["seconds"])
            assert list(r["peers"]) == ["nanogpt compiled", "nanogpt eager", "torch eager"]
            assert r["goal"] == 1.15 * r["peers"]["nanogpt compiled"]["value"]
            assert r["met"] == (r["value"] >= r["goal"])
            expected = hashlib.sha256(PEER.encode()).hexdigest()
            assert r["peers"]["nanogpt eager"]["source_sha256"] == expected
            assert "source_sha256" not in r["peers"]["torch eager"]
            assert {"peak_bytes", "mfu_of_data_sheet", "date"} <= set(r["details"])
            rate = r["value"] * r["details"]["flops_per_token"]
            assert r["of_roof"] == pytest.approx(rate / r["details"]["matrix_rate"])
        assert all(made.clip == 1.0 and made.dtype == "bfloat16" for made in stand_in.made)
        assert capsys.readouterr().out == ""

    def test_without_a_peer_there_is_no_goal(self, stand_in):
        (r,) = bench_gpt2_rows.step_rows({}, 1, (SMALL,), "cpu")
        assert r["goal"] is None and list(r["peers"]) == ["torch eager"]

    def test_a_peer_that_does_not_fit_is_named_and_hides_nobody(self, stand_in, peer, monkeypatch):
        def too_large(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

        monkeypatch.setattr(bench_gpt2_steps, "nanogpt_step", too_large)
        (r,) = bench_gpt2_rows.step_rows({"nanogpt": peer}, 1, (SMALL,), "cpu")
        assert list(r["peers"]) == ["torch eager"] and r["goal"] is None
        assert r["details"]["out_of_memory"]["nanogpt compiled"] == "CUDA out of memory."

    def test_who_has_room_only_alone_is_measured_alone(self, stand_in, peer, monkeypatch):
        tries, step = itertools.count(), bench_gpt2_steps.nanogpt_step

        def crowded(path, size, batches, compiled):
            if next(tries) < 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return step(path, size, batches, False)

        monkeypatch.setattr(bench_gpt2_steps, "nanogpt_step", crowded)
        (r,) = bench_gpt2_rows.step_rows({"nanogpt": peer}, 1, (SMALL,), "cpu")
        assert r["peers"]["nanogpt eager"]["measured"] == "alone" and r["goal"] is not None
        assert "measured" not in r["peers"]["torch eager"]
        assert "out_of_memory" not in r["details"]

    def test_all_learn_in_their_steps(self, stand_in, peer, uncompiled):
        """A step that forgot its backward or its update would be fast, and wrong."""
        size = SMALL | {"B": 16}
        batches = bench_gpt2_steps.make_batches(size, "cpu")[:1]
        makers = bench_gpt2_rows.contenders({"nanogpt": peer}, size, batches, "cpu")
        for make in makers.values():
            step = make()
            losses = [float(step()) for _ in range(60)]
            assert losses[-1] < losses[0] - 0.02

    def test_flops_as_nanogpt_counts_them(self):
        ours, theirs = bench_gpt2_rows.flops_per_token(bench_gpt2_steps.GPT2)
        # nanoGPT's get_num_params says 123.69 M without biases; they are 0.1 M
        assert theirs == pytest.approx(6 * 123.69e6 + 12 * 12 * 768 * 1024, rel=2e-3)
        assert ours == pytest.approx(theirs, rel=2e-3)


def test_turns_change_direction_and_leave_the_first_step_out(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(bench_gpt2_steps, "_clock", lambda: clock[0])

    def contender(name, seconds):
        durations = itertools.cycle(seconds)

        def step():
            calls.append(name)
            clock[0] += next(durations)
            return 0.0

        return step

    steps = {"a": contender("a", [99, 1, 3, 50, 8, 8, 9, 1, 1]), "b": contender("b", [50, 2, 4])}
    assert bench_gpt2_steps.time_in_turns(steps, rounds=3, count=2) == {"a": 2, "b": 3}
    assert "".join(calls) == "aaabbbbbbaaaaaabbb"
    with pytest.raises(ValueError, match="rounds.*0"):
        bench_gpt2_steps.time_in_turns({}, 0, 1)


# ---- kernels


class TestKernels:
    def test_operations_are_switched_on_one_by_one(self, stand_in, monkeypatch):
        seen = []

        def eager(model, optimizer, batches, only=()):
            seen.append(tuple(only))
            return lambda: 0.0

        monkeypatch.setattr(bench_gpt2_kernels, "eager_step", eager)
        rows = list(bench_gpt2_rows.kernel_rows(SMALL, 1, "cpu"))
        names = [r["pass"] for r in rows]
        expected = [f"with {op}" for op in bench_gpt2_kernels.WITH]
        assert names == ["torch eager", *expected, "with StepGraph, no graph"]
        assert seen == [bench_gpt2_kernels.WITH[:n] for n in range(len(names) - 1)]
        for before, r in itertools.pairwise(rows):
            assert r["peers"]["before"]["value"] == before["value"]
        assert rows[0]["peers"] == {}
        assert stand_in.made[0].capture is False

    def test_each_is_left_out_of_the_graph_once(self, stand_in):
        found = bench_gpt2_kernels.times_without(SMALL, "cpu", 1, 1)
        assert list(found) == [f"without {op}" for op in bench_gpt2_kernels.WITHOUT]
        whole, *others = stand_in.made
        assert whole.only is None
        for graph, left in zip(others, bench_gpt2_kernels.WITHOUT.values(), strict=True):
            assert graph.only == bench_gpt2_kernels.ALL - set(left)

    def test_the_operations_are_the_models(self):
        used = {*bench_gpt2_kernels.WITH} - {"adamw_step"}
        assert used == set(bench_gpt2_kernels.WITHOUT)
        left = set(itertools.chain(*bench_gpt2_kernels.WITHOUT.values()))
        assert left == used <= bench_gpt2_kernels.ALL
        only = {job.only for job in bench_gpt2_kernels.jobs(16)}
        assert len(only) == 1 + len(bench_gpt2_kernels.WITH) + len(bench_gpt2_kernels.WITHOUT)


# ---- curves


class TestDistance:
    def test_of_means_over_a_window(self):
        flat = [2.0] * 30
        spike = [2.0] * 15 + [4.0] + [2.0] * 14
        assert bench_gpt2_curves.distance(flat, spike) == pytest.approx(2 / 20)
        higher = [2.0] * 10 + [1.5] * 20
        assert bench_gpt2_curves.distance(flat, higher) == pytest.approx(0.5)
        assert bench_gpt2_curves.distance(higher, higher) == 0

    def test_noise_that_averages_out_is_not_far(self):
        flat, noisy = [1.0] * 40, [1.0, 3.0, 1.0, -1.0] * 10
        assert bench_gpt2_curves.distance(flat, noisy) == pytest.approx(0)

    @pytest.mark.parametrize(("a", "b"), [([1.0] * 19, [1.0] * 19), ([1.0] * 20, [1.0] * 21)])
    def test_what_cannot_be_compared(self, a, b):
        with pytest.raises(ValueError, match="curves"):
            bench_gpt2_curves.distance(a, b)


def test_one_ulp_moves_every_weight_to_a_neighbour():
    a = torch.tensor([1.0, -2.0, 0.0, 3e-5]).repeat(50)
    b = a.clone()
    bench_gpt2_curves.move_by_one_ulp([b], seed=1)
    up, down = (torch.nextafter(a, torch.full_like(a, s * torch.inf)) for s in (1, -1))
    assert ((b == up) | (b == down)).all() and (b == up).any() and (b == down).any()
    c = a.clone()
    bench_gpt2_curves.move_by_one_ulp([c], seed=2)
    assert not torch.equal(b, c)


class TestCurves:
    data = TokenStream(np.random.default_rng(0).integers(32, size=4000), vocab_size=32)
    size = SMALL | {"B": 4}

    def rows(self):
        return list(bench_gpt2_rows.curve_rows(self.size, self.data, "cpu", 40))

    def test_the_same_arithmetic_is_no_farther_than_a_control(self, stand_in):
        curve, bits = self.rows()
        assert curve["met"] and 0 <= curve["value"] <= curve["goal"] < 1e-3
        assert curve["goal"] > 0  # one ulp is seen
        details = curve["details"]
        assert len(details["among_torch"]) == 6 and len(details["ours"]) == 4
        assert curve["goal"] == max(details["among_torch"].values())
        assert curve["value"] == max(details["ours"].values())
        found = details["curves"]
        assert {len(losses) for losses in found.values()} == {40}
        assert found["torch"][0] != found["torch"][-1]
        assert (bits["value"], bits["goal"], bits["met"]) == (0, 0, True)
        bench.check_results(bench.describe_run() | {"command": "x", "rows": [curve, bits]})

    def test_a_wrong_gradient_is_far(self, stand_in, monkeypatch):
        def turned(graph):
            for p in graph.model.parameters():
                p.grad.neg_()

        monkeypatch.setattr(stand_in, "fault", turned)
        curve, bits = self.rows()
        assert not curve["met"] and curve["value"] > 100 * curve["goal"]
        assert bits["met"]

    def test_a_run_that_is_not_the_same_again_is_seen(self, stand_in, monkeypatch):
        def noisy(graph):
            first = graph is stand_in.made[0]
            graph.model.final_norm.bias.grad[0] *= 1.5 if first and graph.n == 5 else 1.0

        monkeypatch.setattr(stand_in, "fault", noisy)
        _, bits = self.rows()
        assert bits["value"] > 0 and not bits["met"]

    def test_the_schedule(self):
        rates = [bench_gpt2_curves.learning_rate(n, 500) for n in range(1, 501)]
        assert max(rates) == rates[49] == bench_gpt2_steps.LR
        assert rates[0] == pytest.approx(6e-4 / 50) and rates[-1] == pytest.approx(6e-5)


def test_the_text_is_python_and_no_more_than_asked_for():
    texts = bench_gpt2_curves.python_text(50_000)
    total = sum(map(len, texts))
    assert total >= 50_000 > total - len(texts[-1])
    ids = bench_gpt2_curves.python_tokens(vocab_size=300, limit=50_000)
    assert 0 <= ids.min() and 256 <= ids.max() < 300 and len(ids) < total


# ---- gradients


def test_gradients_of_the_real_step_one_row_for_each_parameter():
    size = SMALL | {"B": 1}
    ours, float32 = bench_gpt2_rows.gradient_rows(size, "cpu")
    table = ours["details"]["tensors"]
    model = bench_gpt2_steps.make_model(size, "cpu")
    assert [r["name"] for r in table] == [name for name, _ in model.named_parameters()]
    assert ours["shape"]["tensors"] == len(table) == 4 + 12
    assert 1e-4 < ours["value"] == max(r["ours"] for r in table) < 0.05
    assert ours["value"] < 4 * ours["peers"]["torch autocast"]["value"]
    assert ours["error"] == ours["value"] and float32["error"] < 1e-5


def test_a_wrong_gradient_is_seen(stand_in, monkeypatch):
    right, _ = bench_gpt2_rows.gradient_rows(SMALL, "cpu")

    def wrong(graph):  # one bias of sixteen tensors
        graph.model.blocks[0].attention.out.bias.grad *= 1.2

    monkeypatch.setattr(stand_in, "fault", wrong)
    found, _ = bench_gpt2_rows.gradient_rows(SMALL, "cpu")
    worst = max(found["details"]["tensors"], key=lambda r: r["ours"])
    assert worst["name"] == "blocks.0.attention.out.bias"
    assert found["value"] > 3 * right["value"]


def test_gradients_that_are_missing_are_an_error():
    with pytest.raises(ValueError, match="gradients.*'b'"):
        bench_gpt2_gradients.relative_errors({"a": torch.ones(1)}, {"a": torch.ones(1), "b": 0})


# ---- the file


class TestFile:
    def test_parts_that_were_not_measured_stay(self):
        old = [
            made("step"),
            made("with gelu"),
            made("loss curve", 0.1, "nats"),
            made("torch eager"),
        ]
        new = [made("with gelu", 2.0), made("without gelu")]
        rows = bench_gpt2.merge(old, new, ["kernels"])
        assert [r["pass"] for r in rows] == ["step", "with gelu", "without gelu", "loss curve"]
        assert rows[1]["value"] == 2.0 and rows[0] == old[0]
        assert bench_gpt2.merge([], new, ["kernels"]) == new

    def test_the_error_of_a_step_is_that_of_its_gradients(self):
        step = made("step")
        gradients = made("gradients", 0.01, "relative", error=0.01)
        float32 = made("gradients", 1e-6, "relative", error=1e-6, dtype="float32")
        rows = bench_gpt2.merge([step], [gradients, float32], ["gradients"])
        assert rows[0]["error"] == 0.01
        older = copy.deepcopy(gradients) | {"source_sha256": "of another version"}
        assert bench_gpt2.merge([older], [step], ["step"])[0]["error"] is None

    def test_every_pass_has_its_part(self):
        passes = ["step", "torch eager", bench_gpt2_kernels.GRAPH, "loss curve", "same bits"]
        found = [bench_gpt2.part_of(made(name)) for name in [*passes, "gradients"]]
        assert found == ["step", "kernels", "kernels", "curves", "curves", "gradients"]

    def test_the_path(self):
        path = command_bench.results_path("gpt2_training", "NVIDIA H100 80GB HBM3")
        assert path.parts[-3:-1] == ("cuda_numba", "results")
        assert path.name == "gpt2_training-nvidia-h100-80gb-hbm3.json"

    def test_the_book_shows_it_and_knows_its_sources(self, tmp_path):
        path = tmp_path / "gpt2.json"
        peers = {"nanogpt compiled": {"value": 2.0, "seconds": 1.0, "peak_bytes": 7}}
        rows = [made("step", 3.0, goal=2.3, peers=peers), made("loss curve", 0.1, "nats", goal=0.2)]
        results = bench.write_results(path, "gpt2_training", rows)
        present = measured.present_hashes("gpt2_training")
        text = measured.section(path, results, present)
        assert "ours 1.50×" in text and text.count("✓ yes") == 2 and measured.OLDER not in text
        assert "`minilm bench train --peer nanogpt=PATH`" in text

    def test_sources_are_the_step_and_the_kernels(self):
        files = bench_gpt2_rows.SOURCES["gpt2_training"]
        assert {"step_graph.py", "ops.py", "../cuda_numba/mlp.py", "../cuda_numba/jit.py"} <= set(
            files
        )
        assert not [f for f in files if "bench" in f or "emulator" in f or "sanitizer" in f]


# ---- the command


class TestCommand:
    @pytest.fixture
    def on_gpu(self, monkeypatch, tmp_path):
        monkeypatch.setattr(command_bench, "has_nvidia", lambda: True)
        for module in (bench_gpt2, command_bench):
            monkeypatch.setattr(module, "device_name", lambda device: "GPU 1")
        path = tmp_path / "gpt2.json"
        monkeypatch.setattr(command_bench, "results_path", lambda name, device: path)
        monkeypatch.setattr(bench_gpt2.steps, "compile_ahead", lambda jobs: ["a job: failed"])
        write = bench.write_results

        def as_gpu(path, command, rows, device):
            assert device == "cuda"
            monkeypatch.setattr(bench, "device_name", lambda device: "GPU 1")
            return write(path, command, rows)

        monkeypatch.setattr(bench_gpt2, "write_results", as_gpu)
        monkeypatch.setattr(bench_gpt2, "text_beside", lambda wanted: contextlib.nullcontext())
        asked = []

        def measure(part, peers, rounds, text):
            asked.append((part, rounds))
            yield made({"curves": "loss curve", "kernels": "with gelu"}.get(part, part))

        monkeypatch.setattr(bench_gpt2, "measure", measure)
        return asked

    def test_parts_are_chosen_and_merged(self, on_gpu, tmp_path, peer, capsys):
        assert main(["bench", "train", "--peer", f"nanogpt={peer}"]) == 0
        assert on_gpu == [(part, None) for part in bench_gpt2.PARTS]
        out = capsys.readouterr().out
        assert "not compiled ahead: a job: failed" in out and "gpt2_training (step;" in out
        before = bench.read_results(tmp_path / "gpt2.json")["rows"]
        assert main(["bench", "train", "--parts", "curves,step", "--rounds", "2"]) == 0
        assert on_gpu[4:] == [("step", 2), ("curves", 2)]
        rows = bench.read_results(tmp_path / "gpt2.json")["rows"]
        assert [r["pass"] for r in rows] == [r["pass"] for r in before]
        assert rows[1] == before[1]

    @pytest.mark.parametrize("parts", ["", "steps", "step,all"])
    def test_parts_that_there_are_not(self, on_gpu, parts, capsys):
        assert main(["bench", "train", "--parts", parts]) == 2
        assert "--parts" in capsys.readouterr().err and on_gpu == []

    def test_another_devices_file_is_left_alone(self, on_gpu, tmp_path, capsys):
        path = tmp_path / "other.json"
        bench.write_results(path, "gpt2_training", [])
        assert main(["bench", "train", "--json", str(path)]) == 2
        assert "--json" in capsys.readouterr().err and on_gpu == []

    def test_without_a_gpu_the_command_is_what_it_was(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(command_bench, "has_nvidia", lambda: False)
        assert main(["bench", "train", "--parts", "step"]) == 2
        assert "--parts" in capsys.readouterr().err
        row = bench.row("train", "x", 1.0, "s", sources=[])
        module = type("Module", (), {"train_rows": staticmethod(lambda peers: [row])})
        monkeypatch.setattr(command_bench.importlib, "import_module", lambda name: module)
        assert main(["bench", "train", "--json", str(tmp_path / "x.json")]) == 0
        assert bench.read_results(tmp_path / "x.json")["command"] == "train"

    def test_the_parts_are_told_alike(self):
        assert command_bench.GPT2_PARTS == bench_gpt2.PARTS
