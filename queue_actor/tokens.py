"""Lease tokens: opaque text that proves a lease, with nothing to remember for the server.

A token is the fence of the lease and a keyed hash over queue, id and fence (BLAKE2b, RFC 7693, keyed mode), so it can
be checked by anyone who has the secret and guessed by nobody who has not.
"""

from hashlib import blake2b
from hmac import compare_digest

SECRET_BYTES = 32
HASH_BYTES = 16
FENCE_MAX = 2**53 - 1  # the largest integer that JSON readers keep exact (RFC 8259, section 6)

_FENCE_BYTES = 7  # of FENCE_MAX
_TOKEN_CHARACTERS = 2 * (_FENCE_BYTES + HASH_BYTES)


class Tokens:
    """Issues and reads the tokens of one server, or of one data directory."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"the token secret has {len(secret)} bytes, not {SECRET_BYTES}")
        self._keyed = blake2b(key=secret, digest_size=HASH_BYTES)

    def issue(self, queue: str, id_: int, fence: int) -> str:
        """The token of one lease."""
        keyed = self._keyed.copy()
        keyed.update(f"{queue}/{id_}/{fence}".encode())
        return (fence.to_bytes(_FENCE_BYTES, "big") + keyed.digest()).hex()

    def proves(self, token: str, queue: str, id_: int, fence: int) -> bool:
        """Whether a text is the token of this lease."""
        return token.isascii() and compare_digest(self.issue(queue, id_, fence), token)

    def fence(self, queue: str, id_: int, token: str) -> int | None:
        """The fence that a token proves for this job; None for any text that is not such a token."""
        if len(token) != _TOKEN_CHARACTERS or not token.isascii():
            return None
        try:
            fence = int.from_bytes(bytes.fromhex(token[: 2 * _FENCE_BYTES]), "big")
        except ValueError:
            return None
        return fence if compare_digest(self.issue(queue, id_, fence), token) else None

    def draw(self, queue: str, id_: int, fence: int) -> float:
        """A number from 0 up to 1, the same for the same lease: chance that can be repeated, for jitter."""
        keyed = self._keyed.copy()
        keyed.update(f"jitter/{queue}/{id_}/{fence}".encode())
        return int.from_bytes(keyed.digest()[:8], "big") / 2**64
