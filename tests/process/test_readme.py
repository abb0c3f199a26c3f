"""The tour in the root README, run as its reader would run it, against a real server.

The tour is every block that is fenced with ```sh tour, in order, in one `bash -eu` session in an empty directory.
The next fenced block, if it is ```text, is what it prints. There `…` stands for anything within a line, and a line that
is `…` alone for any lines: ids, tokens and times differ from run to run. The address that the server has by default is
replaced by that of the test's own server.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.process.server import ROOT, running_server

pytestmark = pytest.mark.process

TOUR_SECONDS = 60.0
DEFAULT_ADDRESS = re.compile(r"\b(127\.0\.0\.1|localhost):8080\b")
FENCED = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<content>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
# Printed after each block, so that what is printed can be told apart; no line of a tour is likely to say so.
END = "-- end of block --"


class Step(NamedTuple):
    """One block of the tour, and what it prints where the document says so."""

    commands: str
    expected: str | None


def read_tour(document: str, name: str = "tour") -> list[Step]:
    """The steps of a tour of a document in Markdown."""
    blocks = [(block["info"].split(), block["content"]) for block in FENCED.finditer(document)]
    return [
        Step(content, following[1] if following[0] == ["text"] else None)
        for (info, content), following in zip(blocks, [*blocks[1:], ([], "")], strict=True)
        if info == ["sh", name]
    ]


def is_as_expected(printed: str, expected: str) -> bool:
    """Whether a text is what the document says, `…` standing for anything."""
    pattern = ""
    for line in expected.splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(re.escape(part) for part in line.rstrip().split("…")) + r"[ \t\r]*\n"
    return re.fullmatch(pattern, printed if printed.endswith("\n") or not printed else printed + "\n") is not None


class TourError(Exception):
    """The tour does not work as printed."""


def run_tour(document: str, address: str, directory: Path, name: str = "tour") -> None:
    """Run a tour of a document.

    Raises:
        TourError: It has none; a command failed or did not end; it printed something else than the document says.
    """
    steps = read_tour(document, name)
    if not steps:
        raise TourError(f"there is no block fenced with ```sh {name}")
    session = "".join(f"{step.commands}\necho '{END}'\n" for step in steps)
    try:
        # Not through standard input, which a command of the tour might read.
        ran = subprocess.run(
            ["bash", "-euc", DEFAULT_ADDRESS.sub(address, session)],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TOUR_SECONDS,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        raise TourError(f"the tour did not end within {TOUR_SECONDS:g} s: {expired.stdout!r}") from expired
    *ended, rest = ran.stdout.split(f"{END}\n")
    for step, printed in zip(steps, ended, strict=False):
        expected = step.expected and DEFAULT_ADDRESS.sub(address, step.expected)
        if expected is not None and not is_as_expected(printed, expected):
            raise TourError(f"{step.commands}printed\n{printed}and not\n{expected}")
    if len(ended) < len(steps):
        raise TourError(f"{steps[len(ended)].commands}ended with exit code {ran.returncode}:\n{rest}")


def test_the_tour_in_the_readme_works_as_printed(tmp_path: Path) -> None:
    document = (ROOT / "README.md").read_text(encoding="utf-8")
    with running_server() as server:
        run_tour(document, f"{server.host}:{server.port}", tmp_path)


def test_the_commands_about_access_in_the_readme_work_as_printed(tmp_path: Path) -> None:
    """The server that starts in the middle runs here from the beginning, and reads the tokens once there are some."""
    (tmp_path / "tokens.json").write_text('{"tokens": []}')
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    document = (ROOT / "README.md").read_text(encoding="utf-8")
    start = "```sh\n./scripts/run.sh --tokens tokens.json --bind 0.0.0.0:8080\n```"
    assert start in document
    with running_server("--tokens", str(tmp_path / "tokens.json")) as server:
        address = f"{server.host}:{server.port}"
        ask = f'curl -sf -H "Authorization: Bearer $producer" http://{address}/v1/queues/images'
        wait = f"```sh access\nuntil {ask} > /dev/null; do sleep 0.1; done\n```"
        run_tour(document.replace(start, wait), address, tmp_path, "access")


def test_the_five_lines_of_a_worker_do_a_job_as_the_readme_says(tmp_path: Path) -> None:
    document = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = [
        block["content"] for block in FENCED.finditer(document) if block["info"].split() == ["python", "worker"]
    ]
    assert len([line for line in lines.splitlines() if line]) == 5
    (tmp_path / "thumbnails.py").write_text(lines)
    command = "from thumbnails import app; app.run()"
    assert f"`python -c '{command}'`" in document
    with running_server() as server:
        environment = {"QUEUE_ACTOR_URL": f"http://{server.host}:{server.port}", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
        job = {"type": "resize", "payload": {"width": 1280, "height": 720}}
        server.request("POST", "/v1/queues/images/enqueue", {"jobs": [job]})
        with subprocess.Popen([sys.executable, "-c", command], env=os.environ | environment) as worker:
            try:
                done = server.request("GET", "/v1/queues/images/jobs/1?wait_seconds=20", seconds=TOUR_SECONDS).body
                assert (done["state"], done["result"]) == ("concluded", {"pixels": 921_600})
                worker.terminate()
                assert worker.wait(TOUR_SECONDS) == 0
            finally:
                worker.kill()


def test_the_worker_in_the_readme_is_the_one_that_does_real_work() -> None:
    _docstring, worker = (ROOT / "tests/process/worker.py").read_text(encoding="utf-8").split('"""\n\n', 1)
    assert f"```python\n{worker}```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_producer_in_the_readme_works_as_printed(tmp_path: Path) -> None:
    document = (ROOT / "README.md").read_text(encoding="utf-8")
    section = document.split("## A producer in five lines\n", 1)[1].split("\n## ", 1)[0]
    (info, lines), (shown, expected), *others = [
        (block["info"], block["content"]) for block in FENCED.finditer(section)
    ]
    assert (info, shown, others) == ("python", "text", [])
    assert len(lines.replace("\n\n", "\n").splitlines()) <= 5
    with running_server() as server:
        ran = subprocess.run(
            [sys.executable, "-c", lines],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "QUEUE_ACTOR_URL": f"http://{server.host}:{server.port}"},
            capture_output=True,
            timeout=TOUR_SECONDS,
            text=True,
            check=False,
        )
    assert (ran.stdout, ran.stderr) == (expected, "")


# --- the runner itself

ADDRESS = "127.0.0.1:12345"

DOCUMENT = """
# A document

```sh
exit 1   # no part of the tour
```
```text
nor is this
```

```sh tour
name=world
echo "127.0.0.1:8080 or http://localhost:8080/healthz"
```
Some words.
```text
127.0.0.1:8080 or http://127.0.0.1:8080/h…z
```

```sh tour
true
```

```sh tour
echo "hello $name 17"
printf 'first\\r\\n'; echo second; echo third
echo last
```

```text
hello world …
first
…
last
```
"""


def test_a_tour_that_works_as_printed_is_accepted(tmp_path: Path) -> None:
    run_tour(DOCUMENT, ADDRESS, tmp_path)


@pytest.mark.parametrize(
    ("said", "done", "complaint"),
    [
        ("```sh tour\n", "```sh\n", "there is no block"),
        ("hello world …", "hello worl …d", "printed\nhello world 17\n"),
        ("first\n…\n", "first\n", "printed\nhello world 17\n"),
        ("…\nlast\n", "…\nlast\nand more\n", "printed\nhello world 17\n"),
        ("true\n", "echo said; false\n", "false\nended with exit code 1:\nsaid\n"),
        ("true\n", "exit 0\n", "exit 0\nended with exit code 0:\n"),
        ("echo last\n", "echo $lost\n", "lost: unbound variable"),
    ],
)
def test_a_tour_that_does_not_work_as_printed_is_refused(said: str, done: str, complaint: str, tmp_path: Path) -> None:
    assert said in DOCUMENT
    with pytest.raises(TourError) as refused:
        run_tour(DOCUMENT.replace(said, done), ADDRESS, tmp_path)
    assert complaint in str(refused.value)
