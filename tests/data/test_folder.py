import csv
import importlib.util
import sys
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.data import _table, load, load_client
from fedge.data.folder import Recording, cut, load_folder, read_recording
from fedge.errors import ConfigError, DataError, SetupError

pyarrow_missing = importlib.util.find_spec("pyarrow") is None


def rows_of(seed, n=60, labels=("walk", "rest")):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)).round(4)
    half = n // 2
    return [[i * 0.02, *values[i], labels[0] if i < half else labels[1]] for i in range(n)]


def write(path, rows, header=("timestamp", "ax", "ay", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "fleet"
    where.mkdir()
    for number in (1, 2, 10):
        write(where / f"p{number}.csv", rows_of(number))
    return where


def refused(path, match):
    with pytest.raises(DataError, match=match) as caught:
        read_recording(path)
    assert str(path) in str(caught.value)


def test_a_folder_gives_one_client_per_file(folder):
    (folder / ".hidden").write_text("not read")
    data = load(folder, window=10, step=5)
    assert (data.name, list(data.clients)) == ("fleet", ["p1", "p2", "p10"])
    assert (data.classes, data.channels, data.window) == (("rest", "walk"), ("ax", "ay"), (10, 2))
    assert data.clients["p1"].y.tolist() == [1] * 5 + [0] * 5
    np.testing.assert_allclose(data.clients["p1"].x[0], [r[1:3] for r in rows_of(1)[:10]], rtol=1e-6)


def test_columns_may_stand_in_another_order(folder):
    shuffled = [[label, y, t, x] for t, x, y, label in rows_of(2)]
    before = load_folder(folder, 10, 5).clients["p2"]
    write(folder / "p2.csv", shuffled, ("label", "ay", "timestamp", "ax"))
    np.testing.assert_array_equal(load_folder(folder, 10, 5).clients["p2"].x, before.x)


def naive_cut(timestamp, x, label, time, step):
    """Walk through the samples one by one."""
    limit = 2 * float(np.median(np.diff(timestamp)))
    stretches, current = [], [0]
    for i in range(1, len(timestamp)):
        if timestamp[i] - timestamp[i - 1] > limit:
            stretches.append(current)
            current = []
        current.append(i)
    stretches.append(current)
    out = []
    for number, stretch in enumerate(stretches):
        for start in range(0, len(stretch), step):
            window = stretch[start : start + time]
            if len(window) == time and len({int(label[i]) for i in window}) == 1:
                out.append((x[window], int(label[window[0]]), number))
    return out


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 120), st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**32))
def test_windows_are_those_of_a_naive_walk(n, time, step, seed):
    rng = np.random.default_rng(seed)
    timestamp = np.cumsum(rng.choice([0.25, 0.375, 0.5, 0.625, 9], n, p=[0.8, 0.05, 0.05, 0.05, 0.05]))
    x = rng.normal(size=(n, 3)).astype(np.float32)
    label = np.cumsum(rng.random(n) < 0.04) % 3
    windows = cut(
        Recording(timestamp, x, label, ("a", "b", "c"), ("u", "v", "w")), time, step, ("c", "a", "b")
    )
    expected = naive_cut(timestamp, x, label, time, step)
    assert len(windows) == len(expected)
    for index, (values, kind, number) in enumerate(expected):
        np.testing.assert_array_equal(windows.x[index], values)
        assert windows.y[index] == (kind + 1) % 3
        assert windows.group[index] == number


@pytest.mark.parametrize(("time", "step"), [(0, 1), (65_537, 1), (8, 0)])
def test_a_window_or_step_out_of_range_is_refused(folder, time, step):
    with pytest.raises(ConfigError, match="window of"):
        load_folder(folder, time, step)


def test_iso_times_are_seconds(tmp_path):
    start = datetime.fromisoformat("2026-03-01T10:00:00+01:00")
    rows = [[(start + timedelta(seconds=r[0])).isoformat(), *r[1:]] for r in rows_of(1)]
    times = read_recording(write(tmp_path / "a.csv", rows)).timestamp
    np.testing.assert_allclose(times - times[0], [r[0] for r in rows_of(1)], atol=1e-6)
    assert times[0] == start.timestamp()


def test_a_recording_without_labels_is_read_but_gives_no_windows(tmp_path, folder):
    path = write(tmp_path / "a.csv", [r[:3] for r in rows_of(1)], ("timestamp", "ax", "ay"))
    recording = read_recording(path)
    assert (recording.label, recording.labels, recording.x.shape) == (None, (), (60, 2))
    with pytest.raises(DataError, match=r"a\.csv: has no column 'label'; only an anomaly task"):
        load_client(path, window=10)
    path.rename(folder / "p5.csv")
    with pytest.raises(DataError, match="no column 'label'"):
        load(folder, window=10)


def numbered_rows(seed=1, n=60):
    return [[*row[:3], 100 - i / 4] for i, row in enumerate(rows_of(seed, n))]


def test_a_window_takes_the_number_of_its_last_sample(folder, tmp_path):
    for number in (1, 2, 10):
        write(folder / f"p{number}.csv", numbered_rows(number))
    data = load(folder, window=10, step=5, target="number")
    windows = data.clients["p2"]
    assert (data.classes, windows.y.dtype, windows.trainable) == ((), np.float32, None)
    assert windows.y.tolist() == [100 - (start + 9) / 4 for start in range(0, 51, 5)]
    alone = load_client(folder / "p2.csv", window=10, step=5, target="number", classes=())
    assert alone.clients["p2"].y.tolist() == windows.y.tolist()
    many = write(tmp_path / "many.csv", numbered_rows(n=3000))
    assert len(load_client(many, window=10, step=10, target="number").clients["many"]) == 300
    with pytest.raises(DataError, match=r"has the classes .*the model"):
        load_client(folder / "p2.csv", window=10, target="number", classes=["rest", "walk"])


def test_a_bad_number_as_label_is_refused_by_row(folder):
    path = folder / "p1.csv"
    for bad in ("", "nan", "walk", "1e39"):
        write(path, [*numbered_rows()[:2], [0.04, 1, 2, bad], *numbered_rows()[3:]])
        with pytest.raises(DataError, match=rf"p1\.csv: row 4: column 'label' is '{bad}'"):
            load(folder, window=10, target="number")
    for number in (1, 2, 10):
        write(folder / f"p{number}.csv", [[*row[:3], 7] for row in rows_of(number)])
    with pytest.raises(DataError, match="every window has the number 7"):
        load(folder, window=10, target="number")


@pytest.mark.parametrize(("normal", "anomalous"), [("normal", "anomalous"), ("0", "1"), ("False", "True")])
def test_a_window_is_anomalous_where_any_sample_is(folder, normal, anomalous):
    """Also where the anomaly is far shorter than a window."""
    rows = [[*row[:3], anomalous if i in (24, 40) else normal] for i, row in enumerate(rows_of(1))]
    write(folder / "p1.csv", rows)
    for number in (2, 10):
        write(folder / f"p{number}.csv", [row[:3] for row in rows_of(number)], ("timestamp", "ax", "ay"))
    data = load(folder, window=10, step=5, target="anomaly")
    windows = data.clients["p1"]
    assert data.classes == ("normal", "anomalous")
    assert windows.y.tolist() == [
        int(start <= 24 < start + 10 or start <= 40 < start + 10) for start in range(0, 51, 5)
    ]
    assert windows.trainable.tolist() == [label == 0 for label in windows.y]
    assert not data.clients["p2"].y.any()
    assert data.clients["p2"].trainable.all()
    alone = load_client(
        folder / "p1.csv", window=10, step=5, target="anomaly", classes=["normal", "anomalous"]
    )
    assert alone.clients["p1"].y.tolist() == windows.y.tolist()


def test_anomaly_labels_that_say_neither_are_refused(folder):
    with pytest.raises(DataError, match="has the label 'rest'; give 0 or 'normal'"):
        load(folder, window=10, target="anomaly")
    for number in (1, 2, 10):
        write(folder / f"p{number}.csv", rows_of(number, labels=("1", "1")))
    with pytest.raises(DataError, match="no window of any client may be trained on"):
        load(folder, window=10, target="anomaly")


def test_what_only_npz_files_can_answer_is_refused_for_tables(folder):
    for said in ({"target": "number", "key": "rul"}, {"target": "anomaly", "normal": "rul > 3"}):
        with pytest.raises(ConfigError, match=r"is for \.npz files only"):
            load(folder, **said)
        with pytest.raises(ConfigError, match=r"is for \.npz files only"):
            load_client(folder / "p1.csv", **said)


def test_a_devices_labels_take_the_models_order_of_classes(tmp_path):
    path = write(tmp_path / "me.csv", rows_of(1))
    data = load_client(path, classes=["run", "walk", "rest"], window=10, step=10)
    assert data.clients["me"].y.tolist() == [1, 1, 1, 2, 2, 2]
    assert load_client(path, window=10).classes == ("rest", "walk")
    with pytest.raises(DataError, match=r"me\.csv: has the label 'walk'.*did you mean 'walking'"):
        load_client(path, classes=["rest", "walking"], window=10)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (("time", "ax", "ay", "label"), "no column 'timestamp'"),
        (("timestamp", "ax", "ax", "label"), "two columns 'ax'"),
        (("timestamp", "ax", "", "label"), "name of a column is empty"),
        (("timestamp", "ax", "ay", "labels"), "column 'labels'; write it 'label'"),
        (("Timestamp", "ax", "ay", "label"), "column 'Timestamp'; write it 'timestamp'"),
        (("timestamp",), r"1 column\(s\)"),
        (("timestamp", "label"), "no channel"),
    ],
)
def test_a_wrong_header_is_refused_by_name(tmp_path, header, match):
    refused(write(tmp_path / "a.csv", rows_of(1), header), match)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ([0.02, 1, "walk"], "row 3 has 3 cells; the header has 4"),
        ([0.02, "x1", 1, "walk"], "row 3: column 'ax' is 'x1', which is no number"),
        ([0.02, 1, "", "walk"], "row 3: column 'ay' is ''"),
        ([0.02, 1, "nan", "walk"], "row 3: column 'ay' is 'nan': NaN"),
        ([0.02, "-inf", 1, "walk"], "row 3: column 'ax' is '-inf'"),
        ([0.02, "1e39", 1, "walk"], "beyond float32"),
        (["soon", 1, 1, "walk"], "row 3: column 'timestamp' is 'soon'"),
        (["inf", 1, 1, "walk"], "row 3: column 'timestamp' is 'inf'"),
        ([0.0, 1, 1, "walk"], r"does not increase in data row 2 \(0.0 after 0.0\)"),
        ([-5, 1, 1, "walk"], "does not increase in data row 2"),
        ([0.02, 1, 1, ""], "row 3: the label is empty"),
        ([0.02, 1, 1, "a" * 200], "row 3: the label is 200 characters"),
    ],
)
def test_a_bad_row_is_refused_by_row_and_column(tmp_path, row, match):
    rows = rows_of(1)
    refused(write(tmp_path / "a.csv", [rows[0], row, *rows[2:]]), match)


def test_what_is_no_csv_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    refused(path, "No such file")
    path.write_text("")
    refused(path, "is empty")
    path.write_text("timestamp,ax,label\n")
    refused(path, "no rows")
    path.write_bytes(b"timestamp,ax,label\n0,\xff\xfe,walk\n")
    refused(path, "not UTF-8")
    path.write_text('timestamp,ax,label\n0,"1"2,walk\n')
    refused(path, "not CSV")
    path.write_text("timestamp,ax,label\n0,1,walk" + "x" * 2**20)
    refused(path, "line of more than")
    path.write_text("," * 5000)
    refused(path, r"5001 column\(s\)")
    refused(tmp_path / "a.txt", "neither .csv nor .parquet")


@pytest.mark.parametrize(
    ("limit", "match"),
    [("MAX_ROWS", "more than 10 rows"), ("MAX_VALUES", "10 values"), ("MAX_CLASSES", "10 different labels")],
)
def test_a_table_beyond_a_limit_is_refused(tmp_path, monkeypatch, limit, match):
    monkeypatch.setattr(_table, limit, 10)
    refused(write(tmp_path / "a.csv", [[*r[:3], f"label {i}"] for i, r in enumerate(rows_of(1))]), match)


def test_a_folder_that_cannot_be_used_is_refused(folder, tmp_path):
    def expect(match, window=10):
        with pytest.raises(DataError, match=match):
            load_folder(folder, window, 5)

    expect("p1.csv: 60 samples give no window of 31", window=31)
    write(folder / "p5.csv", [r[:2] + r[3:] for r in rows_of(1)], ("timestamp", "ax", "label"))
    expect("p5.csv: has no column 'ay', unlike the first file")
    write(folder / "p5.csv", [[*r, 1] for r in rows_of(1)], ("timestamp", "ax", "ay", "label", "az"))
    expect("p5.csv: has the column 'az'")
    (folder / "p5.csv").unlink()
    (folder / "README.txt").write_text("hello")
    expect("README.txt: is neither")
    (folder / "README.txt").unlink()
    (folder / "p1.parquet").write_bytes(b"x")
    expect("p1.parquet: p1.csv is the same client's")
    (folder / "p1.parquet").unlink()
    for number in (1, 2, 10):
        write(folder / f"p{number}.csv", rows_of(number, labels=("walk", "walk")))
    expect(r"1 different label\(s\) \('walk'\)")
    for number in (1, 2, 10):
        write(folder / f"p{number}.csv", [[r[0], 1, 2, r[3]] for r in rows_of(number)])
    expect("constant")
    (folder / "p10.csv").unlink()
    expect(r"2 client file\(s\)")
    with pytest.raises(DataError, match="cannot be read as a folder"):
        load_folder(tmp_path / "missing", 10, 5)
    with pytest.raises(DataError, match="one client's file; give the folder"):
        load(folder / "p1.csv")


@pytest.mark.skipif(pyarrow_missing, reason="pyarrow is not installed")
class TestParquet:
    def table(self, seed=1, **changes):
        import pyarrow as pa

        t, ax, ay, label = (list(c) for c in zip(*rows_of(seed), strict=True))
        columns = {"timestamp": t, "ax": np.array(ax, np.float32), "ay": ay, "label": label} | changes
        return pa.table({k: v for k, v in columns.items() if v is not None})

    def write(self, path, **changes):
        import pyarrow.parquet as pq

        pq.write_table(self.table(**changes), path, row_group_size=17)
        return path

    def test_parquet_and_csv_say_the_same(self, tmp_path):
        a = read_recording(write(tmp_path / "a.csv", rows_of(1)))
        b = read_recording(self.write(tmp_path / "a.parquet"))
        np.testing.assert_array_equal(a.timestamp, b.timestamp)
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.label, b.label)
        assert (a.labels, a.channels) == (b.labels, b.channels)

    def test_times_and_integer_labels_are_understood(self, tmp_path):
        start = datetime(2026, 3, 1)
        times = [start + timedelta(milliseconds=20 * i) for i in range(60)]
        path = self.write(tmp_path / "a.parquet", timestamp=times, label=[9] * 30 + [10] * 30)
        recording = read_recording(path)
        np.testing.assert_allclose(np.diff(recording.timestamp), 0.02, atol=1e-6)
        assert recording.labels == ("9", "10")
        assert recording.label.tolist() == [0] * 30 + [1] * 30

    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16])
    def test_numbers_as_labels_are_read(self, tmp_path, dtype):
        numbers = np.arange(60).astype(dtype)
        recording = read_recording(self.write(tmp_path / "a.parquet", label=numbers), "number")
        assert recording.labels == ()
        assert recording.label.tolist() == numbers.tolist()

    @pytest.mark.parametrize(
        ("label", "match"),
        [
            (["5"] * 60, "column 'label' has the type string"),
            ([1.0] * 59 + [np.nan], "data row 60: column 'label' is nan"),
            ([1.0] * 59 + [None], "column 'label' has 1 missing"),
        ],
    )
    def test_a_bad_number_as_label_is_refused(self, tmp_path, label, match):
        with pytest.raises(DataError, match=match):
            read_recording(self.write(tmp_path / "a.parquet", label=label), "number")

    def test_anomalies_may_be_yes_or_no(self, tmp_path):
        label = np.arange(60) >= 40
        for values in (label, label.astype(np.int8)):
            path = self.write(tmp_path / "a.parquet", label=values)
            data = load_client(path, window=10, step=10, target="anomaly")
            assert data.clients["a"].y.tolist() == [0, 0, 0, 0, 1, 1]
        with pytest.raises(DataError, match="has the type bool"):
            read_recording(self.write(tmp_path / "a.parquet", label=label))

    def test_unlabelled_parquet_is_read(self, tmp_path):
        assert read_recording(self.write(tmp_path / "a.parquet", label=None)).label is None

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"ax": ["1"] * 60}, "column 'ax' has the type string"),
            ({"ax": [[1.0]] * 60}, "column 'ax' has the type list"),
            ({"ax": [1.0] * 59 + [None]}, "column 'ax' has 1 missing"),
            ({"ax": [1.0] * 59 + [np.inf]}, "data row 60: column 'ax' is inf"),
            ({"label": [0.5] * 60}, "column 'label' has the type double"),
            ({"label": ["a"] * 59 + [""]}, "the label is empty"),
            ({"timestamp": [np.nan] * 60}, "not finite"),
            ({"timestamp": None}, "no column 'timestamp'"),
            ({"timestamp": [0.0] * 60}, "does not increase"),
        ],
    )
    def test_a_bad_column_is_refused_by_name(self, tmp_path, changes, match):
        refused(self.write(tmp_path / "a.parquet", **changes), match)

    def test_damage_and_size_are_refused(self, tmp_path, monkeypatch):
        path = self.write(tmp_path / "a.parquet")
        raw = path.read_bytes()
        for damaged in (b"PAR1", raw[: len(raw) // 2], b"x" * 1000, raw[:-8] + b"\xff\xff\xff\x7fPAR1"):
            path.write_bytes(damaged)
            refused(path, "damaged or no Parquet")
        path.write_bytes(raw)
        monkeypatch.setattr(_table, "MAX_ROWS", 10)
        refused(path, "60 rows of 2 channels")

    def test_a_missing_pyarrow_is_named(self, tmp_path, monkeypatch):
        path = self.write(tmp_path / "a.parquet")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(SetupError, match=r"pip install 'fedge\[simulation\]'"):
            read_recording(path)
