"""Loops that only read and add: their accesses are written down once for the whole loop.

    for j in range(16):
        total += sa[ty, j] * sb[j, tx]

In such a loop each index moves by the same step every time, so the first element, the step and the
number of trips say all there is to log. The rewritten loop asks `Tracer.batch`; where that finds
every element inside its array, the loop runs without hooks, else (an index out of bounds, a local
array, a seed that lets others go first in between) as any other loop does.

What qualifies: a `range` with simple assignments to variables, whose elements are indexed by sums
and products that are linear in the loop's variable. That an index has wrapped around its type is
seen when it runs: the last one is then not where the first two point to.
"""

import ast
from typing import Any

from .source import MISSING, cuda_path, is_device_function, is_instruction

FORBIDDEN = (ast.IfExp, ast.BoolOp, ast.NamedExpr, ast.Starred, ast.Lambda, ast.Slice)


def batched(rewriter: Any, node: Any, outer: str, place: int, trips: str, slow: list) -> Any:
    """The statements of both forms of a loop, or None if it does not qualify.

    outer, trips: the variables that hold the loop's paths and its number of trips; slow: its body
    with hooks.
    """
    loads = find_loads(rewriter, node)
    if not loads:
        return None
    over, ends, ran = (rewriter.temporary() for _ in range(3))
    moments = [rewriter.temporary() for _ in range(3)]
    test: list[ast.stmt] = []
    for k, moment in enumerate(moments):  # all indices in the first, second and last trip
        test += statements(f"{node.target.id} = {ends}[{k}]")
        indices = [part for x in loads for part in index_parts(rewriter, x)]
        test.append(store(moment, ast.Tuple(indices, ast.Load())))
    origins = [(rewriter.program.bind_place(rewriter.origin(x), "load"), rank(x)) for x in loads]
    static = rewriter.program.bind_value(tuple(origins))
    asked = statements(
        f"{ran} = _e_batch({outer}, {place}, {over}, {static}, 0, {', '.join(moments)})"
    )
    asked[0].value.args[4] = ast.Tuple([rewriter.expression(x.value) for x in loads], ast.Load())
    fast = statements(f"{trips} = {ran}")
    fast += [hit(s, ran) for s in slow if is_hit(s)]
    rewriter.direct = True
    body = [new for s in node.body for new in rewriter.statement(s)]
    rewriter.direct = False
    fast.append(ast.For(node.target, name(over), body, []))
    return [
        store(over, rewriter.expression(node.iter)),
        *statements(f"{ran} = 0\n{ends} = _e_ends({over})"),
        ast.If(name(ends), test + asked, []),
        ast.If(name(ran), fast, [ast.For(node.target, name(over), slow, [])]),
    ]


# ---- what qualifies -----------------------------------------------------------------------------


def find_loads(rewriter: Any, node: Any) -> list[ast.Subscript] | None:
    """The elements that the loop's body reads, or None if the loop does not qualify."""
    if not isinstance(node, ast.For) or not isinstance(node.target, ast.Name):
        return None
    counts = isinstance(node.iter, ast.Call) and rewriter.source.value(node.iter.func) is range
    if not counts or not all(is_simple(s) for s in node.body):
        return None
    changed = {s.targets[0].id for s in node.body}
    if node.target.id in changed:
        return None
    loads: list[ast.Subscript] = []
    for statement in node.body:
        if not collect(rewriter, statement.value, changed, node.target.id, loads):
            return None
    return loads


def is_simple(s: ast.stmt) -> bool:
    return isinstance(s, ast.Assign) and len(s.targets) == 1 and isinstance(s.targets[0], ast.Name)


def collect(rewriter: Any, node: ast.expr, changed: set, variable: str, loads: list) -> bool:
    """Add the elements read in an expression to `loads`; False if it must have hooks."""
    if isinstance(node, FORBIDDEN) or (isinstance(node, ast.Compare) and len(node.ops) > 1):
        return False
    if isinstance(node, ast.Call) and not computes(rewriter, node):
        return False
    if isinstance(node, ast.Subscript):
        kind = rewriter.types.access(node)
        if kind == "element":
            loads.append(node)
            return is_linear_load(rewriter, node, changed, variable)
        if kind != "tuple":
            return False
    return all(
        collect(rewriter, child, changed, variable, loads)
        for child in ast.iter_child_nodes(node)
        if isinstance(child, ast.expr)
    )


def computes(rewriter: Any, node: ast.Call) -> bool:
    """Whether a call only computes: a cast, a function of `math`, a pure instruction."""
    value = rewriter.source.value(node.func)
    if value is MISSING or cuda_path(value) is not None or is_device_function(value):
        return False
    return not is_instruction(value) or value.scope == "pure"


def is_linear_load(rewriter: Any, node: ast.Subscript, changed: set, variable: str) -> bool:
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return (
        isinstance(node.value, ast.Name)
        and node.value.id in rewriter.source.locals
        and node.value.id not in changed
        and rewriter.quick_index(node) == len(parts)
        and all(is_linear(part, changed, variable) for part in parts)
    )


def is_linear(node: ast.expr, changed: set, variable: str) -> bool:
    """Whether an index is linear in the variable, and otherwise the same throughout the loop."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    if names & changed:
        return False
    if variable not in names:
        return all(
            isinstance(p, ast.Name | ast.Constant | ast.Attribute | ast.BinOp | ast.UnaryOp)
            for p in ast.walk(node)
            if isinstance(p, ast.expr)
        )
    if isinstance(node, ast.Name):
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
        sides = [node.left, node.right]
        if isinstance(node.op, ast.Mult) and all(mentions(side, variable) for side in sides):
            return False
        return all(is_linear(side, changed, variable) for side in sides)
    return False


def mentions(node: ast.expr, variable: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == variable for part in ast.walk(node))


# ---- syntax trees -------------------------------------------------------------------------------


def rank(node: ast.Subscript) -> int:
    return len(node.slice.elts) if isinstance(node.slice, ast.Tuple) else 1


def index_parts(rewriter: Any, node: ast.Subscript) -> list[ast.expr]:
    index = rewriter.index(node.slice)
    return index.elts if isinstance(index, ast.Tuple) else [index]


def name(identifier: str) -> ast.Name:
    return ast.Name(identifier, ast.Load())


def store(identifier: str, value: ast.expr) -> ast.Assign:
    return ast.Assign([ast.Name(identifier, ast.Store())], value)


def statements(text: str) -> list[ast.stmt]:
    """Parsed, without places: they get the loop's."""
    parsed = ast.parse(text).body
    for statement in parsed:
        for part in ast.walk(statement):
            for attribute in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
                part.__dict__.pop(attribute, None)
    return parsed


def is_hit(s: ast.stmt) -> bool:
    return (
        isinstance(s, ast.AugAssign)
        and isinstance(s.target, ast.Subscript)
        and isinstance(s.target.value, ast.Name)
        and s.target.value.id == "_e_hits"
    )


def hit(s: ast.AugAssign, ran: str) -> ast.AugAssign:
    """A count of one trip as one of all."""
    return ast.AugAssign(s.target, s.op, name(ran))
