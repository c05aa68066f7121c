"""Packages: what travels to a device in one piece, and what may arrive in place of one."""

import os
import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import PayloadError
from fedge.release import delta
from fedge.release.manifest import MAX_MODEL_BYTES
from fedge.release.package import MAX_FILES, MAX_PACKAGE_BYTES, make_package, parse_package

from .models import Weights, int8_model
from .test_delta import mutated

FUZZED = 10_000 if os.environ.get("FEDGE_FULL") == "1" else 400
MODEL = int8_model(Weights.random(3))
HELD = b'{"version":1,"windows":"' + b"QUJD" * 500 + b'"}'
FILES = {
    "metadata/timestamp.json": b'{"signed":{}}',
    "metadata/3.rounds.json": b'{"signed":{"targets":{}}}',
    "v0002/manifest.json": HELD.replace(b":1", b":2"),
    "v0002/model.onnx": MODEL,
}
PATHS = st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}\.[a-z]{1,4}", fullmatch=True)


def raw(*records: tuple[bytes, int, bytes]) -> bytes:
    """A package made by hand of path, coding and content."""
    inside = b"".join(bytes([len(p)]) + p + struct.pack("<BI", c, len(x)) + x for p, c, x in records)
    return struct.pack("<4sBI", b"FDGP", 1, len(inside)) + zlib.compress(inside)


@given(st.dictionaries(PATHS, st.binary(max_size=60), max_size=8))
def test_package_gives_back_what_was_put_in(files: dict[str, bytes]) -> None:
    assert parse_package(make_package(files)) == files


def test_model_and_manifest_travel_in_few_bytes() -> None:
    assert parse_package(make_package(FILES)) == FILES
    small = make_package(FILES, HELD)
    assert parse_package(small, HELD) == FILES
    assert len(small) < len(make_package(FILES)) < len(zlib.compress(b"".join(FILES.values()), 9))


def test_package_for_a_device_with_another_release_is_refused() -> None:
    small = make_package(FILES, HELD)
    for manifest in (None, HELD + b" ", b""):
        with pytest.raises(PayloadError):
            parse_package(small, manifest)


PATHS_ELSEWHERE = ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".x", "a/.b", "a/b/c/d", "a b", "a\\b"]


@pytest.mark.parametrize("path", [*PATHS_ELSEWHERE, "\u00e9", "x" * 65])
def test_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(PayloadError):
        make_package({path: b"x"})
    with pytest.raises(PayloadError):
        parse_package(raw((path.encode(), 0, b"x")))


def test_package_made_by_hand_is_read() -> None:
    """The control of the tests around it."""
    assert parse_package(raw((b"a/b.json", 0, b"x"), (b"c", 0, b""))) == {"a/b.json": b"x", "c": b""}


WRONG = {
    "empty": b"",
    "header only": raw((b"a", 0, b"x"))[:9],
    "another magic": b"FDGR" + raw((b"a", 0, b"x"))[4:],
    "another format": raw((b"a", 0, b"x"))[:4] + b"\2" + raw((b"a", 0, b"x"))[5:],
    "another length": raw((b"a", 0, b"x"))[:5] + b"\1" + raw((b"a", 0, b"x"))[6:],
    "bytes after it": raw((b"a", 0, b"x")) + b"x",
    "unknown coding": raw((b"a", 3, b"x")),
    "a path twice": raw((b"a", 0, b"x"), (b"a", 0, b"y")),
    "too many files": raw(*((b"f%d" % i, 0, b"") for i in range(MAX_FILES + 1))),
    "no packed model": raw((b"v0001/model.onnx", 1, b"x" * 20)),
    "a record cut off": struct.pack("<4sBI", b"FDGP", 1, 3) + zlib.compress(b"\2ab"),
    "a length beyond the end": struct.pack("<4sBI", b"FDGP", 1, 7) + zlib.compress(b"\1a\0\5\0\0\0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_package_is_refused(wrong: str) -> None:
    with pytest.raises(PayloadError):
        parse_package(WRONG[wrong])


def test_too_many_files_are_not_packed() -> None:
    with pytest.raises(PayloadError, match="at most"):
        make_package({f"f{i}": b"" for i in range(MAX_FILES + 1)})


def test_package_cut_off_anywhere_is_refused() -> None:
    whole = make_package(FILES)
    for size in range(len(whole)):
        with pytest.raises(PayloadError):
            parse_package(whole[:size])


@pytest.mark.parametrize("claimed", [0, 100, MAX_MODEL_BYTES, (1 << 32) - 1])
def test_package_that_inflates_to_more_than_it_says_takes_no_memory(claimed: int) -> None:
    bomb = struct.pack("<4sBI", b"FDGP", 1, claimed) + zlib.compress(bytes(200 << 20), 9)
    assert len(bomb) < MAX_PACKAGE_BYTES
    tracemalloc.start()
    with pytest.raises(PayloadError):
        parse_package(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * min(claimed, MAX_MODEL_BYTES) + (2 << 20)


def test_many_packed_models_share_one_limit() -> None:
    """Each inflates to a model of the largest size; together they are above the limit of a package."""
    packed = delta.pack(bytes(MAX_MODEL_BYTES))
    assert len(packed) < 1 << 17
    records = [(b"v%04d/model.onnx" % i, 1, packed) for i in range(1, 4)]
    with pytest.raises(PayloadError):
        parse_package(raw(*records))


def test_fuzzed_packages_are_refused_or_hold_few_files() -> None:
    rng, taken = random.Random(11), 0
    whole = make_package(FILES, HELD)
    plain = zlib.decompress(make_package({f"a/f{i}.json": bytes(range(40)) for i in range(9)})[9:])
    for number in range(FUZZED):
        if number % 2:
            fuzzed = mutated(whole, rng)
        else:
            changed = mutated(plain, rng)
            fuzzed = struct.pack("<4sBI", b"FDGP", 1, len(changed)) + zlib.compress(changed, 1)
        try:
            files = parse_package(fuzzed, HELD)
        except PayloadError:
            continue
        taken += 1
        assert len(files) <= MAX_FILES
        assert sum(map(len, files.values())) < 1 << 20
    assert taken, "some must get through, or this tests nothing"
