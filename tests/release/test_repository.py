"""The server's side of a repository: what counts, when, and what a publisher that stops on the way leaves."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from fedge.errors import ReleaseError, SetupError, SignatureError
from fedge.release import folder, offline
from fedge.release.chain import read_chain
from fedge.release.offline import create, renew
from fedge.release.online import read_state
from fedge.release.package import parse_package
from fedge.release.pointer import PROMOTED, Pointer
from fedge.release.repository import Repository
from fedge.release.trust import install, read_trust

from .simulator import DAY, Simulator, StockClient, model_of, seeded_keys


@pytest.fixture
def simulator(tmp_path: Path) -> Simulator:
    return Simulator(tmp_path / "releases")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that cut no power, and would flush a thousand times."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def found(simulator: Simulator, home: Path, place: Path | None = None) -> int | None:
    """The version that a new device finds, with its model."""
    device = StockClient(home, simulator.root)
    pointer = device.update(place or simulator.folder, simulator.now)
    assert pointer is None or device.model == model_of(pointer.version)
    return None if pointer is None else pointer.version


def content(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def test_published_release_lies_where_it_is_documented(simulator: Simulator) -> None:
    manifest, model = simulator.release(1)
    published = simulator.repository.publish(manifest, model)
    place = simulator.folder / "v0001"
    assert (published.version, published.path, published.model_bytes) == (1, place, len(model))
    assert {p.name for p in place.iterdir()} == {"manifest.json", "model.onnx", "card.md"}
    simulator.publish(2)
    assert {p.name for p in (simulator.folder / "v0002").iterdir()} >= {"from-0001.delta"}
    assert {p.name for p in simulator.folder.iterdir()} == {"metadata", "v0001", "v0002", "latest.json"}
    assert (simulator.folder / "latest.json").read_bytes() == Pointer(2, (1,)).to_bytes()
    assert simulator.repository.stored(1) == (manifest, model)
    assert simulator.repository.stored(3) is None


def test_everyone_may_read_what_is_published(simulator: Simulator) -> None:
    simulator.publish(1)
    simulator.promote(1)
    modes = {stat.S_IMODE(p.stat().st_mode) & 0o444 for p in simulator.folder.rglob("*") if p.is_file()}
    assert modes == {0o444}


def test_only_the_timestamp_and_the_copies_of_pointers_ever_change(simulator: Simulator) -> None:
    seen: dict[str, bytes] = {}
    for version in range(1, 4):
        simulator.publish(version)
        simulator.promote(version)
        simulator.wait(5)
        simulator.repository.refresh()
        now = content(simulator.folder)
        changed = {name for name in seen if now[name] != seen[name]}
        assert changed <= {"metadata/timestamp.json", "latest.json", "promoted.json"}
        seen = now


@pytest.mark.usefixtures("quick")
def test_deltas_lead_to_a_release_from_the_last_few(simulator: Simulator) -> None:
    for version in range(1, 7):
        simulator.publish(version)
    assert read_chain(simulator.folder).latest == Pointer(6, (3, 4, 5))


def test_same_release_again_changes_nothing(simulator: Simulator) -> None:
    release = simulator.release(1)
    first = simulator.repository.publish(*release)
    simulator.publish(2)
    before = content(simulator.folder)
    assert simulator.repository.publish(*release) == first
    assert content(simulator.folder) == before


@pytest.mark.parametrize("version", [1, 2])
def test_other_release_of_a_version_that_is_there_is_refused(simulator: Simulator, version: int) -> None:
    simulator.publish(1)
    simulator.publish(2)
    before = content(simulator.folder)
    with pytest.raises(ReleaseError, match="release 2 is there"):
        simulator.publish(version, model_of(9))
    assert content(simulator.folder) == before


def test_release_older_than_the_newest_is_refused(simulator: Simulator) -> None:
    simulator.publish(2)
    with pytest.raises(ReleaseError, match="too late"):
        simulator.publish(1)


def test_release_that_contradicts_itself_is_refused(simulator: Simulator) -> None:
    manifest, model = simulator.release(1)
    for wrong in ((manifest, model + b"x"), (manifest, model[:-1] + b"x"), (manifest + b" ", model)):
        with pytest.raises(ReleaseError):
            simulator.repository.publish(*wrong)
    assert folder.versions(simulator.folder) == []


def test_start_again_changes_nothing(simulator: Simulator) -> None:
    simulator.publish(1)
    before = content(simulator.folder)
    simulator.repository.start(simulator.first)
    assert content(simulator.folder) == before


def test_start_in_the_repository_of_another_federation_is_refused(simulator: Simulator) -> None:
    keys = seeded_keys(100)
    theirs = Repository(simulator.folder, keys.online, lambda: simulator.now)
    before = content(simulator.folder)
    with pytest.raises(ReleaseError, match="another federation"):
        theirs.start(create(simulator.now, 100, 100, keys))
    assert content(simulator.folder) == before


def test_start_with_keys_that_nobody_trusts_is_refused(simulator: Simulator) -> None:
    theirs = Repository(simulator.folder, seeded_keys(100).online, lambda: simulator.now)
    with pytest.raises(SetupError, match="not the key that the repository trusts for snapshot"):
        theirs.start(simulator.first)


@pytest.mark.parametrize("wrong", ["timestamp.json", "1.snapshot.json", "../1.root.json", "01.root.json"])
def test_start_takes_nothing_but_roots_and_targets(simulator: Simulator, wrong: str) -> None:
    with pytest.raises(ReleaseError, match="no name of a root"):
        simulator.repository.start({**simulator.first, wrong: b"{}"})


def test_start_takes_no_targets_that_the_root_does_not_trust(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path / "releases")
    theirs = create(simulator.now, 100, 100, seeded_keys(100))
    other = Repository(tmp_path / "other", simulator.keys.online, lambda: simulator.now)
    with pytest.raises(SignatureError, match=r"1\.targets\.json is not signed"):
        other.start({**simulator.first, "1.targets.json": theirs["1.targets.json"]})
    assert content(tmp_path / "other") == {}


def test_publishing_into_a_folder_that_was_never_started_is_refused(
    tmp_path: Path, simulator: Simulator
) -> None:
    other = Repository(tmp_path / "other", simulator.keys.online, lambda: simulator.now)
    with pytest.raises(ReleaseError, match=r"needs 1\.root\.json"):
        other.publish(*simulator.release(1))
    with pytest.raises(ReleaseError):
        other.package(None)


def test_nothing_is_signed_again_before_half_of_its_life_is_over(simulator: Simulator) -> None:
    simulator.publish(1)
    before = content(simulator.folder)
    simulator.wait(3.4)
    simulator.repository.refresh()
    assert content(simulator.folder) == before
    simulator.wait(0.2)
    simulator.repository.refresh()
    after = content(simulator.folder)
    assert set(after) - set(before) == {"metadata/3.rounds.json", "metadata/3.snapshot.json"}
    expires = read_chain(simulator.folder).expires
    assert {expires[r].timestamp() for r in ("rounds", "snapshot", "timestamp")} == {
        int(simulator.now + 7 * DAY)
    }


def test_refreshed_twice_a_life_it_never_expires(simulator: Simulator, tmp_path: Path) -> None:
    device = StockClient(tmp_path / "device", simulator.root)
    simulator.publish(1)
    for _ in range(10):
        simulator.wait(3.5)
        simulator.repository.refresh()
        simulator.wait(3.4)
        assert device.update(simulator.folder, simulator.now) == Pointer(1)


def test_promotion_counts_from_the_next_refresh_on(simulator: Simulator, tmp_path: Path) -> None:
    device = StockClient(tmp_path / "device", simulator.root)
    for version in (1, 2):
        simulator.publish(version)
    offline.promote(simulator.folder, simulator.keys.targets, 1, simulator.now)
    assert device.update(simulator.folder, simulator.now, PROMOTED) is None
    simulator.repository.refresh()
    assert device.update(simulator.folder, simulator.now, PROMOTED) == Pointer(1)
    assert device.update(simulator.folder, simulator.now) == Pointer(2, (1,))


def test_replaced_key_of_the_rounds_takes_its_list_with_it(simulator: Simulator) -> None:
    simulator.publish(1)
    simulator.promote(1)
    simulator.publish(2)
    simulator.replace_online_keys(50)
    chain = read_chain(simulator.folder)
    assert (chain.latest, chain.promoted) == (None, Pointer(1))
    simulator.publish(3)
    assert read_chain(simulator.folder).latest == Pointer(3, (1, 2))


def test_lost_timestamp_is_signed_anew_with_a_higher_number(simulator: Simulator, tmp_path: Path) -> None:
    device = StockClient(tmp_path / "device", simulator.root)
    simulator.publish(1)
    simulator.wait(4)
    simulator.repository.refresh()
    device.update(simulator.folder, simulator.now)
    (simulator.folder / "metadata" / "timestamp.json").unlink()
    simulator.repository.refresh()
    assert device.update(simulator.folder, simulator.now) == Pointer(1)


@pytest.mark.parametrize(
    "name", ["1.root.json", "1.targets.json", "2.rounds.json", "2.snapshot.json", "timestamp.json"]
)
def test_damaged_metadata_are_named_and_not_signed_again(simulator: Simulator, name: str) -> None:
    simulator.publish(1)
    path = simulator.folder / "metadata" / name
    whole = path.read_bytes()
    for damaged in (whole.replace(b'"expires":"2', b'"expires":"3'), whole[:-1], b"", b"[" * 5000):
        path.write_bytes(damaged)
        with pytest.raises((ReleaseError, SignatureError), match=name.replace(".", r"\.")):
            simulator.repository.refresh()
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("held", [None, 1, 2, 3, 9])
def test_package_holds_what_a_device_needs_and_no_more(
    simulator: Simulator, tmp_path: Path, held: int | None
) -> None:
    releases = {version: simulator.release(version) for version in (1, 2, 3)}
    for release in releases.values():
        simulator.repository.publish(*release)
    manifest = releases[held][0] if held in releases else None
    files = parse_package(simulator.repository.package(held), manifest)
    for path, what in files.items():
        assert (simulator.folder / path).read_bytes() == what
        (tmp_path / "stick" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stick" / path).write_bytes(what)
    wanted = {None: ["model.onnx"], 1: ["from-0001.delta"], 2: ["from-0002.delta"], 3: None, 9: None}[held]
    names = [f"v0003/{name}" for name in [*(wanted or []), "manifest.json"]] if wanted else []
    assert sorted(path for path in files if path.startswith("v")) == sorted(names)
    if held is None:
        assert found(simulator, tmp_path / "device", tmp_path / "stick") == 3


def test_package_for_a_device_that_takes_promoted_releases_only(simulator: Simulator) -> None:
    for version in (1, 2, 3):
        simulator.publish(version)
    assert not any(
        p.startswith("v") for p in parse_package(simulator.repository.package(None, promoted=True))
    )
    simulator.promote(1)
    simulator.promote(2)
    files = parse_package(simulator.repository.package(1, promoted=True), simulator.release(1)[0])
    assert [path for path in files if path.startswith("v")] == [
        "v0002/from-0001.delta",
        "v0002/manifest.json",
    ]


def test_package_holds_the_promoted_release_where_no_newer_one_is_signed(
    simulator: Simulator,
) -> None:
    simulator.publish(1)
    simulator.promote(1)
    simulator.replace_online_keys(50)
    files = parse_package(simulator.repository.package(None))
    assert [path for path in files if path.startswith("v")] == ["v0001/manifest.json", "v0001/model.onnx"]


def test_package_brings_every_root_but_the_first(simulator: Simulator, tmp_path: Path) -> None:
    simulator.replace_online_keys(50)
    simulator.replace_online_keys(60)
    simulator.publish(1)
    for path, what in parse_package(simulator.repository.package(None)).items():
        (tmp_path / "stick" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stick" / path).write_bytes(what)
    assert found(simulator, tmp_path / "device", tmp_path / "stick") == 1


def test_packages_are_kept_only_as_long_as_they_are_the_newest(simulator: Simulator) -> None:
    simulator.publish(1)
    first = simulator.repository.package(None)
    assert simulator.repository.package(None) is first
    simulator.publish(2)
    assert simulator.repository.package(None) != first
    assert len(simulator.repository._shelf._packages) == 1


def test_state_of_a_killed_publisher_is_taken_up_by_the_next(simulator: Simulator, tmp_path: Path) -> None:
    """The list of the rounds was written, but no snapshot that names it."""
    simulator.publish(1)
    copy = simulator.copy("before")
    simulator.publish(2)
    shutil.copytree(simulator.folder / "v0002", copy / "v0002")
    shutil.copy(simulator.folder / "metadata" / "3.rounds.json", copy / "metadata")
    again = Repository(copy, simulator.keys.online, lambda: simulator.now)
    assert found(simulator, tmp_path / "old", copy) == 1
    again.refresh()
    assert found(simulator, tmp_path / "new", copy) == 2


def test_newest_root_and_targets_are_what_counts(simulator: Simulator) -> None:
    install(
        simulator.folder,
        renew(simulator.folder, simulator.now, simulator.keys.root, simulator.keys.targets),
    )
    trust = read_trust(simulator.folder)
    assert (trust.root.version, trust.targets.version) == (2, 2)
    assert read_state(simulator.folder, simulator.keys.online).trust.root.version == 2
