"""Releases on the disk: whole or not at all, whatever happens on the way."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedge.errors import FedgeError, ReleaseError, SetupError
from fedge.release import store
from fedge.release.bundle import Bundle
from fedge.release.store import list_releases, load, publish

from .build import NOW, RULES, signed

STEPS = {"open", "mkdir", "fsync", "rename", "write", "fdopen"}


class Killed(BaseException):
    """A process that ends here."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> list[str]:
    """Raise ``error`` at the ``at``-th call to the operating system; gives the list of the calls so far."""
    calls: list[str] = []

    def step(name: str) -> bool:
        calls.append(name)
        return len(calls) == at + 1

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if step(name):
                raise error
            return real(*args, **kwargs)

        return call

    def torn(path: Path, content: bytes) -> None:
        """As the real one, but with one more place to stop: half of the content is written."""
        if step("write"):
            path.write_bytes(content[: len(content) // 2])
            raise error
        real_write(path, content)

    real_write = store._write
    for name in sorted(STEPS - {"write"}):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    monkeypatch.setattr(store, "_write", torn)
    return calls


def stop(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> list[str]:
    """As ``interrupt``; and a killed process does nothing any more, so it clears nothing away."""
    calls = interrupt(monkeypatch, at, error)
    real_rmtree = shutil.rmtree

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if len(calls) <= at or not isinstance(error, Killed):
            real_rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    return calls


def count_calls(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt(patch, 10**9, Killed())
        publish(tmp_path / "counted", *signed())
    assert set(calls) == STEPS
    return len(calls)


def test_published_release_lies_where_it_is_documented_and_comes_back(tmp_path: Path) -> None:
    content, signature, model = signed()
    place = publish(tmp_path / "run", content, signature, model)
    assert place == tmp_path / "run" / "releases" / "v0003"
    files = {f.name: f.read_bytes() for f in place.iterdir()}
    assert files == {"manifest.json": content, "manifest.sig": signature, "model.onnx": model}
    bundle = load(tmp_path / "run", 3)
    assert bundle == Bundle(content, signature, model)
    assert RULES.accept(bundle.manifest, bundle.signature, bundle.model, NOW).version == 3


@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")], ids=["killed", "full"])
def test_stop_at_any_call_leaves_nothing_or_a_whole_release(tmp_path: Path, error: BaseException) -> None:
    new, old = signed(), signed(version=2, parent=None)
    ends = set()
    for at in range(count_calls(tmp_path)):
        folder = tmp_path / str(at)
        publish(folder, *old)
        with pytest.MonkeyPatch.context() as patch:
            calls = stop(patch, at, error)
            try:
                publish(folder, *new)
            except (Killed, SetupError):
                pass
            else:
                assert len(calls) <= at  # the folder is there already: some calls fewer than counted
        assert load(folder, 2) == Bundle(*old)
        versions = list_releases(folder)
        assert versions in ([2], [2, 3])
        if 3 in versions:
            assert load(folder, 3) == Bundle(*new)
        ends.add(len(versions))
        publish(folder, *new)
        assert load(folder, 3) == Bundle(*new)
        assert sorted(p.name for p in (folder / "releases").iterdir()) == ["v0002", "v0003"]
    assert ends == {1, 2}


def test_stop_at_any_call_in_an_empty_folder_can_be_repeated(tmp_path: Path) -> None:
    for at in range(count_calls(tmp_path)):
        folder = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            stop(patch, at, Killed())
            with pytest.raises(Killed):
                publish(folder, *signed())
        assert list_releases(folder) in ([], [3])
        publish(folder, *signed())
        assert load(folder, 3) == Bundle(*signed())


def test_full_disk_gives_back_what_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_old: Path, _new: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(SetupError, match="No space left"):
        publish(tmp_path, *signed())
    assert list((tmp_path / "releases").iterdir()) == []


def test_everything_is_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "releases").mkdir()
    events: list[tuple[str, str]] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(handle: int) -> None:
        events.append(("flush", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        real_fsync(handle)

    def rename(old: Path, new: Path) -> None:
        events.append(("rename", new.name))
        real_rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    publish(tmp_path, *signed())
    cut = events.index(("rename", "v0003"))
    assert {name for _, name in events[: cut - 1]} == {"model.onnx", "manifest.json", "manifest.sig"}
    assert events[cut - 1] == ("flush", ".unfinished-v0003")  # the folder after the files in it
    assert events[cut + 1 :] == [("flush", "releases")]


def test_same_release_again_changes_nothing(tmp_path: Path) -> None:
    place = publish(tmp_path, *signed())
    before = {f.name: f.stat().st_ino for f in place.iterdir()}
    assert publish(tmp_path, *signed()) == place
    assert {f.name: f.stat().st_ino for f in place.iterdir()} == before


def test_other_release_of_the_same_version_is_never_overwritten(tmp_path: Path) -> None:
    publish(tmp_path, *signed())
    with pytest.raises(ReleaseError, match="never overwritten"):
        publish(tmp_path, *signed(round=25))
    assert load(tmp_path, 3) == Bundle(*signed())


def test_release_that_contradicts_itself_is_not_stored(tmp_path: Path) -> None:
    content, signature, model = signed()
    for wrong in (
        (content, signature, model + b"x"),
        (content, signature, model[:-1] + b"x"),
        (content + b" ", signature, model),
        (content, signature[:-1], model),
    ):
        with pytest.raises(ReleaseError):
            publish(tmp_path, *wrong)
    assert list_releases(tmp_path) == []


def test_only_whole_releases_are_listed_in_order_of_version(tmp_path: Path) -> None:
    assert list_releases(tmp_path) == []
    for version in (10, 9, 12345):
        publish(tmp_path, *signed(version=version, parent=None))
    for stray in ("v0000", "v1", "v00011", ".unfinished-v0020", "v-001", "vv0001", "v0001x", "notes"):
        (tmp_path / "releases" / stray).mkdir()
    assert list_releases(tmp_path) == [9, 10, 12345]


@pytest.mark.parametrize("version", [0, 4, -1, 10**9])
def test_unknown_version_is_refused_with_the_known_ones(tmp_path: Path, version: int) -> None:
    publish(tmp_path, *signed())
    with pytest.raises(ReleaseError, match="there are: 3"):
        load(tmp_path, version)


def test_missing_file_of_a_release_is_named(tmp_path: Path) -> None:
    (publish(tmp_path, *signed()) / "manifest.sig").unlink()
    with pytest.raises(ReleaseError, match=r"manifest\.sig is missing"):
        load(tmp_path, 3)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig", "model.onnx"])
def test_oversized_file_is_not_read(tmp_path: Path, name: str) -> None:
    place = publish(tmp_path, *signed())
    with (place / name).open("r+b") as file:
        file.truncate(1 << 40)  # a hole: takes no disk
    with pytest.raises(ReleaseError, match="limit"):
        load(tmp_path, 3)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig", "model.onnx"])
def test_file_changed_on_the_disk_is_caught_by_the_rules(tmp_path: Path, name: str) -> None:
    place = publish(tmp_path, *signed())
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 4
    (place / name).write_bytes(content)
    bundle = load(tmp_path, 3)
    with pytest.raises(FedgeError):
        RULES.accept(bundle.manifest, bundle.signature, bundle.model, NOW)


def test_file_in_the_way_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "releases").write_text("a file")
    with pytest.raises(SetupError):
        publish(tmp_path, *signed())
    with pytest.raises(SetupError):
        list_releases(tmp_path)


def _race(folder: Path, round_: int, start: Any, results: Any) -> None:
    release = signed(round=round_)
    start.wait()
    try:
        publish(folder, *release)
        results.put(round_)
    except ReleaseError:
        results.put(None)


def test_of_several_publishers_of_one_version_exactly_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(4), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, 30 + i, start, results)) for i in range(4)]
    for racer in racers:
        racer.start()
    won = [r for r in (results.get(timeout=30) for _ in racers) if r is not None]
    for racer in racers:
        racer.join()
    assert len(won) == 1
    assert load(tmp_path, 3) == Bundle(*signed(round=won[0]))
