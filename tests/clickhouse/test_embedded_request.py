"""One HTTP request becomes one query with its options."""

import pytest

from clickhouse.embedded.errors import ClickHouseError, Code, failure, internal, status_of
from clickhouse.embedded.native import parse_type
from clickhouse.embedded.request import Query, assemble
from clickhouse.embedded.users import Users

LIMIT = 1 << 30
FORM = {"content-type": "multipart/form-data; boundary=XX"}


def form(*parts: tuple[str, bytes]) -> bytes:
    body = b"".join(
        b"--XX\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (head.encode(), data) for head, data in parts
    )
    return body + b"--XX--\r\n"


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("INSERT INTO t FORMAT TSV", b"1\n2\n"),
        ("", b"INSERT INTO t FORMAT TSV\n1\n2\n"),
        ("INSERT INTO t", b"FORMAT TSV\n1\n2\n"),
        ("INSERT INTO t FORMAT TSV 1", b"2\n"),
    ],
)
def test_statement_and_data_may_be_split_anywhere(query: str, body: bytes) -> None:
    found = assemble({"query": query}, {}, body, LIMIT)
    assert found.statement.insert_format == "TSV"
    assert found.sql.split() == [b"INSERT", b"INTO", b"t"]
    assert b"".join(found.data) == b"1\n2\n"


def test_large_data_is_not_looked_at() -> None:
    body = b"INSERT INTO t FORMAT Native\n" + b"';\0" * 3_000_000
    for fields, sent in (({}, body), ({"query": "INSERT INTO t FORMAT Native"}, body[28:])):
        found = assemble(fields, {}, sent, LIMIT)
        assert b"".join(found.data) == body[28:]


def test_settings_parameters_and_options_are_told_apart() -> None:
    fields = {
        "query": "SELECT 1", "max_threads": "2", "output_format": "x", "param_a": "b", "session_id": "s",
        "database": "d", "wait_end_of_query": "1", "user": "u", "password": "p",
    }  # fmt: skip
    options = assemble(fields, {}, b"", LIMIT).options
    assert options.settings == {"max_threads": "2", "output_format": "x"}
    assert options.parameters == {"a": "b"}
    assert options.session is not None
    assert options.session.id == "s"
    assert (options.database, options.must_buffer) == ("d", True)


@pytest.mark.parametrize(("revision", "used"), [("54405", 0), ("54454", 54454), ("54460", 54460), ("", 0)])
def test_old_protocol_revisions_are_ignored(revision: str, used: int) -> None:
    assert assemble({"client_protocol_version": revision}, {}, b"SELECT 1", LIMIT).options.revision == used


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"a b": "1"}, Code.UNKNOWN_SETTING),
        ({"x' = 1; --": "1"}, Code.UNKNOWN_SETTING),
        ({"param_a = 1, b": "1"}, Code.BAD_ARGUMENTS),
        ({"query_id": "a\r\nX: y"}, Code.BAD_ARGUMENTS),
        ({"default_format": "TSV; x"}, Code.UNKNOWN_FORMAT),
        ({"session_id": "s" * 257}, Code.BAD_ARGUMENTS),
        ({"session_id": "s", "session_timeout": "-1"}, Code.BAD_ARGUMENTS),
    ],
)
def test_bad_options_are_refused(fields: dict[str, str], code: Code) -> None:
    with pytest.raises(ClickHouseError) as caught:
        assemble({"query": "SELECT 1", **fields}, {}, b"", LIMIT)
    assert caught.value.code is code


def external(fields: dict[str, str], *parts: tuple[str, bytes]) -> Query:
    return assemble(fields, FORM, form(*parts), LIMIT)


def test_form_fields_are_parameters_and_files_are_tables() -> None:
    found = external(
        {"people_structure": "name String, age UInt8", "people_format": "CSV", "output_format_x": "1"},
        ('name="query"', b"SELECT * FROM people"),
        ('name="param_a"', b"1"),
        ('name="people"; filename="a;b.csv"', b"ann,1\r\n"),
    )
    assert found.sql == b"SELECT * FROM people"
    assert found.options.parameters == {"a": "1"}
    assert found.options.settings == {"output_format_x": "1"}
    assert found.tables == [("people", "name String, age UInt8", "CSV", b"ann,1\r\n")]


def test_columns_of_a_table_may_be_given_by_their_types() -> None:
    found = external({"t_types": "UInt8,Array(Tuple(Int8,Int8)),String", "query": "SELECT 1"}, ('name="t"', b"1"))
    assert found.tables[0].structure == "_1 UInt8, _2 Array(Tuple(Int8,Int8)), _3 String"


@pytest.mark.parametrize("name", ["a b", "t`", "", "t) ENGINE"])
def test_bad_name_of_a_table_is_refused(name: str) -> None:
    with pytest.raises(ClickHouseError):
        external({"query": "SELECT 1"}, (f'name="{name}"; filename="f"', b"1"))


@pytest.mark.parametrize("body", [form(('name="query"', b"SELECT 1"))[:-10], b"nothing of the kind", b"--XX\r\n"])
def test_form_that_ends_early_is_refused(body: bytes) -> None:
    with pytest.raises(ClickHouseError):
        assemble({}, FORM, body, LIMIT)


def test_only_multipart_is_a_form() -> None:
    """curl -d labels SQL as a form."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert assemble({}, headers, b"SELECT 1 + 1", LIMIT).sql == b"SELECT 1 + 1"


def test_credentials_come_from_headers_basic_or_url() -> None:
    users = Users({"default": "pä:ss"})
    assert users.authenticate({"x-clickhouse-key": "pä:ss"}, {}) == "default"
    assert users.authenticate({"authorization": "Basic ZGVmYXVsdDpww6Q6c3M="}, {}) == "default"
    assert users.authenticate({}, {"password": "pä:ss"}) == "default"


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({}, {}),
        ({}, {"user": "nobody", "password": "secret"}),
        ({}, {"user": "nobody"}),
        ({"x-clickhouse-key": "Secret"}, {"password": "secret"}),
        ({"x-clickhouse-user": "default"}, {"password": "secret"}),
        ({"authorization": "Basic !"}, {"password": "secret"}),
        ({"authorization": "Basic /w=="}, {}),
    ],
)
def test_wrong_credentials_have_one_answer(headers: dict[str, str], fields: dict[str, str]) -> None:
    with pytest.raises(ClickHouseError) as caught:
        Users({"default": "secret"}).authenticate(headers, fields)
    assert caught.value.code is Code.AUTHENTICATION_FAILED
    assert status_of(caught.value.code) == 403


def test_error_of_the_engine_is_told_once_with_its_code() -> None:
    nested = "Code: 73. DB::Exception: Unknown format X. (UNKNOWN_FORMAT) (version 26.9.2.1). (UNKNOWN_FORMAT)"
    text = f"Code: 73. DB::Exception: {nested}"
    found = failure(RuntimeError(text), "26.9.2.1")
    assert found == (
        73, 404, "Code: 73. DB::Exception: Unknown format X. (UNKNOWN_FORMAT) (version 26.9.2.1 (embedded))\n",
    )  # fmt: skip


def test_stack_trace_and_bugs_are_not_told() -> None:
    found = failure(RuntimeError("Code: 49. DB::Exception: x. Stack trace:\n\n0. secret()"), "26")
    assert found is not None
    assert "secret" not in found.text
    assert failure(KeyError("/home/secret"), "26") is None
    assert internal("26").status == 500


def test_types_are_split_outside_of_brackets_and_quotes() -> None:
    assert parse_type("Enum8('a,\\'(' = 1, 'b' = 2)").arguments == ("'a,\\'(' = 1", "'b' = 2")
    assert [kind.name for kind in parse_type("Tuple(a UInt8, `b c` Map(String, Int8))").elements] == ["UInt8", "Map"]
