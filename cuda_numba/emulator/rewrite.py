"""A kernel's function, rewritten into Python that the emulator can run.

The copy has the same statements on the same lines. What changes:

- names of the `cuda` namespace, `ptx` instructions and device functions become calls into the
  emulator;
- arithmetic follows Numba's types, not Python's (`arithmetic`);
- elements are read and written through the types of their arrays; a traced copy records each;
- a traced copy counts the pieces of straight-line code, the branches and the loop iterations.

Injected names start with `_e_`, which a kernel's own names may not.
"""

import ast
import copy
import inspect
from typing import Any

from numba.core import types

from . import arithmetic
from .batch import batched
from .errors import UnsupportedSyntax
from .infer import infer
from .source import (
    MISSING,
    CudaName,
    Source,
    cuda_path,
    is_device_function,
    is_instruction,
    python_function,
)
from .trace import Branch, Chunk, Counts
from .twins import TWINS

# Instructions that a kernel may wait with, by the beginning of their names.
WAITING = ("atomic", "load_acquire", "load_volatile", "flag", "compare_and_swap")
THREADS_OF = {"warp": 32, "warpgroup": 128}
DIMS = {"threadIdx", "blockIdx", "blockDim", "gridDim"}


def name(identifier: str) -> ast.Name:
    return ast.Name(identifier, ast.Load())


def call(function: str, *args: ast.expr) -> ast.Call:
    return ast.Call(name(function), list(args), [])


def constant(value: Any) -> ast.Constant:
    return ast.Constant(value)


class Rewriter:
    """Rewrites one function for given argument types, into a program's table of bindings."""

    def __init__(self, program: Any, source: Source, argument_types: list[Any], unit: str):
        self.program, self.source, self.unit = program, source, unit
        self.traced = program.traced
        self.tree = desugar(copy.deepcopy(source.tree), source)
        self.types = infer(self.tree, source, argument_types, program.resolve_call)
        self.counter = 0
        self.direct = False  # elements are read without hooks: see batch

    # ---- helpers ------------------------------------------------------------------------------

    def fail(self, node: ast.AST, message: str) -> UnsupportedSyntax:
        return UnsupportedSyntax(f"{self.source.name}, line {node.lineno}: {message}")

    def temporary(self) -> str:
        self.counter += 1
        return f"_e_{self.counter}"

    def origin(self, node: ast.AST) -> tuple:
        """Where a site is: line, column, text, function, file."""
        text = ast.unparse(node) if not isinstance(node, ast.stmt) else ""
        return node.lineno, node.col_offset, text, self.source.name, self.source.filename

    def keep(self, new: ast.expr, old: ast.expr) -> ast.expr:
        """Give a rewritten expression the place and the type of the one that it replaces."""
        self.types.keep(new, old)
        return ast.fix_missing_locations(ast.copy_location(new, old))

    # ---- statements ---------------------------------------------------------------------------

    def function(self) -> ast.FunctionDef:
        tree = self.tree
        body = self.block(tree.body)
        new = ast.FunctionDef(self.unit, tree.args, body, [], None)
        new.args.defaults = []
        for a in new.args.args:
            a.annotation = None
        if hasattr(ast, "TypeVar"):  # Python 3.12 has type parameters
            new.type_params = []
        return ast.fix_missing_locations(ast.copy_location(new, tree))

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Rewritten statements; in a traced copy each run of simple ones is counted."""
        out: list[ast.stmt] = []
        run: list[ast.stmt] = []
        head: list[ast.stmt] = []
        for statement in filter(self.types.reached, statements):
            new = self.statement(statement)
            run.append(statement)
            head += new
            if isinstance(statement, ast.If | ast.For | ast.While | ast.Return):
                out += self.counted(run, head)
                run, head = [], []
        return (out + self.counted(run, head)) or [ast.Pass()]

    def counted(self, run: list[ast.stmt], rewritten: list[ast.stmt]) -> list[ast.stmt]:
        if not self.traced or not run:
            return rewritten
        lines: dict[int, Counts] = {}
        for statement in run:
            self.count(statement, lines)
        if not lines:
            return rewritten
        index = len(self.program.chunks)
        self.program.chunks.append(Chunk(lines, self.source.name, self.source.filename))
        hit = ast.parse(f"_e_hits[{index}] += 1").body[0]
        for node in ast.walk(hit):
            ast.copy_location(node, run[0])
        return [hit, *rewritten]

    def count(self, statement: ast.stmt, lines: dict[int, Counts]) -> None:
        """The operations of one statement's own expressions (a loop's body counts for itself)."""
        parts: list[ast.AST] = [statement]
        if isinstance(statement, ast.If | ast.While):
            parts = [statement.test] if isinstance(statement, ast.If) else []
        elif isinstance(statement, ast.For):
            parts = [statement.iter]
        for part in parts:
            self.count_expression(part, lines)

    def count_expression(self, part: ast.AST, lines: dict[int, Counts]) -> None:
        for node in ast.walk(part):
            line = getattr(node, "lineno", None)
            if line is None:
                continue
            flops = self.types.flops(node)
            counts = Counts(flops=dict(flops)) if flops else None
            if isinstance(node, ast.Call):
                counts = self.count_call(node, counts)
            if node in self.types.promoted:
                counts = counts or Counts()
                counts.promotions = 1
            if node in self.types.long:
                counts = counts or Counts()
                counts.long_integer = 1
            if counts is not None:
                add_counts(lines.setdefault(line, Counts()), counts)

    def count_call(self, node: ast.Call, counts: Counts | None) -> Counts | None:
        value = self.source.value(node.func)
        path = cuda_path(value)
        if path in TWINS and TWINS[path].barrier:
            counts = counts or Counts()
            counts.barriers = 1
        if is_instruction(value) and value.flops:
            counts = counts or Counts()
            if value.tensor:
                # The instruction's flops are those of all its threads; this is a thread's share.
                counts.tensor_flops = value.flops // THREADS_OF.get(value.scope, 1)
            else:
                counts.flops["float32"] = counts.flops.get("float32", 0) + value.flops
        return counts

    def statement(self, node: ast.stmt) -> list[ast.stmt]:
        method = getattr(self, f"do_{type(node).__name__}", None)
        if method is None:
            raise self.fail(node, f"`{type(node).__name__.lower()}` cannot be used in a kernel")
        new = method(node)
        new = new if isinstance(new, list) else [new]
        return [ast.fix_missing_locations(ast.copy_location(s, node)) for s in new]

    def do_Expr(self, node: ast.Expr) -> ast.stmt:
        if isinstance(node.value, ast.Constant):  # a docstring
            return ast.Pass()
        return ast.Expr(self.expression(node.value))

    def do_Pass(self, node: ast.Pass) -> ast.stmt:
        return node

    do_Break = do_Continue = do_Pass

    def do_Assert(self, node: ast.Assert) -> ast.stmt:
        return ast.Assert(self.expression(node.test), node.msg)

    def do_Raise(self, node: ast.Raise) -> ast.stmt:
        return node

    def do_Return(self, node: ast.Return) -> ast.stmt:
        if node.value is None:
            return ast.Return(None)
        return ast.Return(self.types.returned(node, self.expression(node.value)))

    def do_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is None:
            return ast.Pass()
        return self.do_Assign(ast.copy_location(ast.Assign([node.target], node.value), node))

    def do_Assign(self, node: ast.Assign) -> ast.stmt | list[ast.stmt]:
        if len(node.targets) == 1:
            return self.assign(node.targets[0], node.value, self.expression(node.value))
        kept = self.temporary()
        value = self.keep(name(kept), node.value)
        out: list[ast.stmt] = [
            ast.Assign([ast.Name(kept, ast.Store())], self.expression(node.value))
        ]
        for target in node.targets:
            found = self.assign(target, node.value, value)
            out += found if isinstance(found, list) else [found]
        return out

    def assign(self, target: ast.expr, value: ast.expr, new: ast.expr) -> Any:
        if isinstance(target, ast.Name):
            return ast.Assign([target], self.types.variable_cast(target, value, new))
        if isinstance(target, ast.Subscript):
            return self.store(target, value, new)
        if isinstance(target, ast.Tuple):
            if all(isinstance(t, ast.Name) for t in target.elts):
                return ast.Assign([target], new)
            kept = self.temporary()
            out: list[ast.stmt] = [ast.Assign([ast.Name(kept, ast.Store())], new)]
            for i, part in enumerate(target.elts):
                item = ast.Subscript(name(kept), constant(i), ast.Load())
                ast.fix_missing_locations(ast.copy_location(item, value))
                if isinstance(value, ast.Tuple):
                    self.types.give(item, self.types.of(value.elts[i]))
                found = self.assign(part, item, item)
                out += found if isinstance(found, list) else [found]
            return out
        raise self.fail(target, f"cannot assign to `{ast.unparse(target)}` in a kernel")

    def do_If(self, node: ast.If) -> ast.stmt:
        return ast.If(
            self.branch(node, node.test), self.block(node.body),
            self.block(node.orelse) if node.orelse else [],
        )  # fmt: skip

    def branch(self, node: ast.AST, test: ast.expr) -> ast.expr:
        new = self.expression(test)
        if not self.traced:
            return new
        sites = self.program.branch_sites
        sites.append(Branch(node.lineno, ast.unparse(test), self.source.name, self.source.filename))
        return self.keep(call("_e_branch", constant(len(sites) - 1), new), test)

    def do_While(self, node: ast.While) -> Any:
        if node.orelse:
            raise self.fail(node, "`else` after a loop cannot be used in a kernel")
        if self.waits_for_others(node):
            self.program.spins = self.program.switches = True
        turn = self.temporary_turn(node)
        return self.loop(
            node, lambda body: ast.While(self.branch(node, node.test), turn + body, [])
        )

    def temporary_turn(self, node: ast.While) -> list[ast.stmt]:
        """In a loop of nothing but its test, the place where others get their turn."""
        if not all(isinstance(s, ast.Pass) for s in node.body):
            return []
        turn = ast.parse("_e_m.t.spin()").body
        for part in ast.walk(turn[0]):
            ast.copy_location(part, node)
        return turn

    def waits_for_others(self, node: ast.While) -> bool:
        """Whether a loop may wait for another thread: it holds an atomic operation, or an
        instruction that reads memory, or nothing but its test."""
        for part in ast.walk(node):
            if isinstance(part, ast.Call):
                value = self.source.value(part.func)
                path = cuda_path(value) or ""
                if path.startswith("atomic.") or path in ("ldcv", "ldcg", "nanosleep"):
                    return True
                if is_instruction(value) and value.name.startswith(WAITING):
                    return True
        return all(isinstance(s, ast.Pass) for s in node.body)

    def do_For(self, node: ast.For) -> Any:
        if node.orelse:
            raise self.fail(node, "`else` after a loop cannot be used in a kernel")
        return self.loop(
            node, lambda body: ast.For(node.target, self.expression(node.iter), body, [])
        )

    def loop(self, node: ast.For | ast.While, make: Any) -> Any:
        """A loop; in a traced copy each iteration is a path of its own."""
        if not self.traced:
            return make(self.block(node.body))
        sites = self.program.loop_sites
        text = ast.unparse(node.iter if isinstance(node, ast.For) else node.test)
        sites.append(Branch(node.lineno, text, self.source.name, self.source.filename))
        place, outer, trips = len(sites) - 1, self.temporary(), self.temporary()
        before = ast.parse(f"{outer} = _e_enter({place})\n{trips} = 0").body
        inside = ast.parse(f"{trips} = _e_step({outer}, {place}, {trips})").body
        after = ast.parse(f"_e_leave({outer}, {place}, {trips})").body
        body = inside + self.block(node.body)
        if isinstance(node, ast.While):  # its test belongs to the iteration that it opens
            counts: dict[int, Counts] = {}
            self.count_expression(node.test, counts)
            if counts:
                index = len(self.program.chunks)
                self.program.chunks.append(Chunk(counts, self.source.name, self.source.filename))
                body = ast.parse(f"_e_hits[{index}] += 1").body + body
        for statement in (*before, *inside, *after, *body[:1]):
            for part in ast.walk(statement):
                ast.copy_location(part, node)
        quick = batched(self, node, outer, place, trips, body)
        return [*before, *(quick or [make(body)]), *after]

    # ---- expressions --------------------------------------------------------------------------

    def expression(self, node: ast.expr) -> ast.expr:
        method = getattr(self, f"ex_{type(node).__name__}", None)
        if method is None:
            raise self.fail(node, f"`{ast.unparse(node)}` cannot be used in a kernel")
        return self.keep(method(node), node)

    def ex_Name(self, node: ast.Name) -> ast.expr:
        if node.id.startswith("_e_"):
            raise self.fail(node, f"{node.id}: names that start with _e_ are the emulator's")
        if node.id in self.source.locals:
            return arithmetic.emit(node, self.types)
        value = self.source.value(node)
        if value is MISSING:
            raise self.fail(node, f"name {node.id!r} is not defined")
        return self.global_value(node, value)

    def global_value(self, node: ast.expr, value: Any) -> ast.expr:
        """A constant from outside the kernel: numbers as Numba types them, arrays as they are."""
        literal = arithmetic.literal(value)
        if literal is not None:
            return literal
        return name(self.program.bind_value(value))

    def ex_Constant(self, node: ast.Constant) -> ast.expr:
        return arithmetic.emit(node, self.types)

    def ex_Tuple(self, node: ast.Tuple) -> ast.expr:
        return ast.Tuple([self.expression(e) for e in node.elts], ast.Load())

    ex_List = ex_Tuple

    def ex_BinOp(self, node: ast.BinOp) -> ast.expr:
        new = ast.BinOp(self.expression(node.left), node.op, self.expression(node.right))
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        new = ast.UnaryOp(node.op, self.expression(node.operand))
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_Compare(self, node: ast.Compare) -> ast.expr:
        new = ast.Compare(
            self.expression(node.left), node.ops, [self.expression(c) for c in node.comparators]
        )
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        new = ast.BoolOp(node.op, [self.expression(v) for v in node.values])
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_IfExp(self, node: ast.IfExp) -> ast.expr:
        new = ast.IfExp(
            self.branch(node, node.test), self.expression(node.body), self.expression(node.orelse)
        )
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_Attribute(self, node: ast.Attribute) -> ast.expr:
        value = self.source.value(node)
        if isinstance(value, CudaName):
            return self.cuda_attribute(node, str(value))
        if value is not MISSING:
            return self.global_value(node, value)
        base = cuda_path(self.source.value(node.value))
        if base in DIMS:
            return self.cuda_attribute(node, f"{base}.{node.attr}")
        return ast.Attribute(self.expression(node.value), node.attr, ast.Load())

    def cuda_attribute(self, node: ast.expr, path: str) -> ast.expr:
        base, _, axis = path.rpartition(".")
        text = {
            "threadIdx": f"_e_m.t.{axis}",
            "blockIdx": f"_e_m.t.block.{axis}",
            "blockDim": f"_e_block_{axis}",
            "gridDim": f"_e_grid_{axis}",
        }.get(base)
        if path == "warpsize":
            text = "32"
        elif path == "laneid":
            text = "_e_m.t.lane"
        elif path in DIMS:
            text = f"_e_{path}"
        if text is None:
            raise self.fail(node, f"cuda.{path}: the emulator does not know this name")
        return ast.parse(text, mode="eval").body

    # ---- memory -------------------------------------------------------------------------------

    def ex_Subscript(self, node: ast.Subscript) -> ast.expr:
        base, index = self.expression(node.value), self.index(node.slice)
        kind = self.types.access(node)  # "element", "view", "tuple" or None where not inferred
        if kind == "tuple":
            return ast.Subscript(base, index, ast.Load())
        if self.direct:
            base = ast.Attribute(base, "a", ast.Load())  # of a View
        elif self.traced:
            return self.traced_load(node, base, index, kind)
        if kind == "view":
            return ast.Subscript(base, index, ast.Load())
        if kind != "element":
            return call("_e_item", base, index)
        if self.types.is_integer_element(node):
            items = index.elts if isinstance(index, ast.Tuple) else [index]
            return ast.Call(ast.Attribute(base, "item", ast.Load()), items, [])
        return ast.Subscript(base, index, ast.Load())

    def traced_load(self, node: ast.Subscript, base: ast.expr, index: ast.expr, kind: Any):
        place = constant(self.program.bind_place(self.origin(node), "load"))
        items = self.quick_index(node) if kind == "element" else 0
        if items == 2:
            return call("_e_get2", place, base, *index.elts)
        return call("_e_get1" if items == 1 else "_e_load", place, base, index)

    def traced_store(self, target, value, base, index, new, dtype) -> ast.expr:
        place = constant(self.program.bind_place(self.origin(target), "store"))
        if dtype is not None:
            new = arithmetic.store_cast(new, self.types.value(value), dtype)
            items = self.quick_index(target)
            if items == 2:
                return call("_e_set2", place, base, *index.elts, new)
            if items == 1:
                return call("_e_set1", place, base, index, new)
        return call("_e_store", place, base, index, new)

    def quick_index(self, node: ast.Subscript) -> int:
        """1 or 2 for an index of so many integers, else 0."""
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if all(isinstance(self.types.of(i), types.Integer) for i in items) and len(items) <= 2:
            return len(items)
        return 0

    def index(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Slice):
            parts = [None if p is None else self.expression(p)
                     for p in (node.lower, node.upper, node.step)]  # fmt: skip
            return ast.copy_location(ast.Slice(*parts), node)
        if isinstance(node, ast.Tuple):
            return ast.copy_location(
                ast.Tuple([self.index(e) for e in node.elts], ast.Load()), node
            )
        return self.expression(node)

    def store(self, target: ast.Subscript, value: ast.expr, new: ast.expr) -> ast.stmt:
        base, index = self.expression(target.value), self.index(target.slice)
        dtype = self.types.element_type(target)
        if self.traced:
            return ast.Expr(self.traced_store(target, value, base, index, new, dtype))
        if dtype is None:
            return ast.Expr(call("_e_assign", base, index, new))
        cast = arithmetic.store_cast(new, self.types.value(value), dtype)
        return ast.Assign([ast.Subscript(base, index, ast.Store())], cast)

    # ---- calls --------------------------------------------------------------------------------

    def ex_Call(self, node: ast.Call) -> ast.expr:
        value = self.source.value(node.func)
        args = [self.expression(a) for a in node.args]
        keywords = [ast.keyword(k.arg, self.expression(k.value)) for k in node.keywords]
        path = cuda_path(value)
        if path is not None:
            return self.twin(node, path, args, keywords)
        if value is MISSING:
            return self.method(node, args, keywords)
        if is_instruction(value):
            return ast.Call(name(self.program.bind_instruction(value, self.origin(node))), args, [])
        if is_device_function(value):
            kinds = [self.types.of(a) for a in node.args]
            function = self.program.unit(value, kinds)
            if not self.traced:
                return ast.Call(name(function), args, [])
            place = self.program.bind_call(self.origin(node))
            return call("_e_call", constant(place), name(function), *args)
        new = arithmetic.emit(self.keep(ast.Call(node.func, args, keywords), node), self.types)
        if new is None:
            raise self.fail(node, f"`{ast.unparse(node.func)}` cannot be called in a kernel")
        return new

    def twin(self, node: ast.Call, path: str, args: list, keywords: list) -> ast.expr:
        if path not in TWINS or path in arithmetic.COMPUTING:
            new = arithmetic.emit(self.keep(ast.Call(node.func, args, keywords), node), self.types)
            if new is None:
                raise self.fail(node, f"cuda.{path}: the emulator does not know this name")
            return new
        if path in ("shared.array", "local.array") and not self.types.is_dtype_call(node):
            args = self.array_arguments(node, args, keywords)
            keywords = []
        return ast.Call(
            name(self.program.bind_twin(TWINS[path], self.origin(node))), args, keywords
        )

    def array_arguments(self, node: ast.Call, args: list, keywords: list) -> list:
        """shape, dtype and alignment of an array, in this order."""
        given = dict(zip(("shape", "dtype", "alignment"), args, strict=False))
        given |= {k.arg: k.value for k in keywords}
        return [given.get(key, constant(None)) for key in ("shape", "dtype", "alignment")]

    def method(self, node: ast.Call, args: list, keywords: list) -> ast.expr:
        """A call on a value of the kernel: `grid.sync()`."""
        if isinstance(node.func, ast.Attribute):
            base = self.expression(node.func.value)
            if node.func.attr == "sync":
                self.program.switches = self.program.cooperative = True
            return ast.Call(ast.Attribute(base, node.func.attr, ast.Load()), args, keywords)
        raise self.fail(node, f"`{ast.unparse(node.func)}` cannot be called in a kernel")


def add_counts(total: Counts, more: Counts) -> None:
    for kind, n in more.flops.items():
        total.flops[kind] = total.flops.get(kind, 0) + n
    total.tensor_flops += more.tensor_flops
    total.barriers += more.barriers
    total.promotions += more.promotions
    total.long_integer += more.long_integer


def desugar(tree: ast.FunctionDef, source: Source) -> ast.FunctionDef:
    """`x += v` as `x = x + v`, with an index evaluated once where it could do something; calls of
    device functions with every argument in its place."""
    return ast.fix_missing_locations(Desugar(source).visit(tree))


class Desugar(ast.NodeTransformer):
    def __init__(self, source: Source) -> None:
        self.counter = 0
        self.source = source

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        value = self.source.value(node.func)
        if not is_device_function(value):
            return node
        function = python_function(value)
        given = {k.arg: k.value for k in node.keywords}
        try:
            bound = inspect.signature(function).bind(*node.args, **given)
        except TypeError as error:
            raise UnsupportedSyntax(
                f"{self.source.name}, line {node.lineno}: {function.__name__}: {error}"
            ) from None
        bound.apply_defaults()
        node.args = [
            a if isinstance(a, ast.AST) else ast.copy_location(ast.Constant(a), node)
            for a in bound.args
        ]
        node.keywords = []
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        self.generic_visit(node)
        before: list[ast.stmt] = []
        target = node.target
        if isinstance(target, ast.Subscript):
            base = self.once(target.value, before)
            index = self.once(target.slice, before)
            target = ast.Subscript(base, index, ast.Store())
        read = copy.deepcopy(target)
        read.ctx = ast.Load()
        value = ast.BinOp(read, node.op, node.value)
        statements = [*before, ast.Assign([target], value)]
        for statement in statements:
            for part in ast.walk(statement):
                if not hasattr(part, "lineno"):
                    ast.copy_location(part, node)
        return statements

    def once(self, node: ast.expr, before: list[ast.stmt]) -> ast.expr:
        """A node that may be written twice: itself if it holds no call, else a new variable."""
        if not any(isinstance(part, ast.Call) for part in ast.walk(node)):
            return node
        self.counter += 1
        kept = f"index_{self.counter}_"
        before.append(ast.copy_location(ast.Assign([ast.Name(kept, ast.Store())], node), node))
        return ast.copy_location(ast.Name(kept, ast.Load()), node)
