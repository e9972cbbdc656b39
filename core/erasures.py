"""The list of erased voters: hashes, and until when what carries them must not come back.

A line is `<hash> <ms>`: everything received up to that instant was erased. It lies beside the data and beside the
backups, because a backup made before the erasure still holds what was erased, and is restored without it. A list of
keyed hashes names nobody to whoever has not the secret; it is kept for as long as the backups are.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from core.errors import Fatal

LIST = "erased.list"


def read(directories: Iterable[Path]) -> dict[str, int]:
    """Voter hash -> ms, from the lists in these directories. Raises Fatal for one that is damaged."""
    found: dict[str, int] = {}
    for directory in directories:
        path = directory / LIST
        if not path.exists():
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            voter, _, ms = line.partition(" ")
            try:
                is_hash = len(bytes.fromhex(voter)) == 8 and ms.isdecimal()
            except ValueError:
                is_hash = False
            if not is_hash:
                raise Fatal(f"{path}, line {number}: not a voter's hash and an instant")
            found[voter] = max(found.get(voter, 0), int(ms))
    return found


def add(directory: Path, erased: Mapping[str, int]) -> None:
    """Add to the list in a directory, durably."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / LIST, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "a") as file:
        file.writelines(f"{voter} {ms}\n" for voter, ms in erased.items())
        file.flush()
        os.fsync(file.fileno())
