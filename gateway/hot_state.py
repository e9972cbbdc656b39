"""Reading hot state: what REST shows, what a snapshot message shows, and the position it is consistent with."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from msgspec import Struct

from core import keys
from core.epochs import Epochs, parse
from core.errors import Poison
from core.names import parse_topic
from core.position import ZERO, EntryId, Position, parse_entry_id
from core.redis_client import Redis, call, lua
from gateway.frames import Item, encode_json


@cache
def _script() -> str:
    return lua("gateway", "hot_state")


class TopicState(Struct, frozen=True, gc=False):
    """Hot state of one topic. `entry`: the last input that concerned it; `data`: the public JSON."""

    topic: str
    entry: EntryId
    data: bytes


class HotState(Struct, frozen=True):
    """Some topics of a shard as of one moment."""

    shard: int
    last_id: EntryId
    updates_id: EntryId
    epochs: Epochs
    states: dict[str, list[TopicState]]
    """Route -> its topics that exist: none or one for a topic, any number in order of map id for a pattern."""

    @property
    def position(self) -> Position:
        """Live messages continue strictly after this."""
        return self.epochs.at(self.last_id)


async def read(client: Redis, shard: int, routes: Sequence[str] = ()) -> HotState:
    """One atomic read. Without routes it only tells where the shard stands. Raises Retry when Redis is away."""
    names = [keys.progress(shard), keys.epochs(shard)]
    prefixes: list[str] = []
    for route in routes:
        topic = parse_topic(route)
        if topic.is_pattern:
            names.append(keys.maps(shard, topic.id))
            prefixes.append(keys.state(shard, f"match.{topic.id}."))
        else:
            names.append(keys.state(shard, route))
            prefixes.append("")
    reply = await call(client.eval_ro(_script(), len(names), *names, *prefixes))
    last_id, updates_id, flat, found = reply
    epochs = parse(dict(zip(flat[::2], flat[1::2], strict=True)))
    states = {route: _states(route, parts) for route, parts in zip(routes, found, strict=True)}
    return HotState(shard, _entry_id(last_id), _entry_id(updates_id), epochs, states)


def unknown(route: str) -> bytes:
    """Snapshot of a topic that does not exist (yet)."""
    topic = parse_topic(route)
    if topic.kind == "poll":
        return encode_json({"poll_id": topic.id, "status": "unknown"})
    if topic.is_pattern:
        return encode_json({"match_id": topic.id, "status": "unknown"})
    return encode_json({"match_id": topic.id, "map_id": topic.map_id, "status": "unknown"})


def snapshots(state: HotState, routes: Iterable[str], unfinished: Position) -> list[Item]:
    """Snapshot messages of some topics. Only the last one carries the position of the state, the others `unfinished`:
    a cursor covers what was sent up to it."""
    items: list[Item] = []
    for route in routes:
        found = [(topic.topic, topic.data) for topic in state.states[route]] or [(route, unknown(route))]
        items += [Item(state.shard, unfinished, topic, "snapshot", data, is_state=True) for topic, data in found]
    if items:
        items[-1].position = state.position
    return items


def _states(route: str, parts: list[Any]) -> list[TopicState]:
    if route.endswith(".*"):
        found = [
            _state(f"{route[:-1]}{map_id.decode()}", pos, data)
            for map_id, pos, data in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
            if data is not None
        ]
        return sorted(found, key=lambda state: _natural(state.topic))
    pos, data = parts
    return [] if data is None else [_state(route, pos, data)]


def _state(topic: str, pos: bytes | None, data: bytes) -> TopicState:
    _, _, entry = (pos or b"").decode().partition(".")
    ms, _, seq = entry.partition(".")
    if not (ms.isdecimal() and seq.isdecimal()):
        raise Poison(f"state of {topic} has no position")
    return TopicState(topic, EntryId(int(ms), int(seq)), data)


def _natural(topic: str) -> tuple[int, int, str]:
    """Maps by number, others (the series) after them by name."""
    map_id = topic.rpartition(".")[2]
    return (0, int(map_id), "") if map_id.isdecimal() else (1, 0, map_id)


def _entry_id(raw: bytes | None) -> EntryId:
    return parse_entry_id(raw) if raw else ZERO
