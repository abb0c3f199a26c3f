"""Commands that are programs of their own: the server, a worker, and the one that makes access tokens."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from queue_actor import token_command
from queue_actor.addresses import AddressError
from queue_actor.commandline.session import Caller, Session, examples, with_session
from queue_actor.settings import help_text

PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
"""The arguments are another program's business, its --help included."""


@click.command(
    context_settings=PASSED_ON | {"help_option_names": ["-h", "--help"]},
    add_help_option=True,
    epilog=examples(
        "queue-actor serve",
        "queue-actor serve --data /var/lib/queue-actor --bind 127.0.0.1:8080",
        "queue-actor serve --tokens tokens.json --bind 0.0.0.0:8080",
    ),
)
@click.argument("settings", nargs=-1, type=click.UNPROCESSED)
def serve(settings: tuple[str, ...]) -> None:
    """Run the server, as `python -m web` does, with the same settings."""
    os.execv(sys.executable, [sys.executable, "-m", "web", *settings])  # noqa: S606 - it becomes the server


# Each paragraph is to be left as it is.
serve.epilog = "\n\n".join([serve.epilog or "", *(f"\b\n{part}" for part in help_text().split("\n\n")[1:])])


@click.command(
    context_settings=PASSED_ON,
    epilog=examples(
        "queue-actor token create shop --scope produce --queue 'images*' --file tokens.json",
        "queue-actor token list --file tokens.json",
    ),
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def token(caller: Caller, arguments: tuple[str, ...]) -> int:
    """Make, list, rotate and revoke access tokens, in the file that the server reads."""
    return token_command.main(arguments, caller.environment)


class AppReference(click.ParamType[tuple[str, str]]):
    """A module, and the name of the app in it: `tasks:app`."""

    name = "module:app"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """The two names."""
        module, _, name = value.partition(":")
        if not module or not name:
            self.fail(f"{value!r} is no app: it is written MODULE:APP, such as tasks:app", param, ctx)
        return module, name


@click.command(
    epilog=examples(
        "queue-actor work tasks:app",
        "queue-actor work tasks:app -q urgent -q images --concurrency 20",
        "queue-actor work tasks:app --metrics 127.0.0.1:9100",
    )
)
@click.argument("app", metavar="MODULE:APP", type=AppReference())
@click.option("-q", "--queue", "queues", multiple=True, metavar="QUEUE", help="May be repeated; else those of the app.")
@click.option("--concurrency", type=click.IntRange(1), help="Handlers that run at once.")
@click.option("--prefetch", type=click.IntRange(0), help="Jobs that are leased beyond those that run.")
@click.option("--lease", "lease_seconds", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Of leases.")
@click.option("--grace", "grace_seconds", type=click.FloatRange(0), metavar="SECONDS", help="For handlers at SIGTERM.")
@click.option("--order", type=click.Choice(["listed", "fair"]), help="Of several queues: as named, or in turn.")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), help="What runs asynchronous handlers.")
@click.option("--log", type=click.Choice(["text", "json"]), help="The shape of log lines on standard error.")
@click.option("--consumer", metavar="NAME", help="The worker's name; else that of the machine and the process.")
@click.option("--metrics", metavar="HOST:PORT", help="Where it is scraped, at /metrics; the log tells what port 0 is.")
@with_session
def work(session: Session, *, app: tuple[str, str], queues: tuple[str, ...], **options: Any) -> int:
    """Work jobs off with the handlers of an app, until SIGTERM. A second one stops at once."""
    given = {name: value for name, value in options.items() if value is not None}
    if queues:
        given["queues"] = queues
    try:
        status: int = found(*app).run(url=session.target.url, token=session.target.token, **given)
    except AddressError as error:
        raise click.UsageError(f"--{error}") from error
    return status


def found(module: str, name: str) -> Any:
    """The app of a module, which is looked for where Python would, and in the working directory.

    Raises:
        click.UsageError: There is none.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        app = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # A module that it imports itself is another matter: its traceback says which.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise click.UsageError(f"there is no module {module} in {Path.cwd()} or where Python looks") from error
    except AttributeError as error:
        raise click.UsageError(f"the module {module} has no {name}") from error
    if not callable(getattr(app, "run", None)):
        raise click.UsageError(f"{module}:{name} is no app: it has no run()")
    return app
