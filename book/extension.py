"""What Sphinx has to be told: the `{generated}` directive, formulas as MathML, plain docstrings."""

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .docstrings import to_rst
from .mathml import to_mathml
from .parts import generate

log = logging.getLogger(__name__)


class Generated(SphinxDirective):
    """`{generated} NAME ARGUMENTS`: Markdown from `parts.generate`, as if it stood here."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = False

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # what it is made from can change while the page does not
        try:
            text = generate(self.arguments[0])
        except (ValueError, FileNotFoundError) as error:
            raise self.error(str(error)) from error
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def visit_formula(translator, node: nodes.Element) -> None:
    """Write a formula; one that is not understood is a warning, and stands in the page as typed."""
    block = isinstance(node, nodes.math_block)
    try:
        html = to_mathml(node.astext(), block)
    except ValueError as error:
        log.warning(str(error), location=node)
        html = f"<code>{translator.encode(node.astext())}</code>"
    if block:
        anchor = f' id="{node["ids"][0]}"' if node["ids"] else ""
        html = f'<div class="math"{anchor}>{html}</div>\n'
    translator.body.append(html)
    raise nodes.SkipNode


def plain_docstring(app, what, name, item, options, lines: list[str]) -> None:
    """The package's docstrings have no markup: keep autodoc from reading any into them."""
    lines[:] = to_rst("\n".join(lines)).splitlines()


def skip_member(app, what, name, item, skip, options) -> bool | None:
    """Leave out what a NamedTuple writes for its fields; they stand in its signature."""
    said = getattr(item, "__doc__", None) or ""
    return True if said.startswith("Alias for field number") else None


def setup(app) -> dict:
    app.add_directive("generated", Generated)
    app.add_html_math_renderer("mathml", (visit_formula, None), (visit_formula, None))
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
