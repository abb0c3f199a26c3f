"""What a command knows: which server, with which token, and how its answers are to be shown.

Address, token and queue are what a flag says, else the environment, else a file:

    url = "http://127.0.0.1:8080"
    token = "qa_..."
    queue = "images"
    ca_file = "/etc/ssl/own.pem"
"""

import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec

from queue_actor.client import Client
from queue_actor.commandline.terminal import Printer

URL = "http://127.0.0.1:8080"
QUEUE = "default"
FILE = "queue-actor.toml"
TIMEOUT_SECONDS = 30.0

R = TypeVar("R")


class ConfigurationError(Exception):
    """A file of configuration that cannot be used. The message names it."""


class Configuration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of configuration may say."""

    url: str | None = None
    token: str | None = None
    queue: str | None = None
    ca_file: str | None = None


class Target(NamedTuple):
    """Where a command goes, and what it shows there."""

    url: str
    token: str | None
    queue: str | None
    """None: nobody has named one."""
    timeout_seconds: float | None
    """None: nobody has said."""
    ca_file: str | None
    """Certificates to trust instead of the system's."""
    file: Path | None
    """The file of configuration that was read."""


class Caller(NamedTuple):
    """What the program is given by whoever calls it."""

    environment: Mapping[str, str]
    connect: Callable[[Target], Client]
    now: Callable[[], float] = time.time
    """The wall clock."""
    sleep: Callable[[float], None] = time.sleep


def default_file(environment: Mapping[str, str]) -> Path | None:
    """Where a file of configuration is looked for, if there is a home."""
    home = environment.get("XDG_CONFIG_HOME") or (environment.get("HOME", "") and f"{environment['HOME']}/.config")
    return Path(home) / FILE if home else None


def read_configuration(path: Path) -> Configuration:
    """The file of configuration.

    Raises:
        ConfigurationError: It cannot be read, is not TOML, or says what nobody knows.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Configuration)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def find_target(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Target:
    """What the flags, the environment and the file say together.

    Raises:
        ConfigurationError: The file cannot be used; or one was named, and is not there.
    """
    named = flags.get("config")
    file = Path(named) if named else default_file(environment)
    if file is not None and (named or file.exists()):
        configuration = read_configuration(file)
    else:
        file, configuration = None, Configuration()
    return Target(
        url=(flags.get("url") or environment.get("QUEUE_ACTOR_URL") or configuration.url or URL).rstrip("/"),
        token=flags.get("token") or environment.get("QUEUE_ACTOR_TOKEN") or configuration.token,
        queue=flags.get("queue") or configuration.queue,
        timeout_seconds=flags.get("timeout"),
        ca_file=flags.get("ca_file") or configuration.ca_file,
        file=file,
    )


class Session:
    """One call of a command: its target, its printer, and a client that is made when it is first needed."""

    def __init__(self, caller: Caller, target: Target, printer: Printer, closing: ExitStack) -> None:
        self.caller = caller
        self.target = target
        self.printer = printer
        self._closing = closing
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """A client of the server.

        Raises:
            ConfigurationError: The address is none.
        """
        if self._client is None:
            try:
                client = self.caller.connect(self.target)
            except ValueError as error:
                raise ConfigurationError(str(error)) from error
            self._client = self._closing.enter_context(client)
        return self._client

    def allow(self, seconds: float) -> None:
        """Let requests take so long, unless the caller has said how long; before the client is used."""
        if self.target.timeout_seconds is None:
            self.target = self.target._replace(timeout_seconds=seconds)

    @property
    def queue(self) -> str:
        """The queue that the command is about."""
        return self.target.queue or QUEUE


SERVER_OPTIONS = (
    click.option("--url", metavar="URL", help=f"The server; else $QUEUE_ACTOR_URL, else {URL}."),
    click.option(
        "--token",
        metavar="TOKEN",
        help="The access token; better $QUEUE_ACTOR_TOKEN or the file, for others may see a flag.",
    ),
    click.option("--ca-file", metavar="FILE", help="Certificates to trust, in PEM, instead of the system's."),
    click.option(
        "--config", metavar="FILE", help="TOML with url, token, queue, ca_file; else ~/.config/queue-actor.toml."
    ),
    click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 3600), help="For each request; 30."),
)
QUEUE_OPTION = click.option(
    "-q", "--queue", metavar="QUEUE", help=f"The queue; else that of the configuration, else {QUEUE}."
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="JSON for programs instead of text for people.")


def examples(*lines: str) -> str:
    """The end of a command's help. `test_the_examples_of_every_help_can_be_called` reads it again."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def with_session(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command its session in the place of the options that say which server; innermost of its decorators."""

    @wraps(function)
    def called(**options: Any) -> R:
        caller: Caller = click.get_current_context().obj
        flags = {name: options.pop(name, None) for name in ("url", "token", "ca_file", "config", "timeout", "queue")}
        printer = Printer(caller.environment, as_json=bool(options.pop("as_json", False)))
        with ExitStack() as closing:
            session = Session(caller, find_target(flags, caller.environment), printer, closing)
            return function(session, **options)

    for option in reversed(SERVER_OPTIONS):
        option(called)
    return called
