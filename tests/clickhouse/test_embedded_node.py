"""The embedded ClickHouse through `@clickhouse/client`, as Node users have it."""

import json
import subprocess

import pytest

from tests.clients.node import node_command
from tests.support.clickhouse_server import ClickHouseServer

pytestmark = pytest.mark.clickhouse


def test_node_client_inserts_streams_and_sees_errors(clickhouse_server: ClickHouseServer) -> None:
    command = [*node_command("clickhouse.mjs"), clickhouse_server.url, "default", clickhouse_server.password]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "ping": True,
        "written": "5000",
        "params": [{"n": 7, "text": "Zoë 🏆 7"}],
        "streamed": 300_000,
        "error": {"code": "60", "type": "UNKNOWN_TABLE"},
        "broken": "failed",
        "session": [{"rows": 0}],
    }
