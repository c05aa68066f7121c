"""Releases: made from the global weights, published, offered, judged by each device, kept or refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated.build import MemoryStore, federation_of, fleet_of, repository_of
from fedge.config import Release, Rounds
from fedge.edge.disk import MemoryDisk
from fedge.edge.home import Home
from fedge.edge.runtime import Runtime
from fedge.federated.client import Device, client_round
from fedge.federated.client_state import ClientState
from fedge.federated.consider import BROKEN
from fedge.federated.frames import Offer, Verdict, Welcome, decode_reply, encode_task
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.publish import Published, Publisher, publish_release
from fedge.federated.server import _fresh_state, run_round, run_rounds
from fedge.federated.training import answers
from fedge.release.manifest import FLOAT32, INT8, ModelFile, parse
from fedge.release.offline import promote
from fedge.simulation.world import BEGINNING, World


@pytest.fixture
def publisher(small_world: World, tmp_path: Path) -> Publisher:
    data = small_world.dataset
    samples = small_world.server_data().labelled.x
    return Publisher(repository_of(small_world, tmp_path), data.classes, data.channels, samples)


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


def _offer(package: bytes, device: Device) -> Verdict:
    verdict = decode_reply(client_round(encode_task(Offer(package)), device))
    assert isinstance(verdict, Verdict)
    return verdict


def _home(device: Device) -> Home:
    return Home(MemoryDisk.from_bytes(ClientState.load(device.store).models))


def _runs(device: Device) -> int:
    installed = _home(device).current()
    return 0 if installed is None else installed.version


def _damaged(prepared: Prepared) -> dict[str, Any]:
    """A student whose classes are swapped: it opens and answers, and is wrong."""
    weights = {n: w.copy() for n, w in prepared.weights.items()}
    for name in ("head.weight", "head.bias"):
        weights[name] = np.roll(weights[name], 1, axis=0)
    return weights


def test_a_release_on_disk_answers_as_the_student_does(
    small_world: World, small_prepared: Prepared, publisher: Publisher
) -> None:
    published = _publish(small_world, small_prepared, publisher, 1)
    runtime = Runtime(published.path / "model.onnx")
    torch_says = answers(small_prepared.plan, small_prepared.weights, small_prepared.x, quantized=True)
    onnx_says = runtime.predict(small_world.server_data().labelled.x)
    assert (torch_says.argmax(1) == onnx_says.argmax(1)).mean() >= 0.99


def test_a_release_has_the_precision_that_the_settings_say(
    small_world: World, small_prepared: Prepared, publisher: Publisher, device: Device
) -> None:
    exact = replace(small_world, config=replace(small_world.config, release=Release(precision="float32")))
    for version, world, kind in ((1, small_world, INT8), (2, exact, FLOAT32)):
        published = _publish(world, small_prepared, publisher, version)
        stored = publisher.repository.stored(version)
        assert stored is not None
        manifest, model = parse(stored[0]), stored[1]
        assert manifest.model == ModelFile.of(model, kind)
        assert published.sha256 == manifest.model.sha256
        assert (b"QuantizeLinear" in model) == (kind == INT8)
        assert _offer(publisher.repository.package(None), device).version == version


def test_journal_that_is_behind_the_repository_does_not_stop_the_releases(
    small_world: World, small_prepared: Prepared, publisher: Publisher
) -> None:
    """As after a restore of the journal alone, or with a new one beside the releases of the last."""
    other = {n: 1.5 * w for n, w in small_prepared.weights.items()}
    for version in (1, 2):
        _publish(small_world, small_prepared, publisher, version)
    assert _publish(small_world, small_prepared, publisher, 2).version == 2  # the very same again
    published = _publish(small_world, small_prepared, publisher, 1, other)
    assert published.version == 3
    stored = publisher.repository.stored(3)
    assert stored is not None
    assert parse(stored[0]).parent == 2
    assert _publish(small_world, small_prepared, publisher, 4, other).version == 4


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
        assert [d["client"] for d in release["decisions"]] == participants
    assert {d["reason"] for d in releases[1]["decisions"]} == {"no_current"}
    for client in participants:
        decision = next(d for d in releases[3]["decisions"] if d["client"] == client)
        assert (
            _runs(fleet.devices[client]) == state.clients[client].release == (2 if decision["taken"] else 1)
        )


def test_the_second_release_costs_a_fraction_of_the_first(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    """Clients get what leads from the release that they run to the new one."""
    with Journal(tmp_path / "journal") as journal:
        federation, _ = federation_of(small_world, small_prepared, fleet_of(small_world), journal, tmp_path)
        run_rounds(federation)
        first, second = (r["release"] for r in journal.rounds() if r["release"])
    assert second["bytes"] < first["bytes"] / 2


def test_a_worse_release_is_refused_and_the_old_one_stays(
    small_world: World, small_prepared: Prepared, publisher: Publisher, device: Device
) -> None:
    repository = publisher.repository
    _publish(small_world, small_prepared, publisher, 1)
    first = _offer(repository.package(None), device)
    _publish(small_world, small_prepared, publisher, 2, _damaged(small_prepared))
    second = _offer(repository.package(1), device)
    assert (first.taken, first.code, first.version) == (True, "no_current", 1)
    assert (second.taken, second.code, second.version) == (False, "worse", 2)
    assert second.current == first.candidate
    assert second.candidate < second.current - device.releases.margin
    assert _runs(device) == 1
    _publish(small_world, small_prepared, publisher, 3)
    third = _offer(repository.package(1), device)
    assert (third.taken, third.code) == (True, "not_worse")


def test_a_release_that_is_forged_old_or_damaged_is_refused_and_the_old_one_stays(
    small_world: World, small_prepared: Prepared, publisher: Publisher, device: Device, tmp_path: Path
) -> None:
    repository = publisher.repository
    _publish(small_world, small_prepared, publisher, 1)
    older = repository.package(None)
    _publish(small_world, small_prepared, publisher, 2)
    assert _offer(repository.package(None), device).taken
    stranger = replace(small_world, config=replace(small_world.config, seed=99))
    theirs = replace(publisher, repository=repository_of(stranger, tmp_path / "stranger"))
    _publish(small_world, small_prepared, theirs, 3)
    _publish(small_world, small_prepared, publisher, 3)
    sound = repository.package(2)
    refused = {
        "not_signed": [theirs.repository.package(None)],
        "older": [older],
        BROKEN: [sound[:-1], b"", b"FDGP" + b"\xff" * 40],
    }
    for code, packages in refused.items():
        for offered in packages:
            verdict = _offer(offered, device)
            assert (verdict.taken, verdict.code) == (False, code)
    assert _runs(device) == 2
    late = replace(device, releases=replace(device.releases, now=lambda: 2**33))
    assert (_offer(sound, late).code, _offer(sound, device).taken) == ("expired", False)  # the same offer
    _publish(small_world, small_prepared, publisher, 4)
    assert _offer(repository.package(2), device).taken


def test_a_device_that_lost_its_home_gets_all_of_the_next_release(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    """It cannot read what leads from a release that it does not hold any more, and says so."""
    fleet, lost = fleet_of(small_world), min(small_world.roles.participants)
    with Journal(tmp_path / "journal") as journal:
        federation, _ = federation_of(small_world, small_prepared, fleet, journal, tmp_path)
        federation = replace(
            federation, config=replace(federation.config, release=Release(every=1), rounds=Rounds(rounds=3))
        )
        state = None
        for _ in range(3):
            state = run_round(state or _fresh_state(federation), federation)
            if state.round == 1:
                device = fleet.devices[lost]
                replace(ClientState.load(device.store), models=b"").save(device.store)
        decisions = [
            next(d for d in r["release"]["decisions"] if d["client"] == lost) for r in journal.rounds()
        ]
    assert [d["reason"] for d in decisions[:2]] == ["no_current", BROKEN]
    assert decisions[2]["taken"]


def test_device_that_takes_promoted_releases_only_is_sent_them_by_the_rounds(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    """The package that everybody gets leads to the newest release, which this device does not take."""
    fleet, careful = fleet_of(small_world), min(small_world.roles.participants)
    device = fleet.devices[careful]
    fleet.devices[careful] = replace(device, releases=replace(device.releases, promoted_only=True))
    with Journal(tmp_path / "journal") as journal:
        federation, _ = federation_of(small_world, small_prepared, fleet, journal, tmp_path)
        federation = replace(
            federation, config=replace(federation.config, release=Release(every=1), rounds=Rounds(rounds=3))
        )
        state, runs = _fresh_state(federation), []
        for _ in range(3):
            state = run_round(state, federation)
            runs.append((_runs(fleet.devices[careful]), state.clients[careful].release))
            if state.round == 1:
                promote(tmp_path / "releases", small_world.release_keys().targets, 1, BEGINNING)
        said = [
            next(d for d in r["release"]["decisions"] if d["client"] == careful) for r in journal.rounds()
        ]
    assert runs == [(0, 0), (1, 1), (1, 1)]
    assert [d["reason"] for d in said] == ["nothing", "no_current", "up_to_date"]


def test_the_same_offer_again_gets_the_same_verdict(
    small_world: World, small_prepared: Prepared, publisher: Publisher, device: Device
) -> None:
    """The server died before it wrote the verdicts down, and asks again."""
    _publish(small_world, small_prepared, publisher, 1)
    package = publisher.repository.package(None)
    first = client_round(encode_task(Offer(package)), device)
    again = client_round(encode_task(Offer(package)), device)
    assert again == first


def test_a_release_made_again_after_a_crash_is_the_same_release(
    small_world: World, small_prepared: Prepared, publisher: Publisher
) -> None:
    """The server died between publishing and its journal; an hour later it runs the round again."""
    first = _publish(small_world, small_prepared, publisher, 1)
    repository = publisher.repository
    later = replace(publisher, repository=replace(repository, clock=lambda: BEGINNING + 3600))
    assert _publish(small_world, small_prepared, later, 1) == first
    assert _publish(small_world, small_prepared, publisher, 1, _damaged(small_prepared)).version == 2
    assert publisher.repository.stored(1) == repository.stored(1)
