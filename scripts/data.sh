#!/usr/bin/env bash
# Checks a data directory or a backup, and restores a backup: scripts/data.sh --help
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
"$here/scripts/setup.sh" run
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$here/.venv/bin/python" -m queue_actor.operations "$@"
