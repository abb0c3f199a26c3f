#!/usr/bin/env bash
# Writes a backup of a server that runs: scripts/backup.sh URL FILE [HEADERS]
#   scripts/backup.sh http://127.0.0.1:8080 today.sqlite
# HEADERS is a file with the line `Authorization: Bearer qa_...`, for a server with access tokens.
# FILE appears only when it is whole and has been checked; one that is there already is replaced.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: scripts/backup.sh URL FILE [HEADERS]" >&2
    exit 64
fi
umask 077 # it has every payload, and the secret of the tokens
part=$2.part
trap 'rm -f "$part"' EXIT
status=$(curl --silent --show-error --output "$part" --write-out '%{http_code}' \
    --header @"${3:-/dev/null}" "${1%/}/v1/backup")
if [ "$status" != 200 ]; then
    cat "$part" >&2
    echo >&2
    exit 1
fi
"$here/scripts/data.sh" check "$part"
sync "$part" 2>/dev/null || sync
mv "$part" "$2"
