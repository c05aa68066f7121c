"""What the offline keys do: promote what the server signed and nothing else, replace keys, renew them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedge.errors import ReleaseError, SetupError, SignatureError
from fedge.release import folder, offline
from fedge.release.chain import read_chain
from fedge.release.keys import Keys, OnlineKeys
from fedge.release.offline import create, promote, renew
from fedge.release.pointer import Pointer
from fedge.release.trust import install, read_trust, trust_of

from .simulator import DAY, Simulator, flip, model_of, seeded_keys


@pytest.fixture
def simulator(tmp_path: Path) -> Simulator:
    made = Simulator(tmp_path / "releases")
    for version in (1, 2, 3):
        made.publish(version)
    return made


def promoted(simulator: Simulator) -> Pointer | None:
    return read_trust(simulator.folder).promoted


def test_promoted_releases_form_a_chain_of_deltas(simulator: Simulator) -> None:
    for version, bases in ((1, ()), (3, (1,))):
        pointer = promote(simulator.folder, simulator.keys.targets, version, simulator.now)
        assert pointer == promoted(simulator) == Pointer(version, bases)
    simulator.publish(4)
    simulator.publish(5)
    simulator.publish(6)
    simulator.promote(6)
    assert promoted(simulator) == Pointer(6, (3,))
    assert read_chain(simulator.folder).latest == Pointer(6, (3, 4, 5))


def test_promoting_the_promoted_one_again_renews_it(simulator: Simulator) -> None:
    simulator.promote(1)
    simulator.promote(3)
    first = read_trust(simulator.folder).targets
    simulator.wait(100)
    simulator.promote(3)
    again = read_trust(simulator.folder).targets
    assert again.targets == first.targets
    assert (again.expires - first.expires).days == 100
    assert again.version == first.version + 1


def test_nothing_below_the_promoted_one_is_promoted(simulator: Simulator) -> None:
    simulator.promote(2)
    with pytest.raises(ReleaseError, match="no device goes below it"):
        simulator.promote(1)
    assert promoted(simulator) == Pointer(2)


@pytest.mark.parametrize("version", [0, 4, -1, 10**15])
def test_unknown_release_is_not_promoted(simulator: Simulator, version: int) -> None:
    with pytest.raises(ReleaseError, match="there are: 1, 2, 3"):
        simulator.promote(version)


def test_expired_release_is_not_promoted(simulator: Simulator) -> None:
    simulator.wait(400)
    with pytest.raises(ReleaseError, match="has expired"):
        promote(simulator.folder, simulator.keys.targets, 1, simulator.now)


def test_key_that_is_not_the_offline_one_promotes_nothing(simulator: Simulator) -> None:
    for key in (simulator.keys.root, simulator.keys.online.rounds):
        with pytest.raises(SetupError, match="trusts for targets"):
            promote(simulator.folder, key, 1, simulator.now)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_damaged_release_is_not_promoted(simulator: Simulator, name: str) -> None:
    flip(simulator.folder / "v0002" / name)
    with pytest.raises(ReleaseError):
        simulator.promote(2)


def test_release_that_the_server_never_signed_is_not_promoted(simulator: Simulator) -> None:
    """Who can only write to the folder puts another one there, whole in itself."""
    manifest, model = simulator.release(2, model_of(77))
    place = simulator.folder / "v0002"
    (place / "manifest.json").write_bytes(manifest)
    (place / "model.onnx").write_bytes(model)
    with pytest.raises(ReleaseError, match="never signed"):
        simulator.promote(2)
    files = dict(zip(["manifest.json", "model.onnx"], simulator.release(4), strict=True))
    folder.add_release(simulator.folder, 4, files, {"card.md": b""})
    with pytest.raises(ReleaseError, match="never signed"):
        simulator.promote(4)


def test_release_in_the_folder_of_another_is_not_promoted(simulator: Simulator) -> None:
    (simulator.folder / "v0003").rename(simulator.folder / "v0009")
    with pytest.raises(ReleaseError, match="holds release 3"):
        simulator.promote(9)


def test_release_signed_with_a_key_that_was_replaced_is_not_promoted(simulator: Simulator) -> None:
    simulator.replace_online_keys(50)
    with pytest.raises(SignatureError):
        simulator.promote(3)
    simulator.publish(4)
    simulator.promote(4)


def test_renewed_trust_keeps_keys_and_promotion(simulator: Simulator) -> None:
    simulator.promote(2)
    before = read_trust(simulator.folder)
    renewed = renew(simulator.folder, simulator.now + 10 * DAY, simulator.keys.root, simulator.keys.targets)
    assert set(renewed) == {"2.root.json", "3.targets.json"}
    after = install(simulator.folder, renewed)
    assert after.promoted == before.promoted == Pointer(2)
    assert {r: k.keyids for r, k in after.root.roles.items()} == {
        r: k.keyids for r, k in before.root.roles.items()
    }
    assert after.targets.delegations == before.targets.delegations
    assert after.root.expires.timestamp() == int(simulator.now + 10 * DAY + 730 * DAY)


def test_renewing_with_another_key_than_the_one_in_force_is_refused(simulator: Simulator) -> None:
    with pytest.raises(SetupError, match="trusts for root"):
        renew(simulator.folder, simulator.now, seeded_keys(9).root, simulator.keys.targets)


def test_replaced_keys_sign_nothing_any_more(simulator: Simulator) -> None:
    new = seeded_keys(50)
    renewed = renew(
        simulator.folder,
        simulator.now,
        simulator.keys.root,
        new.targets,
        online=new.online,
        new_root_key=new.root,
    )
    install(simulator.folder, renewed)
    with pytest.raises(SetupError):
        simulator.repository.refresh()
    with pytest.raises(SetupError):
        renew(simulator.folder, simulator.now, simulator.keys.root, new.targets)
    with pytest.raises(SetupError):
        promote(simulator.folder, simulator.keys.targets, 1, simulator.now)
    named = {k for role in read_trust(simulator.folder).root.roles.values() for k in role.keyids}
    old = {k for role in trust_of(simulator.first).root.roles.values() for k in role.keyids}
    assert not named & old
    assert set(read_trust(simulator.folder).root.keys) == named


def without_root(metadata: dict[str, bytes]) -> dict[str, bytes]:
    return {"1.targets.json": metadata["1.targets.json"]}


def without_targets(metadata: dict[str, bytes]) -> dict[str, bytes]:
    return {"1.root.json": metadata["1.root.json"]}


def another_number(metadata: dict[str, bytes]) -> dict[str, bytes]:
    return {"1.root.json": metadata["1.root.json"], "2.targets.json": metadata["1.targets.json"]}


def swapped(metadata: dict[str, bytes]) -> dict[str, bytes]:
    return {"1.root.json": metadata["1.targets.json"], "1.targets.json": metadata["1.root.json"]}


@pytest.mark.parametrize("wrong", [without_root, without_targets, another_number, swapped])
def test_metadata_that_do_not_belong_together_are_refused(
    wrong: Callable[[dict[str, bytes]], dict[str, bytes]],
) -> None:
    whole = create(1.6e9, 10, 10, seeded_keys())
    assert trust_of(whole).root.version == 1
    with pytest.raises((ReleaseError, SignatureError)):
        trust_of(wrong(whole))


def test_metadata_hold_no_private_key_and_expire_as_asked() -> None:
    keys = seeded_keys()
    metadata = create(1.6e9, 10, 20, keys)
    trust = trust_of(metadata)
    assert trust.root.expires.timestamp() == 1.6e9 + 10 * DAY
    assert trust.targets.expires.timestamp() == 1.6e9 + 20 * DAY
    seeds = [bytes([i]) * 32 for i in range(5)]
    assert not any(seed.hex().encode() in content for seed in seeds for content in metadata.values())


def test_keys_are_saved_apart_and_read_again(tmp_path: Path) -> None:
    offline_, online_ = tmp_path / "offline", tmp_path / "online"
    for place in (offline_, online_):
        place.mkdir()
    keys = Keys.generate()
    keys.save(offline_, online_)
    assert sorted(p.name for p in offline_.iterdir()) == ["root.key", "targets.key"]
    assert sorted(p.name for p in online_.iterdir()) == ["rounds.key", "snapshot.key", "timestamp.key"]
    again = OnlineKeys.load(online_)
    for name in ("snapshot", "timestamp", "rounds"):
        assert getattr(again, name).public == getattr(keys.online, name).public
    with pytest.raises(SetupError, match="never overwritten"):
        keys.save(offline_, online_)
    with pytest.raises(SetupError):
        OnlineKeys.load(offline_)


def test_five_different_keys_are_made() -> None:
    keys = Keys.generate()
    every = [keys.root, keys.targets, keys.online.snapshot, keys.online.timestamp, keys.online.rounds]
    assert len({key.public for key in every}) == 5
    assert offline.ROOT_DAYS > offline.TARGETS_DAYS
