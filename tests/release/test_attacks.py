"""The attacks of the TUF specification (1.5.2) on a repository of releases, against python-tuf's own client.

The device holds release 3; the server has published 4. Whatever an attacker serves, the device refuses it or
finds nothing newer, keeps what it holds, and afterwards still takes 4 from the honest server.
"""

import os
import shutil
from pathlib import Path

import pytest
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)

from fedge.errors import PayloadError, SignatureError
from fedge.release import _tuf, delta
from fedge.release._tuf import TargetFile, Targets
from fedge.release.offline import create, renew
from fedge.release.package import parse_package
from fedge.release.pointer import LATEST, PROMOTED
from fedge.release.repository import Repository
from fedge.release.trust import install, read_trust
from fedge.signing import SigningKey

from .simulator import (
    FAR,
    THIEF,
    Simulator,
    StockClient,
    chain_of,
    flip,
    forge,
    make_endless,
    mix_in,
    model_of,
    online,
    replay,
    seeded_keys,
    stretch,
)

REFUSED = (RepositoryError, DownloadError)
ONLINE = ("timestamp", "snapshot", "rounds")
FILES = [
    "metadata/timestamp.json",
    "snapshot",
    "rounds",
    "targets",
    "v0004/manifest.json",
    "v0004/model.onnx",
]


class Scene:
    """A device that holds release 3, an older state, and a mirror in the hands of the attacker."""

    def __init__(self, folder: Path) -> None:
        self.simulator = Simulator(folder / "releases")
        self.device = StockClient(folder / "device", self.simulator.root)
        for version in (1, 2):
            self.simulator.publish(version)
        self.older = self.simulator.copy("older")
        self.simulator.publish(3)
        self.simulator.promote(1)
        assert self.look(self.simulator.folder) == 3
        self.simulator.publish(4)
        self.simulator.promote(3)
        self.mirror = self.simulator.copy("mirror")

    def look(self, place: Path, name: str = LATEST) -> int | None:
        """The version that the device finds at ``place``."""
        pointer = self.device.update(place, self.simulator.now, name)
        return pointer.version if pointer else None

    def path(self, part: str) -> Path:
        """A file of the mirror, by its path or the role that it is the metadata of."""
        named = vars(chain_of(self.mirror)).get(part)
        return self.mirror / (f"metadata/{named}" if named else part)

    def check_kept(self, error: type[Exception] | tuple[type[Exception], ...] = REFUSED) -> None:
        """The device refuses the mirror, and keeps what it has."""
        with pytest.raises(error):
            self.look(self.mirror)
        assert (self.device.held and self.device.held.version, self.device.model) == (3, model_of(3))

    def check_refused(self, error: type[Exception] | tuple[type[Exception], ...] = REFUSED) -> None:
        """The device refuses the mirror, keeps what it has, and still takes 4 from the honest server."""
        self.check_kept(error)
        assert self.look(self.simulator.folder) == 4
        assert self.device.model == model_of(4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power cuts here, and a hundred flushes in every test."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_rollback_to_an_older_state_is_refused(scene: Scene) -> None:
    replay(scene.mirror, scene.older)
    scene.check_refused(BadVersionNumberError)


def test_rollback_of_a_replayed_package_is_refused(scene: Scene) -> None:
    replay(scene.mirror, scene.older)
    content = Repository(scene.older, scene.simulator.keys.online, lambda: scene.simulator.now).package(None)
    shutil.rmtree(scene.mirror)
    for path, file in parse_package(content).items():
        (scene.mirror / path).parent.mkdir(parents=True, exist_ok=True)
        (scene.mirror / path).write_bytes(file)
    scene.check_refused(BadVersionNumberError)


def test_freeze_shows_nothing_newer_and_ends_when_the_timestamp_expires(scene: Scene) -> None:
    frozen = scene.simulator.copy("frozen")
    assert scene.look(frozen) == 4
    scene.simulator.wait(6.9)
    assert scene.look(frozen) == 4
    scene.simulator.wait(0.2)
    with pytest.raises(ExpiredMetadataError):
        scene.look(frozen)
    scene.simulator.repository.refresh()
    assert scene.look(scene.simulator.folder) == 4


@pytest.mark.parametrize("role", ["snapshot", "rounds", "targets"])
def test_mix_and_match_of_two_states_is_refused(scene: Scene, role: str) -> None:
    mix_in(scene.mirror, scene.older, role)
    scene.check_refused()


def test_mix_and_match_of_a_model_with_the_manifest_of_another_release_is_refused(scene: Scene) -> None:
    shutil.copy(scene.mirror / "v0003/model.onnx", scene.mirror / "v0004/model.onnx")
    scene.check_refused(LengthOrHashMismatchError)


def test_fast_forward_without_keys_is_refused(scene: Scene) -> None:
    forge(scene.mirror, {}, scene.simulator.now, number=FAR)
    scene.check_refused(UnsignedMetadataError)


def test_fast_forward_with_stolen_keys_installs_nothing_and_is_undone_by_new_keys(scene: Scene) -> None:
    """Whoever has the keys of timestamp and snapshot can stop updates, until the root names other keys."""
    simulator = scene.simulator
    forge(scene.mirror, online(simulator.keys, "timestamp", "snapshot"), simulator.now, number=FAR)
    assert scene.look(scene.mirror) == 4  # the genuine list of the rounds' role, under a huge number
    with pytest.raises(BadVersionNumberError):
        scene.look(simulator.folder)
    simulator.replace_online_keys(50)
    simulator.publish(5)
    assert scene.look(simulator.folder) == 5
    with pytest.raises(REFUSED):
        scene.look(scene.mirror)


@pytest.mark.parametrize("part", FILES)
def test_endless_data_are_cut_off(scene: Scene, part: str) -> None:
    make_endless(scene.path(part))
    scene.check_refused(DownloadLengthMismatchError)


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("part", FILES[1:])
def test_wrong_length_is_refused(scene: Scene, part: str, by: int) -> None:
    stretch(scene.path(part), by)
    scene.check_refused()


@pytest.mark.parametrize("part", FILES)
def test_one_changed_byte_is_refused(scene: Scene, part: str) -> None:
    flip(scene.path(part))
    scene.check_refused()


@pytest.mark.parametrize("part", FILES)
def test_a_missing_file_is_refused(scene: Scene, part: str) -> None:
    scene.path(part).unlink()
    scene.check_refused()


STOLEN = ["timestamp", "snapshot", "rounds", "timestamp+snapshot", "rounds+timestamp", "rounds+snapshot"]


@pytest.mark.parametrize("stolen", STOLEN)
def test_key_compromise_short_of_all_online_keys_installs_nothing(scene: Scene, stolen: str) -> None:
    """And whatever was spoilt on the way, such as the number of the timestamp, new keys set right."""
    simulator = scene.simulator
    forge(scene.mirror, online(simulator.keys, *stolen.split("+")), simulator.now, (9, *simulator.release(9)))
    scene.check_kept(UnsignedMetadataError)
    simulator.replace_online_keys(50)
    simulator.publish(5)
    assert scene.look(simulator.folder) == 5


def test_key_compromise_of_all_online_keys_releases_but_promotes_nothing(scene: Scene) -> None:
    """On the device the gate, the way back and the promoted floor bound what it can do."""
    simulator = scene.simulator
    stolen = online(simulator.keys, *ONLINE)
    forge(scene.mirror, stolen, simulator.now, (9, *simulator.release(9)))
    assert scene.look(scene.mirror) == 9
    assert scene.look(scene.mirror, PROMOTED) == 3
    forge(scene.mirror, stolen, simulator.now, (9, *simulator.release(9)), name=PROMOTED)
    with pytest.raises(UnsignedMetadataError):
        scene.look(scene.mirror, PROMOTED)


def test_key_compromise_of_the_rounds_role_cannot_sign_outside_its_paths(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path / "releases")  # nothing is promoted: nobody else would answer
    simulator.publish(1)
    mirror = simulator.copy("mirror")
    path = mirror / "metadata" / chain_of(mirror).rounds
    lists = _tuf.parse(Targets, path.read_bytes(), "rounds").signed
    lists.targets[PROMOTED] = lists.targets[LATEST]
    forge_with(mirror, simulator, lists)
    device = StockClient(tmp_path / "device", simulator.root)
    assert device.update(mirror, simulator.now) is not None
    assert device.update(mirror, simulator.now, PROMOTED) is None


def forge_with(mirror: Path, simulator: Simulator, lists: Targets) -> None:
    """Sign ``lists`` as the rounds' role, and what must be signed over it, with stolen keys."""
    stolen = online(simulator.keys, *ONLINE)
    path = mirror / "metadata" / chain_of(mirror).rounds
    path.write_bytes(_tuf.sign(lists, stolen["rounds"]))
    forge(mirror, stolen, simulator.now)


def test_key_compromise_of_the_targets_key_alone_promotes_nothing(scene: Scene) -> None:
    simulator = scene.simulator
    forge(
        scene.mirror,
        {"targets": simulator.keys.targets},
        simulator.now,
        (9, *simulator.release(9)),
        name=PROMOTED,
    )
    scene.check_refused(UnsignedMetadataError)


def test_repository_of_another_federation_is_refused(scene: Scene) -> None:
    keys = seeded_keys(100)
    shutil.rmtree(scene.mirror)
    theirs = Repository(scene.mirror, keys.online, lambda: scene.simulator.now)
    theirs.start(create(scene.simulator.now, 100, 100, keys))
    theirs.publish(*scene.simulator.release(9))
    scene.check_refused(UnsignedMetadataError)


def test_expired_root_is_refused_until_it_is_renewed(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path / "releases", root_days=10)
    device = StockClient(tmp_path / "device", simulator.root)
    simulator.publish(1)
    assert device.update(simulator.folder, simulator.now)
    simulator.wait(11)
    simulator.repository.refresh()
    with pytest.raises(ExpiredMetadataError, match=r"root\.json is expired"):
        device.update(simulator.folder, simulator.now)
    renewed = renew(simulator.folder, simulator.now, simulator.keys.root, simulator.keys.targets)
    install(simulator.folder, renewed)
    simulator.repository.refresh()
    assert device.update(simulator.folder, simulator.now) == device.held


def test_expired_list_of_promoted_releases_is_refused_until_it_is_renewed(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path / "releases", targets_days=10)
    device = StockClient(tmp_path / "device", simulator.root)
    simulator.publish(1)
    simulator.wait(11)
    simulator.repository.refresh()
    with pytest.raises(ExpiredMetadataError, match="targets is expired"):
        device.update(simulator.folder, simulator.now)
    simulator.promote(1)
    assert device.update(simulator.folder, simulator.now, PROMOTED) is not None


def test_root_rotation_is_followed_from_the_first_root_on(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path / "releases")
    behind = StockClient(tmp_path / "behind", simulator.root)
    simulator.publish(1)
    behind.update(simulator.folder, simulator.now)
    for first in (40, 60):
        new = seeded_keys(first)
        metadata = renew(
            simulator.folder,
            simulator.now,
            simulator.keys.root,
            new.targets,
            online=new.online,
            new_root_key=new.root,
        )
        install(simulator.folder, metadata)
        simulator.keys = new
    simulator.repository = Repository(simulator.folder, new.online, clock=lambda: simulator.now)
    simulator.repository.refresh()
    assert behind.update(simulator.folder, simulator.now) is None  # the old key's list counts no more
    simulator.publish(2)
    fresh = StockClient(tmp_path / "fresh", simulator.root)
    for device in (behind, fresh):
        assert device.update(simulator.folder, simulator.now) == device.held
        assert device.model == model_of(2)


@pytest.mark.parametrize("signers", [["thief"], ["root"], ["thief", "other"]], ids="+".join)
def test_root_not_signed_by_the_one_before_and_itself_is_refused(scene: Scene, signers: list[str]) -> None:
    """A root that names the thief's key, signed by the thief alone, by the old key alone, or by strangers."""
    known = {"thief": THIEF, "root": scene.simulator.keys.root, "other": SigningKey.from_seed(b"o" * 32)}
    root = read_trust(scene.mirror).root
    root.version = 2
    for role in root.roles:
        for keyid in root.roles[role].keyids.copy():
            root.revoke_key(keyid, role)
        root.add_key(_tuf.public_key(THIEF), role)
    content = _tuf.sign(root, *(known[name] for name in signers))
    (scene.mirror / "metadata" / "2.root.json").write_bytes(content)
    with pytest.raises(SignatureError, match=r"2\.root\.json is not signed"):
        read_trust(scene.mirror)
    scene.check_refused(UnsignedMetadataError)


def test_root_that_leaves_out_a_version_is_refused(scene: Scene) -> None:
    root = read_trust(scene.mirror).root
    root.version = 3
    content = _tuf.sign(root, scene.simulator.keys.root)
    (scene.mirror / "metadata" / "2.root.json").write_bytes(content)
    scene.check_refused(BadVersionNumberError)


def test_downgrade_through_an_unsigned_delta_is_refused(scene: Scene) -> None:
    change = delta.encode(model_of(3), model_of(1))
    assert change is not None
    files = rounds_of(scene.mirror)
    with pytest.raises(LengthOrHashMismatchError):
        files["v0004/from-0003.delta"].verify_length_and_hashes(change)


def test_downgrade_through_a_delta_signed_with_stolen_keys_is_refused(scene: Scene) -> None:
    """The thief offers release 9 whose delta leads back to release 1: it is not the model that 9 names."""
    simulator = scene.simulator
    change = delta.encode(model_of(3), model_of(1))
    assert change is not None
    stolen, files = online(simulator.keys, *ONLINE), {"from-0003.delta": change}
    forge(scene.mirror, stolen, simulator.now, (9, *simulator.release(9)), files=files)
    listed = rounds_of(scene.mirror)
    listed["v0009/from-0003.delta"].verify_length_and_hashes(change)
    rebuilt = delta.decode(model_of(3), change, 1 << 20)
    assert rebuilt == model_of(1)
    with pytest.raises(LengthOrHashMismatchError):
        listed["v0009/model.onnx"].verify_length_and_hashes(rebuilt)


def test_delta_for_another_base_is_refused_before_its_result_is(scene: Scene) -> None:
    change = (scene.mirror / "v0004/from-0003.delta").read_bytes()
    assert delta.decode(model_of(3), change, 1 << 20) == model_of(4)
    with pytest.raises(PayloadError):
        delta.decode(model_of(2), change, 1 << 20)


def rounds_of(place: Path) -> dict[str, TargetFile]:
    """What the rounds' role lists."""
    content = (place / "metadata" / chain_of(place).rounds).read_bytes()
    return dict(_tuf.parse(Targets, content, "rounds").signed.targets)


def test_attacks_leave_the_honest_path_open(scene: Scene) -> None:
    """The control: what the scene is refused after an attack, it takes without one."""
    assert scene.look(scene.mirror) == 4
    assert scene.device.model == model_of(4)
