"""Clients that speak the device link properly up to their answer, and then do not."""

import contextlib
import math
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedge.deploy import device, tls
from fedge.deploy.device_wire import Wire
from fedge.deploy.federation import Enrolment
from fedge.errors import DataError
from fedge.federated.checks import MOST_WINDOWS
from fedge.federated.client import HELLO, UPDATE, signed_parts
from fedge.federated.coding import Support, build_codec, decode_dense
from fedge.federated.frames import Hello, Train, Trained, Welcome, decode_task, encode_reply
from fedge.federated.plan import Plan
from fedge.link.coding import encode
from fedge.link.device_end import DeviceDesk, DeviceEnd, TaskWhole
from fedge.link.frames import CHUNK_BYTES, FRAME_BYTES, AnswerPart, More, Refused
from fedge.link.transfer import announce


class Offender:
    """A client's round that trains nothing, and answers what ``attack`` makes of a sound answer."""

    def __init__(self, bundle: Path, attack: "Attack") -> None:
        self.enrolment, self._attack = Enrolment.load(bundle), attack
        self.key, self.name = self.enrolment.signing_key(), self.enrolment.name
        self.done = 0
        self.first: bytes | None = None

    def __call__(self, frame: bytes) -> bytes:
        task = decode_task(frame)
        if isinstance(task, Welcome):
            return self._greet(task)
        if not isinstance(task, Train) or task.learning_rate == 0:
            raise DataError("not of interest")
        self.done += 1
        return self._attack(self, task)

    def _greet(self, task: Welcome) -> bytes:
        plan = Plan.from_dict(task.plan)
        self.shapes = Support.of(decode_dense(task.snapshot, plan.spec.shapes())).shapes()
        self.codec = build_codec(plan.uplink)
        signature = self.key.sign(
            HELLO, self.enrolment.federation.encode(), self.name.encode(), task.challenge
        )
        return encode_reply(Hello(self.key.public, signature))

    def payload(self, size: float, shapes: dict[str, Any] | None = None) -> bytes:
        """A coded update with entries of this size."""
        shapes = shapes or dict(self.shapes)
        random = np.random.default_rng(self.done)
        change = {n: (random.normal(size=s) * size).astype(np.float32) for n, s in shapes.items()}
        return self.codec.encode(self.codec.init(shapes), change)[1]

    def sound(self, task: Train, name: str | None = None, base: bytes | None = None, **changed: Any) -> bytes:
        """An answer that says what it likes, and is signed by this client for this task, unless told else."""
        plain = Trained(task.round, 10, 1.0, 0.5, None, self.payload(1e-3), b"")
        reply = replace(plain, **changed)
        parts = signed_parts(self.enrolment.federation, name or self.name, base or task.lineage, reply)
        return encode_reply(replace(reply, signature=self.key.sign(UPDATE, *parts)))

    def again(self, task: Train) -> bytes:
        """The first answer that it gave, for ever."""
        self.first = self.first or self.sound(task)
        return self.first


Attack = Callable[[Offender, Train], bytes]


def _negative(offender: Offender, task: Train) -> bytes:
    """-1 as 64 bits, where a number of windows stands."""
    frame = offender.sound(task)
    head = 1 + len(_varint(task.round))
    return frame[:head] + b"\xff" * 9 + b"\x01" + frame[head + 1 :]


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def _float64(offender: Offender, task: Train) -> bytes:
    raw = struct.pack("<100d", *range(100))
    return offender.sound(task, payload=raw)


def _refusing(_offender: Offender, _task: Train) -> bytes:
    raise DataError("not of interest")


ATTACKS: dict[str, Attack] = {
    "garbage": lambda _o, _t: b"\x02garbage",
    "wrong-keys": lambda o, t: o.sound(t, payload=o.payload(1e-3, {"another": (5,), "name": (3, 4)})),
    "wrong-shape": lambda o, t: o.sound(
        t, payload=o.payload(1e-3, {n: (*s[:-1], s[-1] + 1) for n, s in o.shapes.items()})
    ),
    "wrong-dtype": _float64,
    "nan": lambda o, t: o.sound(t, loss=math.nan),
    "infinity": lambda o, t: o.sound(t, score=math.inf),
    "huge-norm": lambda o, t: o.sound(t, payload=o.payload(1e6)),
    "negative-weight": _negative,
    "huge-weight": lambda o, t: o.sound(t, weight=MOST_WINDOWS + 1),
    "forged-sender": lambda o, t: o.sound(t, name="honest-a"),
    "wrong-round": lambda o, t: o.sound(t, round=t.round + 1),
    "wrong-base": lambda o, t: o.sound(t, base=bytes(len(t.lineage))),
    "replay": Offender.again,
}
"""What is wrong with the content. The last gives one sound answer, and that again and again."""

LINK_ATTACKS = ("withheld-chunk", "repeated-chunk", "oversized-body", "oversized-frame", "no-frame")
"""What is wrong with the way it is sent."""

BARRED = ("wrong-keys", "wrong-shape", "wrong-dtype", "huge-norm", "huge-weight", *LINK_ATTACKS)
"""Those whose key or certificate shows that it is they who say something impossible."""


class LinkOffender:
    """A client, in a thread, whose answers never arrive; it comes back when it is hung up on."""

    def __init__(self, bundle: Path, port: int, kind: str, most: int) -> None:
        """Attacks ``most`` tasks and refuses those after them."""
        self._bundle, self._port, self._kind, self._most = bundle, port, kind, most
        self._answers = Offender(bundle, _refusing)
        self._desk, self._stop = DeviceDesk(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.attacks = 0

    def __enter__(self) -> "LinkOffender":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            with (
                contextlib.suppress(OSError, ValueError),
                socket.create_connection(("localhost", self._port), timeout=10) as plug,
            ):
                self._talk(plug)

    def _talk(self, plug: socket.socket) -> None:
        identity = device.identity_of(self._answers.enrolment, self._bundle)
        end, wire = (
            DeviceEnd(identity, self._desk, 1 << 26),
            Wire(tls.device_context(self._bundle), "localhost", self._port),
        )
        wire.start()
        while not (self._stop.is_set() or wire.closed):
            while wire.open and (message := end.next_message()) is not None:
                wire.send(message)
            plug.sendall(wire.outgoing())
            if not select.select([plug], [], [], 0.05)[0]:
                continue
            if not (data := plug.recv(65_536)):
                return
            for message in wire.receive(data):
                for event in end.receive(message):
                    if isinstance(event, TaskWhole):
                        self._do(event, end, wire)

    def _do(self, event: TaskWhole, end: DeviceEnd, wire: Wire) -> None:
        end.stored(event.id, len(event.frame))
        task = decode_task(event.frame)
        if isinstance(task, Train) and task.learning_rate > 0 and self.attacks < self._most:
            self.attacks += 1
            for message in self._messages(event.id):
                wire.send(message)
            return
        try:
            end.finish(event.id, self._answers(event.frame))
        except DataError as error:
            end.refuse(event.id, Refused.DATA, 0, str(error))

    def _messages(self, task: bytes) -> list[bytes]:
        content = bytes(4 * CHUNK_BYTES)
        told = announce(task, content)
        first = encode(AnswerPart(told, 0, content[:CHUNK_BYTES]))
        if self._kind == "withheld-chunk":
            return [first, encode(More(task[:4], CHUNK_BYTES, content[:CHUNK_BYTES]))]
        if self._kind == "repeated-chunk":
            return [first] * 500
        if self._kind == "oversized-frame":
            return [first + bytes(FRAME_BYTES)]
        if self._kind == "no-frame":
            return [b"\xffgarbage"]
        return [encode(AnswerPart(replace(told, size=1 << 40), 0, content[:CHUNK_BYTES]))]
