"""What a statement is, before the engine sees it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickhouse.embedded.errors import ClickHouseError, Code
from clickhouse.embedded.statements import SQL_MAX_BYTES, check_structure, parse, tokens

SKIPPED = [b" ", b"\n\t", b"/* FORMAT x; */", b"/*/* nested */*/", b"-- FORMAT TSV\n", b"# ; \n", b"// ;\n"]
OPAQUE = [b"'; FORMAT x \\' '' '", b'"; a"', b"`;`", b"$a$ ; ' $a$", b"x'3b'", "‘;’".encode(), "“;”".encode()]

skipped = st.lists(st.sampled_from(SKIPPED), min_size=1, max_size=3).map(b"".join)
names = st.sampled_from(
    [b"t", b"db.t", b"`a;b`", b"format", b"values", b"db.format", b"TABLE t", b"FUNCTION null('a Int8')"]
)
columns = st.sampled_from([b"", b"(a, format, values)", b"(* EXCEPT(b))", b'(`;`, ")")'])
settings = st.sampled_from([b"", b"SETTINGS a = 'FORMAT TSV', b = 1"])


@given(skipped, names, columns, settings, st.sampled_from(["TSV", "Native", "Arrow"]), st.binary(max_size=50))
def test_data_of_an_insert_begins_behind_its_format(
    space: bytes, table: bytes, column: bytes, setting: bytes, data_format: str, data: bytes
) -> None:
    head = space.join([b"", b"INSERT", b"INTO", table, column, setting, b""])
    sql = head + b"FORMAT" + space + data_format.encode() + b"\n" + data
    statement = parse(sql)
    assert statement.first == b"INSERT"
    assert statement.insert_format == data_format
    assert sql[: statement.head_end] == head
    assert sql[statement.data_start :] == data


@given(skipped, names, columns, st.text(max_size=30))
def test_values_are_data(space: bytes, table: bytes, column: bytes, text: str) -> None:
    head = space.join([b"insert", b"into", table, column, b""])
    data = b"(" + text.encode() + b"); DROP TABLE t"
    statement = parse(head + b"Values" + data)
    assert (statement.insert_format, statement.head_end) == ("Values", len(head))
    assert (head + b"Values" + data)[statement.data_start :] == data


@given(st.binary(max_size=200))
def test_tokens_cover_a_text_in_order(sql: bytes) -> None:
    end = 0
    for _, start, following in tokens(sql):
        assert end <= start < following <= len(sql)
        end = following


@given(st.lists(st.sampled_from([*SKIPPED, *OPAQUE, b"a", b",", b"(1, 2)", b"[3]"]), max_size=8), skipped)
def test_what_is_quoted_or_a_comment_is_neither_clause_nor_statement(parts: list[bytes], space: bytes) -> None:
    body = space.join([b"SELECT", *parts, b""])
    assert parse(body).output_format is None
    assert parse(body + b"FORMAT JSON").output_format == "JSON"
    assert parse(body + b"FORMAT JSON" + space + b"SETTINGS max_threads = 1;").output_format == "JSON"
    with pytest.raises(ClickHouseError, match="Multi-statements"):
        parse(body + b";" + space + b"SELECT 2")


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (b"SELECT 1 AS format FORMAT CSV", "CSV"),
        (b"SELECT 1 SETTINGS a = 1 FORMAT CSV", "CSV"),
        (b"SELECT 1 FORMAT CSV;;", "CSV"),
        (b"SELECT format FROM t", None),
        (b"SELECT 'FORMAT CSV'", None),
        (b"SELECT (SELECT 1 FORMAT CSV)", None),
    ],
)
def test_output_format_is_the_one_that_ends_the_statement(sql: bytes, expected: str | None) -> None:
    assert parse(sql).output_format == expected


@pytest.mark.parametrize(
    ("sql", "is_streamable"),
    [(b"SELECT 1", True), (b"/* x */ with 1 as a select a", True), (b"((SELECT 1))", True), (b"SHOW TABLES", False)],
)
def test_only_selects_are_streamed(sql: bytes, is_streamable: bool) -> None:
    assert parse(sql).is_streamable is is_streamable


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        (b"SELECT 1; SELECT 2", Code.SYNTAX_ERROR),
        (b"SELECT 1;/**/\nDROP TABLE t", Code.SYNTAX_ERROR),
        (b"INSERT INTO t SELECT 1; DROP TABLE t", Code.SYNTAX_ERROR),
        (b"SELECT 1;\0 DROP TABLE t", Code.SYNTAX_ERROR),
        (b"SELECT 1 \0 FORMAT CSV", Code.SYNTAX_ERROR),
        (b"INSERT INTO t FORMAT TSV; 1", Code.SYNTAX_ERROR),
        (b"SELECT 1 INTO OUTFILE 'x'", Code.NOT_IMPLEMENTED),
        (b"SELECT 1 into -- c\n outfile 'x'", Code.NOT_IMPLEMENTED),
        (b"INSERT INTO t FROM INFILE 'x' FORMAT CSV", Code.NOT_IMPLEMENTED),
        (b"SELECT file('/etc/passwd')", Code.ACCESS_DENIED),
        (b"SELECT `file` /* */ ('/etc/passwd')", Code.ACCESS_DENIED),
        (b"SELECT `\\x66ile`('/etc/passwd')", Code.ACCESS_DENIED),
        ("SELECT “a'b” , file('/etc/passwd')".encode(), Code.ACCESS_DENIED),
        (b"SELECT $x$'$x$, file('/etc/passwd') -- '", Code.ACCESS_DENIED),
        (b"CREATE VIEW v AS SELECT 1 FROM (SELECT file('x'))", Code.ACCESS_DENIED),
        (b"CREATE TABLE t (a Int8) ENGINE = EmbeddedRocksDB(0, '/tmp/x') PRIMARY KEY a", Code.ACCESS_DENIED),
        (b"SELECT 1 " + b"," * SQL_MAX_BYTES, Code.SYNTAX_ERROR),
    ],
)
def test_what_a_client_must_not_have_is_refused(sql: bytes, code: Code) -> None:
    with pytest.raises(ClickHouseError) as caught:
        parse(sql)
    assert caught.value.code is code


@pytest.mark.parametrize(
    "sql",
    [
        b"SELECT file FROM t",
        b"SELECT 'INTO OUTFILE', outfile FROM infile",
        b"INSERT INTO source (a) VALUES (1)",
        b"SELECT source (1)",
        b"DROP DICTIONARY d",
        b"SELECT 1;",
        b"",
        b"SELECT 'not closed",
        b"SELECT /* not closed",
    ],
)
def test_what_only_looks_like_it_is_not(sql: bytes) -> None:
    parse(sql)


@pytest.mark.parametrize(
    ("source", "is_allowed"),
    [
        ("CLICKHOUSE(TABLE 'system.one')", True),
        ("clickhouse(host 'h' port 9000 user 'u' password 'p' table t db `d`)", True),
        ("NULL()", True),
        ("CLICKHOUSE(QUERY 'SELECT 1')", False),
        ("CLICKHOUSE(TABLE 't' WHERE 'throwIf(1)')", False),
        ("CLICKHOUSE(NAME collection)", False),
        ("CLICKHOUSE(TABLE t) ODBC(table t)", False),
        ("EXECUTABLE(command 'id' format 'TSV')", False),
        ("`EXECUTABLE`(command 'id' format 'TSV')", False),
        ("FILE(path '/etc/passwd' format 'LineAsString')", False),
    ],
)
def test_source_of_a_dictionary_is_a_table(source: str, is_allowed: bool) -> None:
    sql = f"CREATE DICTIONARY d (a UInt64) PRIMARY KEY a SOURCE /**/ ({source}) LAYOUT(FLAT()) LIFETIME(0)".encode()
    if is_allowed:
        parse(sql)
        return
    with pytest.raises(ClickHouseError) as caught:
        parse(sql)
    assert caught.value.code is Code.ACCESS_DENIED


@pytest.mark.parametrize("structure", [b"a Int8) ENGINE = Memory; DROP TABLE t", b"a Int8)", b"a Array(Int8", b";"])
def test_structure_of_an_external_table_stays_in_its_parentheses(structure: bytes) -> None:
    check_structure(b"a Array(Tuple(b Int8, `c)` String)) DEFAULT [] -- )")
    with pytest.raises(ClickHouseError):
        check_structure(structure)
