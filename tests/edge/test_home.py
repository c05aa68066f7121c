"""A device's home: there is a model whatever happens to the disk, and what fails live goes back by itself."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.edge import slots
from fedge.edge.disk import Disk, FolderDisk, MemoryDisk
from fedge.edge.home import ChangedError, Home, Installed, Seen
from fedge.edge.slots import Slots
from fedge.edge.watch import Promise, WatchRules
from fedge.errors import ReleaseError, SetupError

from .build import manifest, model
from .lab import content_of, facts, weights_of

RULES = WatchRules()


class ReadOnly(FolderDisk):
    """A folder that this user may not write."""

    def exclusive(self, what: str, *, wait: bool = True) -> Any:
        raise SetupError(f"read-only: {what}, {wait}")

    def replace(self, name: str, content: bytes) -> None:
        raise SetupError(f"read-only: {name}, {len(content)} bytes")


def release(version: int) -> tuple[bytes, bytes]:
    content = content_of(version)
    made = manifest(content, version=version, **facts(weights_of(version)))
    return made.to_bytes(), content


def install(home: Home, version: int, promise: Promise | None = None) -> None:
    base = home.change(lambda s: slots.attempted(s, version))
    home.install(base, *release(version), promise or Promise(40.0, 0.9))


@pytest.fixture(params=["folder", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return FolderDisk(tmp_path / "state" / "model") if request.param == "folder" else MemoryDisk()


@pytest.fixture
def home(disk: Disk) -> Home:
    made = Home(disk, RULES)
    for version in (1, 2):
        install(made, version)
    return made


def version_of(home: Home) -> int:
    found = home.current()
    return 0 if found is None else found.version


def damage(disk: Disk, name: str) -> None:
    content = disk.read(name, 1 << 26)
    assert content is not None
    middle = len(content) // 2
    disk.replace(name, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def test_new_device_has_no_model_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home = Home(FolderDisk(tmp_path / "home"))
    assert home.current() is None
    assert home.slots() == Slots()
    assert home.stamp() is None
    assert not (tmp_path / "home").exists()


def test_what_is_installed_is_what_was_given(home: Home) -> None:
    found = home.current()
    assert isinstance(found, Installed)
    assert (found.manifest.to_bytes(), found.model) == release(2)
    assert home.model(1) == release(1)[1]
    assert home.model(3) is None


@pytest.mark.parametrize("file", ["b.onnx", "b.json"])
def test_damaged_slot_gives_way_to_the_other(home: Home, disk: Disk, file: str) -> None:
    damage(disk, file)
    assert version_of(home) == 1
    disk.remove(file)
    assert version_of(home) == 1
    damage(disk, "a.onnx")
    assert home.current() is None


def test_damaged_model_is_on_trial_no_more_and_may_come_again(home: Home, disk: Disk) -> None:
    assert home.settle() is None
    damage(disk, "b.onnx")
    assert home.slots().trial
    assert home.settle() == 2
    state = home.slots()
    assert (version_of(home), state.trial, state.earlier) == (1, False, None)
    assert [f.code for f in state.findings] == ["damaged"]
    assert state.lost is not None
    assert home.settle() is None


def test_home_with_nothing_whole_is_left_as_it_is(home: Home, disk: Disk) -> None:
    before = home.slots()
    damage(disk, "a.onnx")
    damage(disk, "b.onnx")
    assert home.settle() is None
    assert home.slots() == before  # so whoever opens it can say what was here


@pytest.mark.parametrize("harm", ["damaged", "removed", "empty"])
def test_damaged_state_still_leads_to_the_newest_whole_model(home: Home, disk: Disk, harm: str) -> None:
    if harm == "damaged":
        damage(disk, "state.json")
    elif harm == "removed":
        disk.remove("state.json")
    else:
        disk.replace("state.json", b"")
    assert version_of(home) == 2
    assert home.slots().highest == 2
    install(home, 3)
    assert version_of(home) == 3
    assert home.model(2) is not None, "the older of the two was given up"


def test_model_that_is_not_the_manifests_is_not_guessed_to_be_one(home: Home, disk: Disk) -> None:
    disk.replace("b.onnx", content_of(7))
    disk.replace("state.json", b"gone")
    assert version_of(home) == 1


def test_file_that_has_grown_beyond_all_bounds_is_not_read(tmp_path: Path) -> None:
    home = Home(FolderDisk(tmp_path / "home"))
    install(home, 1)
    with (tmp_path / "home" / "state.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert version_of(home) == 1
    with (tmp_path / "home" / "a.onnx").open("r+b") as file:
        file.truncate(1 << 40)
    assert home.current() is None


def test_stamp_changes_with_the_model_and_not_by_itself(home: Home) -> None:
    before = home.stamp()
    assert home.stamp() == before
    home.rollback()
    assert home.stamp() != before


def test_rollback_goes_back_and_forth_and_says_what_is_here(home: Home) -> None:
    assert home.rollback() == 1
    with pytest.raises(ReleaseError, match="no earlier"):
        home.rollback()
    with pytest.raises(ReleaseError, match="does not hold release 9; it holds: 1, 2"):
        home.rollback(9)
    assert home.rollback(to=2) == 2
    assert version_of(home) == 2


def test_rollback_to_a_damaged_model_is_refused(home: Home, disk: Disk) -> None:
    damage(disk, "a.onnx")
    with pytest.raises(ReleaseError, match="damaged"):
        home.rollback()
    assert version_of(home) == 2


def test_pinned_device_keeps_its_model_until_it_is_unpinned(home: Home) -> None:
    home.pin(1)
    assert (version_of(home), home.slots().pinned) == (1, True)
    with pytest.raises(ChangedError):
        home.install(home.slots(), *release(3), Promise())
    home.pin(2)
    assert home.observe(Seen(2, errors=100)) is None
    assert version_of(home) == 2
    home.unpin()
    assert home.observe(Seen(2, errors=100)) is not None
    assert version_of(home) == 1


def test_release_is_not_installed_over_another_than_it_was_compared_with(home: Home) -> None:
    base = home.slots()
    home.rollback()
    with pytest.raises(ChangedError):
        home.install(base, *release(3), Promise())
    assert version_of(home) == 1


FAILURES: dict[str, Callable[[Home, int], str | None]] = {
    "live_errors": lambda home, v: home.observe(Seen(v, answers=10, errors=10)),
    "live_slow": lambda home, v: [home.observe(Seen(v, 1, latency_us=9e3)) for _ in range(3)][-1],
    "live_worse": lambda home, v: home.observe(Seen(v, answers=60, score=0.4, windows=60)),
    "dies_on_start": lambda home, v: [home.started(v) for _ in range(4)][-1],
}


@pytest.mark.parametrize("code", FAILURES)
def test_what_fails_live_goes_back_by_itself_and_says_so_in_numbers(home: Home, code: str) -> None:
    reason = FAILURES[code](home, 2)
    assert version_of(home) == 1
    assert reason is not None
    assert reason.endswith("back to release 1")
    (finding,) = home.slots().findings
    assert (finding.version, finding.code) == (2, code)
    assert finding.value is not None


def test_100_releases_that_fail_after_going_live_are_100_returned_by_themselves() -> None:
    home = Home(MemoryDisk(), RULES)
    install(home, 1)
    returned = 0
    for version in range(2, 102):
        install(home, version)
        assert version_of(home) == version
        FAILURES[list(FAILURES)[version % 4]](home, version)
        returned += version_of(home) == 1
    assert returned == 100
    assert home.slots().highest == 101


def test_only_model_of_a_device_stays_whatever_is_seen(disk: Disk) -> None:
    home = Home(disk, RULES)
    install(home, 1)
    for failure in FAILURES.values():
        assert failure(home, 1) is None
    assert version_of(home) == 1


def test_device_does_not_go_back_to_a_damaged_model(home: Home, disk: Disk) -> None:
    damage(disk, "a.onnx")
    assert home.observe(Seen(2, errors=100)) is None
    assert version_of(home) == 2


def test_what_was_seen_of_another_model_says_nothing(home: Home) -> None:
    assert home.observe(Seen(1, errors=100)) is None
    assert home.started(1) is None
    home.confirmed(1)
    assert home.slots() == replace(home.slots(), trial=True)
    assert version_of(home) == 2


def test_starts_count_until_the_first_answer_and_during_the_trial_only(home: Home) -> None:
    for _ in range(10):
        assert home.started(2) is None
        home.confirmed(2)
    home.observe(Seen(2, answers=RULES.trial_answers))
    assert not home.slots().trial
    for _ in range(10):
        assert home.started(2) is None
    assert version_of(home) == 2


@pytest.mark.usefixtures("home")
def test_failures_of_processes_that_share_a_home_add_up(disk: Disk) -> None:
    others = [Home(disk, RULES) for _ in range(10)]
    said = [other.observe(Seen(2, answers=1, errors=1)) for other in others]
    assert [s is not None for s in said] == [False] * 9 + [True]


def test_plain_answers_after_the_trial_are_not_worth_a_write_each(home: Home, disk: Disk) -> None:
    home.observe(Seen(2, answers=1000))
    before = disk.stamp("state.json")
    for _ in range(20):
        home.observe(Seen(2, answers=1, latency_us=50.0))
    assert disk.stamp("state.json") == before
    assert home.observe(Seen(2, errors=1)) is None
    assert home.slots().watch.total == 1020, "they are told with the next thing that matters"


def test_what_was_counted_long_ago_fades(home: Home) -> None:
    home.observe(Seen(2, answers=1_000_000))
    watch = home.slots().watch
    assert (watch.total, watch.errors) == (1_000_000, 0)
    assert watch.answers <= 1024
    assert home.observe(Seen(2, errors=60)) is not None


def test_home_that_may_only_be_read_still_gives_its_model(tmp_path: Path) -> None:
    install(Home(FolderDisk(tmp_path)), 1)
    home = Home(ReadOnly(tmp_path))
    assert version_of(home) == 1
    with pytest.raises(SetupError, match="read-only"):
        home.rollback()


def test_reader_never_sees_half_a_change(tmp_path: Path) -> None:
    """One thread installs release after release, another looks all the while."""
    disk = FolderDisk(tmp_path)
    home = Home(disk)
    install(home, 1)
    seen, stop = list[int](), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(version_of(Home(disk)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(2, 30):
            install(home, version)
    finally:
        stop.set()
        reader.join()
    assert seen == sorted(seen)
    assert 0 not in seen


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    """Nothing is lost between the reading and the writing of the state."""
    disk = FolderDisk(tmp_path)
    install(Home(disk), 1)

    def count() -> None:
        mine = Home(disk)
        for _ in range(25):
            mine.observe(Seen(1, errors=1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Home(disk).slots().watch.errors == 100


def test_home_becomes_part_of_a_clients_state_and_back() -> None:
    disk = MemoryDisk()
    install(Home(disk), 1)
    again = MemoryDisk.from_bytes(disk.to_bytes())
    assert Home(again).current() == Home(disk).current()
    assert again.to_bytes() == disk.to_bytes()


def test_models_answer(home: Home) -> None:
    from fedge.edge.runtime import Runtime

    found = home.current()
    assert found is not None
    x = np.ones((1, 8, 2), np.float32)
    expected = Runtime(model(weights=weights_of(2)).SerializeToString()).predict(x)
    assert (Runtime(found.model).predict(x) == expected).all()


def test_device_that_only_answers_loads_nothing_of_what_updates() -> None:
    command = "import sys; from fedge.edge import home; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True)
    modules = set(loaded.stdout.split())
    assert "fedge.edge.home" in modules
    assert not modules & {"tuf", "securesystemslib", "urllib3", "cryptography", "onnxruntime", "ssl"}
