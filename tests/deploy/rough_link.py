"""A bad link, as a proxy: slow, late, lossy and cut again and again. The kernel's own (``tc netem``) is not
everywhere, and needs root.
"""

import contextlib
import random
import select
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


class Rough:
    """A link: so many bytes per second each way, a delay, losses, and every connection is cut after a while.

    A model of what TCP makes of such a link, and no link: packets, windows and congestion are not here. What
    is read at once (1/50 s of the rate, the size of a segment) stands for a segment. A lost one comes late
    by a retransmission timeout, drawn from 0.2 to 1 s (RFC 6298 asks for 1 s, Linux waits 0.2 s), what comes
    behind it waits for it, as TCP delivers in order, and meanwhile the sender, its window used up, sends
    nothing. Both directions lose alike, each for itself.

    Attributes:
        up: bytes that devices sent.
        down: bytes that they got.
        cuts: connections that were cut.
        lost: segments that were lost, and sent again.
    """

    def __init__(self, port: int, life: float, delay: float, rate: int, loss: float = 0.0) -> None:
        self._to, self._life, self._delay, self._rate, self._loss = port, life, delay, rate, loss
        self._random = random.Random(5)
        self.up = self.down = self.cuts = self.lost = 0
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)
        self._door.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            if select.select([self._door], [], [], 0.02)[0]:
                near, _ = self._door.accept()
                with near, contextlib.suppress(OSError), self._reached() as far:
                    self._pass(near, far)

    def _reached(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._to))

    def _pass(self, near: socket.socket, far: socket.socket) -> None:
        end = time.monotonic() + self._life
        ways = {near: _Way(far), far: _Way(near)}
        while not self._stop.is_set():
            now = time.monotonic()
            if now > end:
                self.cuts += 1  # and what is on its way is lost
                return
            for way in ways.values():
                way.deliver(now)
            ready = [plug for plug, way in ways.items() if now >= way.opens]
            for plug in select.select(ready, [], [], 0.01)[0]:
                if not (data := plug.recv(max(1, self._rate // 50))):
                    return
                if plug is near:
                    self.up += len(data)
                else:
                    self.down += len(data)
                late = self._late()
                ways[plug].send(data, now + self._delay + late, now + len(data) / self._rate + late)

    def _late(self) -> float:
        """Seconds by which a segment comes late."""
        if self._random.random() >= self._loss:
            return 0.0
        self.lost += 1
        return self._random.uniform(0.2, 1.0)


@dataclass
class _Way:
    """One direction of a connection.

    Attributes:
        to: where it goes.
        opens: when the sender may send again.
    """

    to: socket.socket
    opens: float = 0.0
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def send(self, data: bytes, due: float, opens: float) -> None:
        self.waiting.append((due, data))
        self.opens = opens

    def deliver(self, now: float) -> None:
        """What has arrived, in order."""
        while self.waiting and self.waiting[0][0] <= now:
            self.to.sendall(self.waiting.popleft()[1])
