"""The embedded ClickHouse as any HTTP client sees it."""

import asyncio
import gzip
import json
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import lz4.frame
import pytest
from backports import zstd

from clickhouse.embedded.encodings import Blocks, decode, decode_blocks
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.clickhouse

LIMIT = 1 << 30
ROWS = b"".join(b"%d\n" % number for number in range(120_000))


@pytest.fixture
def http(clickhouse_server: ClickHouseServer) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=clickhouse_server.url,
        headers={"X-ClickHouse-Key": clickhouse_server.password, "Accept-Encoding": "identity"},
        timeout=30,
    ) as client:
        yield client


@pytest.fixture
def table(http: httpx.Client) -> Iterator[str]:
    """Name of an empty table with one column."""
    name = f"t_{secrets.token_hex(6)}"
    run(http, f"CREATE TABLE {name} (a UInt64) ENGINE = MergeTree ORDER BY a")
    yield name
    run(http, f"DROP TABLE {name}")


def run(http: httpx.Client, sql: str, **parameters: str) -> str:
    """Result of a statement that must succeed."""
    answer = http.post("/", params=parameters, content=sql)
    assert answer.status_code == 200, answer.text
    return answer.text


def refused(answer: httpx.Response, code: int, status: int) -> str:
    """Text of an error that must be this one."""
    assert (answer.headers.get("X-ClickHouse-Exception-Code"), answer.status_code) == (str(code), status), answer.text
    assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
    assert "Traceback" not in answer.text
    return answer.text


def count(http: httpx.Client, table: str) -> int:
    return int(run(http, f"SELECT count() FROM {table}"))


def test_is_alive_without_credentials(http: httpx.Client) -> None:
    for path in ("/ping", "/replicas_status"):
        answer = httpx.get(f"{http.base_url}{path}")
        assert (answer.status_code, answer.text) == (200, "Ok.\n")
    assert http.get("/").text == "Ok.\n"
    assert http.head("/").status_code == 200
    assert http.get("/nothing").status_code == 404
    assert http.put("/", content="SELECT 1").status_code == 405


def test_wrong_password_enters_nowhere(clickhouse_server: ClickHouseServer) -> None:
    url, password = clickhouse_server.url, clickhouse_server.password
    with httpx.Client(base_url=url) as client:
        for answer in (
            client.get("/", params={"query": "SELECT 1"}),
            client.get("/", params={"query": "SELECT 1", "password": "wrong"}),
            client.post("/", content="SELECT 1", headers={"X-ClickHouse-User": "root", "X-ClickHouse-Key": password}),
            client.post("/", content="SELECT 1", auth=("default", password[:-1])),
        ):
            refused(answer, 516, 403)
        for answer in (
            client.get("/", params={"query": "SELECT 1", "password": password}),
            client.post("/", content="SELECT 1", auth=("default", password)),
        ):
            assert answer.text == "1\n"


def test_get_reads_and_post_writes(http: httpx.Client, table: str) -> None:
    assert http.get("/", params={"query": f"SELECT count() FROM {table}"}).text == "0\n"
    for sql in (f"INSERT INTO {table} VALUES (1)", f"DROP TABLE {table}", "SET max_threads = 1", "KILL QUERY WHERE 0"):
        for parameters in ({}, {"readonly": "0"}, {"session_id": secrets.token_hex(4)}):
            refused(http.get("/", params={"query": sql, **parameters}), 164, 500)
    assert count(http, table) == 0


def test_parameters_settings_and_formats(http: httpx.Client) -> None:
    assert run(http, "SELECT {a:String} || {b:UInt8}", param_a="it's \\\\ ", param_b="7") == "it\\'s \\\\ 7\n"
    assert run(http, "SELECT getSetting('max_threads')", max_threads="1") == "1\n"
    assert run(http, "SELECT currentDatabase()", database="system") == "system\n"
    assert json.loads(run(http, "SELECT 1 AS a", default_format="JSON"))["data"] == [{"a": 1}]
    assert run(http, "SELECT 1 AS a FORMAT CSVWithNames") == '"a"\n1\n'
    refused(http.post("/", content="SELECT 1", params={"no_such_setting": "1"}), 115, 404)
    refused(http.post("/", content="SELECT 1 FORMAT Nothing"), 73, 404)
    refused(http.post("/", content="SELECT 1", params={"default_format": "DataFrame"}), 73, 404)
    refused(http.post("/", content="SELECT {a:UInt8}", params={"param_a": "x"}), 457, 500)


def test_headers_say_what_was_done(http: httpx.Client, table: str) -> None:
    answer = http.post("/", params={"query": f"INSERT INTO {table} FORMAT TSV"}, content="1\n2\n")
    assert json.loads(answer.headers["X-ClickHouse-Summary"])["written_rows"] == "2"
    assert "X-ClickHouse-Format" not in answer.headers
    answer = http.post("/", params={"query_id": "mine"}, content="SELECT 1 FORMAT JSON")
    assert answer.headers["X-ClickHouse-Query-Id"] == "mine"
    assert answer.headers["X-ClickHouse-Format"] == "JSON"
    assert answer.headers["X-ClickHouse-Timezone"]
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("sql", "code", "status"),
    [
        ("SELEC 1", 62, 400),
        ("", 62, 400),
        ("SELECT nothing", 47, 404),
        ("SELECT * FROM nothing", 60, 404),
        ("SELECT * FROM nothing.nothing", 81, 404),
        ("SELECT throwIf(1)", 395, 500),
        ("SELECT 1; SELECT 2", 62, 400),
        ("SELECT 1; DROP TABLE x", 62, 400),
        ("INSERT INTO nothing FORMAT TSV\n1\n", 60, 404),
        ("SELECT 1 INTO OUTFILE '/tmp/arenacast-test'", 48, 501),
        ("SELECT sleep(3) SETTINGS max_execution_time = 0.2", 159, 408),
    ],
)
def test_errors_have_clickhouses_codes_and_statuses(http: httpx.Client, sql: str, code: int, status: int) -> None:
    refused(http.post("/", content=sql), code, status)


@pytest.mark.parametrize("compress", [gzip.compress, lz4.frame.compress, zstd.compress])
def test_every_frame_of_a_body_is_inserted(http: httpx.Client, table: str, compress: Callable[[bytes], bytes]) -> None:
    encoding = {gzip.compress: "gzip", lz4.frame.compress: "lz4", zstd.compress: "zstd"}[compress]
    lines = ROWS.splitlines(keepends=True)
    body = b"".join(compress(b"".join(lines[start : start + 40_000])) for start in range(0, len(lines), 40_000))
    answer = http.post(
        "/", params={"query": f"INSERT INTO {table} FORMAT TSV"}, content=body, headers={"Content-Encoding": encoding}
    )
    assert answer.status_code == 200, answer.text
    assert run(http, f"SELECT count(), uniqExact(a) FROM {table}") == "120000\t120000\n"
    refused(
        http.post(
            "/",
            params={"query": f"INSERT INTO {table} FORMAT TSV"},
            content=body[:-9],
            headers={"Content-Encoding": encoding},
        ),
        432,
        400,
    )
    assert count(http, table) == 120_000


def test_blocks_of_clickhouse_in_and_out(http: httpx.Client, table: str) -> None:
    body = Blocks().push(ROWS)
    parameters = {"query": f"INSERT INTO {table} FORMAT TSV", "decompress": "1"}
    assert http.post("/", params=parameters, content=body).status_code == 200
    broken = body[:100] + b"?" + body[101:]
    refused(http.post("/", params=parameters, content=broken), 40, 500)
    answer = http.post("/", params={"compress": "1"}, content=f"SELECT a FROM {table} ORDER BY a")
    assert decode_blocks(answer.content, LIMIT) == ROWS


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd", "br"])
@pytest.mark.parametrize(
    "sql", ["SELECT number FROM numbers(120000)", "SELECT number FROM numbers(120000) FORMAT JSON"]
)
def test_results_are_compressed_when_asked(http: httpx.Client, encoding: str, sql: str) -> None:
    expected = http.post("/", content=sql).content
    with http.stream(
        "POST",
        "/",
        params={"enable_http_compression": "1"},
        content=sql,
        headers={"Accept-Encoding": encoding},
    ) as answer:
        assert answer.headers["Content-Encoding"] == encoding
        found = decode(b"".join(answer.iter_raw()), encoding, LIMIT)
    statistics = rb'"elapsed": [0-9.e-]+'
    assert re.sub(statistics, b"", found) == re.sub(statistics, b"", expected)


@pytest.mark.parametrize(
    "data_format", ["TSV", "CSV", "Native", "RowBinary", "JSONEachRow", "JSONCompactEachRow", "TSKV"]
)
def test_streamed_result_is_the_whole_result(http: httpx.Client, data_format: str) -> None:
    sql = f"SELECT number, toString(number) AS s FROM numbers(300000) ORDER BY number FORMAT {data_format}"
    streamed = http.post("/", content=sql, params={"max_block_size": "10000"})
    assert streamed.headers["Transfer-Encoding"] == "chunked"
    whole = http.post("/", content=sql, params={"wait_end_of_query": "1", "max_block_size": "10000"})
    assert "Content-Length" in whole.headers
    assert streamed.content == whole.content


def test_error_in_the_middle_of_a_result_is_told_and_the_answer_has_no_end(http: httpx.Client) -> None:
    sql = "SELECT throwIf(number = 3000000) FROM numbers(10000000)"
    received = b""
    with http.stream("POST", "/", content=sql) as answer:
        assert answer.status_code == 200
        tag = answer.headers["X-ClickHouse-Exception-Tag"].encode()
        try:
            for piece in answer.iter_raw():
                received += piece
        except httpx.RemoteProtocolError:
            received += b"|cut"
    end = re.search(
        rb"\r\n__exception__\r\n%s\r\n(Code: 395\..*\n)(\d+) %s\r\n__exception__\r\n\|cut$" % (tag, tag), received
    )
    assert end is not None
    assert int(end[2]) == len(end[1])
    refused(http.post("/", content=sql, params={"wait_end_of_query": "1"}), 395, 500)


def test_slow_result_comes_as_it_is_made(http: httpx.Client) -> None:
    started = time.monotonic()
    sql = "SELECT sleepEachRow(0.2), number FROM numbers(10) SETTINGS max_block_size = 1"
    with http.stream("POST", "/", content=sql) as answer:
        first = next(answer.iter_raw())
        assert time.monotonic() - started < 1.0
        assert first.startswith(b"0\t0\n")


def test_reader_that_leaves_stops_its_query(http: httpx.Client) -> None:
    marker, key = secrets.token_hex(8), http.headers["X-ClickHouse-Key"]

    def running() -> str:
        return run(
            http, "SELECT count() FROM system.processes WHERE Settings['log_comment'] = {m:String}", param_m=marker
        )

    for sql in ("SELECT number FROM system.numbers", "SELECT sum(sipHash64(number)) FROM system.numbers"):
        request = (
            f"POST /?query_id={marker} HTTP/1.1\r\nHost: x\r\nX-ClickHouse-Key: {key}\r\nContent-Length: {len(sql)}"
        )
        with socket.create_connection(("127.0.0.1", http.base_url.port or 0)) as connection:
            connection.sendall(f"{request}\r\n\r\n{sql}".encode())
            asyncio.run(wait_until(lambda: running() == "1\n", 10.0, "the query runs"))
        asyncio.run(wait_until(lambda: running() == "0\n", 10.0, "the query has ended"))


def test_session_keeps_its_state_and_nobody_elses(http: httpx.Client) -> None:
    session = {"session_id": secrets.token_hex(8)}
    run(http, "CREATE TEMPORARY TABLE mine (a UInt8)", **session)
    run(http, "INSERT INTO mine VALUES (1)", **session)
    run(http, "SET max_threads = 3", **session)
    assert run(http, "SELECT a FROM mine", **session) == "1\n"
    assert run(http, "SELECT getSetting('max_threads')", max_threads="1", **session) == "1\n"
    assert run(http, "SELECT getSetting('max_threads')", **session) == "3\n"
    assert run(http, "SELECT currentDatabase()", database="system", **session) == "system\n"
    assert run(http, "SELECT currentDatabase()", **session) == "default\n"
    refused(http.post("/", content="SELECT a FROM mine"), 60, 404)
    assert http.get("/", params={"query": "SELECT a FROM mine", **session}).text == "1\n"
    run(http, "INSERT INTO mine VALUES (2)", **session)  # a GET has not made the session read-only


def test_session_ends(http: httpx.Client) -> None:
    session = {"session_id": secrets.token_hex(8)}
    refused(http.post("/", content="SELECT 1", params={**session, "session_check": "1"}), 372, 404)
    run(http, "SELECT 1", **session)
    run(http, "SELECT 1", session_check="1", **session)
    run(http, "SELECT 1", close_session="1", **session)
    refused(http.post("/", content="SELECT 1", params={**session, "session_check": "1"}), 372, 404)
    run(http, "SELECT 1", session_timeout="0", **session)
    refused(http.post("/", content="SELECT 1", params={**session, "session_check": "1"}), 372, 404)


def test_session_serves_one_request_at_a_time(http: httpx.Client) -> None:
    session = {"session_id": secrets.token_hex(8)}
    with http.stream("POST", "/", params=session, content="SELECT number FROM system.numbers") as answer:
        pieces = answer.iter_raw()  # kept, because the end of the iterator would close the connection
        next(pieces)
        refused(http.post("/", params=session, content="SELECT 1"), 373, 500)


def test_external_tables(http: httpx.Client) -> None:
    answer = http.post(
        "/",
        params={
            "query": "SELECT name, age + {n:UInt8} FROM people ORDER BY age",
            "people_structure": "name String, age UInt8",
            "people_format": "CSV",
            "input_format_allow_errors_num": "1",
        },
        data={"param_n": "1"},
        files={"people": ("people.csv", b"bob,2\nbroken\nann,1\n")},
    )
    assert answer.text == "ann\t2\nbob\t3\n"


@pytest.mark.parametrize("is_chunked", [True, False])
def test_upload_that_breaks_off_inserts_nothing(http: httpx.Client, table: str, is_chunked: bool) -> None:
    length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: 1000000"
    piece = b"1\n" * 1000
    body = b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece
    head = b"POST /?query=INSERT+INTO+%s+FORMAT+TSV HTTP/1.1\r\nHost: x\r\nX-ClickHouse-Key: %s\r\n%s\r\n\r\n" % (
        table.encode(), http.headers["X-ClickHouse-Key"].encode(), length,
    )  # fmt: skip
    assert http.base_url.port is not None
    with socket.create_connection(("127.0.0.1", http.base_url.port)) as connection:
        connection.sendall(head + body)
    run(http, "SELECT sleep(0.2)")
    assert count(http, table) == 0


def test_bad_data_inserts_nothing(http: httpx.Client, table: str) -> None:
    refused(http.post("/", params={"query": f"INSERT INTO {table} FORMAT TSV"}, content=ROWS + b"bad\n"), 27, 400)
    assert count(http, table) == 0


def test_values_with_expressions_and_parameters(http: httpx.Client, table: str) -> None:
    run(http, f"INSERT INTO {table} VALUES (1), (1 + 1), ({{n:UInt64}})", param_n="3")
    run(http, "INSERT INTO {t:Identifier} SELECT 4", param_t=table)
    run(http, 'INSERT INTO {t:Identifier} FORMAT JSONEachRow {"a": 5}', param_t=table)
    assert run(http, f"SELECT groupArray(a) FROM (SELECT a FROM {table} ORDER BY a)") == "[1,2,3,4,5]\n"


def test_blocks_for_drivers_that_negotiate_the_protocol(http: httpx.Client) -> None:
    """Each column alone, at revision 0, shows where it ends; together they must be what the server sends."""
    columns = {
        "a": "number", "b": "toString(number * 1e15) || repeat('x', 200)", "c": "toFixedString('ab', 3)",
        "d": "toNullable(number)", "e": "[toString(number), 'x']", "f": "map('k', [number])",
        "g": "tuple(number, 'x')::Tuple(n UInt8, `s s` String)", "h": "toLowCardinality(toString(number % 3))",
        "i": "toLowCardinality(toNullable('x'))", "j": "[toLowCardinality('x')]", "k": "toDecimal64(1, 3)",
        "l": "now64(3)", "m": "generateUUIDv4()", "n": "toIPv6('::1')",
        "o": "CAST('a', 'Enum8(\\'a,(\\' = 1, \\'a\\' = 2)')",
        "p": "(1., 2.)::Point", "q": "[[1], []]", "r": "toIntervalDay(1)", "s": "true", "t": "toInt256(1)",
    }  # fmt: skip
    name = f"t_{secrets.token_hex(6)}"
    expressions = ", ".join(f"{expression} AS {column}" for column, expression in columns.items())
    run(http, f"CREATE TABLE {name} ENGINE = Memory AS SELECT {expressions} FROM numbers(100)")

    def native(selected: str, **parameters: str) -> bytes:
        sql = f"SELECT {selected} FROM {name} ORDER BY a FORMAT Native"
        answer = http.post("/", params={"optimize_read_in_order": "0", **parameters}, content=sql)
        assert answer.status_code == 200, answer.text
        return answer.content

    expected = b"\x01\x00\x02\xff\xff\xff\xff\x00" + bytes([len(columns), 100])
    for column in columns:
        block = native(column)
        assert block[:2] == b"\x01\x64"
        name_end = 2 + 1 + block[2]
        type_end = name_end + 1 + block[name_end]
        expected += block[2:type_end] + b"\x00" + block[type_end:]
    assert native(", ".join(columns), client_protocol_version="54460") == expected
    assert native("a", client_protocol_version="54405") == native("a")
    run(http, f"DROP TABLE {name}")
    answer = http.post("/", params={"client_protocol_version": "54460"}, content="SELECT 1::Dynamic FORMAT Native")
    assert "cast it" in refused(answer, 48, 501)
