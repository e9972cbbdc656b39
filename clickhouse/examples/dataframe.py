"""A question's answer as a data frame: `python -m clickhouse.examples.dataframe turnout_over_time poll=mvp`.

Asks http://127.0.0.1:8123 (or `--url http://host:port`) as `analyst`, whose password it takes from the file named by
`--key` (default data/analyst.key).
"""

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.exceptions import Error

from clickhouse.examples import names, sql


def frame(url: str, user: str, password: str, question: str, parameters: dict[str, str], database: str = "an") -> Any:
    """The answer as a `pandas.DataFrame`. For polars: `client.query_df_arrow(..., dataframe_library="polars")`."""
    target = urlsplit(url)
    client = clickhouse_connect.get_client(
        host=target.hostname or "127.0.0.1",
        port=target.port or 8123,
        interface=target.scheme,
        username=user,
        password=password,
        database=database,
    )
    try:
        return client.query_df(sql(question), parameters=parameters)
    finally:
        client.close()


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=names())
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--url", default="http://127.0.0.1:8123")
    parser.add_argument("--user", default="analyst")
    parser.add_argument("--key", type=Path, default=Path("data/analyst.key"))
    arguments = parser.parse_args()
    if not all("=" in pair for pair in arguments.parameters):
        parser.error("parameters are NAME=VALUE, as the question's file names them")
    parameters = dict(pair.split("=", 1) for pair in arguments.parameters)
    try:
        password = arguments.key.read_text().strip()
    except OSError as error:
        parser.error(f"{arguments.key}: {error.strerror}; --key names the file with the password of {arguments.user}")
    try:
        print(frame(arguments.url, arguments.user, password, arguments.question, parameters))
    except Error as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
