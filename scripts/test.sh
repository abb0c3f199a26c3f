#!/usr/bin/env bash
# Proves the project: scripts/test.sh [PROGRAMME] [pytest arguments]
#   (nothing)   every test that is not slow, the real server as a process included; under 5 minutes
#   --all       the static checks, and the slow tests too; what CI runs; under 20 minutes
#   --model N   N lives of the state machine beside its naive model, and N/100 with a store, over all cores, and nothing
#               else; --seed S repeats a run
#   --power N   the store through N power cuts of each kind of durability (at least 30), and nothing else
#   --simulate N  N seeds of the simulation of the core, on all cores, then N/20 of that of the whole server, and
#               nothing else; --seed S is the first one
#   --crashes N N kills of the server under load, and nothing else; --seed S repeats what a run set out to do
#   --hostile N N connections that send what nobody should, storms and dropped polls, and nothing else; --seed S as above
#   --contract N  N made-up requests for each operation of /openapi.json, and nothing else; --seed S repeats a run
#   --browser   the dashboard in a real browser (Debian's chromium, driven by Playwright), and nothing else
# With pytest arguments only what they select runs, and no coverage is asked for.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
export PYTHONPATH=$PWD

marker="not slow"
if [ "${1:-}" = --all ]; then
    shift
    marker="slow or not slow"
    scripts/check.sh
fi
if [ "${1:-}" = --model ]; then
    export MODEL_LIVES=${2:?"--model needs a number of lives"}
    shift 2
    if [ "${1:-}" = --seed ]; then
        export MODEL_SEED=${2:?"--seed needs a number"}
        shift 2
    fi
    set -- tests/simulation/test_lives.py --capture=no "$@"
fi
if [ "${1:-}" = --power ]; then
    export POWER_CUTS=${2:?"--power needs a number of power cuts"}
    shift 2
    set -- tests/simulation/test_disk.py tests/simulation/test_power_cuts.py "$@"
fi
if [ "${1:-}" = --simulate ]; then
    export SIMULATE_SEEDS=${2:?"--simulate needs a number of seeds"}
    shift 2
    if [ "${1:-}" = --seed ]; then
        export SIMULATE_SEED=${2:?"--seed needs a number"}
        shift 2
    fi
    .venv/bin/python -m tests.simulation.simulate "$SIMULATE_SEEDS" --seed "${SIMULATE_SEED:-1}"
    set -- tests/simulation/test_stack.py -k whatever_clients_do --numprocesses auto "$@"
fi
if [ "${1:-}" = --crashes ]; then
    export CRASH_KILLS=${2:?"--crashes needs a number of kills"}
    shift 2
    if [ "${1:-}" = --seed ]; then
        export CRASH_SEED=${2:?"--seed needs a number"}
        shift 2
    fi
    marker="slow or not slow"
    # Its figures are what it is run for: they are shown when it passes, too.
    set -- tests/process/test_crashes.py -k again_and_again --capture=no "$@"
fi
if [ "${1:-}" = --hostile ]; then
    export HOSTILE_CONNECTIONS=${2:?"--hostile needs a number of connections"}
    shift 2
    if [ "${1:-}" = --seed ]; then
        export HOSTILE_SEED=${2:?"--seed needs a number"}
        shift 2
    fi
    marker="slow or not slow"
    set -- tests/process/test_hostile_programme.py --capture=no "$@"
fi
if [ "${1:-}" = --contract ]; then
    export CONTRACT_EXAMPLES=${2:?"--contract needs a number of examples"}
    shift 2
    if [ "${1:-}" = --seed ]; then
        export CONTRACT_SEED=${2:?"--seed needs a number"}
        shift 2
    fi
    marker="slow or not slow"
    set -- tests/process/test_contract_fuzz.py --capture=no "$@"
fi
if [ "${1:-}" = --browser ]; then
    shift
    marker="slow or not slow"
    set -- tests/browser tests/process/test_browser.py "$@"
fi
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest -m "$marker" "$@"
fi
# One worker a core; tests that start processes share one, so that they do not compete with each other.
exec .venv/bin/python -m pytest -m "$marker" --cov --durations 25 --numprocesses auto --dist loadgroup
