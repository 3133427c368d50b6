"""A recorded step: names into classes, events into rows, and formulas against what is touched."""

import pytest
import torch

from cuda_numba import launches
from cuda_numba.linear_cross_entropy import chunks_of
from minilm import bench, bench_trace, command_bench, ops, step_bytes
from minilm.bench_trace import SIDES, WORK, Step, by_class, kernel_rows, packed, union
from minilm.kernel_classes import CLASSES, class_of
from minilm.model import ModelConfig
from minilm.step_bytes import kernel_work
from minilm.step_memory import memory_parts

TINY = ModelConfig.gpt2(vocab_size=64, context_length=8, d_model=32, n_layers=1, n_heads=2)
SIZES = {"matrices": 14592, "vectors": 480}
# As a profiler has written them, on an H100 with PyTorch 2.11; templates are cut.
NAMES = {
    "GEMM": (
        "nvjet_tst_192x192_64x4_2x1_v_bz_coopA_bias_TNN",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1",
        "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x128_16x5_nt_align4>",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>",
        "product",
        "product_turns",
    ),
    "attention": (
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits>",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_64x128x64_4x1x1",
        "void cudnn::fusion::compute_dot_do_o_specialized<true, 64>(void const*, void const*)",
        "void cudnn::fusion::convert_dq_to_16bits<true>(void const*, void*, unsigned int)",
        "attention_forward",
        "attention_convert",
        "attention_delta",
    ),
    "softmax/loss": (
        "void at::native::(anonymous namespace)::cunn_SoftMaxBackward<4, float, float, float>",
        "void at::native::(anonymous namespace)::nll_loss_forward_reduce_cuda_kernel_2d<float>",
        "cross_entropy_fused",
    ),
    "reduction/norm": (
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>",
        "void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<float>",
        "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float, func_wrapper_t>>",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<LpNormFunctor<float>>",
        "norm_forward",
        "norm_column_sums",
        "partial_sums",
        "sum_rows_kernel",
    ),
    "element-wise": (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>",
        "void (anonymous namespace)::elementwise_kernel_with_index<int, at::native::arange_cuda>",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<PointwiseOpListFunctor>",
        "optimizer_step",
    ),
    "gather/scatter": (
        "void at::native::(anonymous namespace)::indexSelectLargeIndex<float, long, unsigned int>",
        "void at::native::(anonymous namespace)::compute_grad_weight<float, long>",
        "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<Policy900, false, long, long>",
        "embedding_forward",
        "split_by_group",
        "order_by_id",
        "gather_rows",
    ),
    "copy/layout": (
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
        "void at::native::vectorized_elementwise_kernel<8, at::native::bfloat16_copy_kernel_cuda>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy<OpaqueType<2u>>",
        "Memcpy DtoD (Device -> Device)",
        "Memset (Device)",
    ),
    "other": ("somebody_elses_kernel", ""),
}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in NAMES.items() for n in names])
def test_a_kernel_is_classified_by_its_name(kind, name):
    assert class_of(name) == kind


def test_every_class_has_a_name_here():
    assert set(NAMES) == set(CLASSES)


def test_our_own_kernels_all_have_a_class():
    """A control for the rules: a kernel of a step that is renamed shows up as "other"."""
    x = torch.randn(3, 8)
    with ops.use_backend("numba"), launches() as log:
        ops.layer_norm(x, torch.ones(8), torch.zeros(8))
        ops.cross_entropy(x, torch.tensor([0, 1, 2]))
        ops.gelu(x)
    assert log and all(class_of(launch.name) != "other" for launch in log)


@pytest.mark.parametrize(
    ("spans", "covered"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(5, 6), (1, 3)], 3),
        ([(1, 4), (2, 3), (3, 6)], 5),  # one inside another, one that goes on
        ([(1, 2), (1, 2)], 1),
    ],
)
def test_what_is_covered(spans, covered):
    assert union(spans) == covered


EVENTS = [
    {"name": "product", "ts": 10.0, "dur": 4.0},
    {"name": "Memset (Device)", "ts": 0.0, "dur": 1.0},
    {"name": "product", "ts": 20.0, "dur": 6.0},
]


def test_events_of_one_name_are_one_row():
    first, second = kernel_rows("graph", EVENTS)
    assert (first["name"], first["class"], first["calls"]) == ("product", "GEMM", 2)
    assert first["seconds"] == pytest.approx(10e-6)
    assert (second["class"], second["calls"]) == ("copy/layout", 1)
    sums = by_class([first, second])
    assert sums["GEMM"] == first["seconds"] and sums["other"] == 0 and tuple(sums) == CLASSES


def test_a_row_holds_everything_and_can_be_written(tmp_path):
    step = {"kind": "step", "side": "graph", "shape": {"B": 1}, "seconds": 0.1}
    found = [step | {"profiled": 0.2, "busy": 0.1, "launches": 3}, *kernel_rows("graph", EVENTS)]
    found.append({"kind": "memory", "side": "graph", "part": "weights", "bytes": 5})
    row = packed("graph", found)
    assert (row["pass"], row["value"], row["unit"]) == ("graph", 0.1, "s")
    assert row["details"]["memory"] == {"weights": 5}
    assert [k["calls"] for k in row["details"]["kernels"]] == [2, 1]
    path = tmp_path / "step_trace-x.json"
    bench.write_results(path, "trace", [row])
    assert bench.read_results(path)["rows"] == [row]


def test_the_command_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="trace: it needs an NVIDIA GPU"):
        bench_trace.trace_rows()
    with pytest.raises(ValueError, match="'trace' has no peers, got nanogpt"):
        bench_trace.trace_rows({"nanogpt": "x"})


def test_its_file_lies_with_the_kernels():
    path = command_bench.results_path("trace", "NVIDIA H100")
    assert path.parts[-3:] == ("cuda_numba", "results", "step_trace-nvidia-h100.json")
    assert command_bench.results_path("tiny", "CPU").parts[-3:] == (
        "book",
        "results",
        "tiny-cpu.json",
    )


# ---- bytes and FLOPs


@pytest.mark.parametrize(("rows", "V"), [(8, 64), (16384, 50304), (65536, 50304), (300, 400_000)])
def test_logits_come_in_as_many_chunks_as_in_the_kernel(rows, V):
    assert step_bytes.chunks(rows, V) == len(chunks_of(rows, V, 2))


def test_products_are_counted_as_the_model_counts_them():
    c = ModelConfig.gpt2(vocab_size=50304)
    B, T = 16, c.context_length
    work = kernel_work(c, B, T, SIZES)
    C, N = c.d_model, B * T
    products = 6 * N * (12 * c.n_layers * C * C + c.vocab_size * C)
    epilogues = sum(w.flops for w in work if w.kind == "GEMM") - products
    assert 0 < epilogues < 0.01 * products
    pairs = c.n_layers * B * c.n_heads * T * (T + 1) / 2
    attention = sum(w.flops for w in work if w.kind == "attention")
    assert attention == pytest.approx(pairs * (14 * c.head_dim + 11))  # 2 + 5 products, softmax


@pytest.mark.parametrize(
    "changes", [{"norm": "rmsnorm"}, {"tied": False}, {"window": 4}, {"position": "rope"}], ids=str
)
def test_another_model_is_refused(changes):
    c = ModelConfig.gpt2(
        vocab_size=64, context_length=8, d_model=32, n_layers=1, n_heads=2, **changes
    )
    with pytest.raises(ValueError, match="formulas are those of GPT-2"):
        kernel_work(c, 1, 8, SIZES)


def test_a_norm_moves_what_the_formula_says():
    N, C = 16, 32
    x, branch = torch.randn(2, N, C).bfloat16()
    x.requires_grad_(), branch.requires_grad_()
    w, b = torch.ones(C, requires_grad=True), torch.zeros(C, requires_grad=True)
    formula = {work.name: work.bytes / work.calls for work in step_bytes._norms(N, C, 1)}
    with ops.use_backend("numba"), launches(report=True) as log:
        y, total = ops.layer_norm_residual(x, branch, w, b)
        (y.sum() + total.sum()).backward()
    forward, backward = log[0].report, log[1].report
    assert forward.footprint == formula["addition + norm"]
    partial = 2 * 4 * C * log[1].grid  # sums of blocks: workspace, not in the formula
    weights = 2 * 4 * C  # dw and db, written by the launch after it
    assert backward.footprint - partial == formula["addition + norm, backward"] - weights


@pytest.mark.thorough  # a minute: all of a step, where the test above has one operation
def test_a_step_touches_what_the_formula_says():
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    step = Step("graph", TINY, "cpu")
    step(ids)
    with launches(report=True) as log:
        step(ids)
    sizes = {"matrices": sum(p.numel() for p in step.model.parameters() if p.ndim > 1)}
    sizes["vectors"] = sum(p.numel() for p in step.model.parameters() if p.ndim == 1)
    assert sizes == SIZES
    touched, formula = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for launch in log:
        touched[class_of(launch.name)] += launch.report.footprint
    for work in kernel_work(TINY, 2, 8, sizes):
        formula[work.kind] += work.bytes
    # what is changed in place is read and written, and touched once: logits; p, m, v
    formula["softmax/loss"] -= 16 * 64 * 2
    formula["element-wise"] -= 3 * 4 * sum(sizes.values())
    for kind, share in {"GEMM": 0.02, "softmax/loss": 0.15, "element-wise": 0.01}.items():
        assert formula[kind] == pytest.approx(touched[kind], rel=share), kind
    forward = sum(launch.report.footprint for launch in log if launch.name.endswith("warp_forward"))
    (attention,) = (w.bytes for w in kernel_work(TINY, 2, 8, sizes) if w.name == "attention")
    assert attention == pytest.approx(forward, rel=0.02)


# ---- both sides of a step, small, on the CPU


class Counter:
    """A meter of memory that goes up by 100 at each look."""

    def __init__(self):
        self.bytes = 0

    def now(self):
        self.bytes += 100
        return self.bytes

    def peak(self):
        return self.bytes + 50

    def reset(self):
        pass


def test_memory_by_part():
    step, ids = Step("torch", TINY, "cpu"), torch.randint(64, (2, 9))
    seen = []

    def update():
        seen.append(all(p.grad is not None for p in step.model.parameters()))
        step.update()

    parts = memory_parts(step.model, ids, update, moments=step.moments, meter=Counter())
    numbers = sum(SIZES.values())
    assert parts == {
        "weights": 4 * numbers, "copies": 0, "activations": 100, "logits and loss": 50,
        "gradients": 4 * numbers, "moments": 8 * numbers, "peak": 250,
    }  # fmt: skip
    assert seen == [True]


def test_the_work_of_torch_is_that_of_the_profile():
    step, ids = Step("torch", TINY, "cpu"), torch.randint(64, (2, 9))
    rows = bench_trace.work_rows("torch", step, ids)
    assert {r["side"] for r in rows} == {WORK["torch"]} and set(WORK) == set(SIDES)
    assert {"GEMM", "softmax/loss", "gather/scatter"} <= {r["class"] for r in rows} <= set(CLASSES)
    assert by_class(rows, "bytes")["other"] == 0
    again = bench_trace.profile(lambda: step(ids)).total()
    assert sum(by_class(rows, "flops").values()) == pytest.approx(again.flops, rel=0.01)
