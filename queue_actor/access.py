"""Access tokens: what one is, what is kept of it, and what it allows. Pure: time and random bytes are arguments.

A token is `qa_`, 27 random characters (160 bits), and six that are a checksum of these: a scanner of leaked secrets
knows one when it sees one, and a mistyped one is told from an unknown one without looking it up. It is the format
that GitHub chose (https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/).

The file holds a record for each name: what the name may do, on which queues, how much of it, and the SHA-256 of each
of its tokens. A token has too many random bits to be guessed from its hash, so neither salt nor a slow hash is needed.
A name may have several tokens at once, which is how one is replaced by another without anybody being refused.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from math import inf
from typing import Annotated, Any
from zlib import crc32

import msgspec
from msgspec import Meta
from msgspec.structs import replace

TOKEN_PREFIX = "qa_"  # noqa: S105 - how every token begins is no secret
RANDOM_BYTES = 20
"""How many random bytes `new_token` takes."""

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_CHARACTERS = 27  # of base 62 hold 160 bits
_CHECKSUM_CHARACTERS = 6  # of base 62 hold 32 bits
_TOKEN = re.compile(rb"\A(qa_[0-9A-Za-z]{27})([0-9A-Za-z]{6})\Z")

NAME = r"\A[A-Za-z0-9][A-Za-z0-9_.:@-]{0,79}\Z"
QUEUE_PATTERN = r"\A(?:[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}|(?:[A-Za-z0-9][A-Za-z0-9_.:-]{0,78})?\*)\Z"


class AccessError(Exception):
    """A file of access tokens that cannot be used; the message says why."""


class ChangeRefused(AccessError):
    """A change to the file that cannot be made: of a name that is not there, or is there already."""


class Scope(StrEnum):
    """What may be done."""

    PRODUCE = "produce"  # enqueue
    CONSUME = "consume"  # dequeue, and what is done with a lease's token: conclude, fail, extend, release
    READ = "read"  # queues, jobs, searches, figures
    OPERATE = "operate"  # pause, resume, purge, redrive, cancel, run, take back, forget
    ADMIN = "admin"  # all of these, the policies of queues, their deletion, and the backup


# --- tokens


def new_token(random: bytes) -> str:
    """A token of these random bytes.

    Args:
        random: `RANDOM_BYTES` bytes from a source made for secrets.
    """
    assert len(random) == RANDOM_BYTES  # noqa: S101 - fewer would be guessed
    body = TOKEN_PREFIX + _base62(int.from_bytes(random, "big"), _RANDOM_CHARACTERS)
    return body + checksum(body.encode())


def checksum(body: bytes) -> str:
    """The six characters that end a token: the CRC-32 of what stands before them, in base 62."""
    return _base62(crc32(body), _CHECKSUM_CHARACTERS)


def is_well_formed(token: bytes) -> bool:
    """Whether this can be a token at all: a mistyped one cannot."""
    match = _TOKEN.match(token)
    return match is not None and checksum(match[1]).encode() == match[2]


def token_hash(token: bytes) -> str:
    """What the file holds of a token."""
    return sha256(token).hexdigest()


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


# --- patterns of queues


def covers(patterns: Sequence[str], wanted: str) -> bool:
    """Whether one of some patterns allows a queue, or all queues of a prefix (`tenant:*`).

    It depends on names only, never on which queues there are.
    """
    # Asked for by every request: a loop is twice as fast as `any` over a generator.
    for pattern in patterns:  # noqa: SIM110 - see above
        if wanted == pattern or (pattern[-1] == "*" and wanted.startswith(pattern[:-1])):
            return True
    return False


# --- the file

Moment = Annotated[datetime, Meta(tz=True)]
Name = Annotated[str, Meta(pattern=NAME)]
Pattern = Annotated[str, Meta(pattern=QUEUE_PATTERN)]
PerSecond = Annotated[float, Meta(ge=0.001, le=1_000_000)]


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token of a name."""

    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    created_at: Moment
    expires_at: Moment | None = None
    revoked_at: Moment | None = None

    @property
    def valid_until(self) -> float:
        """From which moment of the wall clock on it is not accepted, in seconds since the epoch."""
        return min((moment.timestamp() for moment in (self.expires_at, self.revoked_at) if moment), default=inf)

    def is_valid(self, now: float) -> bool:
        """Whether the token is accepted at this moment of the wall clock."""
        return now < self.valid_until


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a name may do, and its tokens. A limit that is None is none."""

    name: Name
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    queues: Annotated[tuple[Pattern, ...], Meta(min_length=1)]
    requests_per_second: PerSecond | None = None
    jobs_per_second: PerSecond | None = None  # enqueued and dequeued
    in_progress_max: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    tokens: tuple[Secret, ...] = ()  # the newest last

    @property
    def is_rated(self) -> bool:
        """Whether it matters how often, or for how much, it asks."""
        return self.requests_per_second is not None or self.jobs_per_second is not None

    def has(self, scope: Scope) -> bool:
        """Whether it has a scope, on whatever queues: `admin` has them all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def allows(self, scope: Scope, queue: str) -> bool:
        """Whether a queue, or all queues of a prefix, may be used so."""
        return self.has(scope) and covers(self.queues, queue)

    def includes(self, other: "Grant") -> bool:
        """Whether it allows all that another does; how often, and how much of it, is another matter."""
        return all(map(self.has, other.scopes)) and all(covers(self.queues, pattern) for pattern in other.queues)


class AccessFile(msgspec.Struct, frozen=True):
    """The file, whole: a grant for each name."""

    grants: tuple[Grant, ...] = ()

    def named(self, name: str) -> Grant:
        """The grant of a name.

        Raises:
            ChangeRefused: There is none.
        """
        for grant in self.grants:
            if grant.name == name:
                return grant
        raise ChangeRefused(f"there is no token named {name}")

    def with_grant(self, grant: Grant) -> "AccessFile":
        """The same with one more grant, at the end.

        Raises:
            ChangeRefused: The name is taken.
        """
        if any(other.name == grant.name for other in self.grants):
            raise ChangeRefused(f"there is a token named {grant.name} already: rotate it, or take another name")
        return AccessFile((*self.grants, grant))

    def with_token(self, name: str, secret: Secret) -> "AccessFile":
        """The same with one more token for a name; those it has go on to be valid.

        Raises:
            ChangeRefused: There is no such name.
        """
        grant = self.named(name)
        return self._with(replace(grant, tokens=(*grant.tokens, secret)))

    def revoked(self, name: str, now: float, *, keep_newest: bool = False) -> "AccessFile":
        """The same with the tokens of a name revoked, but for the newest if that is to be kept.

        Raises:
            ChangeRefused: There is no such name.
        """
        grant = self.named(name)
        tokens = [
            secret
            if secret.revoked_at is not None or (keep_newest and secret is grant.tokens[-1])
            else replace(secret, revoked_at=moment_of(now))
            for secret in grant.tokens
        ]
        return self._with(replace(grant, tokens=tuple(tokens)))

    def _with(self, grant: Grant) -> "AccessFile":
        return AccessFile(tuple(grant if other.name == grant.name else other for other in self.grants))


def moment_of(now: float) -> datetime:
    """A moment in the file: UTC, whole seconds."""
    return datetime.fromtimestamp(int(now), UTC)


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    tokens: list[msgspec.Raw]


_decode_document = msgspec.json.Decoder(_Document).decode
_decode_grant = msgspec.json.Decoder(Grant).decode


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be; the last for what is nested too deeply."""


def decode_file(data: bytes) -> AccessFile:
    """The file of these bytes.

    Raises:
        AccessError: It cannot be used. The message names the field, and the token's name where there is one.
    """
    try:
        document = _decode_document(data)
    except UNREADABLE as error:
        raise AccessError(str(error)) from error
    grants: list[Grant] = []
    names: set[str] = set()
    hashes: set[str] = set()
    for number, raw in enumerate(document.tokens, 1):
        try:
            grant = _decode_grant(raw)
        except UNREADABLE as error:
            raise AccessError(f"{_called(raw, number)}: {error}") from error
        if grant.name in names:
            raise AccessError(f"token {grant.name}: there are two of this name")
        for secret in grant.tokens:
            if secret.sha256 in hashes:
                raise AccessError(f"token {grant.name}: its sha256 {secret.sha256[:8]}... stands in the file twice")
            hashes.add(secret.sha256)
        names.add(grant.name)
        grants.append(grant)
    return AccessFile(tuple(grants))


def _called(raw: msgspec.Raw, number: int) -> str:
    """How a record that cannot be understood is called."""
    record: Any = None
    with suppress(*UNREADABLE):  # then it has no name that could be told
        record = msgspec.json.decode(raw)
    name = record.get("name") if isinstance(record, dict) else None
    return f"token {name[:100]!a}" if isinstance(name, str) else f"token number {number}"


def encode_file(file: AccessFile) -> bytes:
    """The file's bytes: a line a field, so that a change can be read in a diff."""
    return msgspec.json.format(msgspec.json.encode({"tokens": file.grants}), indent=2) + b"\n"


# --- what a server looks tokens up in


_UNKNOWN = (-inf, None)  # never valid


class Keyring:
    """All tokens of a file, by their hashes."""

    def __init__(self, file: AccessFile) -> None:
        self.grants = {grant.name: grant for grant in file.grants}
        self._secrets = {
            bytes.fromhex(secret.sha256): (secret.valid_until, (grant, secret))
            for grant in file.grants
            for secret in grant.tokens
        }

    def find(self, token: bytes, now: float) -> tuple[Grant, Secret] | None:
        """The grant of a token that is valid now (wall clock), and what is kept of the token; None: it is not."""
        # The hash is compared, not the token: how long that takes tells nothing that helps to guess one.
        valid_until, found = self._secrets.get(sha256(token).digest(), _UNKNOWN)
        return found if now < valid_until else None

    def count_valid(self, now: float) -> int:
        """How many tokens are valid at this moment."""
        return sum(now < valid_until for valid_until, _ in self._secrets.values())
