"""Logs: one JSON object a line, and no secret in any of them."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from core import logs
from core.settings import Settings


@pytest.fixture(autouse=True)
def clean_logging() -> Iterator[None]:
    """What `configure` changes is the process's own."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_line_is_json_with_service_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("ingest", Settings(ingest_key="hunter2-key"))
    logs.get().info("appended", shard=3, correlation="c0ffee")
    starting, line = lines(capsys)
    assert starting["event"] == "starting"
    assert (line["event"], line["level"], line["service"], line["shard"]) == ("appended", "info", "ingest", 3)
    assert str(line["timestamp"]).endswith("Z")
    assert "hunter2" not in str(starting)


@pytest.mark.parametrize(
    "name", ["ingest_key", "Authorization", "voter_secret", "token", "clickhouse_password", "cookie", "API_KEY"]
)
def test_value_whose_name_sounds_secret_is_blanked(capsys: pytest.CaptureFixture[str], name: str) -> None:
    logs.configure("ingest", Settings())
    logs.get().warning("x", **{name: "hunter2"})
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["redis://:hunter2@host:1/0", "http://u:hunter2@h/d?x=1", "cannot reach rediss://u:p@hunter2@host now"],
)
def test_password_in_a_url_is_blanked_wherever_it_stands(capsys: pytest.CaptureFixture[str], text: str) -> None:
    logs.configure("ingest", Settings())
    logs.get().warning(text, error=text)
    err = capsys.readouterr().err
    assert "hunter2" not in err
    assert "host" in err or "@h/d" in err


def test_password_in_a_traceback_is_blanked(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("ingest", Settings())
    try:
        raise ValueError("redis://:hunter2@host:1/0")
    except ValueError as error:
        logs.get().error("failed", exc_info=error)
    line = lines(capsys)[-1]
    assert "ValueError" in str(line["exception"])
    assert "hunter2" not in str(line)


def test_what_libraries_log_goes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("ingest", Settings())
    logging.getLogger("uvicorn.error").warning("no route to redis://:hunter2@host")
    logging.getLogger("uvicorn.error").info("too much detail")
    line = lines(capsys)[-1]
    assert line["level"] == "warning"
    assert str(line["event"]).startswith("no route to")
    assert "hunter2" not in str(line)


def test_level_is_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("ingest", Settings(log_level="error"))
    logs.get().warning("quiet")
    logs.get().error("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_misspelt_setting_is_warned_about(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARENACAST_INGEST_PROT", "1")
    logs.configure("ingest", Settings())
    assert lines(capsys)[-1]["variable"] == "ARENACAST_INGEST_PROT"


def test_console_format_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("ingest", Settings(log_format="console"))
    logs.get().warning("hello")
    err = capsys.readouterr().err
    assert "hello" in err
    assert not err.startswith("{")
