"""Hypercorn, told what it has to know, and made to use the connections of web/connections.py."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from hypercorn.config import Config
from hypercorn.trio import run as seam

from queue_actor.settings import Settings
from web.connections import Connection, Connections

BACKLOG = 1_024
"""Connections that the kernel accepts before the server does."""

# An exit takes at most these 4 of its 5 seconds here: for requests under way, and for the application's lifespan.
GRACEFUL_SECONDS = 3.0
LIFESPAN_SECONDS = 1.0


@contextmanager
def installed(settings: Settings) -> Iterator[Connections]:
    """Makes `hypercorn.trio.serve` use these connections for as long as the block lasts, and yields them."""
    connections = Connections(settings)
    names = vars(seam)
    stock = names["TCPServer"]
    names["TCPServer"] = partial(Connection, connections)
    try:
        yield connections
    finally:
        names["TCPServer"] = stock


def make_config(settings: Settings) -> Config:
    """What `hypercorn.trio.serve` has to be told."""
    config = Config()
    config.bind = [settings.bind]
    config.backlog = BACKLOG
    config.graceful_timeout = GRACEFUL_SECONDS
    config.shutdown_timeout = LIFESPAN_SECONDS
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config
