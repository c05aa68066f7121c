"""The power is cut at every file operation: the old model or the new one, and no version that falls."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedge.edge import _state_file
from fedge.edge.disk import FolderDisk
from fedge.edge.home import STATE, Installed, Seen
from fedge.edge.slots import Slots
from fedge.errors import PayloadError

from .lab import Device, Federation, content_of
from .powercut import (
    FlushFolder,
    Fsync,
    Operation,
    Recorder,
    Rename,
    Unlink,
    recorded,
    restore,
    snapshot,
    states,
)


@dataclass
class Cut:
    """Something that was done to a device's home, and every state that a power cut may leave of it."""

    federation: Federation
    before: Mapping[str, bytes]
    done: list[Operation]
    old: Installed | None
    new: Installed | None
    folder: Path

    def devices(self, done: list[Operation] | None = None) -> Any:
        """The device after each power cut, in a folder that was restored from that state."""
        for number, (prefix, files) in enumerate(states(self.before, self.done if done is None else done)):
            place = self.folder / f"cut{number}"
            restore(place, files)
            yield prefix, Device(self.federation, place)

    def broken(self, done: list[Operation]) -> int:
        """In how many states the model is neither the old one nor the new one, or had to be guessed.

        After the last operation, all else than the new one is wrong.
        """
        count = 0
        for prefix, device in self.devices(done):
            late = prefix == len(done) and device.home.current() != self.new
            count += late or not self.is_sound(device)
        return count

    def is_sound(self, device: Device) -> bool:
        """Whether a device has the old model or the new one, and nothing had to be guessed."""
        state = device.disk.read(STATE, 1 << 16)
        try:
            parsed = Slots() if state is None else _state_file.parse(state)
        except PayloadError:
            return False
        return parsed == device.home.slots() and device.home.current() in (self.old, self.new)


def cut(tmp_path: Path, held: int, act: Callable[[Device], object]) -> Cut:
    """Publish and take ``held`` releases, publish the next, and record what ``act`` does."""
    federation = Federation(tmp_path / "releases")
    device = Device(federation, tmp_path / "home")
    device.home.disk.replace("unrelated", b"of somebody else")
    for version in range(1, held + 1):
        federation.good(version)
        assert device.update().taken
    federation.good(held + 1)
    before, old = snapshot(tmp_path / "home"), device.home.current()
    with recorded(tmp_path / "home") as recorder:
        act(device)
    assert replayed(before, recorder) == snapshot(tmp_path / "home"), "something was written beside the seam"
    return Cut(federation, before, recorder.done, old, device.home.current(), tmp_path)


def replayed(before: Mapping[str, bytes], recorder: Recorder) -> dict[str, bytes]:
    *_, (prefix, files) = states(before, recorder.done)
    assert prefix == len(recorder.done)
    return files


def take(device: Device) -> None:
    assert device.update().taken


def watched_back(device: Device) -> None:
    current = device.version
    assert device.home.observe(Seen(current, answers=0, errors=20)) is not None


def by_hand(device: Device) -> None:
    device.home.rollback()


ACTS = {
    "first": (0, take),
    "second": (1, take),
    "third": (2, take),
    "watch": (2, watched_back),
    "hand": (2, by_hand),
}


@pytest.mark.parametrize("name", ACTS)
def test_power_cut_at_any_operation_leaves_the_old_model_or_the_new_one(name: str, tmp_path: Path) -> None:
    made = cut(tmp_path, *ACTS[name])
    found, count = set(), 0
    for prefix, device in made.devices():
        count += 1
        assert made.is_sound(device), f"after {prefix} operations"
        current = device.home.current()
        found.add(None if current is None else current.version)
        assert prefix not in (0, len(made.done)) or current == (made.new if prefix else made.old)
    assert len(found) == 2, "the cut comes before and after"
    assert count > len(made.done)


@pytest.mark.parametrize("held", [0, 1, 2])
def test_version_never_falls_and_what_is_trusted_comes_first(held: int, tmp_path: Path) -> None:
    """As the power is cut later and later, no version is lower; the new model never lies on old metadata."""
    made = cut(tmp_path, held, take)
    start = Device(made.federation, tmp_path / "home")
    newest = start.home.trusted()
    restore(tmp_path / "first", made.before)
    oldest = Device(made.federation, tmp_path / "first").home.slots().highest
    for _, device in made.devices():
        state = device.home.slots()
        assert state.highest >= oldest
        assert device.version >= (0 if made.old is None else made.old.version)
        if device.version == held + 1:
            assert device.home.trusted() == newest


def test_device_goes_on_after_any_power_cut(tmp_path: Path, wide: bool) -> None:
    """It takes the release that was cut off, or (it may have been at fault) the next one."""
    made = cut(tmp_path, 2, take)
    devices = list(made.devices())
    tried = [device.update().code for _, device in (devices if wide else devices[::5])]
    assert set(tried) == {"not_worse", "tried_before", "up_to_date"}
    made.federation.good(4)
    for _, device in devices if wide else devices[::5]:
        assert device.update().taken
        assert device.version == 4
        assert not list(device.disk.path.glob(".scratch*"))  # type: ignore[union-attr]


def test_what_is_removed_stays_away(tmp_path: Path) -> None:
    disk = FolderDisk(tmp_path)
    disk.replace("a", b"x")
    with recorded(tmp_path) as recorder:
        disk.remove("a")
    assert recorder.done == [Unlink("a"), FlushFolder()]


def test_recorder_sees_every_write_into_the_home(tmp_path: Path) -> None:
    """Python's own audit of files that are opened to be written, renamed or removed finds no other ones."""
    seen, home = list[tuple[str, str]](), str(tmp_path / "home")
    watching = [True]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching[0] or event not in ("open", "os.rename", "os.remove", "os.truncate", "os.link"):
            return
        path = str(arguments[0])
        inside = path.startswith(home) and ".scratch" not in path and not path.endswith(".lock")
        if inside and (event != "open" or int(arguments[2] or 0) & 3):
            seen.append((event, Path(path).name))

    sys.addaudithook(audit)
    try:
        made = cut(tmp_path, 0, take)
    finally:
        watching[0] = False
    first = [s for s in seen if s[1] != "unrelated" and s[1] != ".unrelated.unfinished"]
    assert len([s for s in first if s[0] == "open"]) == len(
        {d.file for d in made.done if isinstance(d, Fsync)}
    )
    assert len([s for s in first if s[0] == "os.rename"]) == len(
        [d for d in made.done if isinstance(d, Rename)]
    )
    assert {s[0] for s in first} == {"open", "os.rename"}


@pytest.mark.parametrize("missing", [Fsync, FlushFolder])
def test_test_itself_finds_a_flush_that_is_missing(missing: type[Operation], tmp_path: Path) -> None:
    made = cut(tmp_path, 2, take)
    assert made.broken([d for d in made.done if not isinstance(d, missing)])


def test_test_itself_finds_a_state_that_is_written_before_its_slot(tmp_path: Path) -> None:
    made = cut(tmp_path, 1, take)
    last = max(i for i, d in enumerate(made.done) if isinstance(d, FlushFolder)) - 4
    state, rest = made.done[last:], made.done[:last]
    assert Rename(".state.json.unfinished", "state.json") in state
    assert made.broken([*state, *rest])


def test_damage_to_the_state_after_a_power_cut_still_leaves_a_model(tmp_path: Path) -> None:
    made = cut(tmp_path, 2, take)
    for _, device in list(made.devices())[::7]:
        (device.disk.path / "state.json").write_bytes(b"worn out")  # type: ignore[union-attr]
        assert device.version in (2, 3)


def test_models_are_really_different() -> None:
    assert len({content_of(v) for v in range(1, 5)}) == 4
