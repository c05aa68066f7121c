"""Releases: made from the global weights, signed, offered, judged by each device, kept or refused."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated.build import MemoryStore, federation_of, fleet_of
from fedge.edge.runtime import Runtime
from fedge.errors import ReleaseError, SignatureError
from fedge.federated.client import Device, client_round
from fedge.federated.client_state import ClientState
from fedge.federated.frames import Offer, Verdict, Welcome, decode_reply, encode_task
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.publish import Published, Publisher, publish_release
from fedge.federated.server import run_rounds
from fedge.federated.training import answers
from fedge.release.bundle import parse_bundle
from fedge.release.rules import PURPOSE
from fedge.release.store import list_releases, load
from fedge.signing import SigningKey, verify
from fedge.simulation.world import World


@pytest.fixture
def publisher(small_world: World, tmp_path: Path) -> Publisher:
    data = small_world.dataset
    samples = small_world.server_data().labelled.x
    return Publisher(tmp_path, small_world.release_key(), data.classes, data.channels, samples)


def _publish(
    world: World, prepared: Prepared, publisher: Publisher, version: int, weights: Any = None
) -> Published:
    weights = prepared.weights if weights is None else weights
    return publish_release(
        world.config, publisher, prepared, weights, version, 2, world.task.metric, {"clients": 0.5}
    )


@pytest.fixture
def device(small_world: World, small_prepared: Prepared) -> Device:
    device = small_world.device(0, MemoryStore())
    client_round(encode_task(Welcome(b"c", small_prepared.plan.to_dict(), small_prepared.snapshot)), device)
    return device


def _offer(bundle: bytes, device: Device) -> Verdict:
    verdict = decode_reply(client_round(encode_task(Offer(bundle)), device))
    assert isinstance(verdict, Verdict)
    return verdict


def _damaged(prepared: Prepared) -> dict[str, Any]:
    """A student whose classes are swapped: it opens and answers, and is wrong."""
    weights = {n: w.copy() for n, w in prepared.weights.items()}
    for name in ("head.weight", "head.bias"):
        weights[name] = np.roll(weights[name], 1, axis=0)
    return weights


def test_a_release_is_on_disk_and_verifies_with_the_public_key(
    small_world: World, small_prepared: Prepared, publisher: Publisher, tmp_path: Path
) -> None:
    published = _publish(small_world, small_prepared, publisher, 1)
    assert list_releases(tmp_path) == [1]
    bundle = load(tmp_path, 1)
    assert bundle.to_bytes() == published.bundle
    verify(publisher.key.public, bundle.signature, PURPOSE, bundle.manifest)
    with pytest.raises(SignatureError):
        verify(publisher.key.public, bundle.signature, PURPOSE, bundle.manifest + b" ")
    runtime = Runtime(bundle.model, small_prepared.plan.preprocess)
    torch_says = answers(small_prepared.plan, small_prepared.weights, small_prepared.x, quantized=True)
    onnx_says = runtime.predict(small_world.server_data().labelled.x)
    assert (torch_says.argmax(1) == onnx_says.argmax(1)).mean() >= 0.99


def test_a_run_publishes_when_due_and_records_every_decision(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    fleet, participants = fleet_of(small_world), sorted(small_world.roles.participants)
    with Journal(tmp_path / "journal") as journal:
        federation, watcher = federation_of(small_world, small_prepared, fleet, journal, tmp_path)
        state = run_rounds(federation)
        releases = [r["release"] for r in journal.rounds()]
    assert [bool(r) for r in releases] == [False, True, False, True]
    assert state.released == 2
    assert [(e["version"], e["round"]) for e in watcher.of("release")] == [(1, 2), (2, 4)]
    for version, release in zip((1, 2), (r for r in releases if r), strict=True):
        assert release["version"] == version
        assert (tmp_path / release["path"] / "model.onnx").stat().st_size == release["model_bytes"]
        assert release["bytes"] == len(load(tmp_path, version).to_bytes())
        assert [d["client"] for d in release["decisions"]] == participants
    assert {d["reason"] for d in releases[1]["decisions"]} == {"no_current"}
    for client in participants:
        decision = next(d for d in releases[3]["decisions"] if d["client"] == client)
        held = ClientState.load(fleet.store(client))
        assert held.release_version == 2
        assert held.release == load(tmp_path, 2 if decision["taken"] else 1).to_bytes()


def test_a_worse_release_is_refused_and_the_old_one_stays(
    small_world: World, small_prepared: Prepared, publisher: Publisher, device: Device
) -> None:
    good = _publish(small_world, small_prepared, publisher, 1)
    worse = _publish(small_world, small_prepared, publisher, 2, _damaged(small_prepared))
    first, second = _offer(good.bundle, device), _offer(worse.bundle, device)
    assert (first.taken, first.code, first.version) == (True, "no_current", 1)
    assert (second.taken, second.code, second.version) == (False, "worse", 2)
    assert second.current == first.candidate
    assert second.candidate < second.current - device.release_margin
    state = ClientState.load(device.store)
    assert (state.release, state.release_version) == (good.bundle, 2)
    third = _offer(_publish(small_world, small_prepared, publisher, 3).bundle, device)
    assert (third.taken, third.code) == (True, "not_worse")


def test_a_release_that_is_forged_old_or_damaged_is_refused_and_the_old_one_stays(
    small_world: World, small_prepared: Prepared, publisher: Publisher, device: Device, tmp_path: Path
) -> None:
    older = _publish(small_world, small_prepared, publisher, 1)
    current = _publish(small_world, small_prepared, publisher, 2)
    assert _offer(current.bundle, device).taken
    stranger = replace(publisher, key=SigningKey.generate(), folder=tmp_path / "stranger")
    forged = _publish(small_world, small_prepared, stranger, 3).bundle
    sound = _publish(small_world, small_prepared, publisher, 3).bundle
    bundle = parse_bundle(sound)
    model = bytearray(bundle.model)
    model[len(model) // 2] ^= 1
    refused = {
        "SignatureError": [forged],
        "ReleaseError": [older.bundle, replace(bundle, model=bytes(model)).to_bytes()],
        "PayloadError": [sound[:-1], b"", b"FDGR" + b"\xff" * 40],
    }
    before = ClientState.load(device.store).release
    for code, bundles in refused.items():
        for offered in bundles:
            verdict = _offer(offered, device)
            assert (verdict.taken, verdict.code) == (False, code)
    assert ClientState.load(device.store).release == before == current.bundle
    expired = replace(device, now=lambda: 2**40)
    assert (_offer(sound, expired).code, _offer(sound, device).taken) == ("ReleaseError", True)


def test_the_same_offer_again_gets_the_same_verdict(
    small_world: World, small_prepared: Prepared, publisher: Publisher, device: Device
) -> None:
    """The server died before it wrote the verdicts down, and asks again."""
    bundle = _publish(small_world, small_prepared, publisher, 1).bundle
    first = client_round(encode_task(Offer(bundle)), device)
    again = client_round(encode_task(Offer(bundle)), device)
    assert again == first


def test_a_release_made_again_after_a_crash_is_the_same_release(
    small_world: World, small_prepared: Prepared, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server died between publishing and its journal; an hour later it runs the round again."""
    first = _publish(small_world, small_prepared, publisher, 1)
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert _publish(small_world, small_prepared, publisher, 1) == first
    with pytest.raises(ReleaseError, match="never overwritten"):
        _publish(small_world, small_prepared, publisher, 1, _damaged(small_prepared))
