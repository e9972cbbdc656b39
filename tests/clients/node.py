"""Node and the npm packages of tests/node, installed once per machine user and lock file."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent / "node"
INSTALLS_WITHIN_S = 120
NODE_MAJOR_MIN = 20  # of the packages


def node_command(script: str) -> list[str]:
    """Command that runs a script of tests/node. Skips the test where Node, npm or the packages cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no node and npm on this machine")
    found = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(found.removeprefix("v").partition(".")[0]) < NODE_MAJOR_MIN:
        pytest.skip(f"node {found} is older than {NODE_MAJOR_MIN}")
    return [node, str(_installed(npm) / script)]


def _installed(npm: str) -> Path:
    """The scripts beside their packages, in a directory named after both."""
    files = sorted(path for path in HERE.iterdir() if path.suffix in (".json", ".mjs"))
    mark = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arenacast-tests"
    directory = cache / mark
    if directory.exists():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache))
    try:
        for path in files:
            shutil.copy(path, unfinished)
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=unfinished, capture_output=True, text=True, timeout=INSTALLS_WITHIN_S, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"npm cannot install the clients: {done.stderr.strip()[-300:]}")
        try:
            unfinished.rename(directory)
        except OSError:
            assert directory.exists(), "another run was quicker"
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory
