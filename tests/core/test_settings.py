"""Settings: checked as a whole, one line naming the variable at fault."""

import os
import stat
from pathlib import Path

import pytest

from core.errors import Fatal
from core.local.services import environment
from core.settings import PREFIX, SECRETS, Settings, load, unknown_variables


def load_with(**variables: str) -> Settings:
    return load({PREFIX + name.upper(): value for name, value in variables.items()})


def test_defaults_are_those_of_the_contract() -> None:
    settings = load({})
    assert (settings.ingest_port, settings.gateway_port, settings.clickhouse_port) == (8081, 8080, 8123)
    assert (settings.ack, settings.cors_origins, settings.shards) == ("fsync", "*", None)
    assert (settings.redis_url, settings.clickhouse_url, settings.data_dir) == ("", "", Path("data"))


def test_texts_become_the_types_of_the_fields() -> None:
    settings = load_with(shards="8", lease_ttl_s="2.5", data_dir="/tmp/x", ingest_port="1")
    assert (settings.shards, settings.lease_ttl_s, settings.data_dir) == (8, 2.5, Path("/tmp/x"))
    assert settings.ingest_port == 1


def test_empty_variable_counts_as_unset() -> None:
    assert load_with(ingest_port="", redis_url="").ingest_port == 8081


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ingest_port", "http"), ("ingest_port", "65536"), ("ingest_port", "-1"), ("ingest_port", "80.5"),
        ("shards", "0"), ("shards", "65"), ("shards", "many"), ("ack", "maybe"), ("ack", "replicas:"),
        ("ack", "replicas:0"), ("ack", "replicas:x"), ("log_level", "loud"), ("heartbeat_s", "16"),
        ("heartbeat_s", "nan"), ("lease_ttl_s", "nan"), ("lease_ttl_s", "inf"), ("lease_ttl_s", "0"),
        ("redis_url", "localhost:6379"), ("clickhouse_url", "clickhouse://x"), ("voter_secret", "short"),
        ("ingest_key", "short"), ("vote_dedup_window_s", "59"),
    ],
)  # fmt: skip
def test_bad_value_is_fatal_and_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(Fatal) as caught:
        load_with(**{name: value})
    text = str(caught.value)
    assert text.startswith(PREFIX + name.upper())
    assert "\n" not in text


def test_secret_is_not_in_the_message_about_it() -> None:
    with pytest.raises(Fatal) as caught:
        load_with(ingest_key="hush")
    assert "hush" not in str(caught.value)


def test_unknown_variable_is_reported_and_harmless() -> None:
    environ = {"ARENACAST_INGEST_PROT": "1", "ARENACAST_INGEST_PORT": "1", "HOME": "/"}
    assert unknown_variables(environ) == ["ARENACAST_INGEST_PROT"]
    assert load(environ).ingest_port == 1


def test_secret_comes_from_its_variable_and_else_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "ingest.key").write_text("from-the-file\n")
    assert Settings(data_dir=tmp_path).secret("ingest_key") == "from-the-file"
    assert Settings(data_dir=tmp_path, ingest_key="from-the-variable").secret("ingest_key") == "from-the-variable"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_missing_empty_or_unreadable_secret_is_fatal_and_named(tmp_path: Path, content: bytes | None) -> None:
    """An empty key would let in everybody who sends an empty one."""
    if content is not None:
        (tmp_path / "ingest.key").write_bytes(content)
    with pytest.raises(Fatal, match="ARENACAST_INGEST_KEY"):
        Settings(data_dir=tmp_path).secret("ingest_key")


def test_public_settings_hold_no_secret() -> None:
    settings = Settings(
        redis_url="rediss://user:hunter2@redis:6379/0?password=hunter2",
        clickhouse_url="https://default:hunter2@ch:8443/arenacast",
        ingest_key="hunter2-key",
        voter_secret="hunter2-secret-of-voters",
        clickhouse_password="hunter2",
        analyst_password="hunter2",
    )
    shown = settings.public()
    assert "hunter2" not in str(shown)
    assert shown["redis_url"] == "rediss://redis:6379/0"
    assert shown["clickhouse_url"] == "https://ch:8443/arenacast"
    assert {shown[field] for field in SECRETS} == {"set"}


def test_socket_lies_in_the_data_directory_unless_its_path_would_be_too_long(tmp_path: Path) -> None:
    assert Settings(data_dir=Path("/data")).redis_socket == Path("/data/redis.sock")
    deep = Settings(data_dir=tmp_path / ("d" * 100))
    other = Settings(data_dir=tmp_path / ("e" * 100))
    assert len(os.fsencode(deep.redis_socket)) < 104
    assert deep.redis_socket != other.redis_socket
    assert deep.redis_socket == Settings(data_dir=tmp_path / ("d" * 100)).redis_socket


def test_targets_are_the_embedded_servers_unless_urls_are_set(tmp_path: Path) -> None:
    embedded = Settings(data_dir=Path("/da ta?"), clickhouse_password="p@ss/word")
    assert embedded.redis_target == "unix:///da%20ta%3F/redis.sock"
    assert embedded.clickhouse_target == "http://default:p%40ss%2Fword@127.0.0.1:8123/arenacast"
    given = Settings(redis_url="redis://r:1", clickhouse_url="http://u:p@c:1/d")
    assert (given.redis_target, given.clickhouse_target) == ("redis://r:1", "http://u:p@c:1/d")


def test_replicas_of_an_acknowledgement() -> None:
    assert [Settings(ack=ack).ack_replicas for ack in ("fsync", "memory", "replicas:2")] == [0, 0, 2]


def test_children_read_equal_settings_from_the_environment_they_get(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, shards=3, lease_ttl_s=0.5, ack="replicas:2", ingest_key="k" * 8, gateway_port=0
    )
    environ = environment(settings, {"PATH": "/bin", "ARENACAST_INGEST_KEY": "old-and-wrong", "ARENACAST_TYPO": "1"})
    assert load(environ) == settings
    assert environ["PATH"] == "/bin"
    assert not unknown_variables(environ)


def test_key_files_are_for_their_owner_only(tmp_path: Path) -> None:
    from core.local.keyfiles import make_data_dir, with_secrets

    settings = Settings(data_dir=tmp_path / "new" / "data")
    make_data_dir(settings)
    first = with_secrets(settings)
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
    for field in ("ingest.key", "voter.secret", "clickhouse.key", "analyst.key"):
        assert stat.S_IMODE((settings.data_dir / field).stat().st_mode) == 0o600
    assert with_secrets(settings) == first
    assert len({first.ingest_key, first.voter_secret, first.clickhouse_password}) == 3
    load(environment(first, {}))  # what is generated passes our own checks


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "redis://:pw@127.0.0.1:notaport/0"),
        ("REDIS_URL", "redis://127.0.0.1/abc"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "unix://"),
        ("CLICKHOUSE_URL", "http://user:pw@host:99999/db"),
        ("CORS_ORIGINS", "foo"),
        ("CORS_ORIGINS", "https://a.example/path"),
    ],
)
def test_a_malformed_address_is_one_line_that_names_it_and_keeps_its_password(name: str, value: str) -> None:
    with pytest.raises(Fatal) as caught:
        load({f"ARENACAST_{name}": value})
    assert f"ARENACAST_{name}" in str(caught.value)
    assert "pw" not in str(caught.value)
