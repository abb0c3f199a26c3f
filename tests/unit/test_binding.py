"""web/binding.py, with sockets of the kernel: nothing here is worth a fake."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from queue_actor.settings import SettingError, Settings
from web.binding import address_of, is_loopback, listen


@pytest.fixture
def path() -> Iterator[str]:
    """A path for a socket: the usual temporary folders can be longer than the 107 bytes that the kernel takes."""
    short = Path(f"/tmp/queue-actor-test-{os.getpid()}")  # noqa: S108 - removed below, and nobody else's
    short.unlink(missing_ok=True)
    yield str(short)
    if short.is_dir():
        short.rmdir()
    short.unlink(missing_ok=True)


def answers(listener: socket.socket) -> bool:
    """Whether a client can connect."""
    with socket.socket(listener.family, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.close()
    return True


def refused(bind: str) -> str:
    """What a bind is refused with; it has to name the variable."""
    with pytest.raises(SettingError, match=r"\AQUEUE_ACTOR_BIND: ") as caught:
        listen(Settings(bind=bind))
    return str(caught.value)


def without_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return True
    return False


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_an_address_or_a_name_of_loopback_is_listened_on(host: str) -> None:
    with listen(Settings(bind=f"{host}:0")) as listener:
        assert answers(listener)
        assert is_loopback(listener.getsockname()[0])


def test_port_0_is_any_free_port_and_the_address_tells_which() -> None:
    with listen(Settings(bind="127.0.0.1:0")) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.skipif(without_ipv6(), reason="this machine has no IPv6")
def test_ipv6_stands_in_brackets_on_the_way_in_and_out() -> None:
    with listen(Settings(bind="[::1]:0")) as listener:
        assert answers(listener)
        assert address_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_a_port_in_use_is_refused() -> None:
    with listen(Settings(bind="127.0.0.1:0")) as listener:
        assert "Address already in use" in refused(f"127.0.0.1:{listener.getsockname()[1]}")
        assert answers(listener)


def test_a_port_that_was_just_given_up_can_be_had_at_once() -> None:
    with listen(Settings(bind="127.0.0.1:0")) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            accepted, _ = listener.accept()
            accepted.close()  # this side first: it is the one that lingers
    with listen(Settings(bind=f"127.0.0.1:{port}")) as listener:
        assert answers(listener)


NETWORK = ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"]


@pytest.mark.parametrize("bind", NETWORK)
def test_the_network_is_refused_unless_it_is_meant(bind: str) -> None:
    assert "QUEUE_ACTOR_OPEN=1" in refused(bind)


def test_the_network_is_listened_on_by_a_server_with_tokens() -> None:
    with listen(Settings(bind="0.0.0.0:0", tokens="tokens.json")) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"  # noqa: S104 - likewise


def test_the_network_is_listened_on_if_it_is_meant() -> None:
    # 127.0.0.1 would be allowed anyway, so this must be the real thing; it is closed at once, and accepts nobody.
    with listen(Settings(bind="0.0.0.0:0", open=True)) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"  # noqa: S104 - as above


NONSENSE = [
    "", "127.0.0.1:80 ", " 127.0.0.1:80", "127.0.0.1:80\n", "local host:80", ":", "127.0.0.1", "127.0.0.1:", ":80",
    "*:80", "8080", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:+1", "127.0.0.1:٣", "127.0.0.1:65536",
    "127.0.0.1:999999", "127.0.0.1:80:80", "::1:80", "[::1]", "[::1:80", "[x]:80", "http://127.0.0.1:80",
    "127.0.0.1:80/", "fd://", "fd://x", "fd://-1", "fd://1.0", "fd://٣", "fd:3", "unix:", "a..b:80", ".:80",
    f"{'a' * 64}:80",
]  # fmt: skip


@pytest.mark.parametrize("bind", NONSENSE, ids=ascii)
def test_what_is_no_address_is_refused(bind: str) -> None:
    refused(bind)


def test_a_path_is_listened_on(path: str) -> None:
    with listen(Settings(bind=f"unix:{path}")) as listener:
        assert answers(listener)
        assert address_of(listener) == f"unix:{path}"


def test_a_socket_that_a_killed_process_left_behind_is_replaced(path: str) -> None:
    listen(Settings(bind=f"unix:{path}")).close()
    assert Path(path).is_socket()
    with listen(Settings(bind=f"unix:{path}")) as listener:
        assert answers(listener)


def test_a_socket_that_somebody_listens_on_is_left_to_him(path: str) -> None:
    with listen(Settings(bind=f"unix:{path}")) as first:
        assert "Address already in use" in refused(f"unix:{path}")
        first.accept()[0].close()  # the one who asked whether anybody is there
        assert answers(first)


def test_a_file_or_a_folder_is_never_replaced(path: str) -> None:
    Path(path).write_text("precious")
    refused(f"unix:{path}")
    assert Path(path).read_text() == "precious"
    Path(path).unlink()
    Path(path).mkdir()
    refused(f"unix:{path}")
    assert Path(path).is_dir()


def test_a_link_to_a_file_is_never_followed(path: str, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    Path(path).symlink_to(tmp_path / "target")
    refused(f"unix:{path}")
    assert (tmp_path / "target").read_text() == "precious"


def test_a_path_in_no_folder_or_one_too_long_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(f"unix:{tmp_path}/no/such/folder")
    refused(f"unix:{tmp_path}/{'x' * 200}")


def test_a_socket_handed_over_is_used_as_it_is(path: str) -> None:
    def handed_over(given: socket.socket) -> socket.socket:
        return listen(Settings(bind=f"fd://{os.dup(given.fileno())}"))

    with socket.create_server(("127.0.0.1", 0)) as given, handed_over(given) as listener:
        assert listener.getsockname() == given.getsockname()
        assert answers(listener)
    with listen(Settings(bind=f"unix:{path}")) as given, handed_over(given) as listener:
        assert address_of(listener) == f"unix:{path}"


def test_a_socket_handed_over_that_the_network_reaches_is_refused_unless_it_is_meant() -> None:
    with socket.socket() as given:
        given.bind(("0.0.0.0", 0))  # noqa: S104 - it does not listen
        assert "QUEUE_ACTOR_OPEN=1" in refused(f"fd://{os.dup(given.fileno())}")
        with listen(Settings(bind=f"fd://{os.dup(given.fileno())}", open=True)) as listener:
            assert listener.getsockname() == given.getsockname()


def test_what_is_handed_over_has_to_be_a_stream_socket() -> None:
    read, write = os.pipe()
    assert "non-socket" in refused(f"fd://{read}")
    os.close(read)
    os.close(write)
    assert "Bad file descriptor" in refused("fd://999999")
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        assert "no socket for connections" in refused(f"fd://{os.dup(datagrams.fileno())}")


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.255.255.255", "::1", "0:0:0:0:0:0:0:1"])
def test_these_mean_this_machine_alone(name: str) -> None:
    assert is_loopback(name)


ELSEWHERE = "localhost. localhost.example 0.0.0.0 :: 128.0.0.1 127.1 127.0.0.1.example 10.0.0.1 ::ffff:10.0.0.1 [::1] 1"


@pytest.mark.parametrize("name", ["", *ELSEWHERE.split()])
def test_these_do_not(name: str) -> None:
    assert not is_loopback(name)
