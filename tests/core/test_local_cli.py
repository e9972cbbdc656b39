"""The command line as a stranger uses it: every command is there, errors are one line."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def arenacast(*arguments: str, cwd: Path = ROOT, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ARENACAST_")}
    environ |= {"ARENACAST_" + name.upper(): value for name, value in variables.items()} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "core.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_every_command_of_the_contract_is_there() -> None:
    output = arenacast("--help").stdout
    assert set(re.findall(r"^  (\w+) ", output, re.MULTILINE)) >= {
        "up", "ingest", "gateway", "consume", "clickhouse", "migrate", "play",
    }  # fmt: skip
    assert {"state", "archive"} <= set(re.findall(r"^  (\w+) ", arenacast("consume", "--help").stdout, re.MULTILINE))
    assert "--demo / --no-demo" in arenacast("up", "--help").stdout
    assert "--workers" in arenacast("gateway", "--help").stdout
    assert "--dry-run" in arenacast("migrate", "--help").stdout
    assert {"--to", "--speed", "--key-file"} <= set(re.findall(r"--[a-z-]+", arenacast("play", "--help").stdout))


def test_version_is_told() -> None:
    assert re.fullmatch(r"arenacast, version \S+\n", arenacast("--version").stdout)


@pytest.mark.parametrize(
    "command",
    [["up"], ["ingest"], ["gateway"], ["consume", "state"], ["consume", "archive"], ["clickhouse"], ["migrate"]],
)
def test_bad_setting_ends_every_command_with_one_line_naming_it(command: list[str], tmp_path: Path) -> None:
    done = arenacast(*command, data_dir=str(tmp_path), heartbeat_s="often")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "arenacast: ARENACAST_HEARTBEAT_S: Expected `float`, got `str`\n"
    assert not list(tmp_path.iterdir())


def test_commands_whose_1_means_a_difference_end_with_2_on_an_error(tmp_path: Path) -> None:
    done = arenacast("reconcile", "--since", "yesterday", data_dir=str(tmp_path))
    assert (done.returncode, done.stderr.splitlines()) == (2, [
        "arenacast: --since must be like 15m, 24h or 7d, or an instant with its zone, not 'yesterday'"
    ])  # fmt: skip
    done = arenacast("drill", str(tmp_path), data_dir=str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


def test_taken_port_is_one_line_naming_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = arenacast("up", data_dir=str(tmp_path), ingest_port="0", gateway_port=port, clickhouse_port="0")
    assert done.returncode == 1
    assert done.stderr == (
        f"arenacast: ARENACAST_GATEWAY_PORT: port {port} of 127.0.0.1 is in use by another program\n"
    )


def test_data_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = arenacast("up", data_dir=str(tmp_path / "file" / "data"))
    assert done.returncode == 1
    assert re.fullmatch(r"arenacast: ARENACAST_DATA_DIR: .* cannot be created: .*\n", done.stderr)


def test_missing_key_is_one_line_naming_setting_and_file(tmp_path: Path) -> None:
    recording = tmp_path / "recording.ndjson"
    recording.write_text("")
    done = arenacast("play", str(recording), "--to", "http://127.0.0.1:1", data_dir=str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(r"arenacast: ARENACAST_INGEST_KEY is not set and \S*ingest\.key cannot be read\n", done.stderr)


def test_wrong_use_is_explained_by_the_command() -> None:
    done = arenacast("play")
    assert done.returncode == 2
    assert "Usage: arenacast play" in done.stderr


def test_help_is_quick_because_nothing_is_imported_for_it() -> None:
    code = "import sys, core.cli; print(sorted({m.partition('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    heavy = ["redis", "starlette", "uvicorn", "clickhouse_connect", "chdb", "httpx", "rich", "ingest", "gateway"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
