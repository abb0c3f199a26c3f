"""The clients of `peers`: connections, each of which takes jobs through their lives as its peer's users do."""

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

LEASE_SECONDS = 300
PAYLOAD = b'{"path":"/var/spool/images/0001.png","width":1280,"height":720,"x":1}'


class Wire:
    """A connection that is read line by line, or by lengths."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = self._socket.makefile("rb", 256 * 1024)

    def send(self, data: bytes) -> None:
        """Sends all of it."""
        self._socket.sendall(data)

    def line(self) -> bytes:
        """The next line, without its end."""
        line: bytes = self._received.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed a connection under load")
        return line[:-2]

    def read(self, count: int) -> bytes:
        """So many bytes."""
        data: bytes = self._received.read(count)
        if len(data) != count:
            raise ConnectionError("the server closed a connection under load")
        return data

    def hang_up(self) -> None:
        """Ends what another thread waits for."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes it."""
        self._received.close()
        self._socket.close()


class Connection(Protocol):
    """One client of a peer."""

    def live(self, size: int) -> None:
        """Takes so many jobs through their whole lives."""

    def close(self) -> None:
        """Closes it."""


class Http:
    """HTTP/1.1, keep-alive."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port)
        self.close = self._wire.close
        self.hang_up = self._wire.hang_up

    def ask(self, path: str, body: bytes, fields: str = "") -> tuple[dict[str, str], bytes]:
        """Sends a POST: the header fields of its answer, and the body."""
        kind = "Content-Type: application/json\r\n" if body else ""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}{fields}Content-Length: {len(body)}\r\n\r\n"
        self._wire.send(head.encode() + body)
        status = self._wire.line()
        if b" 200 " not in status and b" 201 " not in status:
            raise ConnectionError(f"{path}: {status.decode()}")
        headers: dict[str, str] = {}
        while line := self._wire.line().decode("latin1"):
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return headers, self._wire.read(int(headers["content-length"]))


class _Lease(msgspec.Struct):
    token: str


class _Job(msgspec.Struct):
    id: int
    lease: _Lease


class _Jobs(msgspec.Struct):
    jobs: list[_Job]


class _Next(msgspec.Struct):
    dequeued: _Jobs


_decode_jobs = msgspec.json.Decoder(_Jobs).decode
_decode_next = msgspec.json.Decoder(_Next).decode


class Ours(Http):
    """This server, over `/v1`."""

    def live(self, size: int) -> None:
        """See `Connection`."""
        jobs = ",".join([f'{{"type":"resize","payload":{PAYLOAD.decode()}}}'] * size)
        self.ask("/v1/queues/images/enqueue", f'{{"jobs":[{jobs}]}}'.encode())
        _, body = self.ask("/v1/queues/images/dequeue", b'{"count":%d}' % size)
        claims = [{"id": job.id, "token": job.lease.token} for job in _decode_jobs(body).jobs]
        self.ask("/v1/queues/images/conclude", msgspec.json.encode({"jobs": claims}))


class OursNext(Http):
    """This server, over `/v1`: each conclude brings the next jobs along."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._held: list[_Job] = []

    def live(self, size: int) -> None:
        """See `Connection`."""
        jobs = ",".join([f'{{"type":"resize","payload":{PAYLOAD.decode()}}}'] * size)
        self.ask("/v1/queues/images/enqueue", f'{{"jobs":[{jobs}]}}'.encode())
        if not self._held:
            _, body = self.ask("/v1/queues/images/dequeue", b'{"count":%d}' % size)
            self._held = _decode_jobs(body).jobs
            return
        claims = [{"id": job.id, "token": job.lease.token} for job in self._held]
        conclude = msgspec.json.encode({"jobs": claims, "dequeue": {"count": size}})
        _, body = self.ask("/v1/queues/images/conclude", conclude)
        self._held = _decode_next(body).dequeued.jobs


class OursSimple(Http):
    """This server, over its classic routes."""

    def live(self, size: int) -> None:
        """See `Connection`."""
        for _ in range(size):
            self.ask("/jobs/enqueue", b'{"Type":"TIME_CRITICAL","Payload":' + PAYLOAD + b"}")
            headers, body = self.ask("/jobs/dequeue", b"")
            id_ = body.partition(b'"ID":')[2].partition(b",")[0].decode()
            self.ask(f"/jobs/{id_}/conclude", b"", f"Queue-Lease-Token: {headers['queue-lease-token']}\r\n")


class Mutex(Http):
    """The mutex design: `mutex_design.py`."""

    def live(self, size: int) -> None:
        """See `Connection`."""
        for _ in range(size):
            self.ask("/jobs/enqueue", b'{"Type":"TIME_CRITICAL","Payload":' + PAYLOAD + b"}")
            headers, body = self.ask("/jobs/dequeue", b"")
            token = headers["queue-lease-token"]
            self.ask(f"/jobs/{json.loads(body)['ID']}/conclude", b"", f"Queue-Lease-Token: {token}\r\n")


class Beanstalk:
    """Its own protocol, with many commands sent at once."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port)
        self.close = self._wire.close

    def live(self, size: int) -> None:
        """See `Connection`."""
        wire = self._wire
        wire.send(b"put 0 0 %d %d\r\n%b\r\n" % (LEASE_SECONDS, len(PAYLOAD), PAYLOAD) * size)
        for _ in range(size):
            _expect(wire.line(), b"INSERTED ")
        wire.send(b"reserve\r\n" * size)
        ids = []
        for _ in range(size):
            _, id_, length = _expect(wire.line(), b"RESERVED ").split()
            wire.read(int(length) + 2)
            ids.append(id_)
        wire.send(b"".join(b"delete %b\r\n" % id_ for id_ in ids))
        for _ in ids:
            _expect(wire.line(), b"DELETED")


class Redis:
    """The reliable list of Redis's own documentation: a job being worked on is moved to the worker's own list."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port)
        self.close = self._wire.close
        self._mine = b"working:%d" % id(self)

    def _send(self, *commands: Sequence[bytes]) -> None:
        self._wire.send(
            b"".join(
                b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
                for words in commands
            )
        )

    def live(self, size: int) -> None:
        """See `Connection`."""
        wire = self._wire
        self._send((b"LPUSH", b"images", *[PAYLOAD] * size))
        _expect(wire.line(), b":")
        self._send(*[(b"LMOVE", b"images", self._mine, b"RIGHT", b"LEFT")] * size)
        jobs = []
        for _ in range(size):
            length = int(_expect(wire.line(), b"$")[1:])
            jobs.append(wire.read(length + 2)[:-2])
        self._send(*[(b"LREM", self._mine, b"-1", job) for job in jobs])
        for _ in jobs:
            _expect(wire.line(), b":1")


class Rq:
    """A program that uses RQ, asked for batches: `rq_users.py`."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port + 1)
        self.close = self._wire.close

    def live(self, size: int) -> None:
        """See `Connection`."""
        self._wire.send(b"%d %b\r\n" % (size, PAYLOAD))
        self._wire.line()

    def cpu_seconds(self) -> tuple[float, float]:
        """Seconds of CPU so far of RQ's workers, and of the program that enqueues."""
        self._wire.send(b"cpu\r\n")
        workers, producers = self._wire.line().split()
        self.close()
        return float(workers), float(producers)


class Bunqueue:
    """Its TCP protocol, which its own clients speak: frames of MessagePack, with its commands for batches."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port)
        self.close = self._wire.close
        self._owner = f"worker-{id(self)}"
        self._data = json.loads(PAYLOAD)

    def _ask(self, **command: Any) -> Any:
        data = msgspec.msgpack.encode(command)
        self._wire.send(struct.pack(">I", len(data)) + data)
        (length,) = struct.unpack(">I", self._wire.read(4))
        answer = msgspec.msgpack.decode(self._wire.read(length))
        if not answer["ok"]:
            raise ConnectionError(f"{command['cmd']}: {answer}")
        return answer

    def live(self, size: int) -> None:
        """See `Connection`."""
        ask = self._ask
        if size == 1:
            ask(cmd="PUSH", queue="images", name="resize", data=self._data)
            found = ask(cmd="PULL", queue="images", owner=self._owner, timeout=5_000)
            ask(cmd="ACK", id=found["job"]["id"], token=found["token"])
            return
        ask(cmd="PUSHB", queue="images", jobs=[{"name": "resize", "data": self._data}] * size)
        left = size
        while left:  # it may give fewer than it was asked for
            found = ask(cmd="PULLB", queue="images", owner=self._owner, count=left, timeout=5_000)
            ask(cmd="ACKB", ids=[job["id"] for job in found["jobs"]], tokens=found["tokens"])
            left -= len(found["jobs"])


def _expect(line: bytes, beginning: bytes) -> bytes:
    if not line.startswith(beginning):
        raise ConnectionError(f"{line[:200]!r} where {beginning!r} was expected")
    return line
