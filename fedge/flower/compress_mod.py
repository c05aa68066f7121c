"""The client's half of compression: a Flower mod. NumPy is all that it needs.

    unpack the message -> settle the last update's fate -> walk to the server's version of the weights
    -> let the app train on them -> code what it changed -> remember -> answer

What a node remembers (the weights that it holds, the residual of error feedback) is one bytes value in
``context.state``, so a fresh process for each message finds it again. The residual is kept as it was before
*and* after the last update, until the server says whether that update counted.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from fedge.errors import FedgeError, PayloadError, UpdateError
from fedge.flower.compress_frames import (
    NO_TICKET,
    Base,
    Change,
    Down,
    Up,
    as_record,
    decode_down,
    encode_up,
    find_frame,
    replaced,
)
from fedge.flower.compress_scheme import Coded, Named, Scheme, encode, inflate, parse_scheme
from fedge.flower.compress_versions import apply_step, read_base
from fedge.flower.messages import error_reply
from fedge.packing import pack, unpack
from fedge.update import weights_hash

RECORD, FIELD = "fedge", "state"
"""Where in ``context.state`` the bytes lie; the local engine keeps this record across restarts."""

_ANSWER = "fedge"
"""Record of an answer that carries no arrays."""

_MOST_STATE = 1 << 32

State = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Memory:
    """What a node keeps between two messages.

    Attributes:
        scheme: as the server sent it.
        version: version of the weights held.
        held: the coded arrays of that version.
        residual: state of the uplink codec, as of the last update that counted.
        ticket: of the last update, until its fate is known; empty if there is none.
        after: state of the uplink codec after that update.
    """

    scheme: bytes
    version: int
    held: Coded
    residual: State
    ticket: bytes
    after: State


def compression_mod(max_values: int = 1 << 28) -> Mod:
    """A mod that speaks to ``fedge.flower.Compressed``.

    Messages of other strategies pass through it as they are. Put it first in the list of mods, so that all
    others see plain arrays. How the ways are coded is the server's to say.

    Args:
        max_values: most values that a model may have; a server that sends a larger one is refused.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        try:
            found = find_frame(message.content) if message.has_content() else None
            if found is None:
                return call_next(message, context)
            return _round(message, context, call_next, found[0], decode_down(found[1]), max_values)
        except FedgeError as error:
            return error_reply(error, message)

    return mod


def _round(
    message: Message, context: Context, call_next: ClientAppCallable, key: str, down: Down, max_values: int
) -> Message:
    memory, scheme = _follow(down, _recall(context), max_values)
    exact = inflate(down.exact, scheme.exact_bytes)
    given = scheme.join(memory.held, exact)
    _remember(context, memory)
    message.content = replaced(message.content, key, ArrayRecord({n: Array(a) for n, a in given.items()}))
    reply = call_next(message, context)
    if not reply.has_content():
        return reply
    records = list(reply.content.array_records.items())
    if message.metadata.message_type.partition(".")[0] != "train" or not records:
        reply.content = replaced(reply.content, _ANSWER, as_record(encode_up(Up(down.ticket, None))))
        return reply
    if len(records) > 1:
        raise PayloadError(f"the app answered with {len(records)} ArrayRecords; one can be compressed")
    name, record = records[0]
    memory, change = _code(memory, scheme, given, {n: a.numpy() for n, a in record.items()})
    _remember(context, replace(memory, ticket=down.ticket))
    reply.content = replaced(reply.content, name, as_record(encode_up(Up(down.ticket, change))))
    return reply


def _follow(down: Down, memory: Memory | None, max_values: int) -> tuple[Memory, Scheme]:
    """What the node holds after the message, its last update settled.

    Raises:
        UpdateError: the way starts from weights that this node does not hold, or leads elsewhere.
        PayloadError: something on the way is not what it claims to be.
    """
    start = down.version - len(down.steps)
    if down.base is not None:
        memory = _from_base(down.base, start, memory if down.counted != NO_TICKET else None, max_values)
    if memory is None:
        raise UpdateError("this node holds no weights yet: it needs all of them")
    scheme, held, at = parse_scheme(memory.scheme, max_values), memory.held, memory.version
    if not start <= at <= down.version:
        raise UpdateError(f"this node holds version {at}; the steps lead from {start} to {down.version}")
    for step in down.steps[at - start :]:
        held = apply_step(held, step, scheme)
    if weights_hash(held) != down.hash:
        raise UpdateError(f"the steps do not lead to version {down.version}")
    counted = bool(memory.ticket) and memory.ticket == down.counted
    residual = memory.after if counted else memory.residual
    return Memory(memory.scheme, down.version, held, residual, b"", {}), scheme


def _from_base(base: Base, version: int, before: Memory | None, max_values: int) -> Memory:
    """The base instead of the weights held; the residual stays if the server knows of updates from here."""
    scheme = parse_scheme(base.scheme, max_values)
    held = read_base(base, scheme)
    if before is not None and before.scheme == base.scheme:
        return replace(before, version=version, held=held)
    return Memory(base.scheme, version, held, scheme.uplink.build().init(scheme.shapes), b"", {})


def _code(memory: Memory, scheme: Scheme, given: Named, trained: Named) -> tuple[Memory, Change]:
    """The change from ``given`` to ``trained`` as bytes, and the codec's state after it."""
    before, _ = scheme.split(given)
    after, exact = scheme.split(trained)
    with np.errstate(over="ignore"):
        change = {name: after[name] - before[name] for name in after}
    state, payload = encode(scheme.uplink.build(), memory.residual, change)
    return replace(memory, after=state), Change(payload, zlib.compress(exact, 9))


def _remember(context: Context, memory: Memory) -> None:
    meta = {"version": memory.version, "ticket": memory.ticket.hex()}
    arrays: dict[str, NDArray[Any]] = {"scheme": np.frombuffer(memory.scheme, np.uint8)}
    for prefix, group in (("held", memory.held), ("residual", memory.residual), ("after", memory.after)):
        arrays |= {f"{prefix}/{name}": np.asarray(a) for name, a in group.items()}
    context.state[RECORD] = ConfigRecord({FIELD: pack(meta, arrays)})


def _recall(context: Context) -> Memory | None:
    """What ``_remember`` kept; ``None`` if there is nothing that can be read."""
    record = context.state.get(RECORD)
    content = record.get(FIELD) if isinstance(record, ConfigRecord) else None
    if not isinstance(content, bytes):
        return None
    try:
        meta, arrays = unpack(content, _MOST_STATE)
        groups = ({n[len(p) :]: a for n, a in arrays.items() if n.startswith(p)} for p in _PREFIXES)
        held, residual, after = groups
        scheme, ticket = arrays["scheme"].tobytes(), bytes.fromhex(meta["ticket"])
        return Memory(scheme, int(meta["version"]), held, residual, ticket, after)
    except (PayloadError, KeyError, ValueError, TypeError):
        return None


_PREFIXES = ("held/", "residual/", "after/")
