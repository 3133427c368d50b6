"""Statements, rewritten."""

import ast
from typing import Any

from .batch import batched
from .counting import Counting
from .operations import call, name
from .source import cuda_path, is_instruction
from .trace import Branch, Chunk, Counts

# Instructions that a kernel may wait with, by the beginning of their names.
WAITING = ("atomic", "load_acquire", "load_volatile", "flag", "compare_and_swap")


class StatementRewriter(Counting):
    """Methods `do_…`, one for each kind of statement; each gives a statement or a list of them."""

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
                item = ast.Subscript(name(kept), ast.Constant(i), ast.Load())
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
        return self.keep(call("_e_branch", ast.Constant(len(sites) - 1), new), test)

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
