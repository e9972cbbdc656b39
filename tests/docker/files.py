"""The files of docker/, read as the tools that use them read them."""

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
OURS = frozenset({"ingest", "consume-state", "consume-archive", "gateway", "migrate"})
"""Services of compose.yaml that run our image."""

_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


def tool(name: str) -> str:
    """Path of a program, from the virtual environment or the machine; skips the test where there is none."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed on this machine")
    return found


def run(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A program run to its end, bounded in time; its result is for the caller to judge."""
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


def read_yaml(path: str) -> Any:
    """A YAML file of docker/."""
    return yaml.safe_load((DOCKER / path).read_text())


@cache
def compose() -> dict[str, Any]:
    """compose.yaml with its merges done and its variables still in it."""
    result: dict[str, Any] = read_yaml("compose.yaml")
    return result


def services() -> dict[str, Any]:
    """Name -> service of compose.yaml."""
    result: dict[str, Any] = compose()["services"]
    return result


def interpolate(value: Any, environ: dict[str, str]) -> Any:
    """`value` with `${NAME}`, `${NAME:-default}` and `${NAME:?message}` filled in, as Compose does it.

    Raises KeyError for a variable that must be set and is not.
    """
    if isinstance(value, dict):
        return {key: interpolate(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environ) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if environ.get(name):
            return environ[name]
        if kind == "?":
            raise KeyError(f"{name}: {text}")
        return text or ""

    return _VARIABLE.sub(fill, value)


def variables(text: str) -> list[str]:
    """Names of the `${…}` in a text. Raises AssertionError for one that `interpolate` would not understand."""
    found = _VARIABLE.findall(text)
    assert len(found) == len(re.findall(r"(?<!\$)\$(?!\$)", text)), "an interpolation of another form"
    return [name for name, _, _ in found]


def read_env(text: str) -> dict[str, str]:
    """Variables of an env file."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def image_tag(reference: str) -> str:
    """Tag of an image reference, "" when it has none."""
    return reference.rpartition("/")[2].partition(":")[2]
