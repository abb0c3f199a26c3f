"""scripts/dependencies.py: lock files that are behind are noticed, and what an audit says is told apart."""

import json
import tomllib
from typing import Any

import pytest

from scripts.dependencies import DEV, ROOT, RUN, outdated, verdict

PROJECT = {
    "project": {"dependencies": ["trio>=0.30", "Quart>=0.22,<0.23"]},
    "dependency-groups": {"dev": ["ruff>=0.9"]},
}
LOCKED = "# written by a tool\ntrio==0.35.0 \\\n    --hash=sha256:1==2\nquart==0.22.0 ; os_name == 'nt' \\\n"
NO_SERVICE = "Traceback:\n  File\nrequests.exceptions.ProxyError: Max retries: Unable to connect\n"


def test_the_lock_files_are_current() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert list(outdated(pyproject, (ROOT / RUN).read_text(), (ROOT / DEV).read_text())) == []


@pytest.mark.parametrize(
    ("run", "dev", "wrong"),
    [
        (LOCKED, LOCKED + "ruff==0.15.1 \\\n", []),
        (LOCKED, LOCKED, [f"{DEV} has no ruff"]),
        (LOCKED, LOCKED + "ruff==0.8.9 \\\n", [f"{DEV} has ruff 0.8.9, which is not >=0.9"]),
        (LOCKED, LOCKED.replace("0.35.0", "0.34.0") + "ruff==1 \\\n", [f"trio is 0.35.0 in {RUN} and 0.34.0 in {DEV}"]),
        (
            LOCKED.replace("0.22.0", "0.23.1"),
            LOCKED + "ruff==1 \\\n",
            [
                f"{RUN} has Quart 0.23.1, which is not <0.23,>=0.22",
                f"quart is 0.23.1 in {RUN} and 0.22.0 in {DEV}",
            ],
        ),
    ],
)
def test_a_lock_file_that_is_behind_is_noticed(run: str, dev: str, wrong: list[str]) -> None:
    assert list(outdated(PROJECT, run, dev)) == wrong


SOUND = {"name": "trio", "version": "0.35.0", "vulns": []}
FLAWED = {"name": "h11", "version": "0.14.0", "vulns": [{"id": "CVE-2025-43859", "fix_versions": ["0.16.0"]}]}
UNKNOWN = {"name": "quart", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "failed", "said"),
    [
        ([SOUND], False, ["1 packages audited"]),
        ([SOUND, FLAWED], True, ["h11 0.14.0: CVE-2025-43859, mended in 0.16.0", "2 packages audited"]),
        ([SOUND, UNKNOWN], False, ["the service does not know quart", "1 packages audited"]),
        ([UNKNOWN], False, ["vulnerabilities were not looked for: the service knows none of it"]),
    ],
)
def test_a_vulnerability_fails_and_a_service_that_knows_nothing_does_not(
    packages: list[dict[str, Any]], failed: bool, said: list[str]
) -> None:
    assert verdict(json.dumps({"dependencies": packages}), "") == (failed, said)


@pytest.mark.parametrize(
    ("errors", "failed"),
    [(NO_SERVICE, False), ("ERROR:pip_audit._cli:requirement foo==1 does not contain a hash\n", True), ("", True)],
)
def test_a_missing_network_is_told_from_a_question_that_is_wrong(errors: str, failed: bool) -> None:
    result = verdict("", errors)

    assert result.failed is failed
    assert result.lines == [f"vulnerabilities were not looked for: {errors.strip().rpartition(chr(10))[2]}"]
