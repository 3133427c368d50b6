"""Formulas as MathML, made when the book is built: no script, no network, no font to load.

Every current browser sets MathML itself, and screen readers read it. docutils does the translation;
it knows the usual LaTeX. A formula that it does not know is reported with its place in the source,
which fails the build: better than a page with raw LaTeX on it.
"""

import re

from docutils.utils.math import MathError, latex2mathml

# What docutils lacks, in terms of what it has.
SPELLED = (
    (r"\\(?:big|Big|bigg|Bigg)[lrm]?(?![A-Za-z])", ""),
    (r"\\dots[bcimo]?(?![A-Za-z])", r"\\ldots "),
    (r"\\iff(?![A-Za-z])", r"\\Longleftrightarrow "),
    (r"\\implies(?![A-Za-z])", r"\\Longrightarrow "),
    (r"\\texttt(?![A-Za-z])", r"\\mathtt"),
    ("‖", r"\\Vert "),
    ("·", r"\\cdot "),
)
# MathML puts no space between ln and x; TeX does, except before a bracket.
APPLIED = re.compile(
    r"(<mo>&ApplyFunction;</mo>)(?!\s*<mo[^>]*>[(\[{])(?!\s*<mrow>\s*<mo[^>]*>[(\[{])"
)
THIN_SPACE = '<mspace width="0.17em"></mspace>'


def to_mathml(latex: str, block: bool) -> str:
    """A formula as a <math> element; ValueError says what in it is not understood."""
    bare = re.sub(r"\\.", "", latex)
    if bare.count("{") != bare.count("}"):  # docutils closes what is open without a word
        raise ValueError(f"formula {latex!r} is not understood: {{ and }} do not match")
    text = latex
    for pattern, plain in SPELLED:
        text = re.sub(pattern, plain, text)
    try:
        result = latex2mathml.tex2mathml(text.strip(), as_block=block)
    except (MathError, SyntaxError) as error:
        raise ValueError(f"formula {latex!r} is not understood: {error}") from None
    return APPLIED.sub(r"\1" + THIN_SPACE, result)
