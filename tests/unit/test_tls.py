"""web/tls.py, and what connections make of it: on streams in memory and virtual time, with certificates of trustme."""

import signal
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import trio
import trustme
from trio.testing import wait_all_tasks_blocked

from queue_actor.settings import SettingError, Settings
from tests.contract.stack import HOST, Client, Server, build, serving
from web.connections import FIRST_REQUEST_SECONDS, HANDSHAKE_SECONDS
from web.rereading import LOOK_SECONDS, watch
from web.tls import Certificate, NoHandshake, shake_hands

pytestmark = pytest.mark.virtual_time

NAME = "127.0.0.1"
GET = build("GET", "/healthz")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def paths(authority: trustme.CA, tmp_path: Path) -> Settings:
    """The settings of a server with a certificate."""
    write(authority.issue_cert(NAME), tmp_path)
    return Settings(tls_cert=str(tmp_path / "cert.pem"), tls_key=str(tmp_path / "key.pem"))


def write(issued: trustme.LeafCert, folder: Path) -> None:
    """The files of a certificate, each in place of another at once."""
    for name, content in (
        ("cert.pem", b"".join(blob.bytes() for blob in issued.cert_chain_pems)),
        ("key.pem", issued.private_key_pem.bytes()),
    ):
        (folder / "new").write_bytes(content)
        (folder / "new").rename(folder / name)


def refused(settings: Settings) -> str:
    with pytest.raises(SettingError) as caught:
        Certificate(settings)
    return str(caught.value)


# --- the files


def test_a_pair_is_read(paths: Settings) -> None:
    context = Certificate(paths).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & (ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION)
    assert context.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca"])
def test_a_file_that_cannot_be_read_is_named(name: str, paths: Settings, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.pem", "No such file or directory"), (tmp_path, "Is a directory")):
        told = refused(msgspec.structs.replace(paths, **{name: str(path)}))
        assert told == f"QUEUE_ACTOR_{name.upper()}: cannot read {path}: {reason}"


def test_files_that_are_no_pair_are_refused(authority: trustme.CA, paths: Settings, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    authority.issue_cert(NAME).private_key_pem.write_to_path(str(other))
    assert refused(Settings(tls_cert=paths.tls_cert, tls_key=str(other))) == (
        f"QUEUE_ACTOR_TLS_KEY: {other} is not the key of {paths.tls_cert}"
    )
    other.write_text("no certificate")
    for settings in (
        Settings(tls_cert=str(other), tls_key=paths.tls_key),
        Settings(tls_cert=paths.tls_cert, tls_key=str(other)),
        Settings(tls_cert=paths.tls_key, tls_key=paths.tls_cert),
    ):
        assert "are no certificate and its key, in PEM" in refused(settings)
    assert refused(Settings(tls_cert=paths.tls_cert, tls_key=paths.tls_key, tls_client_ca=str(other))) == (
        f"QUEUE_ACTOR_TLS_CLIENT_CA: {other} holds no certificate in PEM"
    )


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(paths: Settings) -> None:
    from cryptography.hazmat.primitives import serialization  # comes with trustme

    key = serialization.load_pem_private_key(Path(paths.tls_key).read_bytes(), None)
    Path(paths.tls_key).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert refused(paths).startswith("QUEUE_ACTOR_TLS_KEY: the key is encrypted")


@pytest.mark.parametrize(
    ("days", "why"), [((-2, -1), "certificate has expired"), ((1, 2), "certificate is not yet valid")]
)
def test_a_certificate_out_of_its_time_is_refused(
    days: tuple[int, int], why: str, authority: trustme.CA, paths: Settings, tmp_path: Path
) -> None:
    start, end = (datetime.now(UTC) + timedelta(days=day) for day in days)
    write(authority.issue_cert(NAME, not_before=start, not_after=end), tmp_path)
    assert refused(paths) == f"QUEUE_ACTOR_TLS_CERT: no client accepts {paths.tls_cert}: {why}"


def test_a_new_pair_is_used_and_a_broken_one_is_not(
    authority: trustme.CA, paths: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(paths)
    first = certificate.context
    write(authority.issue_cert(NAME), tmp_path)
    certificate.read_again()
    second = certificate.context
    assert second is not first
    Path(paths.tls_key).write_text("broken")
    certificate.read_again()
    assert certificate.context is second
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "tls_unusable"
    assert "are no certificate and its key" in vars(record)["facts"]["reason"]


def test_a_file_that_vanishes_while_it_is_read_is_no_end(
    paths: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(paths)
    before = certificate.context

    def vanished(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", vanished)
    certificate.read_again()
    assert certificate.context is before
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["tls_unusable"]


@pytest.fixture
async def watching(paths: Settings, nursery: trio.Nursery) -> Certificate:
    certificate = Certificate(paths)
    nursery.start_soon(watch, [certificate])
    await wait_all_tasks_blocked()
    return certificate


async def test_a_change_of_the_files_is_seen(watching: Certificate, authority: trustme.CA, tmp_path: Path) -> None:
    before = watching.context
    await trio.sleep(3 * LOOK_SECONDS)
    assert watching.context is before
    write(authority.issue_cert(NAME), tmp_path)
    await trio.sleep(1.1 * LOOK_SECONDS)
    assert watching.context is not before


async def test_a_link_that_leads_elsewhere_is_seen(
    nursery: trio.Nursery, authority: trustme.CA, tmp_path: Path
) -> None:
    """As Kubernetes does with a secret: the files are links through a folder that is a link."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(authority.issue_cert(NAME), tmp_path / name)
    (tmp_path / "data").symlink_to("one")
    certificate = Certificate(
        Settings(tls_cert=str(tmp_path / "data/cert.pem"), tls_key=str(tmp_path / "data/key.pem"))
    )
    nursery.start_soon(watch, [certificate])
    before = certificate.context
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "data")
    await trio.sleep(1.1 * LOOK_SECONDS)
    assert certificate.context is not before


async def test_files_that_are_gone_for_a_while_are_no_end(
    watching: Certificate, authority: trustme.CA, tmp_path: Path
) -> None:
    before = watching.context
    (tmp_path / "cert.pem").unlink()
    await trio.sleep(1.1 * LOOK_SECONDS)
    assert watching.context is before
    write(authority.issue_cert(NAME), tmp_path)
    await trio.sleep(1.1 * LOOK_SECONDS)
    assert watching.context is not before


async def test_a_hangup_has_the_files_read_at_once(watching: Certificate) -> None:
    before = watching.context
    signal.raise_signal(signal.SIGHUP)
    with trio.fail_after(LOOK_SECONDS / 2):
        while watching.context is before:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.01)


# --- connections


@pytest.fixture
async def server(paths: Settings) -> AsyncIterator[Server]:
    async with serving(paths) as server:
        server.connections.certificate = Certificate(paths)
        yield server


Trust = Callable[[], ssl.SSLContext]


@pytest.fixture
def trust(authority: trustme.CA) -> Trust:
    def context() -> ssl.SSLContext:
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        return trusting

    return context


def connect(server: Server, context: ssl.SSLContext) -> tuple[Client, trio.SSLStream[trio.abc.Stream]]:
    """A client that expects a proper end, not just that of the stream."""
    client = server.connect()
    stream: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(client.stream, context, server_hostname=NAME)
    client.stream = stream  # type: ignore[assignment] # all that is asked of it is there
    return client, stream


def failures(server: Server) -> list[str]:
    return [line["reason"] for line in server.log if line["event"] == "handshake_failed"]


def errors(server: Server) -> list[object]:
    return [line for line in server.log if line["level"] not in {"info", "debug"}]


async def test_requests_are_answered_one_after_the_other(server: Server, trust: Trust) -> None:
    client, stream = connect(server, trust())
    for _ in range(3):
        await client.send(GET)
        assert (await client.read()).status == 200
    assert stream.version() == "TLSv1.3"
    assert stream.cipher() is not None
    await client.leave()


async def test_version_1_2_is_spoken_too(server: Server, trust: Trust) -> None:
    context = trust()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client, stream = connect(server, context)
    await client.send(GET)
    assert (await client.read()).status == 200
    assert stream.version() == "TLSv1.2"


async def test_a_client_of_an_older_version_is_told_so(server: Server, trust: Trust) -> None:
    context = trust()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    client, _ = connect(server, context)
    with pytest.raises(trio.BrokenResourceError) as broken:
        await client.send(GET)
    assert isinstance(broken.value.__cause__, ssl.SSLError)
    assert "ALERT_PROTOCOL_VERSION" in str(broken.value.__cause__.reason)
    assert failures(server) == ["unsupported protocol"]
    assert errors(server) == []


@pytest.mark.parametrize(
    ("offered", "chosen"), [([], None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["h2"], None)]
)
async def test_http_1_1_is_the_one_protocol_there_is(
    server: Server, trust: Trust, offered: list[str], chosen: str | None
) -> None:
    context = trust()
    if offered:
        context.set_alpn_protocols(offered)
    client, stream = connect(server, context)
    await stream.do_handshake()
    assert stream.selected_alpn_protocol() == chosen
    await client.send(GET if chosen or not offered else b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert (await client.read()).status == (200 if chosen or not offered else 400)


async def test_a_wrong_name_or_an_unknown_authority_is_refused_by_the_client(server: Server, trust: Trust) -> None:
    for context, name in ((trust(), "localhost"), (ssl.create_default_context(), NAME)):
        stream = trio.SSLStream(server.connect().stream, context, server_hostname=name)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.do_handshake()
        assert isinstance(broken.value.__cause__, ssl.SSLCertVerificationError)
        await stream.aclose()
    await wait_all_tasks_blocked()
    assert len(server.connections) == 0
    assert len(failures(server)) == 2
    assert errors(server) == []


async def test_a_handshake_that_stalls_is_cut(server: Server, trust: Trust) -> None:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        trust().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME).do_handshake()
    hello = outgoing.read()
    for sent in (b"", hello[:50], hello):
        began = trio.current_time()
        stream = server.connect().stream
        if sent:
            await stream.send_all(sent)
        while await stream.receive_some():
            pass
        assert trio.current_time() - began == pytest.approx(HANDSHAKE_SECONDS, abs=0.01)
    assert failures(server) == 3 * ["not complete within 3 seconds"]


async def test_the_handshake_is_part_of_the_time_of_the_first_request(server: Server, trust: Trust) -> None:
    began = trio.current_time()
    client, stream = connect(server, trust())
    await trio.sleep(2)
    await stream.do_handshake()
    await client.send(GET[:-2])
    assert (await client.read()).problem[1] == "request_timeout"
    assert trio.current_time() - began == pytest.approx(FIRST_REQUEST_SECONDS, abs=0.01)


async def test_who_speaks_http_is_told_over_http(server: Server) -> None:
    client = server.connect()
    await client.send(GET)
    answer = await client.read()
    assert answer.problem[:2] == (400, "malformed")
    assert "https://" in answer.json["detail"]
    assert await client.closed()


async def test_who_speaks_something_else_is_closed(server: Server) -> None:
    stream = server.connect().stream
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    while await stream.receive_some():
        pass
    await stream.aclose()
    await wait_all_tasks_blocked()
    assert failures(server) == ["wrong version number"]
    assert errors(server) == []


@pytest.mark.parametrize("headers", [[], [("Connection", "close")]])
async def test_the_end_of_a_connection_is_said(server: Server, trust: Trust, headers: list[tuple[str, str]]) -> None:
    client, _ = connect(server, trust())
    await client.send(build("GET", "/healthz", b"", headers))
    await client.read()
    assert await client.closed()  # which would raise after a mere end of the stream


async def test_a_drain_ends_an_idle_connection_properly_and_one_in_its_handshake_at_once(
    server: Server, trust: Trust
) -> None:
    idle, _ = connect(server, trust())
    await idle.send(GET)
    await idle.read()
    begun = server.connect()
    await wait_all_tasks_blocked()
    began = trio.current_time()
    await server.drain()
    assert await idle.closed()
    assert await begun.closed()
    assert trio.current_time() == began
    assert failures(server) == []


async def test_a_refusal_reaches_a_client_that_is_still_sending(server: Server, trust: Trust) -> None:
    client, _ = connect(server, trust())
    await client.send(build("POST", "/jobs/enqueue", b"", [("Content-Length", "4000000")]) + bytes(500_000))
    answer = await client.read()
    assert answer.problem[:2] == (413, "too_large")
    assert await client.closed()
    await client.stream.aclose()
    await wait_all_tasks_blocked()
    assert len(server.connections) == 0
    assert errors(server) == []


async def test_a_connection_beyond_the_limit_is_told_over_tls(paths: Settings, trust: Trust) -> None:
    settings = Settings(tls_cert=paths.tls_cert, tls_key=paths.tls_key, connections_max=1)
    async with serving(settings) as server:
        server.connections.certificate = Certificate(settings)
        begun = server.connect()
        await wait_all_tasks_blocked()
        beyond, _ = connect(server, trust())
        await beyond.stream.send_all(b"")
        assert (await beyond.read()).problem[:2] == (503, "too_many_connections")
        plain = server.connect()
        await plain.send(GET)
        assert (await plain.read()).problem[:2] == (503, "too_many_connections")
        await begun.leave()


async def test_a_long_poll_ends_with_its_client_and_leaves_the_connection_whole_otherwise(
    server: Server, trust: Trust
) -> None:
    client, _ = connect(server, trust())
    for _ in range(2):
        await client.send(build("POST", "/jobs/dequeue?wait=5"))
        assert (await client.read()).problem[:2] == (404, "empty")
    await client.send(build("POST", "/jobs/dequeue?wait=20"))
    await wait_all_tasks_blocked()
    assert server.engine.statistics().waiters == 1
    await client.leave()
    await wait_all_tasks_blocked()
    assert server.engine.statistics().waiters == 0
    assert errors(server) == []


@pytest.mark.parametrize(("origin", "status"), [(f"https://{HOST}", 200), (f"http://{HOST}", 403)])
async def test_a_page_without_tls_is_of_another_origin(server: Server, trust: Trust, origin: str, status: int) -> None:
    client, _ = connect(server, trust())
    await client.send(build("GET", "/healthz", b"", [("Origin", origin)]))
    assert (await client.read()).status == status


async def test_a_client_may_have_to_show_a_certificate(
    paths: Settings, authority: trustme.CA, trust: Trust, tmp_path: Path
) -> None:
    clients = trustme.CA()
    clients.cert_pem.write_to_path(str(tmp_path / "clients.pem"))
    settings = Settings(tls_cert=paths.tls_cert, tls_key=paths.tls_key, tls_client_ca=str(tmp_path / "clients.pem"))
    async with serving(settings) as server:
        server.connections.certificate = Certificate(settings)
        known = trust()
        clients.issue_cert("worker").configure_cert(known)
        client, _ = connect(server, known)
        await client.send(GET)
        assert (await client.read()).status == 200
        foreign = trust()
        authority.issue_cert("worker").configure_cert(foreign)
        for context in (trust(), foreign):
            client, _ = connect(server, context)
            with pytest.raises(trio.BrokenResourceError) as broken:
                await client.ask("GET", "/healthz")
            assert isinstance(broken.value.__cause__, ssl.SSLError)
        assert failures(server) == ["peer did not return a certificate", "certificate verify failed"]


async def test_a_client_that_breaks_off_has_no_handshake(paths: Settings) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await trio.aclose_forcefully(theirs)
    with pytest.raises(NoHandshake, match="the connection broke"):
        await shake_hands(theirs_that_breaks(ours), Certificate(paths))


def theirs_that_breaks(stream: trio.abc.Stream) -> trio.abc.Stream:
    async def broken(max_bytes: int | None = None) -> bytes:
        raise trio.BrokenResourceError(f"reset, with {max_bytes} bytes wanted")

    stream.receive_some = broken  # type: ignore[method-assign] # as a socket does after a reset
    return stream
