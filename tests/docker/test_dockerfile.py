"""The Dockerfile, by its linter and by what must hold for ours."""

import json
import re
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from core.settings import Settings
from tests.docker.files import DOCKER, ROOT, run, tool


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, with continued lines joined and comments gone."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def runtime_stage() -> list[tuple[str, str]]:
    found = instructions()
    last = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]


def test_linter_has_nothing_to_say() -> None:
    result = run(tool("hadolint"), str(DOCKER / "Dockerfile"))
    assert (result.returncode, result.stdout) == (0, "")


def test_every_stage_is_the_one_pinned_python() -> None:
    (argument,) = of("ARG")
    match = re.fullmatch(r"PYTHON_IMAGE=python:(\d+\.\d+)\.\d+-slim-[a-z]+", argument)
    assert match, "pinned to the patch"
    assert [stage.split()[0] for stage in of("FROM")] == ["${PYTHON_IMAGE}", "${PYTHON_IMAGE}"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {match[1]}" in project["classifiers"]


def test_services_are_not_root() -> None:
    (user,) = [rest for word, rest in runtime_stage() if word == "USER"]
    uid, gid = map(int, user.split(":"))
    assert uid >= 1000
    assert gid >= 1000


def test_nothing_is_installed_without_its_hash() -> None:
    """Every installation names a lock file with hashes, or the wheel that was just built from the context."""
    runs = [part for rest in of("RUN") for part in rest.split("&&") if re.search(r"\bpip\b.* (install|wheel) ", part)]
    assert len(runs) == 4
    for step in runs:
        assert "--no-deps" in step
        assert "--require-hashes" in step or "--no-index" in step


def test_every_package_of_the_services_is_copied_and_the_rest_is_not() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = {part for rest in of("COPY") if "--from" not in rest for part in rest.split()[:-1]}
    assert {name.rstrip("/") for name in copied if name.endswith("/")} == {
        pattern.rstrip("*") for pattern in packages
    } - {"loadtests"}
    for name in copied:
        assert (ROOT / name).exists(), name


def test_build_context_holds_what_is_copied() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*", "an allow list: no secret and no data directory gets into the context by accident"
    allowed = {line[1:] for line in patterns if line.startswith("!")}
    copied = {part.rstrip("/") for rest in of("COPY") if "--from" not in rest for part in rest.split()[:-1]}
    assert allowed == copied


def test_exposed_ports_are_the_settings_defaults() -> None:
    (ports,) = of("EXPOSE")
    defaults = Settings()
    assert list(map(int, ports.split())) == [
        defaults.gateway_port, defaults.ingest_port, defaults.state_metrics_port, defaults.archive_metrics_port,
    ]  # fmt: skip


def test_label_names_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in of("LABEL")[0]


@pytest.mark.parametrize("status", [200, 503])
def test_health_check_follows_readiness(status: int, tmp_path: Path) -> None:
    """The very command of the HEALTHCHECK, against a server that is ready and one that is not."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    command = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    assert command[0] == "python"
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            environ = {"HEALTH_URL": f"http://127.0.0.1:{server.server_port}/readyz"}
            result = run(sys.executable, *command[1:], env=environ)
        finally:
            server.shutdown()
            thread.join()
    assert (result.returncode == 0) is (status == 200)


def test_services_get_their_signals() -> None:
    """Exec form: with a shell in between, SIGTERM would end the shell and the drain would not happen."""
    assert of("ENTRYPOINT") == ['["arenacast"]']
    assert of("CMD") == ['["gateway"]']
