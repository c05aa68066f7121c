"""What points at a release: one way of writing it, and nothing else is read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import PayloadError
from fedge.release.pointer import MAX_VERSION, Pointer, folder_name, parse_pointer, version_of

VERSIONS = st.integers(1, MAX_VERSION)


@given(VERSIONS, st.sets(VERSIONS, max_size=16))
def test_pointer_is_read_as_it_was_written(version: int, bases: set[int]) -> None:
    pointer = Pointer(version, tuple(sorted(b for b in bases if b < version)))
    assert parse_pointer(pointer.to_bytes()) == pointer
    assert parse_pointer(json.loads(pointer.to_bytes())) == pointer


def test_pointer_says_where_everything_lies() -> None:
    content = Pointer(7, (5, 6)).to_bytes()
    assert content == (
        b'{"deltas":{"5":"v0007/from-0005.delta","6":"v0007/from-0006.delta"},'
        b'"manifest":"v0007/manifest.json","model":"v0007/model.onnx","version":7}'
    )


def changed(**changes: Any) -> dict[str, Any]:
    return {**Pointer(7, (6,)).to_dict(), **changes}


WRONG = {
    "nothing": None,
    "a list": [],
    "no deltas": {k: v for k, v in changed().items() if k != "deltas"},
    "another key": changed(more=1),
    "version 0": changed(version=0),
    "a huge version": changed(version=MAX_VERSION + 1),
    "a fraction": changed(version=7.0),
    "a boolean": changed(version=True),
    "text for a version": changed(version="7"),
    "another manifest": changed(manifest="v0006/manifest.json"),
    "a manifest elsewhere": changed(manifest="../manifest.json"),
    "another model": changed(model="http://elsewhere/model.onnx"),
    "a delta elsewhere": changed(deltas={"6": "/etc/passwd"}),
    "a delta from itself": changed(deltas={"7": "v0007/from-0007.delta"}),
    "a delta from the future": changed(deltas={"8": "v0007/from-0008.delta"}),
    "a delta from 0": changed(deltas={"0": "v0007/from-0000.delta"}),
    "digits of elsewhere": changed(deltas={"\u0666": "v0007/from-0006.delta"}),
    "a padded number": changed(deltas={"06": "v0007/from-0006.delta"}),
    "a long number": changed(deltas={"6" * 5000: "v0007/from-0006.delta"}),
    "too many deltas": changed(version=99, deltas={str(i): "x" for i in range(1, 18)}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_pointer_that_says_anything_else_is_refused(wrong: str) -> None:
    with pytest.raises(PayloadError):
        parse_pointer(WRONG[wrong])
    with pytest.raises(PayloadError):
        parse_pointer(json.dumps(WRONG[wrong], sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 5000, b" " * 5000, Pointer(1).to_bytes() + b"\n"]
)
def test_file_of_a_pointer_that_is_not_canonical_is_refused(content: bytes) -> None:
    with pytest.raises(PayloadError):
        parse_pointer(content)


@given(VERSIONS)
def test_folder_names_are_read_as_they_were_written(version: int) -> None:
    assert version_of(folder_name(version)) == (version if version < 10**15 else None)


@pytest.mark.parametrize(
    "name", ["v0000", "v1", "v00011", ".unfinished-v0020", "v-001", "vv0001", "v0001x", "metadata"]
)
def test_other_names_are_no_releases(name: str) -> None:
    assert version_of(name) is None
