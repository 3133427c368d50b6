"""Compiling: when it happens, what is kept on disk, and that it works where nothing can be kept."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minilm

PACKAGE = Path(minilm.__file__).parent
KERNELS = ("splitter", "words", "counter", "merger", "encoder")


def run(code: str, **environment: str) -> str:
    """Run Python code in a fresh process; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=PACKAGE.parent,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_small_inputs_never_import_numba():
    """Nothing compiled, nothing to wait for: training on 10 kB and encoding it."""
    code = """
import sys, time
from minilm.tokenizer import Tokenizer
from minilm.bench_tokenizer import corpus_prefix
texts = corpus_prefix(10_000)
start = time.perf_counter()
tok = Tokenizer.train(texts, 512)
assert tok.decode(tok.encode(texts[0])) == texts[0]
print(time.perf_counter() - start, "numba" in sys.modules)
"""
    seconds, numba = run(code).split()
    assert numba == "False"
    assert float(seconds) < 5  # a hang or a compiler, not a measurement


def test_large_inputs_are_compiled_and_many_small_ones_too():
    code = """
import sys
from minilm import tokenizer
from minilm.tokenizer import Tokenizer
tok = Tokenizer.train(["some text"], 260)
for k in range(3 * tokenizer.PLAIN_BYTES // 100_000):
    if "minilm.encoder" in sys.modules:
        break
    tok.encode("some text " * 10_000)
print(k, "minilm.encoder" in sys.modules)
"""
    k, compiled = run(code).split()
    assert compiled == "True" and int(k) > 5


def test_kernels_work_where_numba_finds_no_folder(monkeypatch):
    """Numba raises RuntimeError then; the kernel is compiled all the same."""
    import numba
    from numba import types

    from minilm import compiled

    njit, asked = numba.njit, []

    def without_folder(*args, cache=False, **options):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **options)

    monkeypatch.setattr(compiled.numba, "njit", without_folder)
    double = compiled.kernel(types.int64)(lambda x: 2 * x)
    assert double(21) == 42
    assert asked == [True, False]


def test_kernels_work_when_the_disk_is_full(tmp_path, monkeypatch):
    from numba import types
    from numba.core.caching import IndexDataCacheFile

    from minilm import compiled

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    treble = compiled.kernel(types.int64)(_treble)
    assert treble(14) == 42


def _treble(x):
    return 3 * x


def test_each_kernel_is_compiled_for_one_signature_only():
    import importlib

    from numba.core.dispatcher import Dispatcher

    for name in KERNELS:
        module = importlib.import_module(f"minilm.{name}")
        kernels = [
            value
            for value in vars(module).values()
            if isinstance(value, Dispatcher) and not value._can_compile
        ]
        assert kernels, name
        assert all(len(kernel.signatures) == 1 for kernel in kernels)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_call_nothing_of_another_file(name):
    """Numba's cache would not notice a change there, and run old code."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    compiled = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and node.decorator_list
        and any("kernel" in ast.dump(d) or "helper" in ast.dump(d) for d in node.decorator_list)
    ]
    assert compiled
    for function in compiled:
        body = [n for statement in function.body for n in ast.walk(statement)]
        used = {n.id for n in body if isinstance(n, ast.Name)}
        assert not used & imported, function.name
