"""Attacks on a device's updates, by name (Samuel et al. 2010; the specification of TUF, 1.5.2): all refused.

Whatever is tried, the old model goes on to answer, and once the attack is over the device takes honest
releases again.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from release.simulator import (
    FAR,
    chain_of,
    flip,
    forge,
    make_endless,
    mix_in,
    online,
    replay,
    seeded_keys,
    stretch,
)
from tuf.api.metadata import TargetFile

from fedge.edge.codes import NotTakenError
from fedge.edge.disk import FolderDisk
from fedge.edge.home import Home
from fedge.edge.sources import FetchError, FolderSource, PackageSource
from fedge.edge.trusted import Offer
from fedge.edge.updater import Outcome, Updater
from fedge.release import _tuf, delta
from fedge.release.offline import create
from fedge.release.package import parse_package
from fedge.release.pointer import LATEST, PROMOTED, Pointer

from .lab import FEDERATION, INPUTS, Device, Federation, answers, content_of, shuffled, weights_of

ALL = ("snapshot", "timestamp", "rounds")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation(tmp_path / "releases")
    for version in (1, 2):
        made.good(version)
    return made


@pytest.fixture
def device(federation: Federation, tmp_path: Path) -> Device:
    """It runs release 2."""
    made = Device(federation, tmp_path / "home")
    assert made.update().taken
    return made


def refused(device: Device, place: Path, version: int = 2) -> Outcome:
    """The device is pointed at ``place``: it takes nothing, and its model goes on."""
    outcome = device.update(place)
    assert not outcome.taken
    assert device.version == version
    assert answers(device.home)
    return outcome


def goes_on(device: Device, version: int, *, stolen: bool = False) -> None:
    """The device takes an honest release after all; where keys were stolen, once they have been replaced."""
    if stolen:
        device.federation.replace_online_keys(40)
    device.federation.good(version)
    outcome = device.update()
    assert outcome.taken, outcome
    assert device.version == version


def test_rollback(federation: Federation, device: Device) -> None:
    older = federation.copy("older")
    federation.good(3)
    assert device.update().taken
    assert refused(device, older, 3).code == "older"
    replay(federation.folder, older)
    assert refused(device, federation.folder, 3).code == "older"


def test_rollback_by_a_device_that_was_started_anew(federation: Federation, device: Device) -> None:
    """What guards against going back is on the disk."""
    older = federation.copy("older")
    federation.good(3)
    assert device.update().taken
    assert refused(Device(federation, device.disk), older, 3).code == "older"


def test_rollback_on_a_device_whose_metadata_are_damaged(federation: Federation, device: Device) -> None:
    """Then the versions that were tried still guard."""
    older = federation.copy("older")
    federation.good(3)
    assert device.update().taken
    device.disk.replace("trust.json", b"worn out")
    assert refused(device, older, 3).code == "tried_before"


def test_rollback_below_a_promoted_release_that_the_device_never_had(
    federation: Federation, tmp_path: Path
) -> None:
    """It has heard of the promotion; then its metadata are damaged, and it is shown an older state."""
    older = federation.copy("older")
    federation.good(3)
    federation.promote(3)
    device, empty = Device(federation, tmp_path / "home"), federation.copy("empty")
    shutil.rmtree(empty / "v0003")
    with pytest.raises(FetchError):
        device.update(empty)
    device.disk.replace("trust.json", b"worn out")
    outcome = device.update(older)
    assert (outcome.version, outcome.code) == (2, "below_promoted")


def test_rollback_after_the_state_is_lost(federation: Federation, device: Device) -> None:
    """Then the metadata and what lies in the slots still guard."""
    older = federation.copy("older")
    federation.good(3)
    assert device.update().taken
    device.disk.remove("state.json")
    assert refused(device, older, 3).code == "older"


def test_freeze(federation: Federation, device: Device) -> None:
    frozen = federation.copy("frozen")
    federation.good(3)
    assert refused(device, frozen).code == "up_to_date"
    federation.wait(days=8)
    assert refused(device, frozen).code == "expired"
    federation.repository.refresh()
    assert device.update().taken


@pytest.mark.parametrize("role", ["snapshot", "rounds", "targets"])
def test_mix_and_match(federation: Federation, device: Device, role: str) -> None:
    older = federation.copy("older")
    federation.good(3)
    federation.promote(3)
    attacked = federation.copy("attacked")
    mix_in(attacked, older, role)
    assert refused(device, attacked).code in {"altered", "older"}
    goes_on(device, 4)


def test_mix_and_match_of_files_of_releases(federation: Federation, device: Device) -> None:
    federation.good(3)
    attacked = federation.copy("attacked")
    for name in ("manifest.json", "model.onnx"):
        (attacked / "v0003" / name).write_bytes((attacked / "v0001" / name).read_bytes())
    assert refused(device, attacked).code in {"too_long", "altered"}
    goes_on(device, 4)


def test_fast_forward(federation: Federation, device: Device) -> None:
    """Stolen keys sign a version of the metadata that no honest one comes after, until they are replaced."""
    attacked = federation.copy("attacked")
    forge(attacked, online(federation.keys, "snapshot", "timestamp"), federation.now, number=FAR)
    refused(device, attacked)
    federation.good(3)
    assert refused(device, federation.folder).code == "older"
    goes_on(device, 4, stolen=True)


def test_fast_forward_of_the_releases_themselves(federation: Federation, device: Device) -> None:
    """The stolen key of the rounds uses up the versions: a model that passes the gate may run, until then."""
    federation.promote(2)
    attacked = federation.copy("attacked")
    forge(attacked, online(federation.keys, *ALL), federation.now, federation.made(10**15, weights_of(3)))
    assert device.update(attacked).taken
    goes_on(device, 3, stolen=True)


@pytest.mark.parametrize("kind", ["timestamp", "snapshot", "rounds", "targets"])
@pytest.mark.parametrize("harm", [make_endless, stretch, flip, lambda path: stretch(path, -1)])
def test_endless_data_wrong_length_and_altered_metadata(
    federation: Federation, device: Device, kind: str, harm: Callable[[Path], None]
) -> None:
    federation.good(3)
    federation.promote(3)
    attacked = federation.copy("attacked")
    harm(attacked / "metadata" / getattr(chain_of(attacked), kind))
    outcome = device.update(attacked)
    if kind == "timestamp" and harm is stretch:
        assert outcome.taken, "a space after a timestamp's JSON changes nothing of what was signed"
        return
    assert outcome.code in {"too_long", "altered", "malformed", "not_signed"}
    assert device.version == 2
    goes_on(device, 4)


@pytest.mark.parametrize("file", ["manifest.json", "model.onnx"])
@pytest.mark.parametrize("harm", [make_endless, stretch, flip, lambda path: stretch(path, -1)])
def test_endless_data_wrong_length_and_altered_files_of_a_release(
    federation: Federation, device: Device, file: str, harm: Callable[[Path], None]
) -> None:
    federation.good(3)
    attacked = federation.copy("attacked")
    for path in (attacked / "v0003").glob("*.delta"):
        path.unlink()
    harm(attacked / "v0003" / file)
    assert refused(device, attacked).code in {"too_long", "altered"}
    assert device.update().taken, "the honest release of that version is still taken"


@pytest.mark.parametrize("harm", [make_endless, stretch, flip, lambda path: stretch(path, -1), Path.unlink])
def test_downgrade_through_the_delta_path_by_whoever_sits_on_the_wire(
    federation: Federation, device: Device, harm: Callable[[Path], None]
) -> None:
    """A delta that is not as signed is left aside: the whole model is taken, if it is there."""
    federation.good(3)
    attacked = federation.copy("attacked")
    harm(attacked / "v0003" / "from-0002.delta")
    without = federation.copy("without")
    harm(without / "v0003" / "from-0002.delta")
    (without / "v0003" / "model.onnx").unlink()
    try:
        assert refused(device, without).code == "altered"
    except FetchError:
        assert harm is Path.unlink
    assert device.version == 2
    assert device.update(attacked).taken
    assert device.home.model(3) == content_of(3)


def test_downgrade_through_the_delta_path_with_the_stolen_key_of_the_rounds(
    federation: Federation, device: Device
) -> None:
    """Release 3 by its manifest, release 1 by its delta: what comes out must be what the manifest names."""
    attacked = federation.copy("attacked")
    back = delta.encode(content_of(2), content_of(1)) or delta.pack(content_of(1))
    forge(
        attacked,
        online(federation.keys, *ALL),
        federation.now,
        federation.made(3),
        files={"from-0002.delta": back},
    )
    (attacked / "v0003" / "model.onnx").unlink()
    assert refused(device, attacked).code == "altered"


def test_old_release_under_a_new_version_is_refused(federation: Federation, device: Device) -> None:
    attacked = federation.copy("attacked")
    _, manifest, model = federation.made(1)
    forge(attacked, online(federation.keys, *ALL), federation.now, (3, manifest, model))
    assert refused(device, attacked).code == "malformed"


def test_key_compromise_of_snapshot_and_timestamp_installs_nothing(
    federation: Federation, device: Device
) -> None:
    attacked = federation.copy("attacked")
    keys = online(federation.keys, "snapshot", "timestamp")
    forge(attacked, keys, federation.now, federation.made(3))
    assert refused(device, attacked).code == "not_signed"


@pytest.mark.parametrize("stolen", [(), ("rounds",), ("snapshot", "rounds"), ("timestamp", "rounds")])
def test_key_compromise_of_some_online_keys_installs_nothing(
    federation: Federation, device: Device, stolen: tuple[str, ...]
) -> None:
    attacked = federation.copy("attacked")
    forge(attacked, online(federation.keys, *stolen), federation.now, federation.made(3))
    assert refused(device, attacked).code == "not_signed"
    goes_on(device, 3, stolen="timestamp" in stolen)


def test_key_compromise_of_all_online_keys_gets_no_further_than_the_gate(
    federation: Federation, device: Device
) -> None:
    attacked = federation.copy("attacked")
    worse = federation.made(3, shuffled(3))
    forge(attacked, online(federation.keys, *ALL), federation.now, worse)
    assert refused(device, attacked).code == "worse"
    goes_on(device, 4, stolen=True)


def test_key_compromise_of_all_online_keys_gets_never_below_the_promoted_release(
    federation: Federation, device: Device, tmp_path: Path
) -> None:
    federation.good(3)
    federation.promote(3)
    assert device.update().taken
    new = Device(federation, tmp_path / "new")
    for version in (1, 2):
        attacked = federation.copy(f"attacked{version}")
        forge(attacked, online(federation.keys, *ALL), federation.now, federation.made(version))
        refused(device, attacked, 3)
        assert new.update(attacked).version == 3, "even a device that knows nothing yet"
        assert new.version == 3


def test_key_compromise_of_all_online_keys_does_not_exchange_the_promoted_release(
    federation: Federation, device: Device
) -> None:
    """What the offline key says of a file counts more than what the stolen one says."""
    federation.good(3)
    federation.promote(3)
    attacked = federation.copy("attacked")
    forge(attacked, online(federation.keys, *ALL), federation.now, federation.made(3, weights_of(30)))
    assert refused(device, attacked).code in {"altered", "too_long"}


def test_promoted_release_whose_files_the_offline_key_does_not_name_is_not_taken(
    federation: Federation, tmp_path: Path
) -> None:
    federation.promote(2)
    attacked = federation.copy("attacked")
    path = attacked / "metadata" / chain_of(attacked).targets
    lists = _tuf.parse(_tuf.Targets, path.read_bytes(), path.name).signed
    lists.targets = {PROMOTED: lists.targets[PROMOTED]}
    path.write_bytes(_tuf.sign(lists, federation.keys.targets))
    forge(attacked, online(federation.keys, *ALL), federation.now)
    for insist in (True, False):
        careful = Device(federation, tmp_path / f"careful{insist}", insist=insist)
        outcome = careful.update(attacked)
        assert outcome.taken is not insist, "who does not insist takes what the rounds signed"
        assert not insist or outcome.code == "not_signed"


def test_file_that_is_signed_as_longer_than_a_device_reads_is_not_fetched() -> None:
    class Never:
        def fetch(self, path: str, limit: int) -> bytes:
            raise AssertionError((path, limit))

    pointer = Pointer(3)
    target = TargetFile.from_data(pointer.model, b"12345")
    target.length = 1 << 40
    offer = Offer(pointer, {pointer.model: target}, Never())
    with pytest.raises(NotTakenError) as told:
        offer.fetch(pointer.model, 1 << 26)
    assert told.value.code == "too_long"


@pytest.mark.parametrize("name", [PROMOTED, LATEST])
def test_key_compromise_of_all_online_keys_promotes_nothing(
    federation: Federation, tmp_path: Path, name: str
) -> None:
    careful = Device(federation, tmp_path / "careful", insist=True)
    federation.promote(2)
    assert careful.update().taken
    federation.good(3)
    assert refused(careful, federation.folder).code == "up_to_date"
    attacked = federation.copy("attacked")
    forge(attacked, online(federation.keys, *ALL), federation.now, federation.made(4), name=name)
    assert refused(careful, attacked).code == ("not_signed" if name == PROMOTED else "up_to_date")
    federation.replace_online_keys(40)
    federation.good(4)
    federation.promote(4)
    assert careful.update().taken
    assert careful.version == 4


def test_careful_device_needs_nothing_of_the_role_that_may_be_stolen(
    federation: Federation, tmp_path: Path
) -> None:
    federation.promote(2)
    for path in (federation.folder / "metadata").glob("*.rounds.json"):
        path.write_bytes(b"garbage")
    careful = Device(federation, tmp_path / "careful", insist=True)
    assert careful.update().taken


def test_expired_root(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "releases", root_days=20)
    federation.good(1)
    device = Device(federation, tmp_path / "home")
    assert device.update().taken
    federation.wait(days=21)
    federation.good(2)
    assert refused(device, federation.folder, 1).code == "expired"


def test_root_of_another_federation(federation: Federation, device: Device, tmp_path: Path) -> None:
    root = create(federation.now, 100, 100, seeded_keys(100))["1.root.json"]
    for disk in (device.disk, FolderDisk(tmp_path / "stranger")):
        stranger = Updater(Home(disk), root, FEDERATION, lambda: int(federation.now))
        assert stranger.update(FolderSource(federation.folder), INPUTS).code == "not_signed"
    assert device.version == 2


def test_device_that_slept_through_several_roots_follows_them(federation: Federation, device: Device) -> None:
    for first in (40, 80, 120):
        federation.wait(days=30)
        federation.replace_online_keys(first)
    federation.good(3)
    assert device.update().taken
    assert refused(device, federation.folder, 3).code == "up_to_date"


def test_release_of_another_federation_is_refused(federation: Federation, device: Device) -> None:
    federation.good(3, federation="ab" * 16)
    assert refused(device, federation.folder).code == "malformed"


def test_expired_release_is_refused(federation: Federation, device: Device) -> None:
    federation.good(3, expires=int(federation.now + 86_400))
    federation.wait(days=2)
    assert refused(device, federation.folder).code == "expired"


def test_clock_decides_what_has_expired(federation: Federation, device: Device) -> None:
    """python-tuf takes its own time; ours must reach it."""
    federation.good(3)
    federation.now += 8 * 86_400
    assert refused(device, federation.folder).code == "expired"
    federation.now -= 8 * 86_400
    assert device.update().taken


@pytest.mark.parametrize("at", range(0, 100, 7))
def test_package_that_was_cut_off_or_altered_installs_nothing(
    federation: Federation, device: Device, at: int
) -> None:
    federation.good(3)
    held = device.home.current()
    assert held is not None
    files = dict(parse_package(federation.repository.package(2), held.manifest.to_bytes()))
    path = sorted(files)[at % len(files)]
    middle = len(files[path]) // 2
    altered = files[path][:middle] + bytes([files[path][middle] ^ 1]) + files[path][middle + 1 :]
    for wrong in ({**files, path: altered}, {k: v for k, v in files.items() if k != path}):
        try:
            outcome = device.update(PackageSource(wrong))
        except FetchError:
            pass
        else:
            assert not outcome.taken or path not in ("metadata/timestamp.json", "v0003/manifest.json")
        assert device.version in (2, 3)
        assert answers(device.home)


def test_version_never_falls_in_any_order_of_attacks(federation: Federation, tmp_path: Path) -> None:
    """One device is pointed at old, new, forged and damaged repositories, one after the other."""
    places = [federation.copy("start")]
    for version in range(3, 7):
        federation.good(version)
        places.append(federation.copy(f"at{version}"))
        forged = federation.copy(f"forged{version}")
        forge(forged, online(federation.keys, "rounds"), federation.now, federation.made(version + 1))
        places.append(forged)
    device, highest = Device(federation, tmp_path / "home"), 0
    order = [2, 0, 4, 1, 3, 8, 6, 0, 5, 7, 2, 8]
    for place in (places[i] for i in order):
        device.update(place)
        assert device.version >= highest
        highest = device.version
    assert highest == 6


def test_folder_source_is_what_a_stick_is(federation: Federation, device: Device) -> None:
    federation.good(3)
    assert device.update(FolderSource(federation.folder.parent)).taken
    assert Home(device.disk).current() is not None
