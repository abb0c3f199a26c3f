#!/usr/bin/env bash
# Runs the server; sets up what it needs on the first call. Flags and QUEUE_ACTOR_* variables: run.sh --help
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
"$here/scripts/setup.sh" run
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$here/.venv/bin/python" -m web "$@"
