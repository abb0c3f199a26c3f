"""What a worker and its child processes say to each other: structs in MessagePack, each after its length."""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import msgspec

from queue_actor.handlers import Outcome, StopReason

LENGTH_BYTES: Final = 4


class Task(msgspec.Struct, frozen=True, tag=True):
    """To a child: do this job, which is JSON as the server sent it."""

    handler: str
    job: bytes


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To a child: the handler is to stop."""

    reason: StopReason


class Progress(msgspec.Struct, frozen=True, tag=True):
    """From a child: how far the handler is, as JSON."""

    progress: bytes


ToChild = Task | Stop
FromChild = Progress | Outcome
FROM_CHILD: Final[msgspec.msgpack.Decoder[FromChild]] = msgspec.msgpack.Decoder(FromChild)
TO_CHILD: Final[msgspec.msgpack.Decoder[ToChild]] = msgspec.msgpack.Decoder(ToChild)

Frame = TypeVar("Frame")

_encoder = msgspec.msgpack.Encoder()


def to_bytes(frame: ToChild | FromChild) -> bytes:
    """A frame as it is sent."""
    data = _encoder.encode(frame)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class Frames(Generic[Frame]):
    """Puts frames of one direction together from what has been received."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Frame]) -> None:
        self._decoder = decoder
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with this."""
        self._received += data
        while len(self._received) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES], "big")
            if len(self._received) < end:
                return
            frame = self._decoder.decode(self._received[LENGTH_BYTES:end])
            del self._received[:end]
            yield frame
