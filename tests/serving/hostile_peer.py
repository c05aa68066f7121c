"""Servers that are none: each does one thing wrong to whoever connects."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Behaviour = Callable[[socket.socket], None]


@contextmanager
def misbehaving(behaviour: Behaviour) -> Iterator[int]:
    """Listens, and hands every connection to ``behaviour`` in a thread; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            behaviour(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_.append(connection)
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for connection in open_:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def read_request(connection: socket.socket) -> bytes:
    """Everything up to the end of the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
    while len(body) < size:
        body += connection.recv(65_536)
    return body


def says(answer: bytes, *, then: Behaviour = lambda connection: connection.close()) -> Behaviour:
    """Reads a request, answers with exactly these bytes."""

    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)
        then(connection)

    return behave


def hangs(connection: socket.socket) -> None:
    """Takes what comes and answers nothing."""
    while connection.recv(65_536):
        pass


def drips(connection: socket.socket) -> None:
    """Answers one byte at a time, for ever."""
    stop = threading.Event()
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not stop.wait(0.05):
        connection.sendall(b"x")
