"""TCP addresses to listen on: how they are written, and what that means."""

import re
import socket
from typing import Any, Final, NamedTuple

_HOST_PORT: Final = re.compile(r"\A(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>[0-9]{1,5})\Z")
PORT_MAX: Final = 65_535


class AddressError(ValueError):
    """An address that cannot be listened on. The message says whose it is, and why."""


class Address(NamedTuple):
    """An address of this machine."""

    family: socket.AddressFamily
    name: tuple[Any, ...]  # as the kernel has it: host and port, and what IPv6 adds


def find(written: str) -> Address | None:
    """What HOST:PORT means; None: it is not written so. Port 0 is any free one.

    Raises:
        OSError: There is no such host.
        UnicodeError: The name of the host has an empty label, or one of more than 63 characters.
    """
    match = _HOST_PORT.match(written)
    if match is None or int(match["port"]) > PORT_MAX:
        return None
    host = match["six"] or match["host"]
    family, _, _, _, name = socket.getaddrinfo(
        host, int(match["port"]), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return Address(family, name)


def written(name: tuple[Any, ...]) -> str:
    """HOST:PORT, as it is written in a URL."""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
