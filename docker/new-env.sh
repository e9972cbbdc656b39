#!/bin/sh
# Writes .env from .env.example with new secrets, once: an existing one is never touched.
set -eu
umask 077
cd "$(dirname "$0")"

if [ -e .env ]; then
    echo "docker/.env exists, nothing was changed" >&2
    exit 1
fi

secret() {
    od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n'
}

while IFS= read -r line; do
    case $line in
        *_PASSWORD= | *_KEY= | *_SECRET=) printf '%s%s\n' "$line" "$(secret)" ;;
        *) printf '%s\n' "$line" ;;
    esac
done <.env.example >.env.new
mv .env.new .env
echo "docker/.env is written; its secrets are known to nobody else, so keep a copy of ARENACAST_VOTER_SECRET"
