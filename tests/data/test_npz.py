import re

import numpy as np
import pytest

import fedge.data.npz
from fedge.data import load, load_client
from fedge.data.npz import read_npz
from fedge.data.types import Windows
from fedge.errors import DataError


def refused(path, *words, **settings):
    with pytest.raises(DataError) as caught:
        read_npz(path, **settings)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), f"{word!r} not in {message!r}"


def test_a_good_file_gives_each_client_its_windows_in_natural_order(content, npz):
    data = read_npz(npz(content))
    assert list(data.clients) == ["p1", "p2", "p3", "p10"]
    assert (data.name, data.classes, data.channels) == ("file", ("0", "1"), ("channel0", "channel1"))
    assert data.window == (8, 2)
    for client, windows in data.clients.items():
        mine = content["client"] == client
        np.testing.assert_array_equal(windows.x, content["X"][mine])
        np.testing.assert_array_equal(windows.y, content["y"][mine])
        assert (windows.x.dtype, windows.y.dtype, windows.group.dtype) == (np.float32, np.int64, np.int64)
        assert len(set(windows.group.tolist())) == 1


def test_integer_clients_are_sorted_by_value(content, npz):
    content["client"] = np.repeat([10, -1, 9, 100], 6)
    assert list(read_npz(npz(content)).clients) == ["-1", "9", "10", "100"]


def test_order_sorts_inside_a_client_and_keeps_ties_as_stored(content, npz):
    content["order"] = np.tile([3, 1, 2, 1, 5, 0], 4)
    windows = read_npz(npz(content)).clients["p1"]
    np.testing.assert_array_equal(windows.x, content["X"][12:18][[5, 1, 3, 2, 0, 4]])


def test_integers_are_scaled_per_channel(content, npz):
    rng = np.random.default_rng(0)
    content["X"] = rng.integers(-30_000, 30_000, (24, 8, 2), dtype=np.int16)
    content["scale"] = np.array([0.001, 9.81])
    windows = read_npz(npz(content)).clients["p2"]
    expected = (content["X"][:6].astype(np.float64) * [0.001, 9.81]).astype(np.float32)
    np.testing.assert_array_equal(windows.x, expected)


def test_groups_may_be_text_and_keep_their_partition(content, npz):
    content["group"] = np.array([f"walk {i // 3}" for i in range(24)])
    group = np.concatenate([read_npz(npz(content)).clients[c].group for c in ("p2", "p10", "p1", "p3")])
    assert [list(group).index(g) for g in group] == [i - i % 3 for i in range(24)]


def test_names_are_taken_from_the_file(content, npz):
    content |= {"classes": np.array(["rest", "walk", "run"]), "channels": np.array([b"ax", b"ay"])}
    data = read_npz(npz(content))
    assert (data.classes, data.channels) == (("rest", "walk", "run"), ("ax", "ay"))


def test_unknown_arrays_are_ignored_even_objects(content, npz):
    content |= {"rul": np.arange(3), "official_test": np.array([{"never": "loaded"}], object)}
    assert len(read_npz(npz(content)).clients) == 4


def test_a_client_with_one_window_is_accepted(content, npz):
    content["client"] = np.array(["a"] * 11 + ["b"] * 12 + ["c"])
    assert len(read_npz(npz(content)).clients["c"]) == 1


def test_a_device_may_hold_one_client_and_one_class_but_not_two_clients(content, npz):
    with pytest.raises(DataError, match="holds 4 clients"):
        load_client(npz(content))
    content |= {"client": np.full(24, "p1"), "y": np.ones(24, int), "classes": np.array(["rest", "walk"])}
    path = npz(content)
    assert len(load_client(path, classes=["rest", "walk"]).clients["p1"]) == 24
    with pytest.raises(DataError, match="the model"):
        load_client(path, classes=["walk", "rest"])
    refused(path, "1 client", "3 or more")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("X", np.zeros((24, 2, 2, 2, 2)), [r"\(24, 2, 2, 2, 2\)", "height, width, channels"]),
        ("X", np.zeros((24, 8, 0, 1)), ["0 columns"]),
        ("X", np.zeros((24, 1025, 1, 1), np.uint8), ["1025 rows", "1 to 1024"]),
        ("X", np.zeros((24, 1, 1025, 1), np.uint8), ["1025 columns"]),
        ("X", np.zeros((24, 4, 4, 1025), np.uint8), ["1025 channels"]),
        ("X", np.full((24, 4, 4, 3), [0, 128, 255], np.uint8), ["constant"]),
        ("X", np.zeros((24, 8)), [r"\(24, 8\)", "time, channels"]),
        ("X", np.zeros((0, 8, 2)), ["0 windows"]),
        ("X", np.zeros((24, 0, 2)), ["0 time steps"]),
        ("X", np.zeros((24, 8, 0)), ["0 channels"]),
        ("X", np.zeros((24, 8, 1025), np.int8), ["1025 channels"]),
        ("X", np.zeros((24, 65_537, 1), np.int8), ["65537 time steps"]),
        ("X", np.full((24, 8, 2), 3.0), ["constant"]),
        ("X", np.zeros((24, 8, 2), complex), ["complex128"]),
        ("X", np.full((24, 8, 2), "1.5"), ["type <U3"]),
        ("X", np.full((24, 8, 2), 1e39), ["beyond float32", "window 0, time 0, channel 0"]),
        ("X", np.full((24, 8, 2), None), ["Python objects", "'X'"]),
        ("y", np.zeros(23, int), [r"'y'.*\(23,\)", r"\(24,\)"]),
        ("y", np.zeros((24, 1), int), [r"\(24, 1\)"]),
        ("y", np.linspace(0, 1, 24), ["no class index", "index 1", "remaining_life"]),
        ("y", np.full(24, np.nan), ["'y' is nan at index 0"]),
        ("y", np.repeat([0, 1, -1], 8), ["'y' is -1 at index 16"]),
        ("y", np.repeat([0, 2**62], 12), ["at index 12", "0 to 999"]),
        ("y", np.repeat([0.0, 1e300], 12), ["at index 12"]),
        ("y", np.full(24, 1), ["class '1'", "two or more"]),
        ("y", np.repeat(["rest", "walk"], 12), ["'y' is text", "'classes'"]),
        ("y", np.repeat([0, 1], 12).astype(object), ["Python objects"]),
        ("client", np.repeat(["a", "b"], 12), ["2 client", "'a', 'b'"]),
        ("client", np.repeat(["a", "b", ""], 8), ["'client' at index 16 is empty"]),
        ("client", np.repeat(["a", "b", "c\nd"], 8), ["'client' at index 16", "printed"]),
        ("client", np.repeat(["a", "b", "c" * 129], 8), ["'client' at index 16", "129 characters"]),
        ("client", np.repeat([b"a", b"b", b"\xff"], 8), ["'client' at index 16", "UTF-8"]),
        ("client", np.repeat([1.0, 2.0, 3.0], 8), ["float64", "integers or text"]),
        ("client", np.arange(23), [r"\(23,\)"]),
        ("classes", np.array(["rest"]), ["'y' is 1 at index 1", "names only 1"]),
        ("classes", np.array(["rest", "rest"]), ["'rest' twice"]),
        ("classes", np.array([["rest", "walk"]]), [r"\(1, 2\)"]),
        ("channels", np.array(["ax"]), ["names 1", "2 channels"]),
        ("channels", np.array(["ax", "ax"]), ["'ax' twice"]),
        ("scale", np.ones(3), [r"\(3,\)", "2 channels"]),
        ("scale", np.array([1.0, np.nan]), ["'scale' is nan at index 1"]),
        ("scale", np.array([0, 1]), ["'scale' is 0 at index 0"]),
        ("order", np.arange(5), [r"\(5,\)"]),
        ("order", np.array([0.0] * 20 + [np.inf] * 4), ["'order' is inf at index 20"]),
        ("order", np.full(24, "late"), ["type <U4", "numbers"]),
        ("group", np.zeros(24), ["integers or text"]),
    ],
)
def test_a_bad_array_is_refused_by_name_and_place(content, npz, key, value, words):
    content[key] = value
    refused(npz(content), *words)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_window_and_channel(content, npz, bad):
    content["X"][5, 3, 1] = bad
    refused(npz(content), "window 5, time 3, channel 1", r"1 value")


@pytest.mark.parametrize("key", ["X", "client"])
def test_a_missing_array_is_named_beside_those_that_are_there(content, npz, key):
    del content[key]
    refused(npz(content), f"no array '{key}'", "the file holds 'X'|the file holds 'y'")


@pytest.mark.parametrize("target", ["class", "number"])
def test_missing_labels_are_refused_where_they_are_needed(content, npz, target):
    del content["y"]
    refused(npz(content), "no labels 'y'", "only an anomaly task", target=target)


def images(content, dtype=np.uint8):
    shape = (24, 5, 7, 3)
    return content | {"X": np.random.default_rng(4).integers(0, 256, shape).astype(dtype)}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_are_read_with_their_channels_scaled(content, npz, dtype):
    content = images(content, dtype)
    data = read_npz(npz(content))
    assert (data.window, data.channels) == ((5, 7, 3), ("channel0", "channel1", "channel2"))
    np.testing.assert_array_equal(data.clients["p1"].x, content["X"][12:18])
    scale = np.array([1 / 255, 2.0, -0.5])
    found = read_npz(npz(content | {"scale": scale})).clients["p2"].x
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (content["X"][:6].astype(np.float64) * scale).astype(np.float32))
    refused(npz(content | {"scale": np.ones(7)}), r"\(7,\)", "3 channels")


def test_one_constant_channel_of_an_image_is_allowed(content, npz):
    content = images(content)
    content["X"][..., 1] = 9
    assert read_npz(npz(content)).window == (5, 7, 3)


def test_a_pixel_that_is_not_finite_is_refused_with_its_place(content, npz):
    content = images(content, np.float32)
    content["X"][6, 4, 3, 2] = np.inf
    refused(npz(content), "image 6, row 4, column 3, channel 2", "leave out those images")


def test_more_values_than_memory_should_hold_are_refused(content, npz, monkeypatch):
    monkeypatch.setattr(fedge.data.npz, "MAX_VALUES", 383)
    refused(npz(content), r"384 values \(24, 8, 2\); at most 383")


def test_a_number_is_read_from_the_array_that_is_named(content, npz):
    content |= {"rul": np.arange(24)[::-1].astype(np.int16), "classes": np.array(["a", "b", "c"])}
    for key, expected in (("rul", content["rul"]), ("y", content["y"])):
        data = read_npz(npz(content), target="number", key=key)
        assert data.classes == ()
        windows = data.clients["p1"]
        assert (windows.y.dtype, windows.trainable) == (np.float32, None)
        assert windows.y.tolist() == expected[12:18].tolist()


def test_classes_may_be_in_another_array_than_y(content, npz):
    content |= {"state": content["y"] + 1, "y": np.full(24, np.nan)}
    assert read_npz(npz(content | {"classes": np.array(["a", "b", "c"])}), key="state").classes[2] == "c"
    refused(npz(content), "'state' goes up to 2, but no window has the class 0", key="state")
    refused(npz(content), "has no array 'stage', which data.target asks for", "split", key="stage")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([*range(23), np.nan], ["'rul' is nan at index 23"]),
        ([np.inf, *range(23)], ["'rul' is inf at index 0"]),
        ([1, -1e39, *range(22)], ["'rul' is -1e\\+39 at index 1", "float32"]),
        ([3.5] * 24, ["every window has the number 3.5"]),
        (["1"] * 24, ["'rul' has elements of type <U1", "give numbers"]),
        ([True, False] * 12, ["type bool"]),
        (range(23), [r"'rul' has the shape \(23,\)"]),
        ([[1.0]] * 24, [r"\(24, 1\)"]),
    ],
)
def test_a_bad_number_is_refused_by_name_and_place(content, npz, value, words):
    refused(npz(content | {"rul": np.array(value)}), *words, target="number", key="rul")


def read_anomalies(path, **settings):
    return Windows.joined(list(read_npz(path, target="anomaly", **settings).clients.values()))


@pytest.mark.parametrize("dtype", [np.int8, bool, np.float32])
def test_what_is_labelled_anomalous_is_not_trained_on(content, npz, dtype):
    content |= {"y": content["y"].astype(dtype), "classes": np.array(["healthy", "broken"])}
    data = read_npz(npz(content), target="anomaly")
    assert data.classes == ("normal", "anomalous")
    for windows in data.clients.values():
        assert windows.y.tolist() == [0, 1] * 3
        assert windows.y.dtype == np.int64
        assert windows.trainable.tolist() == [True, False] * 3


def test_without_labels_every_window_counts_as_normal(content, npz):
    del content["y"]
    windows = read_anomalies(npz(content))
    assert not windows.y.any()
    assert windows.trainable.all()


def test_a_rule_says_what_is_normal_and_order_is_kept(content, npz):
    content |= {"y": np.tile([0, 0, 0, 0, 1, 1], 4), "rul": np.tile([6, 5, 4, 3, 2, 1], 4)}
    content |= {"order": -np.arange(24)}
    windows = read_npz(npz(content), target="anomaly", normal="rul > 4").clients["p1"]
    assert windows.y.tolist() == [1, 1, 0, 0, 0, 0]
    assert windows.trainable.tolist() == [False] * 4 + [True] * 2
    del content["y"]
    windows = read_npz(npz(content), target="anomaly", normal="rul > 4").clients["p1"]
    assert windows.y.tolist() == [0] * 6
    assert windows.trainable.tolist() == [False] * 4 + [True] * 2


def test_a_client_without_normal_windows_is_kept_for_evaluation(content, npz):
    content["y"] = np.repeat([0, 1, 0, 0], 6)
    data = read_npz(npz(content), target="anomaly")
    assert not data.clients["p10"].trainable.any()
    content |= {"client": np.full(24, "p1"), "y": np.ones(24, int)}
    assert len(load_client(npz(content), target="anomaly").clients["p1"]) == 24


@pytest.mark.parametrize(
    ("changes", "normal", "words"),
    [
        ({"y": np.ones(24, int)}, "", ["no window of any client may be trained on", "none is normal"]),
        ({"trainable": np.zeros(24)}, "", ["no window of any client may be trained on"]),
        ({"rul": np.zeros(24)}, "rul > 9", ["may be trained on", r"data.normal \(rul > 9\) holds nowhere"]),
        ({"rul": np.ones(24)}, "rul > 0", ["would train on 12 window", "'y' calls anomalous", "at index 1"]),
        ({"trainable": np.ones(24)}, "", ["'trainable' would train on 12"]),
        ({"trainable": np.full(24, 0.5)}, "", ["'trainable' is 0.5 at index 0", "give 0 or 1"]),
        ({"trainable": np.ones(3)}, "", [r"'trainable'.*\(3,\)"]),
        ({}, "rul > 0", ["has no array 'rul', which data.normal asks for", "holds 'X', 'y', 'client'$"]),
        ({"trainable": np.ones(24)}, "rul > 0", ["no array 'rul'", "leave data.normal out"]),
        ({"rul": np.full(24, np.nan)}, "rul > 0", ["'rul' is nan at index 0"]),
        ({"rul": np.full(24, "9")}, "rul > 0", ["'rul'.*<U1", "give numbers"]),
        ({"rul": np.ones((24, 2))}, "rul > 0", [r"\(24, 2\)"]),
        ({}, "X > 0", [r"'X' has the shape \(24, 8, 2\)"]),
        ({}, "client > 0", ["'client'.*<U3"]),
        ({"y": np.repeat([0, 2], 12)}, "", ["'y' is 2 at index 12", "give 0 or 1"]),
        ({"y": np.repeat([0, np.nan], 12)}, "", ["'y' is nan at index 12"]),
        ({"y": np.repeat(["normal", "anomalous"], 12)}, "", ["'y' is text"]),
        ({"classes": np.array(["a", "b", "c"])}, "", ["names 3 .*knows two"]),
        ({"classes": np.array(["anomalous", "normal"])}, "", ["0 must be normal"]),
    ],
)
def test_bad_anomaly_data_is_refused_with_the_reason(content, npz, changes, normal, words):
    refused(npz(content | changes), *words, target="anomaly", normal=normal)


def test_labels_under_another_name_are_not_taken_for_missing_ones(content, npz):
    content["labels"] = content.pop("y")
    refused(npz(content), "no labels 'y', but 'labels'", "data.target=labels", target="anomaly")
    assert read_anomalies(npz(content), key="labels").y.sum() == 12


def test_what_other_targets_ask_for_is_ignored(content, npz):
    content |= {"trainable": np.arange(3)}
    assert read_npz(npz(content)).clients["p1"].trainable is None


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("clients", "client"), ("Y", "y"), ("x", "X"), ("Classes", "classes"), ("channel", "channels"),
     ("groups", "group"), ("Order", "order"), ("scales", "scale")],
)  # fmt: skip
def test_a_slip_in_a_name_is_not_ignored(content, npz, slip, meant):
    content[slip] = np.zeros(24)
    refused(npz(content), f"{slip!r}; did you mean {meant!r}")


def test_what_is_no_npz_file_is_refused(tmp_path, content, npz):
    good = npz(content).read_bytes()
    bad = tmp_path / "bad.npz"
    refused(bad, "No such file", "give an .npz")
    refused(tmp_path, "is a folder")
    bad.write_bytes(b"")
    refused(bad, "is empty")
    bad.write_bytes(b"a,b,c\n" * 1000)
    refused(bad, "not an .npz")
    np.save(tmp_path / "single.npy", content["X"])
    refused(tmp_path / "single.npy", "not an .npz")
    bad.write_bytes(good[: len(good) // 2])
    refused(bad, "cut short")


def test_no_flipped_byte_leads_to_anything_but_the_same_data_or_a_refusal(tmp_path, content, npz):
    good = npz(content)
    expected = read_npz(good)
    raw = good.read_bytes()
    rng = np.random.default_rng(3)
    places = [*rng.integers(0, len(raw), 300), *range(len(raw) - 400, len(raw))]
    bad = tmp_path / "flipped.npz"
    refusals = 0
    for at in places:
        damaged = bytearray(raw)
        damaged[at] ^= 1 << int(rng.integers(8))
        bad.write_bytes(damaged)
        try:
            data = read_npz(bad)
        except DataError:
            refusals += 1
            continue
        for client, windows in expected.clients.items():
            np.testing.assert_array_equal(data.clients[client].x, windows.x)
            np.testing.assert_array_equal(data.clients[client].y, windows.y)
    assert refusals > 100


def test_a_misspelt_source_is_refused(tmp_path):
    with pytest.raises(DataError, match="wacth"):
        load(tmp_path / "wacth")


def test_the_development_data_is_read(development_data):
    data = load(development_data / "turbofan.npz")
    assert (len(data.clients), data.window) == (200, (30, 24))
    assert list(data.clients)[:3] == ["1", "2", "3"]
    assert sum(map(len, data.clients.values())) == 5665
    lives = load(development_data / "turbofan.npz", target="number", key="rul")
    assert lives.classes == ()
    assert max(float(windows.y.max()) for windows in lives.clients.values()) > 100
    early = load(development_data / "turbofan.npz", target="anomaly", normal="rul > 100")
    assert sum(int(windows.trainable.sum()) for windows in early.clients.values()) == 3002
    signs = load(development_data / "direction_signs.npz")
    assert (len(signs.clients), signs.window, signs.channels) == (20, (32, 32, 3), ("r", "g", "b"))
    assert sum(map(len, signs.clients.values())) == 4679
