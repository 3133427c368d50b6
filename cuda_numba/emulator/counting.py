"""What a traced copy counts: the operations, line by line, of each piece of straight-line code."""

import ast
from typing import Any

from .source import cuda_path, is_instruction
from .trace import Chunk, Counts
from .twins import TWINS

THREADS_OF = {"warp": 32, "warpgroup": 128}


class Counting:
    """The part of the rewriter that makes a copy count."""

    program: Any
    source: Any
    types: Any
    traced: bool

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


def add_counts(total: Counts, more: Counts) -> None:
    for kind, n in more.flops.items():
        total.flops[kind] = total.flops.get(kind, 0) + n
    total.tensor_flops += more.tensor_flops
    total.barriers += more.barriers
    total.promotions += more.promotions
    total.long_integer += more.long_integer
