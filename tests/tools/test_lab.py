"""Where JupyterLab opens."""

import pytest

from tools import lab, project


@pytest.mark.parametrize(
    ("system", "env", "screen"),
    [
        ("Linux", {}, False),
        ("Linux", {"DISPLAY": ":0"}, True),
        ("Linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("Linux", {"DISPLAY": ":0", "SSH_CONNECTION": "1 2 3 4"}, False),
        ("Darwin", {}, True),
        ("Darwin", {"SSH_CONNECTION": "1 2 3 4"}, False),
        ("Windows", {}, True),
    ],
)
def test_a_browser_only_where_there_is_a_screen(system, env, screen):
    assert lab.has_screen(system, env) is screen


def test_free_port_passes_over_one_that_is_taken():
    with lab.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert lab.free_port(port) > port
        with pytest.raises(project.CourseError, match="--port"):
            lab.free_port(port, tries=1)
