"""Every kernel of the package compiles when its body is moved under plain `numba.cuda.jit`.

`assert_gates` compiles the kernel's Python function with `numba.cuda.compile`, as plain
`numba.cuda.jit` would, and looks at the result. Here the package's sources are read for kernels:
each is named where a test asserts gates (itself, the function that makes it or a table that holds
it), or it is compiled below, or the test fails and names it.
"""

import ast
import functools
from importlib import import_module
from pathlib import Path

import pytest

import cuda_numba
from cuda_numba.toolchain import has_compiler

HERE, PACKAGE = Path(__file__).parent, Path(cuda_numba.__file__).parent
LOOKS_AT_CODE = {"assert_gates", "check_gates", "ptx", "sass", "code", "compile_kernel"}

# Kernels whose code nobody judges: signatures to compile them for.
F32, U32 = "float32[:]", "uint32[:]"
ONLY_COMPILED = {
    "copy_apart": (F32, F32, "int32", "int32"),
    "multiply_add": (F32, F32, F32),
    "write_behind": (F32,),
    "read_without_barrier": (F32, F32),
    "copy_unwritten": (F32, F32),
    "meet_in_part": (F32, F32),
    "copy_async": (U32, U32),
    "matrix_product": (U32, U32, F32),
    "copy_boxes": ("uint64", "uint64", U32, "int32", "int32"),
    "warpgroup": (U32, U32, F32),
}


def kernels_in(tree):
    """(name, other names that it goes by) of each function with @jit in a module.

    Other names: of the function that makes it, and of the module's tables that hold it.
    """
    tables = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            for name in names_in(node.value):
                tables.setdefault(name, set()).add(node.targets[0].id)
    for name, maker in _kernels(tree):
        yield name, sorted({maker, *tables.get(name, ())} - {None})


def _kernels(tree):

    def walk(node, maker):
        for child in ast.iter_child_nodes(node):
            inner = maker
            if isinstance(child, ast.FunctionDef):
                if any(_is_kernel(decorator) for decorator in child.decorator_list):
                    yield child.name, maker
                inner = maker or child.name
            yield from walk(child, inner)

    return walk(tree, None)


def _is_kernel(decorator):
    call = decorator if isinstance(decorator, ast.Call) else None
    name = call.func if call else decorator
    is_device = call and any(
        k.arg == "device" and getattr(k.value, "value", True) for k in call.keywords
    )
    return isinstance(name, ast.Name) and name.id == "jit" and not is_device


def names_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.asname or node.name


@functools.cache
def compiled_in_tests():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in HERE.glob("*.py")]
    names = [set(names_in(tree)) for tree in trees]
    return set().union(*(found for found in names if found & LOOKS_AT_CODE))


KERNELS = [
    (path.stem, name, others)
    for path in sorted(PACKAGE.glob("*.py"))
    for name, others in kernels_in(ast.parse(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("module", "name", "others"), KERNELS, ids=lambda x: str(x))
def test_a_kernel_is_compiled(module, name, others):
    if {name, *others} & compiled_in_tests():
        return
    assert name in ONLY_COMPILED, (
        f"{module}.{name}: no test compiles it; assert_gates of it in a test_*_code.py"
    )
    if not has_compiler():
        pytest.skip("numba-cuda and libNVVM are not installed")
    from numba import cuda

    kernel = getattr(import_module(f"cuda_numba.{module}"), name)
    signature = kernel.signature(ONLY_COMPILED[name])
    ptx, _ = cuda.compile(kernel.function, signature, cc=(9, 0, "a"), device=False, abi="numba")
    assert ".entry" in ptx


def test_kernels_are_found_and_a_missing_one_is_noticed():
    found = [name for _, name, _ in KERNELS]
    assert {"add_elements", "add_vectors", "softmax_forward", "sum_shuffle"} <= set(found)
    source = """
@jit(device=True)
def helper(x): ...
def make_it(n):
    @jit(pointers=True)
    def made(x): ...
@jit
def plain(x): ...
TABLE = {"plain": plain}
"""
    assert list(kernels_in(ast.parse(source))) == [("made", ["make_it"]), ("plain", ["TABLE"])]
    assert not compiled_in_tests() & {"plain_that_" + "nobody_wrote"}
