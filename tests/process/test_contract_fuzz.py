"""Schemathesis reads `/openapi.json` of a real server and tries what it promises; and what it does not.

Examples, bounds, made-up requests that fit and that do not, and ways from one request to the next (enqueue, dequeue,
then conclude, fail, extend or release by the token). fuzzing.py and fuzzing.toml say what it is told beside that.
`scripts/test.sh --contract N [--seed S]` is a longer run.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.fuzzing import MEETING
from tests.process.server import ROOT, Server, running_server
from tests.process.tokens import token

pytestmark = [pytest.mark.process, pytest.mark.slow]

EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "50"))
SEED = int(os.environ.get("CONTRACT_SEED", random.SystemRandom().randrange(2**32)))
EXAMPLE_SECONDS = 6.0
"""How long one more example of every operation may take."""

WAYS_SECONDS = max(20, EXAMPLES // 4)
"""How long ways along the links are tried: Hypothesis gives up after some twenty, and begins anew until then."""

WAYS_ROUNDS_MAX = 6
"""How often they are tried anew, each time by another seed, where none has led anywhere: a busy machine tries few."""

REQUEST_SECONDS = 60.0
"""How long an answer may take on a machine that does other things: how soon it comes is not what is asked here."""

READY_JOBS = 20 * EXAMPLES
"""For those who dequeue, whatever was enqueued before."""

SMALL = (
    *("--wait-seconds-max", "0.05"),  # or most of the time goes by in waits
    *("--batch-jobs-max", "20"),
    *("--queues-max", "200"),
)

JOB = "/v1/queues/{queue}/jobs/{id}"
BY_LINK = {("POST", f"{JOB}/{verb}") for verb in ("conclude", "fail", "extend", "release")} | {("DELETE", JOB)}
"""What succeeds only for those who have just been told of a job."""

NOT_HERE = {("GET", "/v1/backup")}  # there is no data directory
BY_LUCK = {("DELETE", "/v1/queues/{queue}")}
"""What succeeds only on a queue that is there and empty, which few examples may miss."""


REQUESTS = "examples,coverage,fuzzing"


def test_requests_made_up_from_the_document_are_answered_as_it_says(tmp_path: Path) -> None:
    with running_server(*SMALL) as server:
        run(server, REQUESTS, EXAMPLES, tmp_path)

        assert untried(server) - BY_LINK - BY_LUCK == NOT_HERE


def test_with_tokens_the_same_is_answered_to_one_that_may_do_all_and_nothing_without(tmp_path: Path) -> None:
    """Most of what can go wrong here is left to the run on an open server: this one has a fifth of its examples."""
    path = tmp_path / "tokens.json"
    shown = token(path, "create", "all", "--scope", "admin", "--queue", "*")
    with running_server("--tokens", str(path), *SMALL) as server:
        run(server, REQUESTS, max(5, EXAMPLES // 5), tmp_path, shown=shown)

        codes = {line.get("code") for line in server.events("request")}
        assert None in codes
        assert "unauthorized" in codes  # it is left out, and made up, to see that it is looked at
        assert "forbidden" not in codes


def test_ways_along_the_links_of_the_document_lead_somewhere(tmp_path: Path) -> None:
    with running_server(*SMALL) as server:
        for _ in range(READY_JOBS // 20):
            server.request("POST", f"/v1/queues/{MEETING}/enqueue", {"jobs": [{"type": "made up"}] * 20})
        for turn in range(WAYS_ROUNDS_MAX):
            run(server, "stateful", EXAMPLES, tmp_path, "--max-time", str(WAYS_SECONDS), seed=SEED + turn)
            if BY_LINK - untried(server):
                return

        pytest.fail("no token has led anywhere")


def run(
    server: Server,
    phases: str,
    examples: int,
    directory: Path,
    *more: str,
    shown: str | None = None,
    seed: int = SEED,
) -> None:
    """Let schemathesis at a server, with an access token or an open one, and assert that it has no complaint."""
    environment = {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.process.fuzzing"}
    if shown is None:
        environment["CONTRACT_OPEN"] = "yes"
    else:
        more += ("--header", f"Authorization: Bearer {shown}")
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "--config-file", ROOT / "tests/process/fuzzing.toml"),
            *("run", f"http://127.0.0.1:{server.port}/openapi.json", "--phases", phases),
            *("--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none"),
            *("--request-timeout", str(REQUEST_SECONDS)),
            *("--continue-on-failure", "--no-color", *more),
        ],
        cwd=directory,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120 + EXAMPLES * EXAMPLE_SECONDS,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"--seed {seed} repeats it"
    assert not server.events("handler_failed")


def untried(server: Server) -> set[tuple[str, str]]:
    """The operations that no request has succeeded at."""
    paths = server.request("GET", "/openapi.json").body["paths"]
    # Paths without variables go first, as they do for the router.
    patterns = {
        path: re.compile(re.sub(r"{\w+}", "[^/]+", path)) for path in sorted(paths, key=lambda path: "{" in path)
    }
    done = {
        (line["method"], line["path"]) for line in server.events("request") if line["status"] in {200, 204, 304, 307}
    }
    succeeded = {
        (method, next((path for path, pattern in patterns.items() if pattern.fullmatch(sent)), None))
        for method, sent in done
    }
    return {(method.upper(), path) for path, methods in paths.items() for method in methods} - succeeded
