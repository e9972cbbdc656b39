"""Bodies to items: pure, the only reader of untrusted bytes. Whatever comes in, items or a Problem come out.

Votes are a hot path (`loadtests.bench_ingest`): one msgspec call decodes and checks the whole body. Only when that
fails are the items decoded one by one, to name every one that is wrong.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, DecodeError, Raw, ValidationError

from core.events import EVENT_MAX_BYTES, MatchEvent, Vote, encode_json
from core.names import RESERVED_TYPES
from core.problem import ItemError, Problem

ITEMS_MAX = 10_000
"""Items of one body (CONTRACT §3): bounds the time that one request keeps the process to itself."""
TS_AHEAD_MAX = timedelta(hours=24)
TS_MIN = datetime(1970, 1, 1, tzinfo=UTC)
"""Nothing we read was measured before; negative Unix times trip up readers further down."""
DEPTH_MAX = 64
"""Nesting of event data: what a decoder with less stack left (ours, ClickHouse's, a browser's) surely takes."""

Media = Literal["json", "ndjson"]
_MEDIA: dict[str, Media] = {"application/json": "json", "application/x-ndjson": "ndjson"}
_WHITESPACE = b" \t\r\n"
_LINE_BREAKS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}

_REASONS = {
    "event_id": "must be 1 to 128 printable characters",
    "corrects": "must be 1 to 128 printable characters",
    "voter": "must be 1 to 128 printable characters",
    "type": "must be a lower-case letter, then up to 63 of a-z 0-9 _",
    "source": "must be 1 to 32 of A-Z a-z 0-9 _ . : -",
}
_ID_REASON = "must be 1 to 64 of A-Z a-z 0-9 _ -"

T = TypeVar("T")
Fault = tuple[str, str]
"""Path and reason."""


def media_type(content_type: str | None) -> Media:
    """What a Content-Type header announces. Raises Problem 415."""
    name, *parameters = (part.strip().lower() for part in (content_type or "").split(";"))
    media = _MEDIA.get(name)
    charsets = {p.partition("=")[2].strip('"') for p in parameters if p.startswith("charset=")}
    if media is None or not charsets <= {"utf-8", "utf8"}:
        raise Problem(415, "Content-Type must be application/json or application/x-ndjson, in UTF-8")
    return media


def json_value(body: bytes, kind: type[T]) -> T:
    """One JSON value of a type. Raises Problem 400 when it is not JSON, 422 when it is another type."""
    _check_text(body)
    try:
        return msgspec.json.decode(_raw(body, Raw), type=kind)
    except ValidationError as error:
        raise invalid_items([_item_error(0, fault_of(error))]) from error
    except (DecodeError, ValueError, RecursionError) as error:
        raise _unparseable(error) from error


def fault_of(error: ValidationError) -> Fault:
    """Path and reason of a validation error, without the values that the client sent."""
    text, _, path = str(error).partition(" - at `")
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    field = path.rpartition(".")[2]
    if "matching regex" in text:
        text = _REASONS.get(field, _ID_REASON)
    elif "of length" in text and field in _REASONS:
        text = _REASONS[field]
    elif text.startswith("Invalid enum value"):
        text = "is not one of the allowed values"
    return path, text


def event_entry(event: MatchEvent) -> tuple[bytes, Fault | None]:
    """The event as the log keeps it and every reader gets it, and why it may not be stored, if so.

    Bounded in size and depth, because each reader's decoder has to take it. One line for everybody: some event-stream
    clients also break lines at the Unicode separators, which JSON leaves as they are.
    """
    try:
        encoded = encode_json(event)
    except RecursionError:
        return b"", ("data", f"nested more than {DEPTH_MAX} levels deep")
    if not encoded.isascii():
        text = encoded.decode()
        for character, escape in _LINE_BREAKS.items():
            text = text.replace(character, escape)
        encoded = text.encode()
    if len(encoded) > EVENT_MAX_BYTES:
        return b"", ("data", f"the event takes {len(encoded)} bytes, at most {EVENT_MAX_BYTES} are allowed")
    if encoded.count(b"{") + encoded.count(b"[") > DEPTH_MAX and depth(event.data) > DEPTH_MAX:
        return b"", ("data", f"nested more than {DEPTH_MAX} levels deep")
    return encoded, None


def depth(value: Any) -> int:
    """Levels of nesting of a decoded JSON value; does not recurse itself."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        item, depth = todo.pop()
        deepest = max(deepest, depth)
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        todo.extend((child, depth + 1) for child in children if isinstance(child, dict | list))
    return deepest


class BodyDecoder(Generic[T]):
    """Decodes one object, an array or NDJSON of one kind of item, whole or not at all."""

    def __init__(self, kind: type[T], fault: Callable[[T, datetime], Fault | None]) -> None:
        """`fault(item, latest ts)` says what the type alone does not."""
        self._one = msgspec.json.Decoder(kind)
        self._many = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
        self._fault = fault

    def decode(self, body: bytes, media: Media, now: datetime) -> tuple[list[T], bool]:
        """Items, and whether the body was a list. Raises Problem 400, 413 or 422 with every item that is wrong."""
        _check_text(body)
        latest = now + TS_AHEAD_MAX
        is_list = media == "ndjson" or body.lstrip(_WHITESPACE).startswith(b"[")
        try:
            if media == "ndjson":
                items = self._one.decode_lines(body)
            else:
                items = self._many.decode(body) if is_list else [self._one.decode(body)]
        except (DecodeError, ValueError, RecursionError):
            items = self._decode_each(body, media, is_list, latest)
        if len(items) > ITEMS_MAX:
            raise too_many_items()
        errors = [_item_error(i, found) for i, item in enumerate(items) if (found := self._fault(item, latest))]
        if errors:
            raise invalid_items(errors)
        return items, is_list

    def _decode_each(self, body: bytes, media: Media, is_list: bool, latest: datetime) -> list[T]:
        """The slow twin of the fast path: tells all errors instead of the first."""
        items: list[T] = []
        errors: list[ItemError] = []
        for index, text in enumerate(_texts(body, media, is_list)):
            if index == ITEMS_MAX:
                raise too_many_items()
            try:
                items.append(item := self._one.decode(text))
                if found := self._fault(item, latest):
                    errors.append(_item_error(index, found))
            except ValidationError as error:
                errors.append(_item_error(index, fault_of(error)))
            except (DecodeError, ValueError, RecursionError) as error:
                raise _unparseable(error, index if is_list else None) from error
        if errors:
            raise invalid_items(errors)
        return items


def too_many_items() -> Problem:
    """413 for a body with more than `ITEMS_MAX` items."""
    return Problem(413, f"a body holds at most {ITEMS_MAX} items")


def invalid_items(errors: list[ItemError]) -> Problem:
    """422 for a body with items that are wrong: nothing of it is stored."""
    return Problem(422, f"{len(errors)} invalid item(s), nothing was stored", errors=errors)


def _texts(body: bytes, media: Media, is_list: bool) -> Iterable[Raw]:
    """The items, each known to be JSON: a type error must not hide that the rest of a text is broken."""
    if media == "ndjson":
        lines = (line for line in BytesIO(body) if line.strip(_WHITESPACE))
        return (_raw(line, Raw, index) for index, line in enumerate(lines))
    return _raw(body, list[Raw]) if is_list else [_raw(body, Raw)]


def _raw(text: bytes, kind: type[T], index: int | None = None) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (DecodeError, ValueError, RecursionError) as error:
        raise _unparseable(error, index) from error


def _check_text(body: bytes) -> None:
    """All of it must be UTF-8, also what the decoder skips."""
    try:
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError as error:
        raise Problem(400, "the body is not UTF-8") from error


def _unparseable(error: Exception, index: int | None = None) -> Problem:
    where = "the body" if index is None else f"item {index}"
    if isinstance(error, RecursionError):
        return Problem(400, f"{where} is nested too deeply")
    return Problem(400, f"{where} is not valid JSON")


def _item_error(index: int, fault: Fault) -> ItemError:
    return ItemError(index, *fault)


def _ts_fault(ts: datetime, latest: datetime) -> Fault | None:
    if ts > latest:
        return "ts", "more than 24 h ahead"
    return ("ts", "before 1970") if ts < TS_MIN else None


def _vote_fault(vote: Vote, latest: datetime) -> Fault | None:
    if not vote.event_id.isprintable():
        return "event_id", _REASONS["event_id"]
    if not vote.voter.isprintable():
        return "voter", _REASONS["voter"]
    return None if vote.ts is None else _ts_fault(vote.ts, latest)


def _event_fault(event: MatchEvent, latest: datetime) -> Fault | None:
    if not event.event_id.isprintable():
        return "event_id", _REASONS["event_id"]
    if event.type in RESERVED_TYPES:
        return "type", "is reserved for messages"
    if event.corrects is UNSET:
        if event.revision is not UNSET:
            return "revision", "needs corrects"
    elif not event.corrects.isprintable():
        return "corrects", _REASONS["event_id"]
    elif event.corrects == event.event_id:
        return "corrects", "must be the id of another event"
    return None if event.ts is None else _ts_fault(event.ts, latest)


votes = BodyDecoder(Vote, _vote_fault).decode
match_events = BodyDecoder(MatchEvent, _event_fault).decode
