#!/usr/bin/env bash
# Installs what `scripts/bench.sh peers` compares this server with, into .cache/peers: bunqueue from npm, RQ, and the
# Python packages of the mutex design. beanstalkd and Redis are Debian's packages `beanstalkd` and `redis-server`.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
mkdir -p .cache/peers
[ -x .cache/peers/venv/bin/python ] || .venv/bin/python -m venv .cache/peers/venv
.cache/peers/venv/bin/python -m pip install --quiet --disable-pip-version-check \
    flask==3.1.3 waitress==3.0.2 rq==3.0.0 redis==8.1.0
if command -v npm >/dev/null 2>&1; then
    npm install --silent --no-audit --no-fund --prefix .cache/peers bun@1.4.5 bunqueue@2.9.5
else
    echo "no npm: bunqueue is left out" >&2
fi
for program in beanstalkd redis-server; do
    command -v "$program" >/dev/null 2>&1 || echo "no $program: it is a package of Debian's, apt-get install $program" >&2
done
