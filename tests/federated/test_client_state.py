from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from federated.build import MemoryStore, same_weights
from fedge.errors import PayloadError, UpdateError
from fedge.federated.client_state import ClientState, Pending
from fedge.federated.coding import build_codec
from fedge.federated.prepare import Prepared


@pytest.fixture
def held(small_prepared: Prepared) -> ClientState:
    """A client with everything: a residual, an update on its way, a release."""
    p, random = small_prepared, np.random.default_rng(4)
    codec = build_codec(p.plan.uplink)
    before = codec.init(p.support.shapes())
    change = {n: random.normal(size=s).astype(np.float32) for n, s in p.support.shapes().items()}
    residual, _ = codec.encode(before, change)
    after, payload = codec.encode(residual, change)
    memory, later = (
        {f"drift/{n}": random.normal(size=w.shape).astype(np.float32) for n, w in p.weights.items()}
        for _ in range(2)
    )
    pending = Pending(7, b"digest of 16 by.", payload, after, later)
    release = b"home" * 100
    return ClientState(p.plan, p.support, p.weights, 6, b"8 bytes!", residual, memory, pending, release)


def _through(state: ClientState) -> ClientState:
    store = MemoryStore()
    state.save(store)
    back = ClientState.load(store)
    again = MemoryStore()
    back.save(again)
    assert again.content == store.content
    return back


def test_a_client_comes_back_bit_for_bit(held: ClientState) -> None:
    back = _through(held)
    assert back.plan.to_dict() == held.plan.to_dict()
    assert same_weights(back.weights, held.weights)
    assert same_weights(back.support.alive, held.support.alive)
    assert same_weights(back.residual, held.residual)
    assert (back.version, back.lineage, back.models) == (6, b"8 bytes!", held.models)
    assert back.pending is not None
    assert held.pending is not None
    assert same_weights(back.pending.residual, held.pending.residual)
    assert same_weights(back.memory, held.memory)
    assert same_weights(back.pending.memory, held.pending.memory)
    bare: dict[str, Any] = {"residual": {}, "memory": {}}
    assert replace(back.pending, **bare) == replace(held.pending, **bare)


def test_a_client_without_update_or_release_comes_back_too(held: ClientState) -> None:
    back = _through(replace(held, pending=None, models=b""))
    assert (back.pending, back.models) == (None, b"")


def test_a_client_without_state_must_be_welcomed_first() -> None:
    with pytest.raises(UpdateError, match="welcomed first"):
        ClientState.load(MemoryStore())


def test_a_truncated_state_is_refused(held: ClientState) -> None:
    store = MemoryStore()
    held.save(store)
    content = store.content or b""
    for end in range(0, len(content), 97):
        with pytest.raises(PayloadError):
            ClientState.load(MemoryStore(content[:end]))


def test_a_damaged_state_raises_nothing_but_payload_errors(held: ClientState) -> None:
    store = MemoryStore()
    held.save(store)
    content, refused = store.content or b"", 0
    header = 8 + int.from_bytes(content[4:8], "little")
    for at in range(0, header, 3):
        damaged = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        try:
            ClientState.load(MemoryStore(damaged))
        except PayloadError:
            refused += 1
    assert refused > 100
