"""What an edge server keeps of its parent's releases: whole, pruned, and never in a device's way for long."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from edge.lab import Device, Federation, content_of

from fedge.edge.sources import PackageSource
from fedge.errors import PayloadError, ReleaseError, SetupError
from fedge.release import folder
from fedge.release.chain import read_chain
from fedge.release.mirror import KEPT, Mirror
from fedge.release.offline import renew
from fedge.release.package import make_package, parse_package
from fedge.release.trust import install

from .power import restore, states, watched
from .simulator import Simulator, StockClient, model_of, online
from .simulator import forge as forged


class KilledError(BaseException):
    """A process that ends here."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flushed is recorded; the real disk may take its time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def parent(tmp_path: Path) -> Simulator:
    return Simulator(tmp_path / "parent")


@pytest.fixture
def mirror(parent: Simulator, tmp_path: Path) -> Mirror:
    return Mirror(tmp_path / "mirror", parent.root)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The mirror's folder."""
    return tmp_path / "mirror"


@pytest.fixture
def device(parent: Simulator, tmp_path: Path) -> StockClient:
    """A stock TUF client."""
    return StockClient(tmp_path / "device", parent.root)


def opened(package: bytes, place: Path, held: int | None) -> dict[str, bytes]:
    """The files of a package for who holds a release that is in the repository at ``place``."""
    manifest = None if held is None else (place / f"v{held:04d}" / "manifest.json").read_bytes()
    return dict(parse_package(package, manifest))


# ----- filled


def test_the_first_release_is_passed_on_whole(
    parent: Simulator, mirror: Mirror, place: Path, device: StockClient
) -> None:
    parent.publish(1)
    made = mirror.take(parent.repository.package(None))
    assert made is not None
    assert made.version == 1
    pointer = device.update(place, parent.now)
    assert pointer is not None
    assert (pointer.version, device.model) == (1, model_of(1))
    assert opened(mirror.package(None), place, None) == opened(parent.repository.package(None), place, None)


def test_a_delta_is_rebuilt_and_passed_on_to_who_holds_the_same(
    parent: Simulator, mirror: Mirror, place: Path
) -> None:
    parent.publish(1)
    mirror.take(parent.repository.package(None))
    parent.publish(2)
    package = parent.repository.package(1)
    made = mirror.take(package)
    assert made is not None
    assert made.version == 2
    assert (place / "v0002" / "model.onnx").read_bytes() == model_of(2)
    for held in (None, 1):
        assert opened(mirror.package(held), place, held) == opened(
            parent.repository.package(held), place, held
        )
    assert len(mirror.package(1)) < len(mirror.package(None))


def test_who_holds_what_the_mirror_has_no_delta_from_gets_the_model(
    parent: Simulator, mirror: Mirror, place: Path
) -> None:
    for version in (1, 2, 3):
        parent.publish(version)
        if version != 2:
            mirror.take(parent.repository.package(None if version == 1 else 1))
    assert folder.versions(place) == [1, 3]
    assert "v0003/from-0001.delta" in opened(mirror.package(1), place, 1)
    assert opened(mirror.package(2), place, None)["v0003/model.onnx"] == model_of(3)


def test_a_package_without_a_release_brings_none(parent: Simulator, mirror: Mirror, place: Path) -> None:
    assert mirror.take(parent.repository.package(None)) is None
    parent.publish(1)
    mirror.take(parent.repository.package(None))
    parent.wait(4)
    parent.repository.refresh()
    assert mirror.take(parent.repository.package(1)) is None
    assert opened(mirror.package(1), place, None) == opened(parent.repository.package(1), place, None)


def test_it_keeps_the_last_releases_and_the_promoted_one(
    parent: Simulator, mirror: Mirror, place: Path, device: StockClient, quick: None
) -> None:
    del quick
    held = None
    for version in range(1, KEPT + 6):
        parent.publish(version)
        if version == 2:
            parent.promote(2)
        made = mirror.take(parent.repository.package(held))
        assert made is not None
        held = made.version
    assert folder.versions(place) == [2, *range(6, KEPT + 6)]
    for role in ("targets", "rounds", "snapshot"):
        assert len(folder.numbers(place, role)) <= KEPT
    for name, version in (("latest.json", KEPT + 5), ("promoted.json", 2)):
        other = StockClient(place.parent / name, parent.root)
        pointer = other.update(place, parent.now, name)
        assert pointer is not None
        assert (pointer.version, other.model) == (version, model_of(version))
    promoted = opened(mirror.package(None, promoted=True), place, None)
    assert promoted["v0002/model.onnx"] == model_of(2)
    assert device.update(place, parent.now) is not None


def test_a_new_root_reaches_devices_through_it(
    parent: Simulator, mirror: Mirror, place: Path, device: StockClient
) -> None:
    parent.publish(1)
    mirror.take(parent.repository.package(None))
    assert device.update(place, parent.now) is not None
    parent.replace_online_keys(10)
    parent.publish(2)
    mirror.take(parent.repository.package(1))
    metadata = renew(parent.folder, parent.now, parent.keys.root, parent.keys.targets)
    install(parent.folder, metadata)
    parent.repository.refresh()
    parent.publish(3)
    mirror.take(parent.repository.package(2))
    assert folder.numbers(place, "root") == [1, 2, 3]
    assert device.update(place, parent.now) is not None
    assert device.model == model_of(3)


# ----- damaged, hostile


def test_a_package_for_who_holds_another_release_changes_nothing(
    parent: Simulator, mirror: Mirror, place: Path
) -> None:
    parent.publish(1)
    mirror.take(parent.repository.package(None))
    parent.publish(2)
    parent.publish(3)
    before = _content(place)
    for rubbish in (
        parent.repository.package(2),
        b"",
        b"FDGP",
        bytes(1000),
        parent.repository.package(1)[:-9],
    ):
        with pytest.raises(PayloadError):
            mirror.take(rubbish)
        assert _content(place) == before
    assert mirror.take(parent.repository.package(1)) is not None


def test_no_bytes_make_it_raise_anything_else(
    parent: Simulator, mirror: Mirror, quick: None, wide: bool
) -> None:
    """One file of a package is cut, lengthened or changed somewhere: refused, or handed on as it is."""
    del quick
    parent.publish(1)
    honest, rng, refused = parent.repository.package(None), random.Random(4), 0
    for _ in range(2000 if wide else 60):
        files = dict(parse_package(honest))
        path = rng.choice(sorted(files))
        cut, gap = rng.randrange(len(files[path]) + 1), rng.choice([0, 0, 1, 20, 10**6])
        files[path] = files[path][:cut] + rng.randbytes(rng.choice([0, 1, 9])) + files[path][cut + gap :]
        try:
            mirror.take(make_package(files))
        except (ReleaseError, PayloadError):
            refused += 1
            assert mirror.take(honest) is not None
        mirror.package(None)  # devices verify what it is
    assert refused > 10


def _content(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def _without(package: bytes, path: str) -> bytes:
    return make_package({p: c for p, c in parse_package(package).items() if p != path})


def _with(package: bytes, path: str, content: bytes) -> bytes:
    return make_package({**parse_package(package), path: content})


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "no timestamp": lambda p: _without(p, "metadata/timestamp.json"),
    "no snapshot": lambda p: _without(p, "metadata/2.snapshot.json"),
    "no model": lambda p: _without(p, "v0001/model.onnx"),
    "no manifest": lambda p: _without(p, "v0001/manifest.json"),
    "another model": lambda p: _with(p, "v0001/model.onnx", model_of(2)),
    "another manifest": lambda p: _with(p, "v0001/manifest.json", b"{}"),
    "rubbish for metadata": lambda p: _with(p, "metadata/2.rounds.json", b"{}"),
    "a root that is none": lambda p: _with(p, "metadata/2.root.json", b"{}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_package_that_contradicts_itself_leaves_it_empty_and_it_fills_again(
    name: str, parent: Simulator, mirror: Mirror, place: Path, device: StockClient
) -> None:
    parent.publish(1)
    honest = parent.repository.package(None)
    assert "metadata/2.snapshot.json" in parse_package(honest)
    with pytest.raises(ReleaseError):
        mirror.take(HOSTILE[name](honest))
    assert _content(place) == {}
    assert mirror.take(honest) is not None
    assert device.update(place, parent.now) is not None


def test_what_contradicts_a_whole_package_is_thrown_away_for_it(
    parent: Simulator, mirror: Mirror, place: Path, device: StockClient
) -> None:
    """What is not signed cannot keep out what is, be it here first."""
    parent.publish(1)
    mirror.take(parent.repository.package(None))
    parent.publish(2)
    ahead = {
        "3.root.json": b"{}",
        "3.snapshot.json": b"not what the parent signs",
        "9.targets.json": b"nor is that",
    }
    for name, content in ahead.items():
        (place / "metadata" / name).write_bytes(content)
    (place / "v0002").mkdir()
    (place / "v0002" / "manifest.json").write_bytes(b"{}")
    assert mirror.take(parent.repository.package(None)) is not None
    assert not (place / "metadata" / "9.targets.json").exists()
    assert device.update(place, parent.now) is not None
    assert device.model == model_of(2)


def test_a_half_removed_release_is_no_obstacle(parent: Simulator, mirror: Mirror, place: Path) -> None:
    parent.publish(1)
    mirror.take(parent.repository.package(None))
    (place / "v0001" / "manifest.json").unlink()
    parent.publish(2)
    with pytest.raises(PayloadError):
        mirror.take(parent.repository.package(1))
    made = mirror.take(parent.repository.package(None))
    assert made is not None
    assert made.version == 2


def test_other_files_in_a_package_are_not_kept(parent: Simulator, mirror: Mirror, place: Path) -> None:
    parent.publish(1)
    package = parent.repository.package(None)
    for path in (
        "metadata/notes.json",
        "metadata/deep/1.targets.json",
        "notes",
        "other/manifest.json",
        "v0001/from-0009.delta",
    ):
        package = _with(package, path, b"rubbish")
    assert mirror.take(package) is not None
    assert not [p for p in _content(place) if b"rubbish" in _content(place)[p]]


def test_another_first_root_in_a_package_is_not_taken(parent: Simulator, mirror: Mirror, place: Path) -> None:
    parent.publish(1)
    assert mirror.take(_with(parent.repository.package(None), "metadata/1.root.json", b"{}")) is not None
    assert (place / "metadata" / "1.root.json").read_bytes() == parent.root


# ----- devices behind it


def _behind(mirror: Mirror, device: Device) -> PackageSource:
    """What a mirror hands to a device, as an edge server does."""
    held = device.version or None
    manifests = [installed.manifest.to_bytes() for installed in device.home.held()]
    package = mirror.package(held)
    for manifest in manifests:
        try:
            return PackageSource(parse_package(package, manifest))
        except PayloadError:
            continue
    return PackageSource(parse_package(package))


def test_a_device_takes_what_a_mirror_packs(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "parent")
    mirror = Mirror(tmp_path / "mirror", federation.root)
    device, held = Device(federation, tmp_path / "home"), None
    for version in range(1, 4):
        federation.good(version)
        made = mirror.take(federation.repository.package(held))
        assert made is not None
        held = made.version
        outcome = device.update(_behind(mirror, device))
        assert (outcome.taken, device.version) == (True, version)
        assert device.home.model(version) == content_of(version)
    assert device.update(_behind(mirror, device)).code == "up_to_date"


def _swap_models(place: Path, federation: Federation) -> None:
    del federation
    shutil.copy(place / "v0001" / "model.onnx", place / "v0002" / "model.onnx")


def _swap_manifests(place: Path, federation: Federation) -> None:
    del federation
    shutil.copy(place / "v0001" / "manifest.json", place / "v0002" / "manifest.json")


def _forge(place: Path, federation: Federation) -> None:
    """With keys of its own: nobody trusts them."""
    forged(place, {}, federation.now, federation.made(3))


def _forge_snapshot(place: Path, federation: Federation) -> None:
    """With the stolen keys of timestamp and snapshot: they cannot name a release."""
    forged(place, online(federation.keys, "timestamp", "snapshot"), federation.now, federation.made(3))


def _roll_back(place: Path, federation: Federation) -> None:
    shutil.rmtree(place)
    shutil.copytree(federation.folder.parent / "older", place)


ATTACKS = [_swap_models, _swap_manifests, _forge, _roll_back]

Attack = Callable[[Path, Federation], None]


def _attacked(attack: Attack, tmp_path: Path) -> tuple[Federation, Device, Path]:
    """A device that took the first release, and a mirror of the second that was changed on the way."""
    federation, place = Federation(tmp_path / "parent"), tmp_path / "mirror"
    mirror, device = Mirror(place, federation.root), Device(federation, tmp_path / "home")
    federation.good(1)
    mirror.take(federation.repository.package(None))
    federation.copy("older")
    device.update(_behind(mirror, device))
    federation.good(2)
    mirror.take(federation.repository.package(1))
    (place / "v0002" / "from-0001.delta").unlink()
    attack(place, federation)
    return federation, device, place


@pytest.mark.parametrize("attack", [*ATTACKS, _forge_snapshot])
def test_a_device_refuses_what_a_hostile_mirror_changed(attack: Attack, tmp_path: Path) -> None:
    federation, device, place = _attacked(attack, tmp_path)
    try:
        outcome = device.update(_behind(Mirror(place, federation.root), device))
    except (ReleaseError, SetupError):
        pass  # it could not even be packed, or lacks what its metadata name
    else:
        assert not outcome.taken
    assert device.version == 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_device_gets_over_a_hostile_mirror(attack: Attack, tmp_path: Path) -> None:
    """Nothing that it was handed keeps it from the next release. (Stolen keys have to be replaced first.)"""
    federation, device, place = _attacked(attack, tmp_path)
    with suppress(ReleaseError, SetupError):
        device.update(_behind(Mirror(place, federation.root), device))
    shutil.rmtree(place)
    federation.good(3)
    assert Mirror(place, federation.root).take(federation.repository.package(None)) is not None
    assert device.update(_behind(Mirror(place, federation.root), device)).taken
    assert device.version == 3


# ----- killed


class Before:
    """A mirror with one release, and a package with the second; each trial starts from a copy."""

    def __init__(self, tmp_path: Path) -> None:
        self.parent, self.place = Simulator(tmp_path / "parent"), tmp_path / "mirror"
        self.parent.publish(1)
        self.mirror().take(self.parent.repository.package(None))
        shutil.copytree(self.place, tmp_path / "before")
        self.copy, self._homes, self._count = tmp_path / "before", tmp_path / "homes", 0
        self.parent.publish(2)
        self.delta, self.whole = self.parent.repository.package(1), self.parent.repository.package(None)

    def mirror(self) -> Mirror:
        """A new process."""
        return Mirror(self.place, self.parent.root)

    def reset(self) -> None:
        shutil.rmtree(self.place)
        shutil.copytree(self.copy, self.place)

    def look(self) -> int:
        """The version that a new device finds; 0 where it finds none."""
        self._count += 1
        device = StockClient(self._homes / str(self._count), self.parent.root)
        pointer = device.update(self.place, self.parent.now)
        if pointer is None:
            return 0
        assert device.model == model_of(pointer.version)
        return pointer.version


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KilledError()], ids=["full", "killed"]
)
def test_full_disk_or_death_at_any_write_leaves_the_old_release_or_the_new(
    tmp_path: Path, error: BaseException, quick: None
) -> None:
    del quick
    before = Before(tmp_path)
    with watched(before.place) as done:
        before.mirror().take(before.delta)
    found = set()
    for stop_at in range(len(done)):
        before.reset()
        with watched(before.place, stop_at, error), pytest.raises((SetupError, KilledError)):
            before.mirror().take(before.delta)
        found.add(before.look())
        assert before.mirror().take(before.delta) is not None
        assert before.look() == 2
        assert not list(before.place.rglob(".*"))
    assert found == {1, 2}


def test_power_cut_at_any_write_leaves_the_old_release_or_the_new(tmp_path: Path, quick: None) -> None:
    del quick
    before, found = Before(tmp_path), set()
    with watched(before.place) as done:
        before.mirror().take(before.delta)
    for _, files in states(before.copy, list(done), before.place, random.Random(1)):
        shutil.rmtree(before.place)
        restore(before.place, files)
        found.add(before.look())
        assert before.mirror().take(before.delta) is not None
        assert before.look() == 2
    assert found == {1, 2}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KilledError()], ids=["full", "killed"]
)
def test_death_while_it_is_emptied_is_no_obstacle(tmp_path: Path, error: BaseException, quick: None) -> None:
    del quick
    before = Before(tmp_path)
    (before.copy / "metadata" / "3.snapshot.json").write_bytes(b"not what the parent signs")
    before.reset()
    with watched(before.place) as done:
        before.mirror().take(before.whole)
    assert {"unlink", "rename"} <= {operation.name for operation in done}
    for stop_at in range(len(done)):
        before.reset()
        with watched(before.place, stop_at, error), pytest.raises((SetupError, KilledError)):
            before.mirror().take(before.whole)
        assert before.mirror().take(before.whole) is not None
        assert before.look() == 2
        assert read_chain(before.place).latest is not None
