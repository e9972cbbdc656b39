"""Native blocks for drivers that negotiate a protocol revision (clickhouse-go and with it Grafana's plugin). Pure.

The engine writes the blocks of revision 0. From 54454 on a driver expects a BlockInfo in front of each block and, after
each column's type, a byte that says whether the column has a custom serialization (never, here). To put them in, the
end of every column must be found, so each type's binary form is known below. Strings are walked one by one at Python's
speed: this is for drivers that ask for it, not for bulk reading.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from clickhouse.embedded.errors import ClickHouseError, Code

FIRST_REVISION = 54454
"""Older drivers are served revision 0: clickhouse-connect probes with 54405 and notices."""

_BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"  # field 1: no overflow rows, field 2: bucket -1, end
_NO_CUSTOM_SERIALIZATION = b"\x00"

_WIDTHS = {
    **dict.fromkeys(("UInt8", "Int8", "Bool", "Enum8", "Nothing"), 1),
    **dict.fromkeys(("UInt16", "Int16", "Enum16", "Date", "BFloat16"), 2),
    **dict.fromkeys(("UInt32", "Int32", "Float32", "Date32", "DateTime", "IPv4", "Time", "Decimal32"), 4),
    **dict.fromkeys(("UInt64", "Int64", "Float64", "DateTime64", "Time64", "Decimal64"), 8),
    **dict.fromkeys(("UInt128", "Int128", "UUID", "IPv6", "Decimal128"), 16),
    **dict.fromkeys(("UInt256", "Int256", "Decimal256"), 32),
}
_ALIASES = {
    "Point": "Tuple(Float64, Float64)",
    "Ring": "Array(Point)",
    "LineString": "Array(Point)",
    "Polygon": "Array(Ring)",
    "MultiLineString": "Array(LineString)",
    "MultiPolygon": "Array(Polygon)",
}
_FIELD_NAME = re.compile(r"^(?:`(?:[^`\\]|\\.)*`|[A-Za-z_]\w*) (?=[A-Z])")  # of a named tuple's element


class Type(NamedTuple):
    """A column type: its name and what its parentheses hold, which may be types or not."""

    name: str
    arguments: tuple[str, ...]

    def element(self, index: int) -> "Type":
        """An argument that is a type."""
        return parse_type(_FIELD_NAME.sub("", self.arguments[index]))

    @property
    def elements(self) -> list["Type"]:
        """All arguments, where all are types."""
        return [self.element(index) for index in range(len(self.arguments))]


@lru_cache(maxsize=1024)
def parse_type(text: str) -> Type:
    """`Map(String, Array(UInt8))` -> Type("Map", ("String", "Array(UInt8)"))."""
    name, bracket, rest = text.partition("(")
    if name in _ALIASES:
        return parse_type(_ALIASES[name])
    return Type(name, _split(rest[:-1]) if bracket else ())


def convert(blocks: bytes, revision: int) -> bytes:
    """Whole blocks of revision 0 as blocks of `revision` (at least FIRST_REVISION).

    Raises ClickHouseError for a type whose binary form is not known here (JSON, Dynamic, AggregateFunction).
    """
    assert revision >= FIRST_REVISION
    out: list[bytes] = []
    position = 0
    while position < len(blocks):
        start = position
        columns, position = _varint(blocks, position)
        rows, position = _varint(blocks, position)
        out += (_BLOCK_INFO, blocks[start:position])
        for _ in range(columns):
            start = position
            size, position = _varint(blocks, position)
            type_size, type_start = _varint(blocks, position + size)
            position = type_start + type_size
            out += (blocks[start:position], _NO_CUSTOM_SERIALIZATION)
            if rows:
                kind = parse_type(blocks[type_start:position].decode())
                start, position = position, _skip(blocks, kind, rows, _skip_prefix(kind, position))
                out.append(blocks[start:position])
    return b"".join(out)


def _skip_prefix(kind: Type, position: int) -> int:
    """End of what stands once in front of a column: the version of each LowCardinality in it."""
    match kind.name:
        case "LowCardinality":
            return position + 8
        case "Array" | "Nullable":
            return _skip_prefix(kind.element(0), position)
        case "SimpleAggregateFunction":
            return _skip_prefix(kind.element(1), position)
        case "Tuple" | "Map":
            for element in kind.elements:
                position = _skip_prefix(element, position)
    return position


def _skip(data: bytes, kind: Type, rows: int, position: int) -> int:
    """End of a column's values."""
    width = _WIDTHS.get(kind.name)
    if width is not None:
        return position + width * rows
    match kind.name:
        case "String":
            return _skip_strings(data, rows, position)
        case "FixedString":
            return position + int(kind.arguments[0]) * rows
        case "Decimal":
            precision = int(kind.arguments[0])
            return position + (4 if precision <= 9 else 8 if precision <= 18 else 16 if precision <= 38 else 32) * rows
        case "Nullable":
            return _skip(data, kind.element(0), rows, position + rows)
        case "Array" | "Map":
            total = int.from_bytes(data[position + 8 * rows - 8 : position + 8 * rows], "little") if rows else 0
            position += 8 * rows
            for element in kind.elements:
                position = _skip(data, element, total, position)
            return position
        case "Tuple":
            for element in kind.elements:
                position = _skip(data, element, rows, position)
            return position
        case "SimpleAggregateFunction":
            return _skip(data, kind.element(1), rows, position)
        case "LowCardinality":
            return _skip_low_cardinality(data, kind.element(0), position) if rows else position
    if kind.name.startswith("Interval"):
        return position + 8 * rows
    raise ClickHouseError(Code.NOT_IMPLEMENTED, f"Type {kind.name} cannot be sent to this driver, cast it in the query")


def _skip_strings(data: bytes, rows: int, position: int) -> int:
    for _ in range(rows):
        size = data[position]
        if size < 128:
            position += 1 + size
        else:
            size, position = _varint(data, position)
            position += size
    return position


def _skip_low_cardinality(data: bytes, kind: Type, position: int) -> int:
    """Flags, dictionary, then an index for each row whose width the flags give."""
    flags = int.from_bytes(data[position : position + 8], "little")
    position += 8
    inner = kind.element(0) if kind.name == "Nullable" else kind
    for has_keys in (flags & 1 << 8, flags & 1 << 9):  # shared dictionary, keys of this block
        if has_keys:
            keys = int.from_bytes(data[position : position + 8], "little")
            position = _skip(data, inner, keys, position + 8)
    indexes = int.from_bytes(data[position : position + 8], "little")
    return position + 8 + indexes * (1 << (flags & 0xFF))


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def _split(text: str) -> tuple[str, ...]:
    """At the commas outside of brackets and quotes."""
    parts: list[str] = []
    depth = start = 0
    quote = ""
    is_escaped = False
    for index, character in enumerate(text):
        if quote:
            is_end = character == quote and not is_escaped
            is_escaped = character == "\\" and not is_escaped
            quote = "" if is_end else quote
        elif character in "'`":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return (*parts, text[start:].strip())
