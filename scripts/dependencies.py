"""Whether the lock files are current with pyproject.toml, and whether a version in them is known to be vulnerable.

The first needs no network. The second asks a service, by pip-audit; where none can be reached that is said in a line,
and is no failure: it says nothing about the code. Ends with 1 where something has to be done.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
RUN, DEV = "requirements.lock", "requirements-dev.lock"
ANSWER_SECONDS = 10  # of the service, for each package
AUDIT_SECONDS = 300

UNREACHABLE = re.compile(r"connect|timed? ?out|resolve|ServiceError|HTTPError|SSLError", re.IGNORECASE)
"""What the last line says if it was the service that failed, and not its question."""


class Verdict(NamedTuple):
    """What came of an audit: to be said, and whether it is a failure."""

    failed: bool
    lines: list[str]


def pins(lock: str) -> dict[str, str]:
    """The version of each package in the text of a lock file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def outdated(pyproject: Mapping[str, Any], run: str, dev: str) -> Iterator[str]:
    """What is wrong with the lock files, given the texts of them; nothing if they are current."""
    needed: list[str] = pyproject["project"]["dependencies"]
    yield from _unmet(needed, pins(run), RUN)
    yield from _unmet([*needed, *pyproject["dependency-groups"]["dev"]], pins(dev), DEV)
    for name, version in pins(run).items():
        if pins(dev).get(name) != version:
            yield f"{name} is {version} in {RUN} and {pins(dev).get(name, 'missing')} in {DEV}"


def _unmet(needed: Iterable[str], pinned: Mapping[str, str], lock: str) -> Iterator[str]:
    for requirement in map(Requirement, needed):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None:
            yield f"{lock} has no {requirement.name}"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{lock} has {requirement.name} {version}, which is not {requirement.specifier}"


def verdict(output: str, errors: str) -> Verdict:
    """What pip-audit's report in JSON means, and what it says of its own failure where there is no report.

    Its exit code tells no more: it is 1 for a vulnerability as for a network that is missing.
    """
    if not output.strip():
        reason = errors.strip().rpartition("\n")[2]
        return Verdict(not UNREACHABLE.search(reason), [f"vulnerabilities were not looked for: {reason[:200]}"])
    packages = json.loads(output)["dependencies"]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none'}"
        for package in packages
        for flaw in package.get("vulns", [])
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        return Verdict(failed=False, lines=["vulnerabilities were not looked for: the service knows none of it"])
    lines = [f"the service does not know {', '.join(unknown)}"] if unknown else []
    return Verdict(bool(found), [*found, *lines, f"{len(packages) - len(unknown)} packages audited"])


def audit() -> Verdict:
    """Ask about all versions that the lock files pin."""
    program = Path(sys.executable).parent / "pip-audit"
    locks = [word for lock in (RUN, DEV) for word in ("-r", lock)]
    flags = ("--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off")
    done = subprocess.run(  # noqa: S603 - our own program and words
        [program, *flags, "--timeout", str(ANSWER_SECONDS), *locks],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=AUDIT_SECONDS,
        check=False,
    )
    return verdict(done.stdout, done.stderr)


def main() -> int:
    """Look, and tell. The lock files come first: of versions that are not installed there is nothing to ask."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wrong = list(outdated(pyproject, (ROOT / RUN).read_text(), (ROOT / DEV).read_text()))
    if wrong:
        print(*wrong, "run scripts/lock.sh", sep="\n", file=sys.stderr)
        return 1
    failed, lines = audit()
    print(*lines, sep="\n", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
