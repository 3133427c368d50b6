"""JupyterLab, opened on the first notebook."""

import os
import platform
import secrets
import signal
import socket
import sys
import time
import urllib.error
import urllib.request

from . import environment, project
from .project import CourseError


def has_screen(system, env):
    """Can a browser open here? Not over ssh, and on Linux only under a display server."""
    if env.get("SSH_CONNECTION"):
        return False
    return system != "Linux" or bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))


def free_port(first=8888, tries=50):
    for port in range(first, first + tries):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise CourseError(f"no free port from {first} to {first + tries - 1}; name one with --port")


def lab(browser=True, port=None, check=False):
    """Open JupyterLab on the first notebook; with `check` only prove that it would open."""
    environment.setup("lab")
    first, token = "notebooks/00_start.ipynb", secrets.token_hex(16)
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    command = [project.python(), "-m", "jupyterlab", "-y", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1", "--LabApp.news_url=None"]
    command += [f"--ServerApp.root_dir={project.ROOT}", f"--LabApp.default_url=/lab/tree/{first}"]
    command += ["--log-level=WARN", "--LabApp.extension_manager=readonly"]
    if check or not browser or not has_screen(platform.system(), os.environ):
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server goes too
    server = project.start(command, env={"JUPYTER_TOKEN": token})
    try:
        wait_for(f"{address}/api/status?token={token}", server)
        print(f"\nThe course is open at\n    {address}/lab/tree/{first}?token={token}", flush=True)
        if check:
            wait_for(f"{address}/lab/tree/{first}?token={token}", server)
            wait_for(f"{address}/api/contents/{first}?token={token}", server)
            print("It answers; stopping, as --check asks.")
            return 0
        print("Ctrl-C here stops it.", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def wait_for(url, server, seconds=120):
    """Return when the page answers; say so if the server ends or the time is over."""
    deadline = time.monotonic() + seconds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is this machine
    while time.monotonic() < deadline and server.poll() is None:
        try:
            opener.open(url, timeout=10).read()
            return
        except urllib.error.HTTPError as error:
            raise CourseError(f"JupyterLab answers {error} at {url.split('?')[0]}") from None
        except OSError:
            time.sleep(0.2)
    raise CourseError(f"JupyterLab did not answer at {url.split('?')[0]}; its messages are above.")
