"""The README's example runs, its links lead somewhere, and its tree is the real one."""

import re
import runpy
from pathlib import Path

import torch

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
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    return [link for link in links if not (ROOT / link).exists()]


def test_every_link_leads_somewhere():
    assert dead_links(README) == []
    assert dead_links("[x](no/such/file.md)") == ["no/such/file.md"]  # control


def test_every_notebook_is_listed():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in README


def missing_modules(package: str, until: str) -> list[str]:
    """Names in a package's part of the tree that are no module or folder of it."""
    tree = re.search(rf"{package}/ +the .*?\n(.*?)\n{until}/", README, re.DOTALL)[1]
    named = [word for line in tree.splitlines() for word in line[:54].split()]
    assert len(named) > 12
    folder = ROOT / package
    return [n for n in named if not (folder / f"{n}.py").exists() and not (folder / n).is_dir()]


def test_the_modules_of_the_tree_exist():
    assert missing_modules("minilm", "cuda_numba") == []
    assert missing_modules("cuda_numba", "notebooks") == ["..."]


def test_the_kernel_runs(tmp_path, capsys):
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]
    path = tmp_path / "readme_kernel.py"  # the emulator reads a kernel's source from its file
    path.write_text(code, encoding="utf-8")
    names = runpy.run_path(str(path))
    assert torch.equal(names["out"], names["a"] + names["b"])
    assert "no findings" in capsys.readouterr().out
