"""TLS: the certificate, read again while the server serves, and the handshake of one connection.

TLS 1.2 and 1.3, HTTP/1.1 alone, no renegotiation. A certificate is tried out before it is used: a client that trusts
this certificate, whoever issued it, shakes hands with it in memory. So whatever would keep every client away, such as
a key of another certificate or a date that has passed, is found before any client finds it.
"""

import logging
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import trio

from queue_actor.settings import PREFIX, SettingError, Settings
from queue_actor.token_file import Signature, signature_of

ROUNDS = 4
"""Turns that each side takes at most until a handshake in memory is complete."""

logger = logging.getLogger("web")


class NoHandshake(Exception):
    """The client did not come to a handshake; the message says why. Nothing was read or sent that matters."""

    def __init__(self, reason: str, *, speaks_http: bool = False) -> None:
        super().__init__(reason)
        self.speaks_http = speaks_http


class Certificate:
    """The files of the settings `tls_*`, and the context that new handshakes use.

    Raises:
        SettingError: The files cannot be used, or no client would accept them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = [Path(path) for path in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if path]
        self._seen = self._stamps()
        self.context = self._read()

    def read_again(self) -> None:
        """Use what the files hold now from the next handshake on; if that cannot be used, go on with what was."""
        self._seen = self._stamps()
        try:
            self.context = self._read()
        except SettingError as error:
            logger.error("tls_unusable", extra={"facts": {"reason": str(error)}})  # noqa: TRY400 - it tells all

    def has_changed(self) -> bool:
        """Whether the files are not those that were read, links followed."""
        return self._stamps() != self._seen

    def _stamps(self) -> list[Signature]:
        return [signature_of(path) for path in self._paths]

    def _read(self) -> ssl.SSLContext:
        cert, key, client_ca = self._settings.tls_cert, self._settings.tls_key, self._settings.tls_client_ca
        for name, path in (("TLS_CERT", cert), ("TLS_KEY", key), ("TLS_CLIENT_CA", client_ca)):
            _open(name, path)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(cert, key, password=_no_password)
            until = _try_out(context, cert)
        except ssl.SSLCertVerificationError as error:
            raise SettingError(f"{PREFIX}TLS_CERT: no client accepts {cert}: {error.verify_message}") from error
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise SettingError(f"{PREFIX}TLS_KEY: {key} is not the key of {cert}") from error
            raise SettingError(
                f"{PREFIX}TLS_CERT: {cert} and {key} are no certificate and its key, in PEM: {_reason(error)}"
            ) from error
        except OSError as error:  # a moment ago it could be read
            raise SettingError(f"{PREFIX}TLS_CERT: cannot read {cert} and {key}: {error.strerror}") from error
        if client_ca:
            try:
                context.load_verify_locations(client_ca)
            except OSError as error:  # ssl.SSLError is one
                raise SettingError(f"{PREFIX}TLS_CLIENT_CA: {client_ca} holds no certificate in PEM") from error
            context.verify_mode = ssl.CERT_REQUIRED
        logger.info("tls_read", extra={"facts": {"certificate": cert, "valid_until": until}})
        return context


def _open(name: str, path: str) -> None:
    """Nothing but that: `ssl` does not tell which of the files it cannot open."""
    if path:
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise SettingError(f"{PREFIX}{name}: cannot read {path}: {error.strerror}") from error


def _no_password() -> str:
    raise SettingError(f"{PREFIX}TLS_KEY: the key is encrypted, and there is nobody to ask for its password")


def _try_out(context: ssl.SSLContext, cert: str) -> str:
    """Until when clients accept the certificate.

    Raises:
        ssl.SSLError: They do not.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # which names it is for is its owner's business
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cert)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True)
    for _ in range(ROUNDS):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    certificate = ends[0].getpeercert() or {}
    seconds = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


async def shake_hands(stream: trio.abc.Stream, certificate: Certificate) -> trio.SSLStream[trio.abc.Stream]:
    """The stream with TLS around it. The caller sees to it that it does not take for ever.

    Raises:
        NoHandshake: The client does not want it, or not so, and was told.
    """
    secure = trio.SSLStream(stream, certificate.context, server_side=True, https_compatible=True)
    try:
        await secure.do_handshake()
    except trio.BrokenResourceError as broken:
        error = broken.__cause__
        if not isinstance(error, ssl.SSLError):
            raise NoHandshake("the connection broke") from broken
        if error.reason == "HTTP_REQUEST":
            raise NoHandshake(_reason(error), speaks_http=True) from broken
        # Trio leaves the alert unsent, which alone tells the client what is wrong.
        alert = secure._outgoing.read()  # noqa: SLF001 - there is no other way to it
        with suppress(trio.BrokenResourceError):
            await stream.send_all(alert)
        raise NoHandshake(_reason(error)) from broken
    return secure


async def take_leave(secure: trio.SSLStream[trio.abc.Stream]) -> None:
    """Tells the client that nothing follows, and does not wait for it to say the same: a mere end might be forced.

    From here on only the stream within may be used. Trio's own way tells nothing to a client that is still sending.

    Raises:
        trio.BrokenResourceError: The client has left.
    """
    with suppress(ssl.SSLError):  # it has not taken its leave
        secure._ssl_object.unwrap()  # noqa: SLF001 - see above
    await secure.transport_stream.send_all(secure._outgoing.read())  # noqa: SLF001 - see above


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
