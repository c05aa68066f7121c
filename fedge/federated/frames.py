"""What server and client say to each other: tasks one way, replies the other, as compact binary frames.

Layout in ``docs/wire-format.md``. Integers are LEB128 varints, floats little-endian, byte strings have their
length in front. Every parser checks lengths before it slices and refuses what is left over, so a frame
that parses is exactly one frame.
"""

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from fedge.errors import PayloadError

PLAN_LIMIT = 1 << 18
"""Largest plan, unpacked, in bytes."""

HASH_BYTES = 8
_VARINT_BYTES = 9


class Kind(IntEnum):
    """First byte of a frame."""

    WELCOME = 1
    TRAIN = 2
    RELEASE = 3


class StepKind(IntEnum):
    """How a step leads from one version of the global weights to the next."""

    UPDATE = 1  # a payload of the downlink codec, added
    CHANGE = 2  # a quantized change (re-distillation), added
    SNAPSHOT = 3  # quantized weights, replacing


@dataclass(frozen=True)
class Step:
    """One step between versions of the global weights."""

    kind: StepKind
    payload: bytes


@dataclass(frozen=True)
class Welcome:
    """First contact: the plan and the student, once.

    Attributes:
        challenge: random bytes that the hello must sign.
        plan: what every round has in common (see ``plan.py``), JSON values.
        snapshot: the quantized student.
    """

    challenge: bytes
    plan: Mapping[str, Any]
    snapshot: bytes


@dataclass(frozen=True, slots=True)
class Train:
    """One round's work for one client.

    Attributes:
        round: number of the round, from 1.
        counted: the last round in which an update of this client was counted; 0 for none.
        version: version of the global weights after all of ``steps``.
        lineage: names the weights that the client then holds (``lineage.py``).
        steps: one group for each of the versions up to ``version``; a client skips those it has.
        learning_rate: of local SGD; 0 means: take the weights, do not train.
        candidate: a step away from those weights that is to be scored, not taken.
    """

    round: int
    counted: int
    version: int
    lineage: bytes
    steps: tuple[tuple[Step, ...], ...]
    learning_rate: float
    candidate: Step | None = None


@dataclass(frozen=True)
class Offer:
    """A release on offer: the package (``fedge.release.package``)."""

    package: bytes


@dataclass(frozen=True)
class Hello:
    """Answer to a welcome, proving who the client is."""

    public: bytes
    signature: bytes


@dataclass(frozen=True)
class Scores:
    """A judge's numbers on its own held-back windows, for the weights it holds and for the candidate.

    A score is NaN where those windows do not define it.
    """

    windows: int
    loss_held: float
    score_held: float
    loss_candidate: float
    score_candidate: float


@dataclass(frozen=True)
class Trained:
    """Answer to ``Train``.

    Attributes:
        round: the round it answers.
        weight: windows trained on; 0 where nothing was trained.
        loss: mean training loss of the last local epoch.
        score: on the client's own later windows, of the weights it received; NaN where they define none.
        judged: a judge's numbers, where a candidate came with the task.
        payload: the update, coded by the uplink codec; empty where nothing was trained.
        signature: over federation, client, lineage and everything above.
    """

    round: int
    weight: int
    loss: float
    score: float
    judged: Scores | None
    payload: bytes
    signature: bytes

    def signed_part(self) -> bytes:
        """What the signature covers, beside federation, client and lineage."""
        return _trained_body(self)


@dataclass(frozen=True)
class Verdict:
    """Answer to ``Offer``: the gate's decision, in numbers. Scores are NaN where nothing was measured."""

    version: int
    taken: bool
    code: str
    current: float
    candidate: float
    windows: int


def encode_task(task: Welcome | Train | Offer) -> bytes:
    """A task as a frame."""
    if isinstance(task, Welcome):
        plan = zlib.compress(json.dumps(task.plan, separators=(",", ":")).encode(), 9)
        return bytes([Kind.WELCOME]) + _blob(task.challenge) + _blob(plan) + _blob(task.snapshot)
    if isinstance(task, Offer):
        return bytes([Kind.RELEASE]) + _blob(task.package)
    head = _varint(task.round) + _varint(task.counted) + _varint(task.version) + task.lineage
    steps = b"".join(_varint(len(group)) + b"".join(_step(s) for s in group) for group in task.steps)
    tail = struct.pack("<f", task.learning_rate) + (_step(task.candidate) if task.candidate else b"\0")
    return bytes([Kind.TRAIN]) + head + _varint(len(task.steps)) + steps + tail


def decode_task(frame: bytes) -> Welcome | Train | Offer:
    """The task in a frame.

    Raises:
        PayloadError: not exactly one task.
    """
    reader = _Reader(frame)
    kind = reader.byte()
    task: Welcome | Train | Offer
    if kind == Kind.WELCOME:
        task = Welcome(reader.blob(64), _plan(reader.blob(PLAN_LIMIT)), reader.blob())
    elif kind == Kind.TRAIN:
        task = _train(reader)
    elif kind == Kind.RELEASE:
        task = Offer(reader.blob())
    else:
        raise PayloadError(f"unknown kind of task {kind}; this client may be older than its server")
    reader.end()
    return task


def encode_reply(reply: Hello | Trained | Verdict) -> bytes:
    """A reply as a frame."""
    if isinstance(reply, Hello):
        return bytes([Kind.WELCOME]) + _blob(reply.public) + _blob(reply.signature)
    if isinstance(reply, Verdict):
        numbers = struct.pack("<ff", reply.current, reply.candidate)
        head = _varint(reply.version) + bytes([reply.taken]) + _blob(reply.code.encode())
        return bytes([Kind.RELEASE]) + head + numbers + _varint(reply.windows)
    return bytes([Kind.TRAIN]) + _trained_body(reply) + _blob(reply.signature)


def decode_reply(frame: bytes) -> Hello | Trained | Verdict:
    """The reply in a frame.

    Raises:
        PayloadError: not exactly one reply, or a number in it is not finite where it must be.
    """
    reader = _Reader(frame)
    kind = reader.byte()
    reply: Hello | Trained | Verdict
    if kind == Kind.WELCOME:
        reply = Hello(reader.blob(32), reader.blob(64))
    elif kind == Kind.TRAIN:
        reply = _trained(reader)
    elif kind == Kind.RELEASE:
        version, taken, code = reader.varint(), reader.byte(), reader.blob(64)
        current, candidate, windows = reader.score(), reader.score(), reader.varint()
        reply = Verdict(version, taken == 1, _text(code), current, candidate, windows)
    else:
        raise PayloadError(f"unknown kind of reply {kind}")
    reader.end()
    return reply


def _trained_body(reply: Trained) -> bytes:
    head = _varint(reply.round) + _varint(reply.weight) + struct.pack("<ff", reply.loss, reply.score)
    judged = b"\0"
    if (j := reply.judged) is not None:
        numbers = (j.loss_held, j.score_held, j.loss_candidate, j.score_candidate)
        judged = b"\1" + _varint(j.windows) + struct.pack("<ffff", *numbers)
    return head + judged + _blob(reply.payload)


def _trained(reader: "_Reader") -> Trained:
    number, weight, loss, score = reader.varint(), reader.varint(), reader.finite(), reader.score()
    flag = reader.byte()
    if flag > 1:
        raise PayloadError(f"a reply's flag is {flag}, not 0 or 1")
    judged = None
    if flag:
        windows = reader.varint()
        judged = Scores(windows, reader.finite(), reader.score(), reader.finite(), reader.score())
    return Trained(number, weight, loss, score, judged, reader.blob(), reader.blob(64))


def _train(reader: "_Reader") -> Train:
    number, counted, version = reader.varint(), reader.varint(), reader.varint()
    name, count = reader.take(HASH_BYTES), reader.varint()
    if count > version:
        raise PayloadError("a task has steps to more versions than there are")
    # both counts are bounded in effect: every group and every step takes bytes of the frame
    steps = [tuple(_read_step(reader, reader.byte()) for _ in range(reader.varint())) for _ in range(count)]
    rate, kind = reader.finite(), reader.byte()
    candidate = _read_step(reader, kind) if kind else None
    return Train(number, counted, version, name, tuple(steps), rate, candidate)


def _step(step: Step) -> bytes:
    return bytes([step.kind]) + _blob(step.payload)


def _read_step(reader: "_Reader", kind: int) -> Step:
    if kind not in {k.value for k in StepKind}:
        raise PayloadError(f"unknown kind of step {kind}; this client may be older than its server")
    return Step(StepKind(kind), reader.blob())


def _plan(packed: bytes) -> dict[str, Any]:
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(packed, PLAN_LIMIT)
        if inflate.unconsumed_tail or inflate.unused_data or not inflate.eof:
            raise PayloadError(f"a plan is truncated, or larger than {PLAN_LIMIT} bytes")
        plan = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise PayloadError(f"not a plan: {error}") from None
    if not isinstance(plan, dict):
        raise PayloadError("not a plan: not a table")
    return plan


def _text(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise PayloadError("a reason code is not ASCII") from None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _blob(content: bytes) -> bytes:
    return _varint(len(content)) + content


class _Reader:
    """Reads a frame from front to back; every method raises ``PayloadError`` at its end."""

    def __init__(self, frame: bytes) -> None:
        self._frame, self._at = frame, 0

    def take(self, count: int) -> bytes:
        if count > len(self._frame) - self._at:
            raise PayloadError("a frame is truncated")
        self._at += count
        return self._frame[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 7 * _VARINT_BYTES, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise PayloadError("a number in a frame is too long")

    def blob(self, most: int | None = None) -> bytes:
        size = self.varint()
        if most is not None and size > most:
            raise PayloadError(f"a part of a frame has {size} bytes, more than {most}")
        return self.take(size)

    def float32(self) -> float:
        return float(struct.unpack("<f", self.take(4))[0])

    def finite(self) -> float:
        value = self.float32()
        if not math.isfinite(value):
            raise PayloadError("a number in a frame is not finite")
        return value

    def score(self) -> float:
        value = self.float32()
        if math.isinf(value):
            raise PayloadError("a score in a frame is infinite")
        return value

    def end(self) -> None:
        if self._at != len(self._frame):
            raise PayloadError(f"{len(self._frame) - self._at} bytes are left over behind a frame")
