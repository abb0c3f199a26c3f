"""Where the server listens: a TCP address, a path, or a socket that was handed over."""

import re
import socket
import stat
from ipaddress import ip_address
from pathlib import Path

from queue_actor import addresses
from queue_actor.settings import PREFIX, SettingError, Settings

_VARIABLE = f"{PREFIX}BIND"


def is_loopback(hostname: str) -> bool:
    """Whether a host's name or address means this machine alone."""
    if hostname == "localhost":
        return True
    try:
        return ip_address(hostname).is_loopback
    except ValueError:
        return False


def listen(settings: Settings) -> socket.socket:
    """The listening socket of the setting `bind`.

    Raises:
        SettingError: It cannot be had, or it would let in the whole network unasked.
    """
    bind = settings.bind
    try:
        if bind.startswith("fd://"):
            return _handed_over(bind, settings)
        if bind.startswith("unix:"):
            return _unix(bind.removeprefix("unix:"))
        return _tcp(bind, settings)
    except OSError as error:
        raise SettingError(f"{_VARIABLE}: cannot listen on {bind}: {error.strerror or error}") from error
    except UnicodeError as error:  # of a name with an empty label, or one of more than 63 characters
        raise SettingError(f"{_VARIABLE}: {bind!r} holds no name of a host") from error


def _tcp(bind: str, settings: Settings) -> socket.socket:
    address = addresses.find(bind)
    if address is None:
        raise SettingError(f"{_VARIABLE}: {bind!r} is not HOST:PORT, unix:PATH or fd://NUMBER")
    _refuse_network(str(address.name[0]), settings)
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address.name)
        # Only now does the kernel refuse a port that somebody else listens on.
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _unix(path: str) -> socket.socket:
    if not path:  # for which the kernel would make up an address
        raise SettingError(f"{_VARIABLE}: 'unix:' is not unix:PATH")
    try:
        if stat.S_ISSOCK(Path(path).lstat().st_mode) and not _answers(path):
            Path(path).unlink()  # left behind by a process that was killed
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        return True


def _handed_over(bind: str, settings: Settings) -> socket.socket:
    number = bind.removeprefix("fd://")
    if not re.fullmatch(r"[0-9]{1,6}", number):
        raise SettingError(f"{_VARIABLE}: {bind!r} is not fd://NUMBER")
    listener = socket.socket(fileno=int(number))
    try:
        _refuse_others(listener, bind)
        if listener.family != socket.AF_UNIX:
            _refuse_network(str(listener.getsockname()[0]), settings)
    except SettingError:
        listener.close()
        raise
    return listener


def _refuse_others(listener: socket.socket, bind: str) -> None:
    if listener.family not in {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6} or listener.type != socket.SOCK_STREAM:
        raise SettingError(f"{_VARIABLE}: {bind} is no socket for connections")


def _refuse_network(address: str, settings: Settings) -> None:
    if not settings.open and not settings.tokens and not is_loopback(address):
        raise SettingError(
            f"{_VARIABLE}: {address} can be reached by others, and whoever reaches the port may do anything; "
            f"set {PREFIX}TOKENS, or {PREFIX}OPEN=1 if that is meant"
        )


def address_of(listener: socket.socket, scheme: str = "http") -> str:
    """The address as a client would write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"{scheme}://{addresses.written(name)}"
