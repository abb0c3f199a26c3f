"""Which server a command asks, with which token, and about which queue."""

from pathlib import Path

import pytest

from queue_actor.commandline.session import ConfigurationError, default_file, find_target
from tests.unit.commandline.conftest import Command, FakeServer, queue_document

CONFIGURATION = """
url = "http://of.file"
token = "qa_file"
queue = "of-file"
ca_file = "own.pem"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config/queue-actor.toml").write_text(CONFIGURATION)
    return tmp_path


def test_what_nobody_says_has_its_default() -> None:
    target = find_target({}, {})

    assert target.url == "http://127.0.0.1:8080"
    assert (target.token, target.queue, target.ca_file, target.file) == (None, None, None, None)
    assert target.timeout_seconds is None


def test_the_file_is_read_where_it_is_looked_for(home: Path) -> None:
    target = find_target({}, {"HOME": str(home)})

    assert target.file == home / ".config/queue-actor.toml"
    assert (target.url, target.token, target.queue) == ("http://of.file", "qa_file", "of-file")
    assert target.ca_file == "own.pem"


def test_the_environment_goes_before_the_file_and_a_flag_before_both(home: Path) -> None:
    environment = {
        "HOME": str(home),
        "QUEUE_ACTOR_URL": "http://of.environment/",
        "QUEUE_ACTOR_TOKEN": "qa_environment",
    }
    flags = {"url": "http://of.flag", "token": "qa_flag", "queue": "of-flag", "ca_file": "flag.pem", "timeout": 1.5}

    target = find_target({}, environment)
    assert (target.url, target.token) == ("http://of.environment", "qa_environment")
    target = find_target(flags, environment)
    assert (target.url, target.token, target.queue, target.ca_file) == (
        "http://of.flag",
        "qa_flag",
        "of-flag",
        "flag.pem",
    )
    assert target.timeout_seconds == 1.5


def test_a_file_that_is_named_is_read_instead(home: Path, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('queue = "other"')

    assert find_target({"config": str(tmp_path / "other.toml")}, {"HOME": str(home)}).queue == "other"


def test_the_place_for_files_of_configuration_may_be_another() -> None:
    assert default_file({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == Path("/x/queue-actor.toml")
    assert default_file({"HOME": "/h"}) == Path("/h/.config/queue-actor.toml")
    assert default_file({}) is None


@pytest.mark.parametrize(
    ("content", "said"), [("url = 5", "url"), ("url", "="), ('colour = "red"', "colour"), (b"\xff", "utf-8")]
)
def test_a_file_that_cannot_be_used_is_named(content: str | bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(ConfigurationError, match=rf"own\.toml: .*{said}"):
        find_target({"config": str(file)}, {})


def test_a_file_that_is_named_has_to_be_there(command: Command) -> None:
    ran = command("queues", "--config", "nowhere.toml")

    assert ran.code == 78
    assert ran.err == "queue-actor: nowhere.toml: No such file or directory\n"


def test_a_command_asks_the_server_that_is_named(command: Command, server: FakeServer) -> None:
    server.answers("GET", {})
    server.answers("GET /v1/queues/q", queue_document())
    command("queues", "q", "--url", "http://other.test/", "--token", "qa_x", "--timeout", "3")

    assert command.targets[0][:2] == ("http://other.test", "qa_x")
    assert server.requests[0].headers["Authorization"] == "Bearer qa_x"
    assert str(server.requests[0].url) == "http://other.test/v1/queues/q"


def test_an_address_that_is_none_is_said_to_be(command: Command) -> None:
    ran = command("queues", "--url", "ftp://x")

    assert ran.code == 78
    assert ran.err.startswith("queue-actor: ")
