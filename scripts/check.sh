#!/usr/bin/env bash
# What can be said about the code without running it: format, lint, types, import layers; lock files and known flaws.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
bin=.venv/bin
$bin/ruff format --check .
# ruff's rules S are those of bandit, so bandit itself is not run.
$bin/ruff check .
$bin/mypy
$bin/lint-imports --no-cache
$bin/python scripts/dependencies.py
