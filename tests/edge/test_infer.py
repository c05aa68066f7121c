import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedge.cli import main
from fedge.data import load_client
from fedge.data.kept import Meta, recent
from fedge.edge.disk import FolderDisk, MemoryDisk
from fedge.edge.home import Home
from fedge.edge.inputs import Stop, lines
from fedge.edge.keep import Keep
from fedge.edge.keep_files import FolderFiles
from fedge.edge.lines import MAX_LINE
from fedge.edge.live import LiveModel, open_model
from fedge.edge.session import Complaints, Session
from fedge.edge.stream import Window
from fedge.metrics import accuracy, threshold

from .build import HEIGHT, TIME, WEIGHTS, WIDTH, image_manifest, image_model, images, manifest, naive, windows
from .kept import FullFiles
from .releases import GOOD, csv_lines, install, number, put, scorer, weighted
from .releases import signal as samples

ROOT = Path(__file__).parents[2]
Ran = tuple[int, list[dict[str, Any]], str]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return put(tmp_path / "v0001")


@pytest.fixture
def infer(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Ran]:
    """Run the command in this process: exit code, answers, what it says."""

    def run(*arguments: object) -> Ran:
        code = main(["infer", *map(str, arguments)])
        out, said = capfdbinary.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], said.decode()

    return run


def file_of(path: Path, text: list[str]) -> Path:
    path.write_text("\n".join(text) + "\n")
    return path


def half_windows(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows that overlap by half, cut by a naive loop."""
    step = TIME // 2
    return np.stack([x[i : i + TIME] for i in range(0, len(x) - TIME + 1, step)])


def classes(x: NDArray[Any]) -> list[str]:
    return ["xyz"[i] for i in naive(x).argmax(axis=1)]


def test_file_of_samples_is_answered_window_by_window(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    x = samples(60)
    code, answers, said = infer(release, file_of(tmp_path / "a.csv", csv_lines(x)))
    assert code == 0
    assert [a["class"] for a in answers] == classes(half_windows(x))
    assert [a["window"] for a in answers] == list(range(14))
    assert answers[1]["from"] == pytest.approx(0.08)
    assert answers[1]["to"] == pytest.approx(0.22)
    assert said == "fedge: 14 windows answered by release 1\n"


def test_json_lines_are_answered_as_csv_is(tmp_path: Path, release: Path, infer: Callable[..., Ran]) -> None:
    x = samples(60)
    as_json = [
        json.dumps({"b": float(b), "a": float(a), "timestamp": round(i / 50, 6)})
        for i, (a, b) in enumerate(x)
    ]
    in_csv = infer(release, file_of(tmp_path / "a.csv", csv_lines(x)))
    assert infer(release, file_of(tmp_path / "a.jsonl", as_json)) == in_csv


def test_windows_of_a_file_need_no_labels_and_no_clients(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    x = windows(600)
    np.savez(tmp_path / "a.npz", X=x)
    code, answers, _ = infer(release, tmp_path / "a.npz")
    assert (code, [a["class"] for a in answers]) == (0, classes(x))


def test_labels_of_a_file_are_scored(tmp_path: Path, release: Path, infer: Callable[..., Ran]) -> None:
    x, y = windows(40), np.random.default_rng(1).integers(0, 3, 40)
    np.savez(tmp_path / "a.npz", X=x, y=y)
    _, answers, said = infer(release, tmp_path / "a.npz")
    assert [a["label"] for a in answers] == ["xyz"[i] for i in y]
    assert f"accuracy {accuracy(naive(x), y):.4f} on 40 with a label" in said


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"y": [0, 1, 2, 3]}, "'y' holds 3, which is no index of 3 classes (x, y, z)"),
        ({"y": [0.0, np.nan, 2.0, 1.0]}, "'y' holds nan"),
        ({"y": [0, 1]}, "'y' is [2] int64"),
        ({"y": ["x", "y", "z", "x"]}, "'y' is [4] <U1"),
        ({"y": [0, 1, 1, 0], "classes": ["x", "walk"]}, "its classes are 2 classes (x, walk)"),
    ],
)
def test_labels_of_a_file_that_are_not_the_models_are_left_out_and_said_once(
    tmp_path: Path, release: Path, infer: Callable[..., Ran], labels: dict[str, Any], said: str
) -> None:
    np.savez(tmp_path / "a.npz", X=windows(4), **labels)
    code, answers, errors = infer(release, tmp_path / "a.npz")
    assert code == 0
    assert all("label" not in a for a in answers)
    assert said in errors
    assert errors.count("its labels are left out") == 1
    assert "4 labels left out" in errors


def test_integers_with_a_scale_are_what_they_stand_for(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    raw = np.random.default_rng(0).integers(-3000, 3000, (20, TIME, 2)).astype(np.int16)
    np.savez(tmp_path / "a.npz", X=raw, scale=[0.001, 0.002])
    assert [a["class"] for a in infer(release, tmp_path / "a.npz")[1]] == classes(raw * [0.001, 0.002])


def test_images_are_answered_from_a_file_and_not_sample_by_sample(
    tmp_path: Path, infer: Callable[..., Ran]
) -> None:
    content = image_model().SerializeToString()
    place = put(tmp_path / "v1", content, image_manifest(content))
    np.savez(tmp_path / "a.npz", X=images(5))
    code, answers, _ = infer(place, tmp_path / "a.npz")
    assert (code, len(answers)) == (0, 5)
    code, _, said = infer(place, file_of(tmp_path / "a.csv", ["red,green,blue", "1,2,3"]))
    assert (code, "takes images" in said) == (2, True)
    assert images(1).shape == (1, HEIGHT, WIDTH, 3)


def test_folder_is_answered_file_by_file(tmp_path: Path, release: Path, infer: Callable[..., Ran]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "b.npz", X=windows(2))
    file_of(folder / "a.csv", csv_lines(samples(16)))
    (folder / ".hidden").write_text("x")
    _, answers, _ = infer(release, folder)
    assert [(a["file"], a["window"]) for a in answers] == [
        *[("a.csv", n) for n in range(3)],
        *[("b.npz", n) for n in range(2)],
    ]


def test_damaged_file_in_a_folder_is_named_and_the_others_are_answered(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "b.npz", X=windows(2))
    np.savez(folder / "d.npz", X=windows(2)[:, 1:])
    (folder / "a.npz").write_bytes((folder / "b.npz").read_bytes()[:-40])
    file_of(folder / "c.csv", ["1,2", "3,4"])
    file_of(folder / "e.csv", csv_lines(samples(16)))
    code, answers, said = infer(release, folder)
    assert code == 2
    assert [a["file"] for a in answers] == ["b.npz"] * 2 + ["e.csv"] * 3
    assert [line.split()[1] for line in said.splitlines() if " is left out: " in line] == [
        "a.npz", "c.csv", "d.npz",
    ]  # fmt: skip
    assert "5 windows answered" in said
    assert said.splitlines()[-1] == "fedge: error: 3 of 5 files left out: a.npz, c.csv, d.npz"


def test_folder_of_one_file_names_it_like_any_other(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "a.npz", X=windows(2))
    assert [a["file"] for a in infer(release, folder)[1]] == ["a.npz"] * 2


def test_anomalies_have_a_score_and_the_releases_threshold(tmp_path: Path, infer: Callable[..., Ran]) -> None:
    place, x = put(tmp_path / "v1", *scorer()), windows(50)
    np.savez(tmp_path / "a.npz", X=x)
    _, answers, _ = infer(place, tmp_path / "a.npz")
    scores = naive(x)[:, 0]
    np.testing.assert_allclose([a["score"] for a in answers], scores, atol=1e-4)
    assert [a["anomalous"] for a in answers] == (scores > 2).tolist()
    assert {a["threshold"] for a in answers} == {2.0}


def test_device_that_has_kept_normal_windows_sets_its_own_threshold(
    tmp_path: Path, infer: Callable[..., Ran]
) -> None:
    place, x = put(tmp_path / "v1", *scorer()), windows(150)
    np.savez(tmp_path / "a.npz", X=x)
    kept = tmp_path / "kept"
    _, first, _ = infer(place, tmp_path / "a.npz", "--keep", kept, "--label", "normal")
    _, second, said = infer(place, tmp_path / "a.npz", "--keep", kept)
    own = threshold(naive(x)[:, 0], 0.99)
    assert {a["threshold"] for a in first} == {2.0}
    assert second[0]["threshold"] == pytest.approx(own, abs=1e-4)
    assert "from 150 windows kept here as normal" in said


def test_numbers_are_said(tmp_path: Path, infer: Callable[..., Ran]) -> None:
    np.savez(tmp_path / "a.npz", X=windows(5))
    _, answers, _ = infer(put(tmp_path / "v1", *number()), tmp_path / "a.npz")
    np.testing.assert_allclose([a["value"] for a in answers], naive(windows(5))[:, 0], atol=1e-4)


def test_batch_and_step_change_nothing_but_how_often_and_how_many(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    file = file_of(tmp_path / "a.csv", csv_lines(samples(100)))
    _, by_ones, _ = infer(release, file, "--batch", 1, "--step", TIME)
    _, by_sevens, _ = infer(release, file, "--batch", 7, "--step", TIME)
    assert len(by_ones) == 12
    for one, seven in zip(by_ones, by_sevens, strict=True):
        assert one.pop("probability") == pytest.approx(seven.pop("probability"), abs=1e-5)
        assert one == seven


def test_top_names_the_likeliest(tmp_path: Path, release: Path, infer: Callable[..., Ran]) -> None:
    np.savez(tmp_path / "a.npz", X=windows(1))
    _, (answer,), _ = infer(release, tmp_path / "a.npz", "--top", 2)
    order = naive(windows(1))[0].argsort()[::-1]
    assert [n["class"] for n in answer["top"]] == ["xyz"[i] for i in order[:2]]


def test_bad_lines_are_said_counted_and_left_out(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    text = csv_lines(samples(40))
    bad = [*text[:20], "garbage", "0.39,nan,1,", *text[20:]]
    code, answers, said = infer(release, file_of(tmp_path / "a.csv", bad))
    assert (code, len(answers)) == (0, 9)
    assert "line 21 is left out" in said
    assert "line 22 is left out: 'a' is 'nan'" in said
    assert "2 samples left out" in said


def test_columns_that_are_not_used_are_said_once(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    text = ["a,b,battery", *[f"{a},{b},99" for a, b in samples(32).tolist()]]
    code, answers, said = infer(release, file_of(tmp_path / "a.csv", text))
    assert (code, len(answers)) == (0, 7)
    assert said.splitlines()[0] == "fedge: columns that are not used: battery"
    assert said.count("battery") == 1


def test_label_of_the_run_is_of_windows_without_one(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    text = ["a,b,label", *[f"{a},{b},{'y' * (n >= 8)}" for n, (a, b) in enumerate(samples(16).tolist())]]
    _, answers, _ = infer(release, file_of(tmp_path / "a.csv", text), "--label", "z")
    assert [a.get("label") for a in answers] == ["z", None, "y"]  # the one between has both


def test_lines_that_cannot_be_read_count_as_samples_that_are_missing(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    rows = [f"{a},{b}" for a, b in samples(32).tolist()]
    for bad, begins in ((["?"], [0, 8, 17, 25]), (["?", "?"], [0, 12, 20])):
        text = ["a,b", *rows[:10], *bad, *rows[10:]]
        _, answers, _ = infer(release, file_of(tmp_path / "a.csv", text), "--step", TIME)
        assert [a["from"] for a in answers] == begins


def test_window_of_nan_is_left_out_and_the_others_answered(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    x = windows(5)
    x[2, 3, 1] = np.nan
    np.savez(tmp_path / "a.npz", X=x)
    code, answers, said = infer(release, tmp_path / "a.npz")
    assert (code, [a["window"] for a in answers]) == (0, [0, 1, 3, 4])
    assert "window 2 is left out" in said


def test_model_that_fails_on_one_window_of_a_batch_answers_the_others(
    tmp_path: Path, infer: Callable[..., Ran]
) -> None:
    content = weighted(np.where(WEIGHTS > 0, 3e38, WEIGHTS))
    x = np.full((3, TIME, 2), [1, -2], np.float32)
    x[1] = [40, -40]  # both channels at the limit of the preprocessing: the sum overflows
    np.savez(tmp_path / "a.npz", X=x)
    code, answers, said = infer(put(tmp_path / "v1", content), tmp_path / "a.npz")
    assert (code, [a["window"] for a in answers]) == (0, [0, 2])
    assert "window 1 is left out: the model answers with NaN" in said


def test_model_that_fails_on_every_window_is_the_releases_fault(
    tmp_path: Path, infer: Callable[..., Ran]
) -> None:
    content = weighted(np.full_like(WEIGHTS, np.nan))
    np.savez(tmp_path / "a.npz", X=windows(3))
    code, answers, said = infer(put(tmp_path / "v1", content), tmp_path / "a.npz")
    assert (code, answers) == (1, [])
    assert said.splitlines()[-1].startswith("fedge: error: the model answers with NaN")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", ["x,y", "1,2"], "no column 'a'"),
        ("a.csv", ["1,2", "3,4"], "is data, not a header"),
        ("a.csv", csv_lines(samples(TIME - 1)), "no 8 samples in a row"),
        ("a.csv", ["a,b", *["nan,1"] * 30], "30 samples or windows were left out"),
        ("a.csv", [], "nothing to answer"),
        ("a.jsonl", ['{"a": 1}'] * 20, "nothing to answer"),
        ("a.parquet", ["x"], "give .npz"),
        ("a.npz", ["x"], "npz"),
    ],
)
def test_input_of_which_nothing_can_be_used_is_one_line_and_exit_code_2(
    tmp_path: Path, release: Path, infer: Callable[..., Ran], name: str, text: list[str], said: str
) -> None:
    code, answers, errors = infer(release, file_of(tmp_path / name, text))
    assert (code, answers) == (2, [])
    assert errors.splitlines()[-1].startswith("fedge: error: ")
    assert said in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"Y": windows(2)}, "no array 'X'"),
        ({"X": windows(2)[:, 1:]}, "takes numbers [n, 8, 2]"),
        ({"X": windows(2).astype(np.complex64)}, "elements of type"),
        ({"X": windows(2), "channels": ["b", "a"]}, "has the channels b, a"),
        ({"X": windows(2), "scale": [1.0]}, "'scale'"),
        ({"X": windows(0)}, "nothing to answer"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    tmp_path: Path, release: Path, infer: Callable[..., Ran], arrays: dict[str, Any], said: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    code, _, errors = infer(release, tmp_path / "a.npz")
    assert (code, said in errors) == (2, True)


@pytest.mark.parametrize(
    "options",
    [
        ["--step", "0"],
        ["--batch", "0"],
        ["--gap", "-1"],
        ["--top", "4"],
        ["--label", "w"],
        ["--columns", "a"],
        ["--keep", "kept", "--keep-mb", "0.001"],
        ["--keep", "kept", "--keep-days", "nan"],
        ["--keep", "kept", "--keep-mb", "-1"],
    ],
)
def test_option_that_makes_no_sense_is_refused(
    tmp_path: Path,
    release: Path,
    infer: Callable[..., Ran],
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, answers, said = infer(release, file_of(tmp_path / "a.csv", csv_lines(samples(30))), *options)
    assert (code, answers, said.count("\n")) == (2, [], 1)


@pytest.mark.parametrize("missing", ["model", "input"])
def test_missing_model_or_input_is_one_line(
    tmp_path: Path, release: Path, infer: Callable[..., Ran], missing: str
) -> None:
    place = tmp_path / "nowhere" if missing == "model" else release
    code, _, said = infer(place, tmp_path / "nothing.csv")
    assert (code, said.count("\n")) == (2, 1)


@pytest.mark.parametrize("what", ["model cut", "manifest cut", "model is a pipe", "manifest without an end"])
def test_damaged_release_is_one_line_with_its_place_and_exit_code_2(
    tmp_path: Path, release: Path, infer: Callable[..., Ran], what: str
) -> None:
    path = release / ("model.onnx" if what.startswith("model") else "manifest.json")
    content = path.read_bytes()
    path.unlink()
    if "cut" in what:
        path.write_bytes(content[: len(content) // 2])
    elif "pipe" in what:
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    code, answers, said = infer(release, file_of(tmp_path / "a.csv", csv_lines(samples(30))))
    assert (code, answers, said.count("\n")) == (2, [], 1)
    assert str(release) in said
    assert main(["serve", str(release), "--port", "0"]) == 2
    assert main(["serve", str(release), "--port", "0", "--stage", "1/1"]) == 2


def test_home_whose_slots_are_damaged_is_not_called_empty(tmp_path: Path, infer: Callable[..., Ran]) -> None:
    install(FolderDisk(tmp_path / "home"), 7)
    (tmp_path / "home" / "a.onnx").write_bytes(b"cut")
    code, _, said = infer(tmp_path / "home", "-")
    assert (code, said.count("\n")) == (2, 1)
    assert "damaged (release 7)" in said


def test_damaged_slot_is_said_when_the_other_release_answers(
    tmp_path: Path, infer: Callable[..., Ran]
) -> None:
    home, file = tmp_path / "home", file_of(tmp_path / "a.csv", csv_lines(samples(TIME)))
    for version in (6, 7):
        install(FolderDisk(home), version)
    (home / "b.onnx").write_bytes(b"cut")
    code, answers, said = infer(home, file)
    assert (code, [a["release"] for a in answers]) == (0, [6])
    assert "release 7 is damaged on this device's disk; release 6 answers" in said
    assert "damaged" not in infer(home, file)[2]  # the home knows by now


def test_home_is_found_in_the_state_folder_of_a_client(tmp_path: Path, infer: Callable[..., Ran]) -> None:
    install(FolderDisk(tmp_path / "state" / "model"), 7)
    code, answers, _ = infer(tmp_path / "state", file_of(tmp_path / "a.csv", csv_lines(samples(TIME))))
    assert (code, [a["release"] for a in answers]) == (0, [7])


def test_what_was_seen_is_kept_and_learned_from(
    tmp_path: Path, release: Path, infer: Callable[..., Ran]
) -> None:
    x, kept = samples(80), tmp_path / "kept"
    text = [row + ("x" if n > 40 else "") for n, row in enumerate(csv_lines(x))]
    text[0] = "timestamp,a,b,label"
    text.append('{"label": "z", "from": 0.0, "to": 0.3}')
    _, answers, said = infer(release, file_of(tmp_path / "a.csv", text), "--keep", kept)
    (data,) = load_client(kept, classes=("x", "y", "z"), window=TIME, step=TIME // 2).clients.values()
    cut = half_windows(x)
    np.testing.assert_array_equal(recent(kept), cut)
    assert [a.get("label") for a in answers] == [None] * 10 + ["x"] * 9
    assert data.y.tolist() == [2] * 3 + [0] * 9
    np.testing.assert_array_equal(data.x, np.concatenate([cut[:3], cut[10:]]))
    assert "19 kept, 12 of them with a label" in said


@pytest.mark.parametrize(("timed", "judged"), [(True, 2), (False, 1)])
def test_later_label_reaches_an_earlier_file_only_by_its_timestamps(
    tmp_path: Path, release: Path, infer: Callable[..., Ran], timed: bool, judged: int
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for file in range(2):
        rows = [{"a": 1.0, "b": 2.0} | ({"timestamp": file * TIME + i} if timed else {}) for i in range(TIME)]
        text = [json.dumps(row) for row in rows]
        late = ['{"label": "x", "from": 0, "to": 100}'] if file else []
        file_of(folder / f"{file}.jsonl", text + late)
    _, answers, said = infer(release, folder)
    assert len(answers) == 2
    assert f"on {judged} with a label" in said


def test_answers_are_put_as_the_release_says_that_gave_them() -> None:
    disk, answers = MemoryDisk(), []
    content, said = scorer()
    changes = {name: getattr(said, name) for name in ("classes", "metric", "self_test")}
    home = install(disk, 1, content, threshold=2.0, **changes)
    live = LiveModel(open_model(replace(said, version=1), content), home, home.stamp())
    session = Session(live, answers.append, print)
    for version in (1, 2):
        other = weighted(WEIGHTS[:, :1] * np.float32(1 + version))
        if version == 2:
            install(disk, 2, other, threshold=5.0, **changes)
        session.tick()
        session.take(Window(windows(1)[0], 0, 0, 1, False, None, (None,), 0))
    session.close()
    assert [(a["release"], a["threshold"]) for a in answers] == [(1, 2.0), (2, 5.0)]


def test_keeping_that_fails_does_not_keep_it_from_answering(tmp_path: Path, release: Path) -> None:
    answers: list[dict[str, Any]] = []
    said: list[str] = []
    meta = Meta((TIME, 2), ("a", "b"), ("x", "y", "z"), "class", 30.0)
    keep = Keep(FullFiles(FolderFiles(tmp_path / "kept", meta), 5, 0.5), meta, 1 << 20)
    session = Session(LiveModel.open(release), answers.append, said.append, keep=keep)
    for n in range(50):
        session.take(Window(windows(1, n)[0], n, n, n + 1.0, True, None, (None,), 0))
    session.close()
    assert len(answers) == 50
    assert said[0] == "the windows cannot be kept: No space left on device"
    assert len(said) == 4  # three times, and the tenth
    assert len(recent(tmp_path / "kept")) == 2


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process of its own, with pipes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedge", "infer", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def ends(process: subprocess.Popen[bytes], *, close: bool = True) -> tuple[int, str]:
    """Exit code and what was said, once it has ended."""
    assert process.stdin is not None
    assert process.stderr is not None
    if close:
        process.stdin.close()
    said = process.stderr.read().decode()
    return process.wait(30), said


def piped(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def test_live_stream_is_answered_at_once_and_sigterm_ends_it(tmp_path: Path, release: Path) -> None:
    with running(release, "-", "--keep", tmp_path / "kept") as process:
        stdin, stdout = piped(process)
        x, answers = samples(40), []
        header, *rows = csv_lines(x)
        stdin.write(f"{header}\n".encode())
        for n, row in enumerate(rows, start=1):
            stdin.write(row.encode() + b"\n")
            if n >= TIME and n % (TIME // 2) == 0:
                answers.append(json.loads(stdout.readline()))  # before the next sample comes
        assert [a["class"] for a in answers] == classes(half_windows(x))
        process.send_signal(signal.SIGTERM)
        code, said = ends(process, close=False)
    assert (code, said) == (0, "fedge: 9 windows answered by release 1; 9 kept, 0 of them with a label\n")
    np.testing.assert_array_equal(recent(tmp_path / "kept"), half_windows(x))


def test_device_changes_over_to_a_new_release_while_answers_go_on(tmp_path: Path) -> None:
    disk = FolderDisk(tmp_path / "home")
    install(disk, 1)
    with running(tmp_path / "home", "-", "--step", 1) as process:
        stdin, stdout = piped(process)
        x = np.tile(samples(TIME), (4000, 1))
        header, *rows = csv_lines(x)
        stdin.write("\n".join([header, *rows[: TIME - 1]]).encode() + b"\n")
        versions, numbers, deadline = [], [], time.monotonic() + 30
        for n, row in enumerate(rows[TIME - 1 :]):
            stdin.write(row.encode() + b"\n")
            answer = json.loads(stdout.readline())
            versions.append(answer["release"])
            numbers.append(answer["window"])
            order = [0, 1, 2] if versions[-1] == 1 else [1, 2, 0]
            window = x[n : n + TIME][None]
            assert answer["class"] == "xyz"[naive(window)[0][order].argmax()]
            if n == 5:
                install(disk, 2, weighted(WEIGHTS[:, [1, 2, 0]]))
            if versions[-1] == 2 or time.monotonic() > deadline:
                break
        code, said = ends(process)
    assert (code, versions[0], versions[-1]) == (0, 1, 2)
    assert numbers == list(range(len(numbers)))
    assert "release 2 answers from now on" in said
    assert Home(disk).slots().watch.total > 0  # the home was told


def test_device_that_is_to_wait_answers_once_there_is_a_release(tmp_path: Path) -> None:
    with running(tmp_path / "home", "-", "--wait") as process:
        stdin, stdout = piped(process)
        assert process.stderr is not None
        assert b"waiting for the first release" in process.stderr.readline()
        stdin.write("\n".join(csv_lines(samples(TIME))).encode() + b"\n")
        install(FolderDisk(tmp_path / "home"), 5)
        assert json.loads(stdout.readline())["release"] == 5
        assert ends(process)[0] == 0


def test_signal_ends_the_wait_for_a_release(tmp_path: Path) -> None:
    with running(tmp_path / "home", "-", "--wait") as process:
        assert process.stderr is not None
        assert b"waiting" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert ends(process, close=False) == (0, "")


def test_second_signal_ends_it_also_while_the_model_hangs() -> None:
    """One long call into compiled code stands for a model; Python's own handlers wait for its end."""
    script = (
        "import ctypes, sys; from fedge.edge.inputs import stop_signals\n"
        "with stop_signals():\n"
        "    print('in', flush=True); ctypes.CDLL(None).pause(); ctypes.CDLL(None).pause()\n"
        "    [ctypes.CDLL(None).pause() for _ in range(9)]"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while process.poll() is None:  # two signals that come at once are one
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert process.returncode == 128 + signal.SIGTERM


def test_reader_that_goes_away_is_no_complaint(tmp_path: Path, release: Path) -> None:
    with running(release, "-", "--keep", tmp_path / "kept") as process:
        stdin, stdout = piped(process)
        stdin.write("\n".join(csv_lines(samples(TIME))).encode() + b"\n")
        stdout.readline()
        stdout.close()
        for row in csv_lines(samples(200), start=10.0)[1:]:
            try:
                stdin.write(row.encode() + b"\n")
            except BrokenPipeError:
                break
        code, said = ends(process)
    assert code == 1
    assert "rror" not in said
    assert len(recent(tmp_path / "kept")) >= 1


def test_one_window_loads_nothing_that_it_does_not_need(tmp_path: Path, release: Path) -> None:
    file = file_of(tmp_path / "a.csv", csv_lines(samples(TIME)))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fedge", "infer", release, file],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines() if row.startswith("import ")}
    packages = {name.partition(".")[0] for name in loaded}
    assert "onnxruntime" in packages
    assert not packages & {
        "torch",
        "flwr",
        "onnx",
        "tuf",
        "securesystemslib",
        "urllib3",
        "uvicorn",
        "asyncio",
    }
    assert not loaded & {"cryptography", "fedge.data", "fedge.edge.keep", "fedge.edge.home", "ssl"}
    assert len(json.loads(done.stdout)) == 6


def test_overlong_line_is_never_held_whole() -> None:
    reads, writes = os.pipe()
    if os.fork() == 0:
        for _ in range(80):
            os.write(writes, b"x" * 65_536)
        os.write(writes, b"\nshort\nlast")
        os._exit(0)
    os.close(writes)
    found = [line for line in lines(reads, Stop(-1)) if line is not None]
    os.close(reads)
    os.wait()
    assert [len(line) for line in found] == [MAX_LINE + 1, 5, 4]


def test_silence_is_told_and_a_stop_ends_it() -> None:
    reads, writes = os.pipe()
    stop, got = Stop(-1), []
    for line in lines(reads, stop, idle_seconds=0.01):
        got.append(line)
        stop.asked = len(got) == 3
    os.close(reads)
    os.close(writes)
    assert got == [None] * 3


def test_complaints_grow_rare() -> None:
    said: list[str] = []
    complaints = Complaints(said.append)
    for _ in range(1234):
        complaints.add("sample", "wrong")
    assert len(said) == 6
    assert complaints.count == {"sample": 1234}


def test_manifest_of_the_tests_is_the_models() -> None:
    assert manifest(GOOD).input.shape == (TIME, 2)
