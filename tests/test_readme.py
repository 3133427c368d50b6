"""The README's example runs, its links lead somewhere, and its tree is the real one."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["history"][-1]["loss"] < 1.0 < names["history"][0]["loss"]
    printed = capsys.readouterr().out.splitlines()
    assert float(printed[-1]) == names["history"][-1]["loss"] and len(printed) >= 2


def dead_links(text: str) -> list[str]:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    return [link for link in links if not (ROOT / link).exists()]


def test_every_link_leads_somewhere():
    assert dead_links(README) == []
    assert dead_links("[x](no/such/file.md)") == ["no/such/file.md"]  # control


def test_every_notebook_is_listed():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in README


def test_the_modules_of_the_tree_exist():
    tree = re.search(r"minilm/ +the language model.*?notebooks/", README, re.DOTALL)[0]
    named = [word for line in tree.splitlines()[1:-2] for word in line[:54].split()]
    assert len(named) > 15
    for name in named:
        assert (ROOT / "minilm" / f"{name}.py").exists() or (ROOT / "minilm" / name).is_dir(), name
