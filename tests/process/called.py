"""The command line called within the test's process, against a real server: as `queue-actor` does, but quicker."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from queue_actor.commandline.group import main
from tests.process.server import Server


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """The lines of the output, each of them JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


class CommandLine:
    """The program, with a home in which there is nothing."""

    def __init__(self, server: Server, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.server = server
        self.url = f"http://{server.host}:{server.port}"
        self.environment = {"HOME": str(home), "QUEUE_ACTOR_URL": self.url}
        self.clocks: dict[str, Any] = {}
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> Ran:
        """Carry out a command that ends with an exit code."""
        self._capsys.readouterr()
        ran = Ran(main(arguments, self.environment, **self.clocks), *self._capsys.readouterr())
        assert ran.code == code, ran
        return ran

    def post(self, path: str, body: object = None) -> Any:
        """Ask the server by other means; what it answers."""
        answer = self.server.request("POST", path, body)
        assert answer.status == 200, answer
        return answer.body

    def get(self, path: str) -> Any:
        """Likewise."""
        answer = self.server.request("GET", path)
        assert answer.status == 200, answer
        return answer.body

    def dequeue(self, queue: str, count: int = 1) -> Any:
        """Take jobs, as a worker does."""
        return self.post(f"/v1/queues/{queue}/dequeue", {"count": count, "consumer": "w1"})["jobs"]
