"""`python -m queue_actor token`: make, list, rotate and revoke access tokens.

Exit codes: 0; 64 for a wrong call (EX_USAGE of sysexits(3)); 78 for a file that cannot be used (EX_CONFIG).
"""

import argparse
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from queue_actor.access import (
    RANDOM_BYTES,
    AccessError,
    AccessFile,
    ChangeRefused,
    Grant,
    Scope,
    Secret,
    moment_of,
    new_token,
    token_hash,
)
from queue_actor.settings import PREFIX
from queue_actor.token_file import change_file, describe, read_file

EXIT_USAGE = 64
EXIT_CONFIGURATION = 78
VARIABLE = f"{PREFIX}TOKENS"
PROGRAM = "queue-actor"


class UsageError(Exception):
    """A call that cannot be understood."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.format_usage().strip()}\n{message}")


def parser() -> argparse.ArgumentParser:
    """What the command takes, called as this process was."""
    program = PROGRAM if Path(sys.argv[0]).name == PROGRAM else "python -m queue_actor"
    top = _Parser(prog=f"{program} token", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="create|list|rotate|revoke")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--file", metavar="PATH", help=f"the file of tokens; else ${VARIABLE}")
        return command

    create = add("create", "Make a token under a new name, and print it: it is shown this once.")
    create.add_argument("name")
    create.add_argument("--scope", action="append", required=True, choices=[str(scope) for scope in Scope])
    create.add_argument("--queue", action="append", required=True, help="a queue, a prefix such as 'tenant:*', or '*'")
    create.add_argument("--requests-per-second", type=float, metavar="N")
    create.add_argument("--jobs-per-second", type=float, metavar="N", help="enqueued and dequeued")
    create.add_argument("--in-progress-max", type=int, metavar="N", help="jobs leased at once")
    rotate = add("rotate", "Make another token for a name, and print it. Those it has stay valid.")
    rotate.add_argument("name")
    for command in (create, rotate):
        expiry = command.add_mutually_exclusive_group()
        expiry.add_argument("--expires-seconds", type=int, metavar="N", help="from now on")
        expiry.add_argument("--expires", type=_date, metavar="DATE", help="such as 2027-01-31, or a time by RFC 3339")
    revoke = add("revoke", "Make the tokens of a name invalid.")
    revoke.add_argument("name")
    revoke.add_argument("--keep-newest", action="store_true", help="all but the one made last")
    listing = add("list", "Show the names and what they may do.")
    listing.add_argument("--json", action="store_true")
    return top


def _date(text: str) -> datetime:
    """A day, which begins in UTC, or a moment with its offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        if len(text) > len("2027-01-31"):
            raise argparse.ArgumentTypeError(f"{text!r} does not say how far it is from UTC")
        moment = moment.replace(tzinfo=UTC)
    return moment


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Carry out one command; the exit code."""
    try:
        options = parser().parse_args(arguments)
        path = options.file or environment.get(VARIABLE)
        if not path:
            raise UsageError(f"which file? Give --file PATH, or set {VARIABLE}")  # noqa: TRY301 - as the parser does
        _run(options, Path(path), time.time())
    except (UsageError, ChangeRefused) as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command talks to its caller
        return EXIT_USAGE
    except AccessError as error:
        print(f"queue-actor: {error}", file=sys.stderr)  # noqa: T201 - likewise
        return EXIT_CONFIGURATION
    return 0


def _run(options: argparse.Namespace, path: Path, now: float) -> None:
    match options.command:
        case "list":
            print(_listing(read_file(path), now, as_json=options.json))  # noqa: T201 - it was asked for
        case "revoke":
            change_file(path, lambda file: file.revoked(options.name, now, keep_newest=options.keep_newest))
        case _:
            token = new_token(secrets.token_bytes(RANDOM_BYTES))
            secret = Secret(token_hash(token.encode()), moment_of(now), _expiry(options, now))
            if options.command == "create":
                grant = _grant(options, secret)
                change_file(path, lambda file: file.with_grant(grant), create=True)
            else:
                change_file(path, lambda file: file.with_token(options.name, secret))
            print(token)  # noqa: T201 - once, and nowhere else


def _expiry(options: argparse.Namespace, now: float) -> datetime | None:
    expires: datetime | None = options.expires
    if options.expires_seconds is not None:
        if not 1 <= options.expires_seconds <= 100 * 366 * 24 * 3600:
            raise UsageError("--expires-seconds is a number from 1 to a hundred years")
        expires = moment_of(now + options.expires_seconds)
    if expires is not None and expires.timestamp() <= now:
        raise UsageError(f"{expires} is over")
    return expires


def _grant(options: argparse.Namespace, secret: Secret) -> Grant:
    given = {
        "name": options.name,
        "scopes": list(dict.fromkeys(options.scope)),
        "queues": list(dict.fromkeys(options.queue)),
        "requests_per_second": options.requests_per_second,
        "jobs_per_second": options.jobs_per_second,
        "in_progress_max": options.in_progress_max,
        "tokens": [msgspec.to_builtins(secret)],
    }
    try:
        return msgspec.convert(given, Grant)
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from error


def _listing(file: AccessFile, now: float, *, as_json: bool) -> str:
    told = describe(file, now)
    if as_json:
        return msgspec.json.format(msgspec.json.encode({"tokens": told}), indent=2).decode()
    return "\n".join(_line(one) for one in told) or "there are no tokens"


def _line(told: dict[str, Any]) -> str:
    limits = [
        f"{name}={told[name]:.12g}"
        for name in ("requests_per_second", "jobs_per_second", "in_progress_max")
        if told[name] is not None
    ]
    tokens = [_validity(token) for token in told["tokens"]]
    return " ".join(
        [
            told["name"],
            f"scopes={','.join(told['scopes'])}",
            f"queues={','.join(told['queues'])}",
            *limits,
            f"tokens={','.join(tokens)}",
        ]
    )


def _validity(token: dict[str, Any]) -> str:
    if token["revoked_at"] is not None:
        return f"revoked@{token['revoked_at']:%Y-%m-%d}"
    if token["expires_at"] is not None:
        return f"{'until' if token['valid'] else 'expired'}@{token['expires_at']:%Y-%m-%d}"
    return "valid"
