#!/usr/bin/env bash
# Changes the code, one small change at a time, and looks whether a test notices: scripts/mutate.sh MODULE... | all
#   The modules are those of the table below; `results MODULE` and `show MODULE MUTANT` tell of the last run.
# Works on a copy, in an environment of its own, both in .cache/mutation. What survives is explained in tests/mutants.md.
set -euo pipefail
cd "$(dirname "$0")/.."
mutmut=3.8.1
home=$PWD/.cache/mutation

# Left out: the durable engine runs the same core, more slowly; the others take seconds for every change.
quick="not durable and not larger_array and not memory_is_flat"

# Which tests are asked: those that are about the module, and quick. Of these, mutmut asks the ones that reach the change.
tests_of() {
    case $1 in
        ready) echo tests/unit/test_ready.py ;;
        returned) echo tests/unit/test_returned.py ;;
        waiters) echo tests/unit/test_waiters.py tests/contract/test_waiting.py tests/unit/test_actor.py ;;
        actor) echo tests/unit/test_actor.py tests/unit/test_waiters.py tests/contract/test_waiting.py \
            tests/contract/test_engine.py ;;
        deadlines) echo tests/unit/test_deadlines.py ;;
        retry) echo tests/unit/test_retry.py ;;
        # The model asks of each command what the contract tests ask of it, and is far quicker.
        state_machine) echo tests/unit/test_state_machine.py tests/simulation/test_{regressions,scenarios}.py \
            tests/simulation/test_lives.py::test_in_some_lives_that_are_always_the_same_the_queue_does_what_the_model_does ;;
        *) echo "usage: scripts/mutate.sh MODULE... | all | results MODULE | show MODULE MUTANT" >&2; exit 64 ;;
    esac
}

in_copy() {  # MODULE, arguments of mutmut
    cd "$home/$1"
    # Not PYTHONPATH: the copy that is changed must be what is imported.
    env -u PYTHONPATH PATH="$home/venv/bin:$PATH" mutmut "${@:2}"
}

copy() {  # MODULE
    local tests
    tests=$(tests_of "$1")
    rm -rf "${home:?}/$1"
    mkdir -p "$home/$1"
    git ls-files -z --cached --others --exclude-standard queue_actor web tests scripts pyproject.toml '*.md' '*.lock' |
        xargs -0 cp --parents -t "$home/$1"
    {
        echo; echo '[tool.mutmut]'
        echo 'source_paths = ["queue_actor"]'
        echo "only_mutate = [\"queue_actor/$1.py\"]"
        echo 'also_copy = ["web", "scripts", "README.md", "requirements.lock", "requirements-dev.lock"]'
        # With a seed, each change meets the same examples of Hypothesis.
        echo "pytest_add_cli_args = ['-q', '-p', 'no:cacheprovider', '--hypothesis-seed=0', '-m', 'not slow', '-k', '$quick']"
        # What each test depends on is only of use to a second run over the same copy, and costs a lot.
        echo 'track_dependencies = false'
        echo 'timeout_multiplier = 3.0' # an endless loop is noticed soon
        echo "pytest_add_cli_args_test_selection = [$(printf '"%s", ' $tests)]"
    } >>"$home/$1/pyproject.toml"
}

environment() {
    local stamp=$home/venv/.installed want
    want="$mutmut $(cksum <requirements-dev.lock)"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && return
    "${PYTHON:-python3}" -m venv "$home/venv"
    "$home/venv/bin/python" -m pip install --quiet --no-deps --require-hashes -r requirements-dev.lock
    "$home/venv/bin/python" -m pip install --quiet "mutmut==$mutmut"
    echo "$want" >"$stamp"
}

case ${1:-} in
    results | show) in_copy "${2:?names no module}" "$1" "${@:3}"; exit ;;
    all) set -- ready returned waiters actor deadlines retry state_machine ;;
    "") tests_of "" ;;
esac
for module in "$@"; do tests_of "$module" >/dev/null; done
environment
for module in "$@"; do
    copy "$module"
    (in_copy "$module" run --max-children "${MUTATE_JOBS:-1}")
    (in_copy "$module" results)
done
