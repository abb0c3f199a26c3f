"""Hypercorn's configuration. The connections are Hypercorn's own so far."""

import logging

from hypercorn.config import Config

BACKLOG = 1024


def make_config() -> Config:
    """What `hypercorn.trio.serve` needs to know."""
    config = Config()
    config.backlog = BACKLOG
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config
