import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from fedge.data import _zip
from fedge.errors import DataError


def header(shape, descr="<f4", version=b"\x01\x00"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text


def archive(tmp_path, entries, compression=zipfile.ZIP_STORED):
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def refused(path, match, wanted=("X",)):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=match):
            _zip.read_arrays(path, wanted)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6, f"{peak} bytes were allocated before the refusal"


@pytest.mark.parametrize(
    "shape", ["(10**12,)", "(1000000000000,)", "(1000000, 1000000, 1000000)", "(2**62, 16)"]
)
def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path, shape):
    refused(archive(tmp_path, [("X.npy", header(shape) + bytes(64))]), "claims|no readable")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (header("(-4, -4)") + bytes(64), "claims"),
        (header("(4,)") + bytes(15), "claims 16 bytes"),
        (header("(4,)") + bytes(17), "claims 16 bytes"),
        (header("(1,)", "|O") + b"\x80\x04N.", "Python objects"),
        (header("(4,)", "<M8[s]") + bytes(32), "type datetime64"),
        (header("(4,)", "<c8") + bytes(32), "complex64"),
        (header("(4,)", "|V4") + bytes(16), "elements of type"),
        (header("(1, 1, 1, 1, 1, 1, 1, 1, 1)") + bytes(4), "no array has"),
        (header("(4,)", version=b"\x03\x00") + bytes(16), "no readable array header"),
        (header("(4,)", version=b"\x09\x00") + bytes(16), "no readable array header"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "no readable array header"),
        (header("(" * 5000 + ")" * 5000), "no readable array header"),
        (header("__import__('os').system('true')"), "no readable array header"),
        (b"", "no readable array header"),
        (b"\x80\x04\x95 a pickle", "no readable array header"),
    ],
)
def test_a_hostile_array_header_is_refused(tmp_path, content, match):
    refused(archive(tmp_path, [("X.npy", content)]), match)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    path = tmp_path / "file.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("X.npy", "w") as entry,
    ):
        entry.write(header(f"({2**26},)"))
        for _ in range(2**8):
            entry.write(bytes(2**20))
    refused(path, "would unpack to")


def test_a_size_in_the_directory_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_zip, "MAX_ARRAY_BYTES", 1000)
    refused(archive(tmp_path, [("X.npy", header("(1000,)") + bytes(4000))]), "at most 1000 are read")
    monkeypatch.setattr(_zip, "MAX_FILE_BYTES", 1000)
    refused(tmp_path / "file.npz", "at most 1000 are read")


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path, [("X.npy", header("(1,)") + bytes(4))] * 2)
    refused(path, "'X' twice")
    refused(archive(tmp_path, [("X.npy", b""), ("X", b"")]), "'X' twice")


def test_packing_that_numpy_does_not_write_is_refused(tmp_path):
    refused(archive(tmp_path, [("X.npy", header("(1,)") + bytes(4))], zipfile.ZIP_LZMA), "packed in a way")
    path = archive(tmp_path, [("X.npy", header("(1,)") + bytes(4))])
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    refused(path, "encrypted")


def test_a_directory_with_very_many_entries_is_not_loaded(tmp_path):
    path = archive(tmp_path, [(f"{i:060d}", b"") for i in range(12_000)])
    refused(path, "oversized zip directory")
    path = archive(tmp_path, [(str(i), b"") for i in range(70_000)])
    refused(path, "oversized zip directory")


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    refused(pipe, "not a regular file")


def test_arrays_come_back_as_they_were_and_others_are_not_opened(tmp_path):
    path = tmp_path / "file.npz"
    stored = {"X": np.asfortranarray(np.arange(24.0).reshape(4, 6)), "ids": np.array(["ä", "b"])}
    np.savez_compressed(path, **stored, other=np.array([object], object))
    arrays, present = _zip.read_arrays(path, ("X", "ids", "absent"))
    assert set(present) == {"X", "ids", "other"}
    assert set(arrays) == {"X", "ids"}
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, stored[key])


def test_a_wrong_checksum_is_found(tmp_path):
    path = archive(tmp_path, [("X.npy", header("(1000,)") + bytes(4000))])
    raw = bytearray(path.read_bytes())
    raw[2000] ^= 1
    path.write_bytes(raw)
    refused(path, "damaged")


def test_the_end_record_is_found_behind_a_comment(tmp_path):
    path = tmp_path / "file.npz"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.comment = b"a comment\0\0"
        file.writestr("X.npy", header("(1,)") + bytes(4))
    path.write_bytes(buffer.getvalue())
    assert _zip.read_arrays(path, ("X",))[0]["X"].shape == (1,)
