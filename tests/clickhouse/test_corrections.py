"""As of a moment the record is what was known then: corrections made until then in place, later ones unknown."""

from typing import Any

import pytest

from clickhouse import corrections as module
from clickhouse.corrections import known_at
from clickhouse.history import History
from clickhouse.queries import BEGINNING, Asked, Place, StoredEvent
from clickhouse.replay import pages
from core import keys
from core.errors import Fatal
from tests.support.archive_log import ArchiveLog

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

T0 = 1_795_300_000_000
M1 = Asked("m1")


class Match:
    """Events of m1, one a second from T0 on."""

    def __init__(self, log: ArchiveLog) -> None:
        self.log = log
        self.history = History(log.clickhouse, log.client, 1)
        self._count = 0

    def add(self, event_id: str, map_id: str = "1", **more: Any) -> None:
        body = {"event_id": event_id, "match_id": "m1", "map_id": map_id, "type": "kill", "source": "api", **more}
        received_us = (T0 + self._count * 1000) * 1000
        self.log.log_writer.append("match", f"match.m1.{map_id}", body, received_us=received_us)
        self._count += 1

    async def as_of(self, second: float, asked: Asked = M1) -> list[str]:
        asked, known = await known_at(self.history, asked, T0 + int(second * 1000))
        return [
            event.event_id for batch in [b async for b in known.applied(pages(self.history, asked))] for event in batch
        ]


@pytest.fixture(params=["archived", "live", "between"])
async def match(log: ArchiveLog, request: pytest.FixtureRequest) -> Match:
    """The same record on either side of the seam."""
    await log.scripts.ensure()
    match = Match(log)
    match.add("a")
    match.add("b", map_id="2")
    match.add("c")
    match.add("b2", map_id="2", corrects="b")
    if request.param == "between":
        await log.archive()
    match.add("d")
    match.add("b4", map_id="2", corrects="b", revision=4)
    match.add("b3", map_id="2", corrects="b", revision=3)
    match.add("x2", corrects="x")
    match.add("x2-again", corrects="x")
    if request.param == "archived":
        await log.archive()
        assert log.sync.xtrim(keys.events(0), maxlen=1, approximate=False)
    return match


async def test_every_event_is_shown_in_its_place_in_the_version_known_then(match: Match) -> None:
    assert await match.as_of(-1) == []
    assert await match.as_of(2.5) == ["a", "b", "c"]
    assert await match.as_of(3) == ["a", "b2", "c"]
    assert await match.as_of(5) == ["a", "b4", "c", "d"]
    assert await match.as_of(6) == ["a", "b4", "c", "d"], "a lower revision that came later changes nothing"


async def test_a_correction_of_what_was_never_recorded_stands_for_itself(match: Match) -> None:
    assert await match.as_of(7) == ["a", "b4", "c", "d", "x2"]
    assert await match.as_of(100) == ["a", "b4", "c", "d", "x2-again"], "of equal revisions the later one counts"


async def test_one_map_is_corrected_by_what_was_said_of_it(match: Match) -> None:
    assert await match.as_of(100, Asked("m1", map_id="2")) == ["b4"]


async def test_a_corrected_event_keeps_its_place_and_time(match: Match) -> None:
    plain: list[StoredEvent] = [event async for batch in pages(match.history, M1) for event in batch]
    asked, known = await known_at(match.history, M1, T0 + 5000)
    corrected = [event async for batch in known.applied(pages(match.history, asked)) for event in batch]
    assert [(event.place, event.received_ms) for event in corrected[:3]] == [
        (event.place, event.received_ms) for event in plain[:3]
    ]
    assert [event.revision for event in plain[:7]] == [1, 1, 1, 2, 1, 4, 3]
    assert b'"corrects":"b"' in corrected[1].payload


async def test_what_follows_a_place_is_the_rest_of_the_same_record(match: Match) -> None:
    async def read(after: Place) -> list[StoredEvent]:
        asked, known = await known_at(match.history, M1, T0 + 100_000)
        batches = known.applied(pages(match.history, asked, known.since(after)), after)
        return [event async for batch in batches for event in batch]

    whole = await read(BEGINNING)
    for number, event in enumerate(whole, 1):
        assert await read(event.place) == whole[number:], "nothing is shown twice to a reader that comes back"


async def test_the_number_of_corrections_is_bounded(match: Match, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CORRECTIONS_MAX", 2)
    with pytest.raises(Fatal, match="more than 2 corrections"):
        await match.as_of(100)
