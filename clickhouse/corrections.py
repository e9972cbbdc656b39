"""What was known of a match at a moment: its record with the corrections made until then, and none made later.

An event is shown in its own place, in the newest version known at that moment; the corrections are not shown again in
theirs. A correction of an event that is not among those read (never recorded, or of another map) stands in its place
itself, in its newest version.
"""

from collections.abc import AsyncIterator

import msgspec

from clickhouse.history import History
from clickhouse.queries import BEGINNING, Asked, Place, StoredEvent
from clickhouse.replay import pages
from core.errors import Fatal

CORRECTIONS_MAX = 20_000
"""Corrections of one match: they are held in memory while it is read. A match has some hundred events."""


class Corrections:
    """The corrections of a match that were known at a moment."""

    def __init__(self, newest: dict[str, StoredEvent]) -> None:
        self._newest = newest

    def since(self, after: Place) -> Place:
        """From where to read for the events after a place: whether a correction stands for itself depends on what came
        before it."""
        return BEGINNING if self._newest else after

    async def applied(
        self, batches: AsyncIterator[list[StoredEvent]], after: Place = BEGINNING
    ) -> AsyncIterator[list[StoredEvent]]:
        """The same events, in order, each in the version that counts; of `batches`, read from `since`, those after a
        place."""
        shown: set[str] = set()
        async for batch in batches:
            events = []
            for event in batch:
                root = event.corrects or event.event_id
                newest = self._newest.get(root)
                if newest is None:
                    events.append(event)
                elif root not in shown:
                    shown.add(root)
                    events.append(msgspec.structs.replace(newest, place=event.place, received_ms=event.received_ms))
            if events := [event for event in events if event.place > after]:
                yield events


async def known_at(history: History, asked: Asked, as_of_ms: int) -> tuple[Asked, Corrections]:
    """What to ask for, and the corrections of it. Raises Fatal, with a text fit for the client, when they are too many,
    and Retry as `History.page` does."""
    until = min(asked.until_ms, as_of_ms + 1)
    newest: dict[str, StoredEvent] = {}
    count = 0
    async for batch in pages(history, Asked(asked.match_id, until_ms=until, corrections_only=True)):
        count += len(batch)
        if count > CORRECTIONS_MAX:
            raise Fatal(f"more than {CORRECTIONS_MAX} corrections of one match")
        for event in batch:  # in the order of the log, so that of equal revisions the later one stays
            known = newest.get(event.corrects)
            if known is None or event.revision >= known.revision:
                newest[event.corrects] = event
    return msgspec.structs.replace(asked, until_ms=until), Corrections(newest)
