"""The digest of a tally, and the hashes analysts see: one definition for sender, consumer, archive and verifier.

`digest` = sum modulo 2**64 of xxHash64 (seed 0) over the UTF-8 of `event_id` + NUL + `option`, shown as 16 hex
digits. A sum does not depend on order, so a sender, ClickHouse (`sum(vote_hash)`) and any reader get the same
number. It detects mistakes, not forgery.
"""

from hashlib import blake2b

from xxhash import xxh64_intdigest

MASK = 2**64 - 1


def vote_hash(event_id: str, option: str) -> int:
    """What `digest` sums, for one vote."""
    return xxh64_intdigest(f"{event_id}\0{option}".encode())


def event_hash(event_id: str) -> int:
    """xxHash64 of an event id, as stored in ClickHouse."""
    return xxh64_intdigest(event_id.encode())


def format_digest(total: int) -> str:
    """A sum of vote hashes as the contract shows it."""
    return f"{total & MASK:016x}"


def voter_key(secret: str) -> bytes:
    """Key for `voter_hash` from a secret of any length (BLAKE2b takes at most 64 bytes)."""
    return blake2b(secret.encode(), digest_size=32).digest()


def voter_hash(key: bytes, voter: str) -> str:
    """Keyed hash of a platform identity, 16 hex digits (BLAKE2b, 64 bit). `key` is from `voter_key`.

    64 bits: among a million voters of one poll the chance of one collision is below 3e-8. The key never leaves the
    write side, so the log and the archive hold no identity.
    """
    return blake2b(voter.encode(), key=key, digest_size=8).hexdigest()
