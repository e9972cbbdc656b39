"""`arenacast rotate-voter-secret`: a new key for voters' hashes, the old one apart, where it can be destroyed."""

import asyncio
import os
import secrets

from core import keys, redis_client
from core.errors import Fatal, Retry
from core.local.keyfiles import make_data_dir, write_secret
from core.redis_client import Redis, call
from core.settings import PREFIX, Settings

_BYTES = 24


def run(settings: Settings, *, is_forced: bool) -> None:
    """Rotate the secret in the data directory. Raises Fatal while polls are open, unless forced."""
    if settings.voter_secret:
        raise Fatal(f"{PREFIX}VOTER_SECRET is set: give it a new value and add the old one to "
                    f"{settings.voter_secrets_file}, a line each, newest first")  # fmt: skip
    if not is_forced and (count := asyncio.run(_open_polls(settings))):
        raise Fatal(f"{count} polls are open, and their voters could vote again: close them first, or say --force")
    make_data_dir(settings)
    known = settings.voter_secrets()
    # First the old one where it is kept, then the new one: a crash in between leaves the old one twice, and none lost.
    write_secret(settings.voter_secrets_file, "\n".join(known))
    write_secret(settings.secret_file("voter_secret"), secrets.token_urlsafe(_BYTES))
    print(f"new voter secret in {settings.secret_file('voter_secret')}: restart ingest to use it")
    print(
        f"{len(known)} earlier in {settings.voter_secrets_file}: `forget` needs them; without the file nobody can join"
    )
    print("old hashes to new ones any more")
    os.sync()


async def _open_polls(settings: Settings) -> int:
    client: Redis = redis_client.connect(settings)
    try:
        shards = int(await call(client.hget(keys.LOG, "shards")) or 0)
        count = 0
        for shard in range(shards):
            prefix = keys.definition(shard, "poll.")
            async for name in client.scan_iter(match=f"{prefix}*", count=1000):
                voted, closed = await call(client.hmget(name, "voted", "closed"))
                count += bool(voted) and not closed
        return count
    except Retry as error:
        raise Fatal(f"whether polls are open cannot be seen ({error}): start Redis, or say --force") from error
    finally:
        await client.aclose()
