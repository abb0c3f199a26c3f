"""`top`: the queues of a server, live on the whole screen."""

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

import click
from rich.live import Live

from queue_actor.commandline.screen import Gatherer, Snapshot, screen
from queue_actor.commandline.session import Session, examples, with_session

KEY_SECONDS = 0.1
"""How long a key may have to wait."""
KEY_BYTES = 64
QUIT = frozenset(b"qQ\x04")
EXIT_TERMINATED = 143


@click.command(
    epilog=examples("queue-actor top", "queue-actor top --prefix tenant: --every 5", "queue-actor top --once")
)
@click.option(
    "--every",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often the server is asked.",
)
@click.option("--prefix", metavar="TEXT", help="Queues whose names begin so.")
@click.option("--once", is_flag=True, help="Print it once, and end.")
@with_session
def top(session: Session, *, every: float, prefix: str | None, once: bool) -> int:
    """Show queues, rates, consumers and failures, live; q ends it.

    The token needs the scope read. Rates are of the last minute, consumers those that asked in the last ten.
    """
    console = session.printer.out
    if not once and not (console.is_terminal and sys.stdin.isatty()):
        raise click.UsageError("the screen of this is a terminal: elsewhere say --once")
    gatherer = Gatherer(session.client, session.target.url, prefix)
    if once:
        console.print(screen(gatherer.gather(), session.caller.now(), height=None))
        return 0
    with (
        signals_noted() as noted,
        keyboard(sys.stdin.fileno()),
        Live(console=console, screen=True, auto_refresh=False) as live,
        News(gatherer, every) as news,
    ):
        shown: tuple[object, object] = (None, None)
        while not noted and not news.quit_asked(sys.stdin.fileno()):
            # Only what is new is drawn: the terminal may be far away.
            if shown != (new := (news.snapshot, console.size)):
                shown = new
                live.update(screen(news.snapshot, session.caller.now(), height=console.size.height), refresh=True)
    if noted[:1] == [signal.SIGINT]:
        raise KeyboardInterrupt
    return EXIT_TERMINATED if noted else 0


class News:
    """Asks the server again and again, in a thread of its own: keys are heeded while it does not answer."""

    def __init__(self, gatherer: Gatherer, every: float) -> None:
        self.snapshot: Snapshot | None = None
        self._gatherer = gatherer
        self._every = every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begin to ask."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ask no more. An answer that is still waited for is not waited for here."""
        self._stopped.set()
        self._thread.join(KEY_SECONDS)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.snapshot = self._gatherer.gather()
            except RuntimeError:
                if not self._stopped.is_set():
                    raise
                return  # the client was closed meanwhile
            self._stopped.wait(self._every)

    def quit_asked(self, descriptor: int) -> bool:
        """Whether somebody has pressed a key that ends it, waited for a little."""
        ready, _, _ = select.select([descriptor], [], [], KEY_SECONDS)
        if not ready:
            return False
        keys = os.read(descriptor, KEY_BYTES)
        return not keys or not QUIT.isdisjoint(keys)


@contextmanager
def keyboard(descriptor: int) -> Iterator[None]:
    """Give keys as they are pressed, and show none of them."""
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM, so that the screen is left as it was.

    What a handler raises may be raised anywhere, also where Python swallows it: then the program would not end.
    """
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
