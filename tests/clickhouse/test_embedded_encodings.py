"""Bodies are decoded whole, however many frames they have, or refused."""

import gzip
import zlib
from collections.abc import Callable

import brotli
import lz4.frame
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from clickhouse.embedded.encodings import Blocks, Compressed, Encoder, Identity, decode, decode_blocks, negotiate
from clickhouse.embedded.errors import ClickHouseError, Code

LIMIT = 1 << 30
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
    "br": brotli.compress,
}
FRAMED = [name for name in COMPRESSORS if name != "br"]  # brotli's streams cannot follow each other
ENCODERS: dict[str, Callable[[], Encoder]] = {
    **{name: (lambda name=name: Compressed(name, 3)) for name in COMPRESSORS},  # type: ignore[misc]
    "identity": Identity,
}
bodies = st.one_of(st.binary(max_size=300), st.binary(min_size=1, max_size=20).map(lambda piece: piece * 20_000))


@pytest.mark.parametrize("encoding", FRAMED)
@given(st.lists(bodies, min_size=1, max_size=4))
def test_every_frame_counts(encoding: str, parts: list[bytes]) -> None:
    body = b"".join(map(COMPRESSORS[encoding], parts))
    assert decode(body, encoding, LIMIT) == b"".join(parts)


@pytest.mark.parametrize("encoding", COMPRESSORS)
@given(bodies, st.floats(min_value=0, max_value=1, exclude_max=True))
def test_unfinished_frame_is_an_error(encoding: str, body: bytes, fraction: float) -> None:
    whole = COMPRESSORS[encoding](body)
    cut = whole[: max(1, int(len(whole) * fraction))]
    if cut == whole:  # the empty body of some encodings is one byte
        return
    with pytest.raises(ClickHouseError) as caught:
        decode(cut, encoding, LIMIT)
    assert caught.value.code is Code.UNKNOWN_CODEC


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_damage_and_a_tail_are_errors(encoding: str) -> None:
    for body in (b"no such thing", COMPRESSORS[encoding](b"x" * 100) + b"tail"):
        with pytest.raises(ClickHouseError):
            decode(body, encoding, LIMIT)


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_bomb_is_refused_before_it_is_unpacked(encoding: str) -> None:
    body = COMPRESSORS[encoding](bytes(20_000_000))
    with pytest.raises(ClickHouseError) as caught:
        decode(body, encoding, 1_000_000)
    assert caught.value.code is Code.QUERY_IS_TOO_LARGE


def test_unknown_encoding_is_refused() -> None:
    assert decode(b"x", "", LIMIT) == decode(b"x", "Identity", LIMIT) == b"x"
    with pytest.raises(ClickHouseError):
        decode(b"x", "snappy", LIMIT)


@pytest.mark.parametrize("name", ENCODERS)
@given(st.lists(bodies, max_size=4))
def test_encoded_answer_is_readable_piece_by_piece(name: str, parts: list[bytes]) -> None:
    encoder = ENCODERS[name]()
    body = b"".join(map(encoder.push, parts)) + encoder.finish()
    assert decode(body, name, LIMIT) == b"".join(parts)


@given(st.lists(bodies, max_size=4))
def test_blocks_round_trip(parts: list[bytes]) -> None:
    encoder = Blocks()
    body = b"".join(map(encoder.push, parts)) + encoder.finish()
    assert decode_blocks(body, LIMIT) == b"".join(parts)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_changed_or_cut_block_is_an_error(raw: bytes, data: st.DataObject) -> None:
    body = Blocks().push(raw)
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + bytes([body[at] ^ data.draw(st.integers(1, 255))]) + body[at + 1 :]
    for broken in (changed, body[:-1]):
        with pytest.raises(ClickHouseError):
            decode_blocks(broken, LIMIT)


def test_blocks_are_bounded() -> None:
    body = Blocks().push(bytes(5_000_000))
    with pytest.raises(ClickHouseError) as caught:
        decode_blocks(body, 1_000_000)
    assert caught.value.code is Code.QUERY_IS_TOO_LARGE


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("gzip, deflate, br", "gzip"),
        ("zstd;q=1.0, LZ4", "lz4"),
        ("lz4;q=0, br", "br"),
        ("identity", None),
        ("", None),
        ("*", None),
    ],
)
def test_cheapest_accepted_encoding_is_chosen(accept: str, chosen: str | None) -> None:
    assert negotiate(accept) == chosen
