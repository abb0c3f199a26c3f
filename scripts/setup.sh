#!/usr/bin/env bash
# Makes .venv from a lock file, once: `setup.sh run` for what the server needs, `setup.sh dev` for the tests too.
# A later call compares one checksum and returns at once.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-dev}
case $kind in
    run) lock=requirements.lock ;;
    dev) lock=requirements-dev.lock ;;
    *) echo "usage: scripts/setup.sh [run|dev]" >&2; exit 64 ;;
esac

# A development environment holds all that running needs, so it satisfies both.
stamp=.venv/.installed
want() { cksum <"$1"; }
[ -f "$stamp.dev" ] && [ "$(cat "$stamp.dev")" = "$(want requirements-dev.lock)" ] && exit 0
[ "$kind" = run ] && [ -f "$stamp.run" ] && [ "$(cat "$stamp.run")" = "$(want requirements.lock)" ] && exit 0

python=${PYTHON:-}
if [ -z "$python" ]; then
    for python in python3 python3.13 python3.12 python3.11 none; do
        command -v "$python" >/dev/null 2>&1 &&
            "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
fi
if [ "$python" = none ]; then
    echo "queue-actor needs Python 3.11 or newer: install it, or name it with PYTHON=/path/to/python" >&2
    exit 69
fi

echo "setting up .venv with $("$python" --version) from $lock" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$lock" >&2
want "$lock" >"$stamp.$kind"
