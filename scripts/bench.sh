#!/usr/bin/env bash
# Runs all benchmarks, or one: scripts/bench.sh [NAME] [--quick] [--json FILE] [--publish]; --help lists them.
# --publish puts tables and plots into the documents that have a place for them.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
export PYTHONPATH=$PWD
exec .venv/bin/python -m tests.benchmarks.suite "$@"
