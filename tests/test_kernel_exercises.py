"""Exercises whose answers are kernels: how they are launched, watched and measured."""

import linecache
import math

import pytest
import torch

from cuda_numba import jit
from cuda_numba.namespace import cuda, float32
from cuda_numba.toolchain import has_compiler
from minilm import exercises
from minilm.exercises import launching
from minilm.exercises.trial import NotAttempted, Trial, Wrong

SHAPES = {  # exercise → dimensions of the arrays that are its parameters
    "kernels.guard": (1, 1, 1),
    "kernels.grid_stride": (1, 1),
    "kernels.race": (1, 1),
    "kernels.reverse": (1, 1),
    "memory.transpose": (2, 2),
    "memory.online_softmax": (2, 2),
    "memory.bias_gelu": (2, 1, 2),
    "memory.rms_norm_backward_a": (2, 2, 1, 1, 2),
    "memory.rms_norm_backward_b": (2, 2, 1, 1),
    "matmul.tiled": (2, 2, 2),
    "matmul.swizzle": (2, 2, 2),
    "matmul.double_buffer": (2, 2, 2),
    "matmul.epilogue": (2, 2, 1, 2, 2),
    "flash.forward": (2, 2, 2, 2, 1),
}


def double(x, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = float32(2) * x[i]


def trial_of(answer):
    return Trial(double, answer)


def run(answer, n=5, **options):
    x = launching.wavy(n)
    return x, launching.launch(trial_of(answer), 1, 8, x=x, out=launching.nan(n), **options)


@pytest.mark.parametrize("answer", [double, jit(double), jit(max_registers=64)(double)])
def test_a_kernel_runs_with_jit_and_without(answer):
    x, ran = run(answer)
    assert torch.equal(ran["out"], 2 * x) and ran.report.writes == 20


def stub(x, out):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [stub, jit(stub)])
def test_the_stub_is_not_attempted_with_jit_and_without(answer):
    with pytest.raises(NotAttempted):
        run(answer)


def over_the_end(x, out):
    out[cuda.grid(1)] = x[0]


def before_the_start(x, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i - 1]


def reads_what_nobody_wrote(x, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] += x[i]


def changes_x(x, out):
    i = cuda.grid(1)
    if i < out.size:
        x[i] = float32(1)
        out[i] = x[i]


def all_write_one(x, out):
    out[0] = x[cuda.threadIdx.x % 5]


def waits_for_some(x, out):
    i = cuda.grid(1)
    if i < out.size:
        cuda.syncthreads()
        out[i] = x[i]


def calls_torch(x, out):
    torch.add(x, x, out=out)


def one_parameter(x):
    return x


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (over_the_end, "out of bounds"),
        (before_the_start, "index"),
        (reads_what_nobody_wrote, "uninitialised"),
        (changes_x, "changed x"),
        (all_write_one, "race"),
        (waits_for_some, "barrier"),
        (calls_torch, "cannot be called in a kernel"),
        (one_parameter, "does not take 2 arrays"),
        (lambda *arrays: 3, "does not take 2 arrays"),
        (torch.nn.Linear, "is not a kernel"),
    ],
)
def test_faults_are_wrong_answers(answer, text):
    with pytest.raises(Wrong, match=text) as caught:
        run(answer)
    assert "\n" not in str(caught.value) and caught.value.hint.endswith(".")


def test_a_hint_of_the_exercise_comes_first():
    with pytest.raises(Wrong) as caught:
        run(over_the_end, hints={"out_of_bounds": "mine."})
    assert caught.value.hint == "mine."


def test_source_that_nobody_has_is_said():
    names = {"cuda": cuda}
    exec("def f(x, out):\n    out[0] = x[0]", names)
    with pytest.raises(Wrong, match="needs the kernel's source"):
        run(names["f"])


def test_empty_places_and_counts_are_told():
    trial = trial_of(double)
    launching.filled(trial, torch.ones(3), "hint.")
    launching.within(trial, "bytes", 5, 5, "hint.")
    assert trial.passed == 2
    with pytest.raises(Wrong, match="1 of 3 elements"):
        launching.filled(trial, torch.tensor([1.0, math.nan, 2.0]), "hint.")
    with pytest.raises(Wrong, match="1,000 bytes, par is 999"):
        launching.within(trial, "bytes", 1000, 999, "hint.")


def test_par_leaves_a_little_room():
    x = launching.wavy(256)
    assert launching.sectors_of(double, 8, 32, x, launching.nan(256)) == 70  # 64, and 10 %


def test_numbers_differ_from_their_neighbours():
    x = launching.wavy(1000)
    assert (x[1:] != x[:-1]).all() and x.abs().max() <= 2
    assert torch.equal(x, launching.wavy(1000))


def test_every_kernel_to_write_is_compiled_here():
    written = [n for n in exercises.names() if exercises.get(n).kind != "predict"]
    assert list(SHAPES) == [
        n for n in written if "cuda" in exercises.get(n).function.__code__.co_names
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_every_solution_compiles_for_a_gpu(name):
    if not has_compiler():
        pytest.skip("no compiler here")
    source = exercises.solution(name)
    place = f"<solution {name}>"
    linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
    names = {"math": math, **launching.names()}
    exec(compile(source, place, "exec"), names)
    kernel = jit(names[exercises.get(name).variable])
    types = tuple("float32[:]" if n == 1 else "float32[:, :]" for n in SHAPES[name])
    ptx = kernel.ptx((8, 0), signature=types)
    assert ".entry" in ptx and ".f64" not in ptx  # nothing slipped into 64-bit floats
