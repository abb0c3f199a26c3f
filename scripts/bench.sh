#!/usr/bin/env bash
# Runs a benchmark: scripts/bench.sh NAME [--quick] [--json FILE]; without a name it lists them.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
export PYTHONPATH=$PWD
name=${1:-}
if [ -z "$name" ] || [ ! -f "tests/benchmarks/$name.py" ]; then
    echo "usage: scripts/bench.sh NAME [--quick] [--json FILE]; the names are:" >&2
    for file in tests/benchmarks/[a-z]*.py; do
        echo "  $(basename "$file" .py): $(sed -n '1s/^"""//p' "$file" | sed 's/"""$//')" >&2
    done
    exit 64
fi
shift
exec .venv/bin/python -m "tests.benchmarks.$name" "$@"
