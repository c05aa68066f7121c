import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.edge.disk import FolderDisk, MemoryDisk
from fedge.edge.home import Home, Seen
from fedge.edge.live import REPORT_SECONDS, LiveModel, Model, open_model
from fedge.edge.watch import WatchRules
from fedge.errors import DataError, ReleaseError, SetupError
from fedge.metrics import negative_rmse

from .build import CLASSES, WEIGHTS, manifest, naive, windows
from .releases import GOOD, install, number, put, weighted

OTHER = weighted(WEIGHTS[:, [1, 2, 0]])
NAN = weighted(np.full_like(WEIGHTS, np.nan))


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class ToldHome(Home):
    """A home that remembers what it was told."""

    def __init__(self, disk: Any, rules: WatchRules | None = None) -> None:
        super().__init__(disk, rules)
        self.told: list[Seen] = []
        self.events: list[tuple[str, int]] = []

    def observe(self, observed: Seen) -> str | None:
        self.told.append(observed)
        return super().observe(observed)

    def started(self, version: int) -> str | None:
        self.events.append(("started", version))
        return super().started(version)

    def confirmed(self, version: int) -> None:
        self.events.append(("confirmed", version))
        super().confirmed(version)


def live_at(disk: Any) -> tuple[LiveModel, ToldHome, Clock]:
    """The current model of a home that tells what it was told."""
    home, clock = ToldHome(disk), Clock()
    stamp, installed = home.stamp(), home.current()
    assert installed is not None
    return LiveModel(open_model(installed.manifest, installed.model), home, stamp, clock), home, clock


def two_releases() -> MemoryDisk:
    disk = MemoryDisk()
    install(disk, 1)
    install(disk, 2, OTHER)
    return disk


def test_folder_of_a_release_and_its_file_are_opened(tmp_path: Path) -> None:
    put(tmp_path / "v0001")
    for place in (tmp_path / "v0001", tmp_path / "v0001" / "model.onnx"):
        model, scores = LiveModel.open(place).predict(windows(5))
        np.testing.assert_allclose(scores, naive(windows(5)), atol=1e-4)
        assert model.manifest == manifest(GOOD)


def test_home_is_opened_with_its_current_release(tmp_path: Path) -> None:
    install(FolderDisk(tmp_path), 1)
    install(FolderDisk(tmp_path), 2, OTHER)
    assert LiveModel.open(tmp_path).current.manifest.version == 2


@pytest.mark.parametrize("what", ["nothing", "folder", "manifest"])
def test_place_without_a_model_is_said(tmp_path: Path, what: str) -> None:
    if what == "manifest":
        put(tmp_path / what)
        (tmp_path / what / "model.onnx").unlink()
    elif what == "folder":
        (tmp_path / what).mkdir()
    with pytest.raises(SetupError):
        LiveModel.open(tmp_path / what)
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("at", ["run", "run/releases"])
def test_folder_above_a_release_names_the_last_one(tmp_path: Path, at: str) -> None:
    for version in ("v0001", "v0002"):
        put(tmp_path / "run" / "releases" / version)
    with pytest.raises(SetupError, match=r"is \S*run/releases/v0002 meant"):
        LiveModel.open(tmp_path / at)


def test_model_of_another_manifest_is_refused(tmp_path: Path) -> None:
    put(tmp_path, OTHER, manifest(GOOD))
    with pytest.raises(ReleaseError, match="not the one that its manifest names"):
        LiveModel.open(tmp_path)


def test_model_that_contradicts_its_manifest_is_refused() -> None:
    wrong = replace(manifest(GOOD), input=replace(manifest(GOOD).input, shape=(9, 2)))
    with pytest.raises(ReleaseError, match="manifest says"):
        open_model(wrong, GOOD)


def test_oversized_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    put(tmp_path)
    with (tmp_path / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ReleaseError, match="limit"):
        LiveModel.open(tmp_path)


def test_model_that_does_not_open_any_more_gives_way_to_the_one_before(tmp_path: Path) -> None:
    disk = FolderDisk(tmp_path)
    install(disk, 1)
    damaged = GOOD[:-9]
    install(disk, 2, damaged)
    live = LiveModel.open(tmp_path)
    assert live.current.manifest.version == 1
    current = Home(disk).current()
    assert current is not None
    assert current.version == 1
    assert str(live.follow()).startswith("release 2 does not open: ")
    assert live.follow() is None
    assert [f.code for f in Home(disk).slots().findings] == ["does_not_open"]  # and not "by hand"


def test_release_damaged_before_it_was_opened_is_said_while_the_old_one_goes_on(tmp_path: Path) -> None:
    disk = FolderDisk(tmp_path)
    install(disk, 1)
    live = LiveModel.open(tmp_path)
    install(disk, 2, OTHER)
    (tmp_path / "b.onnx").write_bytes(b"cut")
    assert live.follow() == "release 2 is damaged on this device's disk; release 1 goes on"
    assert live.follow() is None
    assert not Home(disk).slots().trial


def test_home_that_cannot_be_written_is_no_reason_not_to_answer(tmp_path: Path) -> None:
    class Full(FolderDisk):
        def replace(self, name: str, content: bytes) -> None:
            del content
            raise SetupError(f"cannot write {name}: No space left on device")

    install(FolderDisk(tmp_path), 1)
    install(FolderDisk(tmp_path), 2, OTHER)
    live, _, clock = live_at(Full(tmp_path))
    said = []
    for _ in range(5):
        live.predict(windows(1))
        clock.now += REPORT_SECONDS
        said.append(live.follow())
    assert live.current.manifest.version == 2
    assert [text for text in said if text] == said[:1]  # once, not each time
    assert "No space left" in str(said[0])


def test_new_release_answers_from_the_next_look_on() -> None:
    disk = MemoryDisk()
    install(disk, 1)
    live, home, _ = live_at(disk)
    assert live.follow() is None
    install(disk, 2, OTHER)
    before, _ = live.predict(windows(3))
    assert live.follow() == "release 2 answers from now on"
    after, scores = live.predict(windows(3))
    assert (before.manifest.version, after.manifest.version) == (1, 2)
    np.testing.assert_allclose(scores, naive(windows(3))[:, [1, 2, 0]], atol=1e-4)
    assert live.follow() is None
    assert home.events == [("confirmed", 1), ("started", 2), ("confirmed", 2)]


def test_release_that_does_not_open_leaves_the_old_one_answering() -> None:
    disk = MemoryDisk()
    install(disk, 1)
    live, home, _ = live_at(disk)
    install(disk, 2, b"no model at all")
    assert "does not open" in str(live.follow())
    assert live.predict(windows(1))[0].manifest.version == 1
    assert home.told[-1] == Seen(2, errors=1)
    for _ in range(10):
        live.follow()
    assert live.current.manifest.version == 1


def test_release_for_other_windows_is_left_alone() -> None:
    disk = MemoryDisk()
    install(disk, 1)
    live, _, _ = live_at(disk)
    content, said = number(version=2)
    install(disk, 2, content, classes=said.classes, metric=said.metric, self_test=said.self_test)
    assert "start again" in str(live.follow())
    assert live.current.manifest.version == 1


def test_model_that_answers_nan_is_an_error_of_the_model_and_told_at_once() -> None:
    disk = MemoryDisk()
    install(disk, 1)
    install(disk, 2, NAN)
    live, home, _ = live_at(disk)
    with pytest.raises(ReleaseError, match="NaN"):
        live.predict(windows(1))
    live.follow()
    assert home.told == [Seen(2, errors=1)]


def test_model_that_fails_again_and_again_is_taken_back_by_itself() -> None:
    disk = MemoryDisk()
    install(disk, 1)
    install(disk, 2, NAN)
    live, _, _ = live_at(disk)
    said = []
    for _ in range(20):
        try:
            live.predict(windows(1))
        except ReleaseError:
            said.append(live.follow())
    assert live.current.manifest.version == 1
    assert any("answers from now on" in str(text) for text in said)


def test_bad_window_is_no_error_of_the_model() -> None:
    live, home, clock = live_at(two_releases())
    for bad in (np.full((1, 8, 2), np.nan, np.float32), np.zeros((1, 9, 2), np.float32)):
        with pytest.raises(DataError):
            live.predict(bad)
    clock.now += REPORT_SECONDS
    live.follow()
    assert home.told == []


def test_answers_are_told_now_and_then_and_at_the_end() -> None:
    live, home, clock = live_at(two_releases())
    for _ in range(7):
        live.predict(windows(1))
    live.follow()
    assert home.told == []
    assert home.events == [("confirmed", 2)]
    clock.now += REPORT_SECONDS
    live.predict(windows(4))
    live.follow()
    (seen,) = home.told
    assert (seen.version, seen.answers, seen.errors) == (2, 11, 0)
    assert seen.latency_us is not None
    assert 0 < seen.latency_us < 1e6
    live.predict(windows(2))
    live.close()
    assert (home.told[-1].answers, home.told[-1].latency_us) == (2, None)
    live.close()
    assert len(home.told) == 2


def test_score_is_that_of_the_releases_metric_on_the_labels_that_came() -> None:
    live, home, _ = live_at(two_releases())
    model, scores = live.predict(windows(10))
    best = scores.argmax(axis=1)
    for n, row in enumerate(scores):
        live.judge(model, row, float(best[n] if n < 8 else (best[n] + 1) % CLASSES))
    live.close()
    assert (home.told[-1].score, home.told[-1].windows) == (0.8, 10)


def test_score_of_a_number_is_in_its_unit() -> None:
    content, said = number()
    disk = MemoryDisk()
    install(disk, 1, content, classes=said.classes, metric=said.metric, self_test=said.self_test)
    live, home, _ = live_at(disk)
    model, scores = live.predict(windows(4))
    for row, y in zip(scores, (1.5, 2.0, 2.5, 7.25), strict=True):
        live.judge(model, row, y)
    live.close()
    assert home.told[-1].score == pytest.approx(negative_rmse(scores, np.array([1.5, 2, 2.5, 7.25])))


def test_what_an_earlier_model_did_is_not_held_against_the_next() -> None:
    disk = MemoryDisk()
    install(disk, 1)
    live, home, _ = live_at(disk)
    model, scores = live.predict(windows(1))
    install(disk, 2, OTHER)
    live.follow()
    live.count(model, errors=5)
    live.judge(model, scores[0], 0.0)
    live.predict(windows(1))
    live.close()
    (seen,) = home.told
    assert (seen.version, seen.answers, seen.errors, seen.windows) == (2, 1, 0, 0)


def test_damaged_home_is_said_and_the_model_goes_on() -> None:
    disk = two_releases()
    live, _, _ = live_at(disk)
    disk.replace("state.json", b"garbage")
    for slot in "ab":
        disk.replace(f"{slot}.onnx", b"garbage")
    live.follow()
    assert live.predict(windows(1))[0].manifest.version == 2


def test_hundred_changes_under_load_lose_no_answer(wide: bool) -> None:
    """Every answer is that of the model that is said to have given it."""
    disk, x = MemoryDisk(), windows(1)
    install(disk, 1)
    live, _, _ = live_at(disk)
    expected = naive(x)[0]
    wrong: list[Any] = []
    count, done = [0, 0, 0], threading.Event()

    def ask(thread: int) -> None:
        while not done.is_set():
            try:
                model, scores = live.predict(x)
                order = [0, 1, 2] if model.manifest.version % 2 else [1, 2, 0]
                if not np.allclose(scores[0], expected[order], atol=1e-4):
                    wrong.append((model.manifest.version, scores))
                count[thread] += 1
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    changes = 100 if wide else 20
    for version in range(2, changes + 2):
        install(disk, version, GOOD if version % 2 else OTHER)
        while live.current.manifest.version != version:
            live.follow()
        time.sleep(0.001)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert min(count) > 0


def test_model_given_by_hand_is_never_exchanged() -> None:
    model = open_model(manifest(GOOD), GOOD)
    assert isinstance(model, Model)
    live = LiveModel(model)
    live.predict(windows(2))
    assert live.follow() is None
    assert live.close() is None
