"""Which tests run by default, and in which order: tests/conftest.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture
def choose(pytestconfig):
    """A function: (thorough or not, items) → (what runs, what is left out)."""
    plugins = pytestconfig.pluginmanager.get_plugins()
    conftest = next(plugin for plugin in plugins if hasattr(plugin, "LONGEST"))

    def chosen(thorough, items):
        left_out, items = [], list(items)
        hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
        config = SimpleNamespace(getoption={"thorough": thorough}.get, hook=hook)
        conftest.pytest_collection_modifyitems(config, items)
        return items, left_out

    chosen.longest = conftest.LONGEST
    return chosen


def item(name, *marks):
    """What is asked of a test."""
    return SimpleNamespace(
        path=TESTS / name,
        get_closest_marker=lambda mark: mark if mark in marks else None,
        add_marker=lambda mark: None,
    )


def test_thorough_tests_run_when_asked_for(choose):
    plain, marked = item("test_a.py"), item("test_a.py", "thorough")
    assert choose(False, [plain, marked]) == ([plain], [marked])
    assert choose(True, [plain, marked]) == ([plain, marked], [])


def test_long_files_begin_first_and_stay_whole(choose):
    last, first = choose.longest[-1], choose.longest[0]
    names = ["test_b.py", last, last, "test_a.py", "test_a.py", first, first]
    items = [item(name) for name in names]
    found = [it.path.name for it in choose(True, items)[0]]
    assert found == [first, first, last, last, "test_b.py", "test_a.py", "test_a.py"]


def test_long_files_are_there(choose):
    there = {path.name for path in TESTS.rglob("test_*.py")}
    assert set(choose.longest) <= there
    assert len(set(choose.longest)) == len(choose.longest)
