"""What the book generates is what the code and the files say; each check has a fault to catch."""

import ast
import builtins
import importlib
import json
import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import docutils.core
import pytest
import torch

from book import (
    architecture,
    choices,
    course_map,
    docstrings,
    drawing,
    graph,
    mathml,
    measured,
    parts,
    project,
)
from minilm import bench, bench_model

BOOK = project.ROOT / "book"
PAGES = sorted(BOOK.glob("*.md"))
PAGE_IDS = [page.stem for page in PAGES]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# ---- contents and pages ---------------------------------------------------------------------


def entries(toc: str) -> list[str]:
    return re.findall(r"^/notebooks/(.+)$", toc, re.MULTILINE)


def test_contents_list_every_notebook_once_and_in_order():
    names = sorted(path.stem for path in (project.ROOT / "notebooks").glob("*.ipynb"))
    assert entries(parts.toc()) == names


def toy_notebook(folder: Path, name: str, text: str) -> None:
    cell = {"cell_type": "markdown", "source": text.splitlines(keepends=True)}
    (folder / f"{name}.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")


def test_contents_follow_the_folder(tmp_path):
    for name in ("08_first_kernel", "00_start", "42_new"):
        toy_notebook(tmp_path, name, f"# Title of {name}\n\nabout 12 minutes")
    found = course_map.notebooks(tmp_path)
    toc = course_map.toc(found)
    assert entries(toc) == ["00_start", "08_first_kernel", "42_new"]
    assert re.findall(r":caption: (.+)", toc) == ["A language model", "Kernels", "Together"]
    (tmp_path / "08_first_kernel.ipynb").unlink()
    toc = course_map.toc(course_map.notebooks(tmp_path))
    assert entries(toc) == ["00_start", "42_new"] and "Kernels" not in toc


def test_routes_name_what_there_is_and_nothing_else(tmp_path):
    toy_notebook(tmp_path, "00_start", "# Start")
    toy_notebook(tmp_path, "03_head", "# 03 · A head\n\n*about 40 minutes*")
    text = course_map.routes(course_map.notebooks(tmp_path))
    assert text.count("[03 · A head](/notebooks/03_head.ipynb), about 40 minutes") == 1
    assert text.count("00_start.ipynb") == text.count("So far these are the same") == 1
    assert text.count("None of its notebooks is written yet.") == 1  # the kernels
    toy_notebook(tmp_path, "08_kernel", "# Kernel")
    text = course_map.routes(course_map.notebooks(tmp_path))
    assert text.count("08_kernel.ipynb") == text.count("03_head.ipynb") == 2
    assert text.count("00_start.ipynb") == 3
    assert "None of" not in text and "the same" not in text


def test_every_page_is_in_the_contents_and_every_link_between_pages_leads_somewhere():
    index = read(BOOK / "index.md")
    listed = re.search(r":caption: To look things up\n\n(.*?)```", index, re.DOTALL)[1].split()
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem != "index")
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(page)):
            assert (BOOK / target).exists(), f"{page.name} links to {target}"


def dead_links(path: Path) -> list[str]:
    """The relative links in a notebook's text that lead to no file."""
    cells = json.loads(read(path))["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", re.sub(r"`[^`]*`", "", text))
    return [target for target in targets if not (path.parent / target).exists()]


def test_no_notebook_links_to_what_is_not_there(tmp_path):
    notebooks = sorted((project.ROOT / "notebooks").glob("*.ipynb"))
    dead = {path.name: dead_links(path) for path in notebooks}
    assert {name: links for name, links in dead.items() if links} == {}
    text = "[a](01_b.ipynb) [b](00_a.ipynb#part) [c](https://x.org) [d](#here) `[e](f)`"
    toy_notebook(tmp_path, "00_a", text)
    assert dead_links(tmp_path / "00_a.ipynb") == ["01_b.ipynb"]


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_code_on_a_page_runs(page):
    names = {}  # of the whole page: its pieces follow from each other
    for block in code_blocks(read(page), "python"):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("call", sorted(parts.GENERATED))
def test_everything_that_can_be_generated_is_used_and_is_text(call):
    calls = re.findall(r"^```\{generated\} (.+)$", "\n".join(map(read, PAGES)), re.MULTILINE)
    assert call in {used.split()[0] for used in calls}
    for used in calls:
        if used.split()[0] == call:
            assert parts.generate(used).strip() or call == "toc"


def test_an_unknown_name_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="must be one of .*results.*got 'reslts'"):
        parts.generate("reslts")


def test_the_answers_of_the_self_test_are_right():
    text = read(BOOK / "tensors.md").split("## Self-test")[1]
    answers = re.findall(r"Answer</summary>\n\n(.+)", text)
    x = torch.tensor(1.0, requires_grad=True)
    y = 2 * x
    (y**2 + y).backward()
    right = [
        f"{tuple((torch.empty(4, 1, 3) + torch.empty(5, 3)).shape)}.",
        "(B, T, FF)",
        f"{x.grad.item():.0f}.",
        f"{-torch.tensor([1 / 2, 1 / 4, 1 / 8]).log2().sum():.0f} bits,",
        f"{len('π = 3'.encode())} bytes, one more than its {len('π = 3')} ",
    ]
    assert len(answers) == 5
    assert all(a.startswith(r) for a, r in zip(answers, right, strict=True)), answers


def test_the_repository_is_named_in_pyproject_only():
    url = project.repository()
    assert url.startswith("https://")
    files = [*PAGES, *BOOK.glob("*.py"), BOOK / "_extra" / "index.html"]
    assert [path.name for path in files if url.removeprefix("https://") in read(path)] == []


def test_another_repository_changes_every_link(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\n[project.urls]\nRepository = "https://example.org/me/fork/"\n', "utf-8"
    )
    assert project.source_link("a.py", tmp_path) == "https://example.org/me/fork/blob/main/a.py"
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = runpy.run_path(str(BOOK / "conf.py"))
    assert settings["html_theme_options"]["repository_url"] == project.repository()
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="Repository"):
        project.repository(tmp_path)


def test_nothing_is_run_and_nothing_is_fetched(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = runpy.run_path(str(BOOK / "conf.py"))
    assert settings["nb_execution_mode"] == "off"
    assert settings["nb_ipywidgets_js"] == {}
    assert settings["html_math_renderer"] == "mathml"


# ---- architecture ---------------------------------------------------------------------------

TOY = {
    "__init__.py": "",
    "base.py": '"""The base. More."""\nimport json\n',
    "shape.py": "from . import base\nfrom .base import __name__ as other\n",
    "lazy.py": "def go():\n    import toy_package.shape\n    from .base import json\n",
    "parts/__init__.py": '"""Parts."""\nfrom . import piece\n',
    "parts/piece.py": "from ..shape import base\nfrom .other import x\n",
    "parts/other.py": "import toy_package.lazy as other_name\nx = 1\n",
}
TOY_EDGES = {
    "base": set(),
    "shape": {"base"},
    "lazy": {"base", "shape"},
    "parts": {"shape", "lazy"},
}


def write_toy(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / "toy_package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root / "toy_package"


def edges(modules: dict[str, graph.Module]) -> dict[str, set[str]]:
    return {name: set(module.imports) for name, module in modules.items()}


def really_imported(root: Path, monkeypatch) -> dict[str, set[str]]:
    """The oracle: import everything, call what imports late, and write down who asked for what."""
    seen: dict[str, set[str]] = {}
    real = builtins.__import__

    def watched(name, namespace=None, local=None, fromlist=(), level=0):
        importer = (namespace or {}).get("__name__", "")
        if importer.startswith("toy_package."):
            package = namespace["__package__"].split(".")
            base = package[: len(package) - level + 1] if level else []
            full = ".".join([*base, *([name] if name else [])])
            names = [full] if full.count(".") else [f"{full}.{part}" for part in fromlist or ()]
            for target in names:
                if target.startswith("toy_package."):
                    above, below = importer.split(".")[1], target.split(".")[1]
                    seen.setdefault(above, set()).update({below} - {above})
        return real(name, namespace, local, fromlist, level)

    monkeypatch.syspath_prepend(root)
    monkeypatch.setattr(builtins, "__import__", watched)
    for name in ("base", "shape", "lazy", "parts"):
        seen.setdefault(name, set())
        importlib.import_module(f"toy_package.{name}")
    sys.modules["toy_package.lazy"].go()
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_package"]:
        monkeypatch.delitem(sys.modules, name)
    return seen


def test_the_graph_is_that_of_the_real_imports(tmp_path, monkeypatch):
    folder = write_toy(tmp_path, TOY)
    assert edges(graph.read_package(folder)) == TOY_EDGES
    assert really_imported(tmp_path, monkeypatch) == TOY_EDGES


def test_another_import_is_another_graph(tmp_path):
    folder = write_toy(tmp_path, TOY | {"base.py": "from .lazy import go\n"})
    assert edges(graph.read_package(folder)) == TOY_EDGES | {"base": {"lazy"}}
    with pytest.raises(ValueError, match="circle"):
        graph.reading_order(graph.read_package(folder), {}, "All")


def test_a_module_says_what_its_file_says(tmp_path):
    modules = graph.read_package(write_toy(tmp_path, TOY))
    assert modules["base"].summary == "The base. More." and modules["base"].lines == 2
    assert modules["parts"].summary == "Parts." and modules["parts"].lines == 6
    assert modules["shape"].summary == "" and modules["base"].needs == frozenset()
    assert graph.read_package(tmp_path / "nowhere") == {}


def test_arrows_that_follow_from_others_are_not_drawn(tmp_path):
    arrows = graph.arrows(graph.read_package(write_toy(tmp_path, TOY)))
    assert {pair for pair, drawn in arrows.items() if not drawn} == {
        ("lazy", "base"),  # by shape
        ("parts", "shape"),  # by lazy
    }


MODULES = graph.read_package(project.ROOT / "minilm")
ORDER = architecture.order_of("minilm", MODULES)


def too_early(order: list[str], modules: dict[str, graph.Module]) -> list[str]:
    return [n for i, n in enumerate(order) if not modules[n].imports <= set(order[:i])]


def test_the_reading_order_holds_every_module_once_after_what_it_imports():
    order = [name for stage in ORDER.values() for name in stage]
    assert sorted(order) == sorted(MODULES)
    assert too_early(order, MODULES) == []
    assert too_early(order[::-1], MODULES) != []
    assert set(architecture.STAGES) < set(ORDER)


def points_up(order: dict[str, list[str]], modules: dict[str, graph.Module]) -> list[bool]:
    imports = {name: module.imports for name, module in modules.items()}
    centres, _, _ = drawing.place(order, imports)
    return [centres[b][1] < centres[a][1] for a, b in graph.arrows(modules)]


def test_every_arrow_points_up_and_a_wrong_order_shows():
    assert all(points_up(ORDER, MODULES))
    assert not all(points_up(dict(reversed(ORDER.items())), MODULES))


def test_the_picture_is_svg_with_a_box_for_each_module_and_an_arrow_for_each_import():
    text = architecture.map_of("minilm")
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", text, re.DOTALL)[0])
    groups = [g.get("class") for g in svg.iter("{http://www.w3.org/2000/svg}g")]
    assert groups.count("box") == len(MODULES)
    assert sum(g.startswith("arrow") for g in groups) == sum(
        len(m.imports) for m in MODULES.values()
    )
    assert "\n\n" not in text  # a blank line ends HTML in Markdown
    drawn = re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)
    assert set(re.findall(r"(?:fill|stroke)=\"([^\"]+)\"", drawn)) == {"currentColor", "none"}


def test_boxes_do_not_overlap():
    imports = {name: module.imports for name, module in MODULES.items()}
    centres, _, _ = drawing.place(ORDER, imports)
    rows: dict[float, list] = {}
    for name, (x, y) in centres.items():
        half = drawing.box_width(name) / 2
        rows.setdefault(y, []).append((x - half, x + half))
    for row in map(sorted, rows.values()):
        assert row[0][0] >= drawing.LEFT and row[-1][1] <= drawing.WIDTH
        assert all(a[1] < b[0] for a, b in zip(row, row[1:], strict=False))


def test_the_table_of_modules_counts_lines():
    text = architecture.modules_of("minilm")
    lines = len(read(project.ROOT / "minilm" / "model.py").splitlines())
    assert re.search(
        rf"\[`model.py`\]\([^)]+minilm/model.py\) \| .* \| {lines} \| .*`attention`", text
    )


def test_the_project_picture_has_the_packages_and_their_libraries():
    imports = architecture.project_imports()
    assert "torch" in imports["minilm"] and "minilm" in imports["tests"]
    assert imports["torch"] == set() and "json" not in imports
    assert "minilm" not in imports.get("cuda_numba", set())


def test_notebook_code_is_read_without_lines_for_ipython():
    cells = [
        {"cell_type": "code", "source": ["%matplotlib inline\n", "import torch\n"]},
        {"cell_type": "markdown", "source": "import nothing"},
        {"cell_type": "code", "source": "!ls\nimport json"},
    ]
    assert graph.outside(graph.code_of({"cells": cells})) == {"torch"}


def test_a_file_that_is_not_python_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def (", encoding="utf-8")
    with pytest.raises(ValueError, match="broken.py: is not Python"):
        graph.outside_of_folder(tmp_path)


# ---- results --------------------------------------------------------------------------------


def present(command: str) -> dict[str, str]:
    return {"train": bench.source_sha256("model.py")}


def sample(tmp_path, rows: list[dict], command: str = "train") -> Path:
    path = tmp_path / f"{command}-here.json"
    bench.write_results(path, command, rows)
    return path


def train_row(value: float = 30000, **options) -> dict:
    peers = {"nano_gpt": {"value": 20000, "seconds": 0.1}}
    options = {"sources": ["model.py"], "peers": peers, "goal": 20000} | options
    return bench.row("train", "step", value, "tokens/s", shape={"V": 1024, "T": 128}, **options)


def test_a_results_file_is_a_table(tmp_path):
    path = sample(tmp_path, [train_row()])
    results = bench.read_results(path)
    text = measured.page([path], present)
    for shown in (
        results["date"][:10],
        "`minilm bench train`",
        measured.escape(results["device"]),
        "| V 1,024, T 128 |",
        "**30,000** tokens/s",
        "nano\\_gpt: 20,000, ours 1.50×",
        "| 20,000 tokens/s | ✓ yes |",
    ):
        assert shown in text
    assert measured.OLDER not in text and "of roof" not in text


def test_a_goal_that_is_missed_says_so(tmp_path):
    text = measured.page([sample(tmp_path, [train_row(10000)])], present)
    assert "ours 0.50×" in text and "✗ no" in text and "✓" not in text


def test_less_is_better_where_the_unit_says_so():
    peers = {"other": {"value": 3.0, "seconds": 3.0}}
    row = bench.row("import", "", 2.0, "s", sources=["model.py"], peers=peers)
    assert measured.beside(row, "other") == "other: 3, ours 1.50×"


def test_a_row_of_changed_source_is_marked_and_only_that(tmp_path):
    rows = [train_row(), train_row(sources=["ops.py"])]
    path = sample(tmp_path, rows)
    text = measured.page([path], present)
    assert text.count(measured.OLDER) == 1
    marked = next(line for line in text.splitlines() if measured.OLDER in line)
    assert marked.startswith("| train, step *(older source)*")
    changed = {"train": bench.source_sha256("loss.py")}
    assert measured.page([path], lambda command: changed).count(measured.OLDER) == 2
    passes = {"step": bench.source_sha256("ops.py")}  # a benchmark may name passes, too
    assert measured.page([path], lambda command: passes).count(measured.OLDER) == 1
    assert measured.OLDER not in measured.page([path], lambda command: {})  # nothing is known


def test_present_hashes_are_those_of_the_benchmarks_own_lists():
    present = measured.present_hashes("train")
    assert present["train"] == bench.source_sha256(*bench_model.SOURCES["train"])
    assert set(measured.present_hashes("import")) == {"import", "tiny"}
    assert measured.present_hashes("of another version") == {}


@pytest.mark.parametrize("path", measured.result_files(), ids=lambda path: path.name)
def test_committed_results_can_be_shown_and_can_be_found_old(path):
    results = bench.read_results(path)
    present = measured.present_hashes(results["command"])
    assert results["command"] in measured.section(path, results, present)
    unknown = [row["op"] for row in results["rows"] if not measured.present_hash(row, present)]
    assert unknown == [], "the benchmark must name the files in SOURCES"


def test_no_results_and_broken_results(tmp_path):
    assert measured.page([]).startswith("No results file")
    (tmp_path / "bad.json").write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(ValueError, match="bad.json"):
        measured.page([tmp_path / "bad.json"])


def choice(label: str, *values: float) -> dict:
    shape = {"steps": 10, "parameters": 1000} | {f"seed {i}": v for i, v in enumerate(values)}
    value = sorted(values)[len(values) // 2]
    return bench.row("tiny_choice", label, value, "bits/byte", shape=shape, sources=["model.py"])


def test_choices_are_read_against_the_noise(tmp_path):
    rows = [
        choice("the preset", 1.15, 1.16, 1.14),
        choice("learned positions", 1.28, 1.29, 1.30),
        choice("3 layers", 1.15, 1.17, 1.13),
        choice("more", 1.0, 1.01, 1.02),
    ]
    sample(tmp_path, rows, "choices")
    text = choices.report(choices.read((tmp_path,)))
    table = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    assert "| 1.290 | +0.140 | worse |" in table["learned positions"]
    assert "within the noise" in table["3 layers"]
    assert "| -0.140 | better |" in table["more"]
    assert "Standard deviation between seeds: 0.013 bits/byte." in text
    assert "| the preset | 1.150 |  |  | 1.150, 1.160, 1.140 | 1,000 |" in text


def test_without_the_file_the_page_says_so(tmp_path):
    assert choices.read((tmp_path,)) is None
    assert "no results file" in choices.report(None)
    sample(tmp_path, [train_row()])
    assert choices.read((tmp_path,)) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(21800.4, "21,800"), (1.28617, "1.286"), (2048, "2,048"), (0.00012345, "0.0001234")]
    + [(True, "True"), ("rope", "rope")],
)
def test_numbers_have_four_digits(value, text):
    assert measured.number(value) == text


def test_markdown_in_a_name_is_shown_as_it_is():
    assert measured.escape("a_b|c*[d]") == "a\\_b\\|c\\*\\[d\\]"
    assert measured.prose("`a_b` of c_d") == "`a_b` of c\\_d"


# ---- docstrings and formulas ----------------------------------------------------------------


def complaints(rst: str) -> list[str]:
    settings = {"report_level": 2, "halt_level": 5, "warning_stream": False}
    doctree = docutils.core.publish_doctree(rst, settings_overrides=settings)
    return [node.astext() for node in doctree.findall(docutils.nodes.system_message)]


def all_docstrings() -> list[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [
        text
        for path in sorted((project.ROOT / "minilm").rglob("*.py"))
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, kinds) and (text := ast.get_docstring(node))
    ]


def test_every_docstring_of_the_package_is_shown_without_a_warning():
    found = all_docstrings()
    assert len(found) > 200
    assert [text for text in found if complaints(docstrings.to_rst(text))] == []


TRICKY = """Sums *args and x_ of |a|, `code`s and a\\b.

name      what it is, `x`
          and more
longer    another
- not a list

    example(*x)

        deeper
Ends with ``both``:
- one
- two"""


def test_a_docstring_full_of_traps():
    assert complaints(TRICKY) != []
    rst = docstrings.to_rst(TRICKY)
    assert complaints(rst) == []
    shown = docutils.core.publish_doctree(rst).astext()
    for text in ("*args and x_ of |a|, codes", "a\\b", "example(*x)", "both"):
        assert text in shown


def formulas(text: str) -> list[str]:
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    blocks = re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL)
    rest = re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL)
    return blocks + re.findall(r"(?<!\\)\$([^\s$](?:[^$\n]*[^\s$\\])?)\$(?!\d)", rest)


def test_every_formula_of_the_course_is_understood():
    texts = {page.name: read(page) for page in PAGES}
    for path in (project.ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(read(path))["cells"]
        markdown = ("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        texts[path.name] = "\n\n".join(markdown)
    assert len(formulas(texts["notation.md"])) > 10
    bad = []
    for name, text in texts.items():
        for formula in formulas(text):
            try:
                mathml.to_mathml(formula, block=False)
            except ValueError as error:
                bad.append(f"{name}: {error}")
    assert bad == []


def test_a_formula_that_is_not_understood_is_named():
    with pytest.raises(ValueError, match=r"nonsense.*is not understood"):
        mathml.to_mathml(r"\nonsense{x}", block=False)
    with pytest.raises(ValueError, match="is not understood"):
        mathml.to_mathml(r"\frac{1}{", block=False)


def test_formulas_become_mathml():
    html = mathml.to_mathml(r"\big(\ln p \dots \ln(q)\big)", block=True)
    assert html.startswith("<math") and 'display="block"' in html and "…" in html
    assert html.count(mathml.THIN_SPACE) == 1  # after the ln that has no bracket
