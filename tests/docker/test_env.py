"""new-env.sh: secrets for a first start."""

import shutil
from pathlib import Path

import pytest

from tests.docker.files import DOCKER, read_env, run


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of what the script works on."""
    for name in ("new-env.sh", ".env.example"):
        shutil.copy(DOCKER / name, tmp_path)
    return tmp_path


def test_every_empty_secret_is_filled_and_nothing_else_changes(directory: Path) -> None:
    assert run(str(directory / "new-env.sh")).returncode == 0
    example, written = (read_env((directory / name).read_text()) for name in (".env.example", ".env"))
    assert written.keys() == example.keys()
    secrets = [written[name] for name, value in example.items() if not value]
    assert all(len(secret) == 48 and secret.isalnum() for secret in secrets), "fit for a URL"
    assert len(set(secrets)) == len(secrets)
    assert {name: value for name, value in written.items() if example[name]} == {
        name: value for name, value in example.items() if value
    }


def test_secrets_are_for_their_owner_only(directory: Path) -> None:
    run(str(directory / "new-env.sh"))
    assert (directory / ".env").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in directory.iterdir()) == [".env", ".env.example", "new-env.sh"]


def test_existing_secrets_are_never_replaced(directory: Path) -> None:
    run(str(directory / "new-env.sh"))
    before = (directory / ".env").read_text()
    result = run(str(directory / "new-env.sh"))
    assert result.returncode == 1
    assert "exists" in result.stderr
    assert (directory / ".env").read_text() == before
