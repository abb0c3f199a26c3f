"""A network that can be cut: a proxy in front of the server, which stops to pass anything on, and says nothing."""

import socket
import threading
from contextlib import suppress
from typing import Self

RECEIVE_BYTES = 65_536


class Cable:
    """Leads to a server. While it is cut, bytes that arrive are lost; then the connections that lost some are reset."""

    def __init__(self, host: str, port: int) -> None:
        self._where = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._whole = threading.Event()
        self._whole.set()
        self._ended = False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._whole.set()
        self._reset()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Let nothing through."""
        self._whole.clear()

    def mend(self) -> None:
        """Let new connections through."""
        self._reset()
        self._whole.set()

    def _reset(self) -> None:
        for pair in list(self._pairs):
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            pair = (ours, socket.create_connection(self._where))
            for end in pair:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.add(pair)
            for source, drain in (pair, pair[::-1]):
                thread = threading.Thread(target=self._pump, args=(source, drain, pair), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, drain: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with suppress(OSError):
            while data := source.recv(RECEIVE_BYTES):
                if self._whole.is_set():
                    drain.sendall(data)
                else:
                    self._whole.wait()  # what was lost is lost for good
                    break
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if pair in self._pairs:
            self._pairs.discard(pair)
        else:  # the second of the two
            for end in pair:
                end.close()
