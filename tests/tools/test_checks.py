"""The command that CI runs."""

import subprocess
import sys

from tools import checks, environment, project


def test_the_result_of_test_is_that_of_its_stages(monkeypatch, capsys):
    def start(command, **options):
        code = codes.get(command[-2], 0)
        lines = f"print('first'); print('=== 3 passed in 1.00s ==='); exit({code})"
        return subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True)

    codes = {}
    monkeypatch.setattr(environment, "setup", lambda level: None)
    monkeypatch.setattr(project, "start", start)
    assert checks.test() == 0
    out = capsys.readouterr().out
    assert (
        out.count("passed  ") == 5 and "3 passed in 1.00s" in out and out.endswith("all passed\n")
    )
    codes["--check"] = 1  # of `ruff format --check .`
    assert checks.test() == 1
    assert "format     FAILED" in (out := capsys.readouterr().out)
    assert out.endswith("failed: format\n") and out.count("== ") >= 5
