"""Optimizer kernels as the emulator counts them and as machine code."""

import pytest
import torch
from compiled import ARCHITECTURES, WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler
from targets import BETWEEN, HOPPER, thorough

from cuda_numba.optimizer import (
    adamw_elements,
    adamw_prepare,
    adamw_rule,
    lion_elements,
    lion_prepare,
    lion_rule,
)
from cuda_numba.optimizer_kernel import TUNED, Form, update_kernel
from cuda_numba.optimizer_table import addresses_of, groups_of, layout_of

NUMBERS = (False, False, False)
MEMORY = (True, True, True)
RULES = {"adamw": (adamw_prepare, adamw_rule, 2), "lion": (lion_prepare, lion_rule, 1)}


def kernel_of(rule, formats=("float32", "float32", "float32"), copy=None, on_device=NUMBERS):
    prepare, of_element, moments = RULES[rule]
    return update_kernel(prepare, of_element, Form(*formats, moments, copy, on_device))


def report_of(rule, columns, **options):
    """The report of one step over [params, grads, …], lr 0.01 and step 3."""
    names = ("params", "grads", "ms", "vs")[: len(columns)]
    columns = dict(zip(names, columns, strict=True))
    [group] = groups_of(columns, 0.1)
    kernel = kernel_of(rule, group.formats[:3])
    layout = layout_of(group, TUNED.chunk)
    betas = (0.9, 0.1, 0.99, 0.01, -0.105, -0.01005)
    args = (addresses_of(group, columns), *layout, 0.01, 3.0, 1.0, *betas, 1e-8)
    report = kernel.report(len(layout.chunks), TUNED.threads, *args, **options)
    assert report.findings == []
    return report, len(layout.chunks)


def columns_of(sizes, count, dtype=torch.float32, offset=0):
    return [[torch.rand(n + offset)[offset:].to(dtype) for n in sizes] for _ in range(count)]


class TestTraffic:
    @pytest.mark.parametrize(("rule", "read", "written"), [("adamw", 4, 3), ("lion", 3, 2)])
    def test_bytes(self, rule, read, written):
        """28 bytes a parameter, 20 for Lion, in whole sectors; then the tables, by every warp."""
        sizes = (2048, 64, 1088)
        report, blocks = report_of(rule, columns_of(sizes, read))
        size = 4 * sum(sizes)
        assert report.of("global", "store").moved == written * size
        tables = report.of("global", "load").moved - read * size
        assert 0 < tables <= blocks * (TUNED.threads // 32) * 32 * 9  # loads of one sector
        assert report.of("global", "store").accesses == written * size / 16

    def test_half_precision(self):
        """bfloat16 parameters and gradients: 8 bytes an access, 20 bytes a parameter."""
        params, grads = columns_of((1024,), 2, torch.bfloat16)
        report, _ = report_of("adamw", [params, grads, *columns_of((1024,), 2)])
        assert report.of("global", "store").moved == 1024 * (2 + 4 + 4)

    def test_unaligned(self):
        """One element an access: the same bytes, four times the accesses."""
        report, _ = report_of("lion", columns_of((64, 32), 3, offset=1))
        assert report.of("global", "store").accesses == 2 * 96

    @pytest.mark.parametrize("seed", [1, 2])
    def test_any_order(self, seed):
        """No element is touched by two threads: odd sizes, neighbours in one storage."""
        flat = [torch.rand(90) for _ in range(4)]
        columns = [list(f.split([3, 33, 1, 53])) for f in flat]
        report_of("adamw", columns, seed=seed)

    def test_first_rung(self):
        p, g, m, v = (torch.rand(256) for _ in range(4))
        report = adamw_elements.report(
            1, 256, p, g, m, v, 0.01, 3, 1, 0.1, 0.9, 0.1, 0.99, 0.01, -0.105, -0.01, 1e-8
        )
        assert report.findings == [] and report.of("global", "load").moved == 4 * p.nbytes
        assert report.of("global", "store").accesses == 3 * 256


TABLES = ("int64[:]", "int64[:]", "float32[:]", "int32[:]")


def signature(on_device):
    numbers = ("float32[:]" if there else "float32" for there in on_device)
    return (*TABLES, *numbers, *["float32"] * 7)


@needs_compiler
class TestMachineCode:
    @pytest.mark.parametrize(
        ("rule", "cc"),
        [("adamw", cc) for cc in ARCHITECTURES]  # the one with more numbers and tensors
        + [("lion", (7, 5)), ("lion", HOPPER), *(thorough("lion", cc) for cc in BETWEEN)],
        ids=str,
    )
    def test_float32(self, rule, cc):
        """Four blocks of 256 threads to a multiprocessor."""
        expect = (WIDE_LOAD, WIDE_STORE)
        assert_gates(kernel_of(rule), cc, signature(NUMBERS), expect, max_registers=64)

    @pytest.mark.parametrize("rule", RULES)
    def test_copies_and_numbers_in_memory(self, rule):
        kernel = kernel_of(rule, copy="bfloat16", on_device=MEMORY)
        assert_gates(kernel, (9, 0), signature(MEMORY), (WIDE_LOAD, WIDE_STORE, "STG.E.EF.64"))

    # The two differ in how a number is converted, which every other family shows of float16.
    @pytest.mark.parametrize("dtype", [thorough("float16"), "bfloat16"])
    def test_half_precision(self, dtype):
        kernel = kernel_of("adamw", (dtype, dtype, "float32"))
        assert_gates(kernel, (7, 5), signature(NUMBERS), (WIDE_LOAD, WIDE_STORE, "LDG.E.64"))
        kernel = kernel_of("lion", (dtype, "float32", dtype))
        assert_gates(kernel, (9, 0), signature(NUMBERS), (WIDE_LOAD, "LDG.E.64", "STG.E.U16"))

    def test_eight_loads_before_the_first_store(self):
        """Two groups of four tensors are on their way together."""
        text = kernel_of("adamw").sass((9, 0), signature=signature(NUMBERS))
        loads = [line for line in text.splitlines() if "LDG.E" in line and ".128" in line]
        before = text[: text.index("STG.E")]
        assert len(loads) == 8
        assert sum(line in before for line in loads) == 8

    def test_first_rung(self):
        array, number = "float32[:]", "float32"
        assert_gates(adamw_elements, (9, 0), (array,) * 4 + (number,) * 11)
        assert_gates(lion_elements, (7, 5), ("bfloat16[:]",) * 2 + (array,) + (number,) * 7)
