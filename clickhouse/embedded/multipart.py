"""multipart/form-data, as external tables are sent. Pure, in memory: nothing is spooled to disk."""

from email.message import Message
from typing import TYPE_CHECKING, NamedTuple

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

from clickhouse.embedded.errors import ClickHouseError, Code

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

PARTS_MAX = 1000
"""Fields and files of one body: each costs an object, however small it is."""


class Part(NamedTuple):
    """A form field, or a file when it has a file name."""

    name: str
    filename: str | None
    data: bytes


def parse(content_type: str, body: bytes) -> list[Part]:
    """Parts of a body. Raises ClickHouseError when it is not whole or not well-formed."""
    boundary = _parameters(content_type).get("boundary", "")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary.encode("latin-1"), collector.callbacks())
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, ValueError) as error:
        raise ClickHouseError(Code.BAD_ARGUMENTS, "Bad multipart/form-data body") from error
    if not collector.is_complete:
        raise ClickHouseError(Code.BAD_ARGUMENTS, "Bad multipart/form-data body: it ends early")
    return collector.parts


class _Collector:
    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.is_complete = False
        self._header = self._value = b""
        self._disposition = ""
        self._data: list[bytes] = []

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._disposition, self._data = "", []

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value.decode("utf-8", "replace")
        self._header = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        parameters = _parameters(self._disposition)
        self.parts.append(Part(parameters.get("name", ""), parameters.get("filename"), b"".join(self._data)))
        if len(self.parts) > PARTS_MAX:
            raise ValueError("too many parts")

    def _finish(self) -> None:
        self.is_complete = True


def _parameters(header: str) -> dict[str, str]:
    message = Message()
    message["content-type"] = header.replace("\r", " ").replace("\n", " ")
    return {name.lower(): value for name, value in message.get_params(failobj=[])[1:]}
