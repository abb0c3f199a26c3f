"""What a worker and its child processes say to each other: structs in MessagePack, each after its length."""

from collections.abc import Iterator
from typing import Final

import msgspec

from queue_actor.handlers import Done, Dropped, Failed, Released, StopReason

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


Frame = Task | Stop | Progress | Done | Failed | Released | Dropped

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def to_bytes(frame: Frame) -> bytes:
    """A frame as it is sent."""
    data = _encoder.encode(frame)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class Frames:
    """Puts frames together from what has been received."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with this."""
        self._received += data
        while len(self._received) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES], "big")
            if len(self._received) < end:
                return
            frame = _decoder.decode(self._received[LENGTH_BYTES:end])
            del self._received[:end]
            yield frame
