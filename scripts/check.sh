#!/usr/bin/env bash
# What can be said about the code without running it: format, lint, types, import layers.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
bin=.venv/bin
$bin/ruff format --check .
$bin/ruff check .
$bin/mypy
$bin/lint-imports --no-cache
