"""The benchmark's C programs, compiled when it runs: nothing is installed, and the compiler is the machine's own."""

import shutil
import subprocess
from importlib.resources import as_file, files
from pathlib import Path

from core.errors import Fatal


def compiled(name: str, directory: Path) -> Path:
    """`<name>.c` of this package as a program in `directory`. Raises Fatal without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Fatal("the fan-out benchmark needs a C compiler (Debian: apt install gcc)")
    program = directory / name
    with as_file(files("loadtests.fanout") / f"{name}.c") as source:
        done = subprocess.run([compiler, "-O2", "-o", program, source], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fatal(f"{name}.c does not compile here: {done.stderr[:2000]}")
    return program
