"""Where the client finds its server, and what failures of httpx mean."""

import importlib.util
import ssl
import sys
from pathlib import Path

import httpx
import pytest
import trustme

from queue_actor import client
from queue_actor.client_errors import NotUnderstood, Unreachable
from queue_actor.client_http import Endpoint, endpoint, failure, timeout, transport_options
from queue_actor.client_requests import dequeue, read_queue

ENVIRONMENT = {"QUEUE_ACTOR_URL": "https://queue.example.org/q/", "QUEUE_ACTOR_TOKEN": "qa_theirs"}


def test_arguments_go_before_the_environment_and_that_before_the_default() -> None:
    assert endpoint(None, None, {}).base == "http://127.0.0.1:8080"
    assert "Authorization" not in endpoint(None, None, {"QUEUE_ACTOR_TOKEN": ""}).headers
    theirs = endpoint(None, None, ENVIRONMENT)
    assert (theirs.base, theirs.headers["Authorization"]) == ("https://queue.example.org/q", "Bearer qa_theirs")
    mine = endpoint("http://localhost:1234", "qa_mine", ENVIRONMENT)
    assert (mine.base, mine.headers["Authorization"]) == ("http://localhost:1234", "Bearer qa_mine")


@pytest.mark.parametrize("url", ["unix:/run/queue.sock", "unix:///run/queue.sock"])
def test_a_unix_socket_is_an_address(url: str) -> None:
    place = endpoint(url, None, {})
    assert (place.base, place.socket) == ("http://localhost", "/run/queue.sock")
    assert transport_options(place, None, None)["uds"] == "/run/queue.sock"


@pytest.mark.parametrize("url", ["queue.example.org", "ftp://queue.example.org", "http://", "fd://3"])
def test_anything_else_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="the server's address"):
        endpoint(url, None, {})


def test_a_server_is_trusted_by_the_systems_authorities_or_by_those_of_a_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(ca))
    issued = authority.issue_cert("client.example.org")
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    place = Endpoint("https://queue.example.org", None, {})
    options = transport_options(place, str(ca), (str(cert), str(key)))
    trust = options["verify"]
    assert isinstance(trust, ssl.SSLContext)
    assert len(trust.get_ca_certs()) == 1
    assert (trust.verify_mode, trust.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert transport_options(place, None, None)["verify"].verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(FileNotFoundError):
        transport_options(place, str(tmp_path / "none.pem"), None)


def test_a_wait_that_is_asked_for_comes_on_top_of_the_time_out() -> None:
    waiting = dequeue("q", count=1, wait_seconds=20, lease_seconds=None, consumer=None, order="listed")
    assert timeout(waiting, 10).as_dict() == {"connect": 10, "read": 30, "write": 30, "pool": 30}
    assert timeout(read_queue("q"), 10).as_dict() == {"connect": 10, "read": 10, "write": 10, "pool": 10}


@pytest.mark.parametrize(
    ("error", "may_be_done"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout(""), False),
        (httpx.PoolTimeout("all in use"), False),
        (httpx.ReadTimeout("slow"), True),
        (httpx.ReadError("reset"), True),
        (httpx.WriteError("broken pipe"), True),
        (httpx.RemoteProtocolError("disconnected"), True),
    ],
)
def test_what_failed_before_anything_was_sent_was_not_done(error: httpx.RequestError, may_be_done: bool) -> None:
    told = failure(read_queue("q"), error)
    assert isinstance(told, Unreachable)
    assert told.may_be_done is may_be_done
    assert str(told).startswith(f"GET /v1/queues/q: {type(error).__name__}")
    assert not str(told).endswith(": ")


def test_what_no_client_can_read_is_not_understood() -> None:
    assert isinstance(failure(read_queue("q"), httpx.DecodingError("no gzip")), NotUnderstood)
    assert isinstance(failure(read_queue("q"), httpx.InvalidURL("no port")), NotUnderstood)


@pytest.mark.parametrize("missing", ["httpx", "anyio"])
def test_whoever_lacks_a_library_is_told_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    spec = importlib.util.spec_from_file_location("another_client", client.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}: pip install 'queue-actor\[client\]'") as raised:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert raised.value.name == missing
