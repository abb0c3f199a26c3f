"""Access tokens for tests: a file of them, what a server makes of it, and the header that shows one."""

from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from queue_actor.access import RANDOM_BYTES, AccessFile, Grant, Scope, Secret, encode_file, new_token, token_hash
from tests.fakes import EPOCH_SECONDS, FakeClock
from web.auth import Access

_numbers = count(1)


def made_token() -> str:
    """A token that nobody has."""
    return new_token(next(_numbers).to_bytes(RANDOM_BYTES, "big"))


def at(seconds: float) -> datetime:
    """So many seconds after a test begins."""
    return datetime.fromtimestamp(EPOCH_SECONDS + seconds, UTC)


def bearer(token: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


class Tokens:
    """A file of tokens, and the clock of those who read it."""

    def __init__(self, path: Path, clock: FakeClock) -> None:
        self.path = path
        self.clock = clock
        self.file = AccessFile()

    def add(
        self,
        name: str,
        *scopes: str,
        queues: tuple[str, ...] = ("*",),
        expires: float | None = None,
        revoked: float | None = None,
        **limits: Any,
    ) -> str:
        """A new token; it expires, or was revoked, so many seconds after the test begins."""
        token = made_token()
        secret = Secret(
            token_hash(token.encode()),
            at(0),
            None if expires is None else at(expires),
            None if revoked is None else at(revoked),
        )
        if any(grant.name == name for grant in self.file.grants):
            self.file = self.file.with_token(name, secret)
        else:
            grant = Grant(
                name=name,
                scopes=tuple(map(Scope, scopes)),
                queues=queues,
                tokens=(secret,),
                **limits,
            )
            self.file = self.file.with_grant(grant)
        self.write()
        return token

    def revoke(self, name: str, *, seconds: float = 0.0) -> None:
        """Revoke the tokens of a name, so many seconds after the clock's first moment."""
        self.file = self.file.revoked(name, EPOCH_SECONDS + seconds)
        self.write()

    def write(self) -> None:
        """Write the file."""
        self.path.write_bytes(encode_file(self.file))

    def access(self) -> Access:
        """What a server makes of it."""
        return Access(self.path, clock=self.clock)
