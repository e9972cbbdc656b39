"""Questions that analysts ask, as SQL for the database `an`: each file opens with what it answers and its parameters.

    curl "http://127.0.0.1:8123/?database=an&param_poll=mvp" -H "X-ClickHouse-User: analyst" \\
        -H "X-ClickHouse-Key: $(cat data/analyst.key)" --data-binary @clickhouse/examples/turnout_over_time.sql

`dataframe` asks them from Python. The tests run every file and check its answer.
"""

from importlib.resources import files


def names() -> list[str]:
    """The questions, by name of file."""
    return sorted(file.name.removesuffix(".sql") for file in files(__name__).iterdir() if file.name.endswith(".sql"))


def sql(name: str) -> str:
    """Text of a question."""
    return files(__name__).joinpath(f"{name}.sql").read_text()
