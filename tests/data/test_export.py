import errno
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.data import export, load, load_client
from fedge.data.export import file_names, split_to_files
from fedge.errors import DataError, SetupError


def test_each_client_gets_its_own_windows_and_nothing_else(content, npz, tmp_path):
    content |= {"group": np.arange(24) // 2, "order": -np.arange(24), "scale": np.array([2.0, 3.0])}
    content |= {"classes": np.array(["rest", "walk"]), "channels": np.array(["ax", "ay"])}
    source = npz(content)
    written = split_to_files(source, tmp_path / "out")
    whole = load(source)
    assert [client for client, _, _ in written] == list(whole.clients)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for _, p, _ in written)
    for client, path, count in written:
        mine = load_client(path, classes=["rest", "walk"])
        assert list(mine.clients) == [client]
        assert mine.channels == ("ax", "ay")
        found, expected = mine.clients[client], whole.clients[client]
        assert len(found) == len(expected) == count
        np.testing.assert_array_equal(found.x, expected.x)
        np.testing.assert_array_equal(found.y, expected.y)
        assert len(set(found.group)) == len(set(expected.group)) == 3


@given(st.lists(st.text(min_size=1, max_size=128), unique=True, max_size=12))
def test_file_names_are_safe_and_different_without_case(clients):
    names = file_names(clients)
    assert list(names) == clients
    assert len({name.casefold() for name in names.values()}) == len(clients)
    for name in names.values():
        assert re.fullmatch(r"client_[A-Za-z0-9_-]{1,100}\.npz", name)


def test_ids_that_differ_only_in_case_or_imitate_a_changed_name_get_their_own_file():
    assert len({name.casefold() for name in file_names(["ok", "OK", "oK"]).values()}) == 3
    imitation = file_names(["a/"])["a/"].removeprefix("client_").removesuffix(".npz")
    assert len(set(file_names([imitation, "a/"]).values())) == 2


def test_a_hostile_id_does_not_leave_the_folder(content, npz, tmp_path):
    content["client"] = np.repeat(["../../evil", "/etc/passwd", "ok", "OK"], 6)
    written = split_to_files(npz(content), tmp_path / "out")
    assert {path.parent for _, path, _ in written} == {tmp_path / "out"}
    assert {client for client, _, _ in written} == {"../../evil", "/etc/passwd", "ok", "OK"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.npz", "out"]
    assert all(path.is_file() for _, path, _ in written)


def test_an_empty_folder_is_used_and_a_full_one_refused(content, npz, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert len(split_to_files(npz(content), out)) == 4
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(SetupError, match="is not empty"):
        split_to_files(npz(content), out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    with pytest.raises(SetupError, match=r"file\.npz: cannot be the output folder"):
        split_to_files(npz(content), tmp_path / "file.npz")


@pytest.mark.parametrize("killed_by", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_stays(content, npz, tmp_path, monkeypatch, killed_by):
    real, calls = export._write, []

    def write(path: Path, *rest):
        calls.append(path)
        if len(calls) == 3:
            raise killed_by
        real(path, *rest)

    monkeypatch.setattr(export, "_write", write)
    expected = KeyboardInterrupt if isinstance(killed_by, KeyboardInterrupt) else SetupError
    with pytest.raises(expected):
        split_to_files(npz(content), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["file.npz"]


def test_bad_data_makes_no_folder(content, npz, tmp_path):
    del content["client"]
    with pytest.raises(DataError):
        split_to_files(npz(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def same_data(whole, again):
    assert list(again.clients) == list(whole.clients)
    assert (again.classes, again.channels, again.window) == (whole.classes, whole.channels, whole.window)
    for client, windows in whole.clients.items():
        found = again.clients[client]
        for name in ("x", "y", "trainable"):
            np.testing.assert_array_equal(getattr(found, name), getattr(windows, name), name)
        assert (found.x.dtype, found.y.dtype) == (windows.x.dtype, windows.y.dtype)
        np.testing.assert_array_equal(
            found.group[:, None] == found.group, windows.group[:, None] == windows.group
        )


@pytest.mark.parametrize(("source", "package"), [("watch", "seglearn"), ("digits", "sklearn")])
def test_the_files_of_a_split_are_read_back_as_the_same_data(tmp_path, source, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    split_to_files(source, tmp_path / "devices")
    same_data(load(source), load(tmp_path / "devices"))


def test_images_numbers_and_what_may_be_trained_on_are_carried(content, npz, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (24, 6, 5, 3), np.uint8)
    content |= {"rul": np.tile([3.5, 3, 2, 2, 1, 0], 4), "group": np.arange(24) // 3}
    content |= {"order": -np.arange(24), "scale": np.array([0.5, 2.0])}
    cases = [
        ({"X": pixels, "scale": np.ones(3)}, {"target": "class"}, {"target": "class"}),
        ({}, {"target": "number", "key": "rul"}, {"target": "number"}),
        (
            {"y": np.tile([0, 0, 0, 1, 1, 1], 4)},
            {"target": "anomaly", "normal": "rul >= 3"},
            {"target": "anomaly"},
        ),
        ({"y": np.repeat([0, 1, 0, 0], 6)}, {"target": "anomaly"}, {"target": "anomaly"}),
    ]
    for number, (changes, said, asked) in enumerate(cases):
        source, out = npz(content | changes), tmp_path / f"out{number}"
        split_to_files(source, out, **said)
        same_data(load(source, **said), load(out, **asked))
    with pytest.raises(DataError, match=r"no array 'rul'.*leave data.normal out"):
        load(tmp_path / "out2", target="anomaly", normal="rul >= 3")
    other = {"X": pixels[:, :5], "y": content["y"], "client": np.full(24, "p3")}
    np.savez(tmp_path / "out0" / "client_p3.npz", **other)
    with pytest.raises(DataError, match=r"client_p3\.npz: other classes, channels or window"):
        load(tmp_path / "out0")


def test_client_files_that_teach_nothing_are_refused_together(content, npz, tmp_path):
    split_to_files(npz(content), tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files if key != "classes"}
        np.savez(path, **(arrays | {"y": np.ones(6, int)}))
    with pytest.raises(DataError, match="out: no window of any client may be trained on"):
        load(tmp_path / "out", target="anomaly")
    with pytest.raises(DataError, match="out: every window has the number 1"):
        load(tmp_path / "out", target="number")
