"""A device takes what is newer and no worse, in whatever way it comes; and tells why it does not."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from fedge.edge import home as home_module
from fedge.edge.disk import FolderDisk, MemoryDisk
from fedge.edge.home import Home, Seen
from fedge.edge.runtime import Runtime
from fedge.edge.sources import FetchError, FolderSource, PackageSource
from fedge.edge.watch import WatchRules
from fedge.errors import DataError, SetupError
from fedge.release.manifest import Input, SelfTest
from fedge.release.package import parse_package

from .build import CHANNELS, TIME, WEIGHTS, mean_times_weights, model, preprocessing, windows
from .build import FITTED as PREPROCESS
from .lab import INPUTS, UNLABELLED, Device, Federation, answers, content_of, facts, labelled, weights_of


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path / "releases")


@pytest.fixture(params=["folder", "memory"])
def device(request: pytest.FixtureRequest, federation: Federation, tmp_path: Path) -> Device:
    disk = FolderDisk(tmp_path / "home") if request.param == "folder" else MemoryDisk()
    return Device(federation, disk)


class Counted:
    """A source that counts what is fetched from it."""

    def __init__(self, folder: Path) -> None:
        self._inner, self.paths = FolderSource(folder), list[str]()

    def fetch(self, path: str, limit: int) -> bytes:
        self.paths.append(path)
        return self._inner.fetch(path, limit)


def test_releases_are_taken_one_after_the_other(federation: Federation, device: Device) -> None:
    assert device.update().code == "nothing"
    for version in range(1, 5):
        federation.good(version)
        outcome = device.update()
        assert (outcome.version, outcome.taken) == (version, True)
        assert outcome.code == ("no_current" if version == 1 else "not_worse")
        assert device.version == version
        assert answers(device.home)
        assert device.update().code == "up_to_date"
    assert device.home.model(3) == content_of(3)


def test_worse_release_is_refused_with_its_numbers_and_not_fetched_again(
    federation: Federation, device: Device
) -> None:
    federation.good(1)
    device.update()
    federation.bad(2)
    outcome = device.update()
    assert (outcome.version, outcome.taken, outcome.code) == (2, False, "worse")
    assert (outcome.current_score, outcome.candidate_score, outcome.windows) == (1.0, 0.0, 60)
    source = Counted(federation.folder)
    assert device.update(source).code == "tried_before"
    assert not [p for p in source.paths if p.startswith("v")]
    federation.good(3)
    assert device.update().taken


def test_device_that_is_up_to_date_fetches_one_small_file(federation: Federation, device: Device) -> None:
    federation.good(1)
    device.update()
    source = Counted(federation.folder)
    assert device.update(source).code == "up_to_date"
    assert source.paths == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_model_comes_as_a_delta_from_what_is_here(federation: Federation, device: Device) -> None:
    for version in (1, 2, 3):
        federation.good(version)
        source = Counted(federation.folder)
        assert device.update(source).taken
        fetched = {p.rpartition("/")[2] for p in source.paths if p.startswith("v")}
        wanted = "model.onnx" if version == 1 else f"from-{version - 1:04d}.delta"
        assert fetched == {"manifest.json", wanted}
        assert device.home.model(version) == content_of(version)


def test_delta_may_start_from_the_model_in_the_other_slot(federation: Federation, device: Device) -> None:
    """After going back from 2 to 1, release 3 comes as a delta from 1; the whole model is not even there."""
    for version in (1, 2):
        federation.good(version)
        device.update()
    device.home.rollback()
    federation.good(3)
    (federation.folder / "v0003" / "model.onnx").unlink()
    (federation.folder / "v0003" / "from-0001.delta").unlink()
    assert device.update().taken
    assert device.home.model(3) == content_of(3)


def test_device_that_was_away_takes_the_whole_model(federation: Federation, device: Device) -> None:
    federation.good(1)
    device.update()
    for version in range(2, 9):
        federation.good(version)
    source = Counted(federation.folder)
    assert device.update(source).taken
    assert "v0008/model.onnx" in source.paths
    assert device.version == 8


def test_damaged_base_of_a_delta_is_no_obstacle(federation: Federation, tmp_path: Path) -> None:
    device = Device(federation, tmp_path / "home")
    federation.good(1)
    device.update()
    (tmp_path / "home" / "b.onnx").write_bytes(b"worn out")
    (tmp_path / "home" / "a.onnx").write_bytes(b"worn out")
    federation.good(2)
    assert device.update().taken
    assert device.version == 2


@pytest.mark.parametrize("held", [None, 1])
def test_everything_may_come_in_one_package(federation: Federation, device: Device, held: int | None) -> None:
    federation.good(1)
    if held is not None:
        device.update()
    federation.good(2)
    current = device.home.current()
    base = None if current is None else current.manifest.to_bytes()
    files = parse_package(federation.repository.package(held), base)
    assert ("v0002/model.onnx" in files) == (held is None)
    assert device.update(PackageSource(files)).taken
    assert device.version == 2


def test_promoted_release_is_taken_by_those_who_insist_and_no_other(
    federation: Federation, tmp_path: Path
) -> None:
    careful = Device(federation, tmp_path / "careful", insist=True)
    federation.good(1)
    assert careful.update().code == "nothing"
    for version in (2, 3, 4):
        federation.good(version)
    federation.promote(3)
    assert careful.update().version == 3
    assert careful.update().code == "up_to_date"
    federation.good(5)
    federation.promote(5)
    source = Counted(federation.folder)
    assert careful.update(source).version == 5
    assert "v0005/from-0003.delta" in source.paths


def test_damaged_current_model_is_fetched_again(federation: Federation, device: Device) -> None:
    for version in (1, 2):
        federation.good(version)
        device.update()
    slot = device.home.slots().active
    device.disk.replace(f"{slot}.onnx", b"worn out")
    assert device.version == 1
    outcome = device.update()
    assert (outcome.version, outcome.taken) == (2, True)
    assert device.version == 2
    assert [f.code for f in device.home.slots().findings] == []


def test_device_with_nothing_left_takes_the_release_again(federation: Federation, device: Device) -> None:
    for version in (1, 2):
        federation.good(version)
        device.update()
    for slot in "ab":
        device.disk.replace(f"{slot}.json", b"worn out")
    assert device.home.current() is None
    assert device.update().taken
    assert device.version == 2


def test_pinned_device_changes_nothing_and_fetches_nothing(federation: Federation, device: Device) -> None:
    federation.good(1)
    device.update()
    device.home.pin(1)
    federation.good(2)
    source = Counted(federation.folder)
    assert device.update(source).code == "pinned"
    assert source.paths == []
    device.home.unpin()
    assert device.update().taken


def test_release_that_fails_live_goes_back_and_is_not_taken_again(
    federation: Federation, device: Device
) -> None:
    for version in (1, 2):
        federation.good(version)
        device.update()
    assert device.home.observe(Seen(2, errors=30)) is not None
    assert device.version == 1
    outcome = device.update()
    assert outcome.code == "tried_before"
    assert "fails on too large a share" in outcome.reason
    federation.good(3)
    assert device.update().taken


def test_model_is_held_to_what_the_gate_measured(federation: Federation, device: Device) -> None:
    timed = replace(INPUTS, latency_factor=2.0, timer=lambda models, _: [75.0] * len(models))
    for version in (1, 2):
        federation.good(version)
        assert device.update(test=timed).latency_us == 75.0
    promise = device.home.slots().watch.promise
    assert (promise.latency_us, promise.score, promise.unit) == (75.0, 1.0, 1.0)


def test_without_labels_at_the_gate_the_next_model_is_held_to_the_current_ones_live_score(
    federation: Federation, device: Device
) -> None:
    federation.good(1)
    device.update(test=UNLABELLED)
    device.home.observe(Seen(1, answers=40, score=0.875, windows=40))
    federation.good(2)
    device.update(test=UNLABELLED)
    assert device.home.slots().watch.promise.score == 0.875


def test_device_that_joins_another_federation_starts_anew_and_keeps_its_model(
    federation: Federation, device: Device, tmp_path: Path
) -> None:
    for version in range(1, 6):
        federation.good(version)
    device.update()
    other = Federation(tmp_path / "other", first=100)
    moved = Device(other, device.disk, name="cd" * 16)
    assert moved.update().code == "nothing"
    assert moved.version == 5
    other.good(1, federation="cd" * 16)
    assert moved.update().taken
    assert moved.version == 1
    assert moved.update().code == "up_to_date"


class ProcessGoneError(BaseException):
    """Stands for a kill: nobody catches it."""


def dying(error: BaseException) -> Callable[[Sequence[Runtime], NDArray[Any]], list[float]]:
    def timer(*_: object) -> list[float]:
        raise error

    return timer


def test_model_that_ends_the_process_in_the_gate_is_not_tried_again(
    federation: Federation, device: Device
) -> None:
    federation.good(1)
    device.update()
    federation.good(2)
    with pytest.raises(ProcessGoneError):
        device.update(test=replace(INPUTS, latency_factor=2.0, timer=dying(ProcessGoneError())))
    again = Device(federation, device.disk)
    outcome = again.update()
    assert outcome.code == "tried_before"
    assert "ended the process" in outcome.reason
    assert again.version == 1
    federation.good(3)
    assert again.update().taken


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), DataError("own"), SetupError("own")])
def test_test_that_was_broken_off_is_no_fault_of_the_release(
    federation: Federation, device: Device, error: BaseException
) -> None:
    federation.good(1)
    device.update()
    federation.good(2)
    with pytest.raises(type(error)):
        device.update(test=replace(INPUTS, latency_factor=2.0, timer=dying(error)))
    assert device.version == 1
    assert Device(federation, device.disk).update().taken


def test_home_that_changes_during_the_test_is_left_alone(federation: Federation, device: Device) -> None:
    for version in (1, 2):
        federation.good(version)
        device.update()
    federation.good(3)

    def meanwhile(models: Sequence[Runtime], _: NDArray[Any]) -> list[float]:
        Home(device.disk).rollback()
        return [50.0] * len(models)

    outcome = device.update(test=replace(INPUTS, latency_factor=2.0, timer=meanwhile))
    assert (outcome.code, device.version) == ("changed", 1)
    assert device.update().taken


def test_second_updater_is_told_that_there_is_one(federation: Federation, tmp_path: Path) -> None:
    device = Device(federation, tmp_path / "home")
    federation.good(1)
    with device.disk.exclusive("update"), pytest.raises(SetupError, match="another process"):
        Device(federation, tmp_path / "home").update()


def test_server_that_cannot_be_reached_changes_nothing(federation: Federation, device: Device) -> None:
    federation.good(1)
    device.update()
    for source in (FolderSource(Path("/nonexistent")), PackageSource({})):
        with pytest.raises(FetchError):
            device.updater.update(source, INPUTS)
    assert device.version == 1


def publish(federation: Federation, content: bytes, version: int = 2, **changes: Any) -> None:
    federation.publish(version, content, **{**facts(weights_of(version)), **changes})


def wrong_shape(federation: Federation) -> None:
    x = np.ones((3, TIME + 1, CHANNELS), np.float32)
    front, constants = preprocessing(PREPROCESS)
    longer = model(
        [*front, *mean_times_weights(window="clipped")],
        input_=("window", 1, ("batch", TIME + 1, CHANNELS)),
        more=constants,
    ).SerializeToString()
    test = SelfTest.of(x, Runtime(longer).predict(x), 1e-2)
    publish(federation, longer, input=Input((TIME + 1, CHANNELS), ("a", "b")), self_test=test)


def answers_nan(federation: Federation) -> None:
    publish(federation, model(weights=np.full_like(WEIGHTS, np.nan)).SerializeToString())


def answers_nan_here_only(federation: Federation, version: int = 2) -> None:
    """It passes its self-test; on this device's windows the logarithm of a negative number is taken."""
    front, constants = preprocessing(PREPROCESS)
    first, second = mean_times_weights("flat", "clipped")
    nodes = [*front, first, second, helper.make_node("Log", ["flat"], ["scores"])]
    content = model(nodes, weights=np.ones_like(WEIGHTS), more=constants).SerializeToString()
    x = np.abs(windows(3, seed=9)) + 20
    test = SelfTest.of(x, Runtime(content).predict(x), 1e-2)
    publish(federation, content, version, self_test=test)


def does_not_open(federation: Federation) -> None:
    publish(federation, b"no ONNX file")


def lies_about_itself(federation: Federation) -> None:
    publish(federation, content_of(2), classes=("x", "y"), self_test=_two_classes())


def _two_classes() -> SelfTest:
    return SelfTest.of(windows(3, seed=9), np.zeros((3, 2), np.float32), 1.0)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (wrong_shape, "does_not_fit"),
        (answers_nan, "self_test"),
        (answers_nan_here_only, "not_scored"),
        (does_not_open, "does_not_open"),
        (lies_about_itself, "does_not_open"),
    ],
)
@pytest.mark.parametrize("test", [INPUTS, replace(UNLABELLED, recent=labelled().x)])
def test_genuine_model_that_does_not_work_here_is_refused(
    federation: Federation, device: Device, make: Callable[[Federation], None], code: str, test: Any
) -> None:
    federation.good(1)
    assert device.update(test=test).taken
    make(federation)
    outcome = device.update(test=test)
    assert (outcome.taken, outcome.code) == (False, code)
    assert device.version == 1
    assert answers(device.home)


def test_genuine_model_that_is_slow_here_is_refused(federation: Federation, device: Device) -> None:
    federation.good(1)
    device.update()
    federation.good(2)

    def timer(models: Sequence[Runtime], _: NDArray[Any]) -> list[float]:
        return [251.0, 100.0][: len(models)]

    outcome = device.update(test=replace(INPUTS, latency_factor=2.0, latency_slack_us=50.0, timer=timer))
    assert (outcome.taken, outcome.code, outcome.latency_us) == (False, "slow", 251.0)
    assert device.home.slots().findings[-1].value == 251.0


def test_names_of_files_stay_those_that_are_written_down() -> None:
    assert home_module.__doc__ is not None
    for name in (home_module.STATE, home_module.TRUST, "a.onnx", "b.json"):
        assert name in home_module.__doc__


def test_rules_of_the_watch_are_the_devices_own(federation: Federation, tmp_path: Path) -> None:
    patient = Device(federation, tmp_path / "home", WatchRules(error_share=0.6))
    for version in (1, 2):
        federation.good(version)
        patient.update()
    assert patient.home.observe(Seen(2, answers=50, errors=50)) is None
    assert patient.home.observe(Seen(2, errors=50)) is not None
