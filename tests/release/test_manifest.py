import base64
import contextlib
import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import ReleaseError
from fedge.release.manifest import (
    KINDS,
    MAX_MANIFEST_BYTES,
    MAX_MODEL_BYTES,
    Input,
    Manifest,
    ModelFile,
    SelfTest,
    parse,
)

from .build import manifest

GOOD = json.loads(manifest().to_bytes())


def written(raw: object) -> bytes:
    return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()


def changed(path: str, value: object) -> bytes:
    """The good manifest with the value at ``path`` replaced."""
    raw = json.loads(json.dumps(GOOD))
    *way, last = path.split(".")
    inner = raw
    for key in way:
        inner = inner[key]
    inner[last] = value
    return written(raw)


finite32 = st.floats(-(2.0**99), 2.0**99, width=32)
names = st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True)
titles = st.text(st.characters(categories=["L", "N", "S"]), min_size=1, max_size=8)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite32 | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    shape = (*draw(st.lists(st.integers(1, 5), min_size=1, max_size=2)), draw(st.integers(1, 4)))
    channels, classes, k = shape[-1], draw(st.integers(0, 4)), draw(st.integers(1, 3))
    outputs = draw(st.sampled_from([1, 2])) if classes == 2 else classes or 1
    anomaly = classes == 2 and outputs == 1
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    version, created = draw(st.integers(1, 2**53 - 1)), draw(st.integers(0, 2**40))
    x = rng.normal(0, 9, (k, *shape)).astype(np.float32)
    return Manifest(
        federation=draw(st.text("0123456789abcdef", min_size=16, max_size=64)),
        version=version,
        round=draw(st.integers(0, 2**53 - 1)),
        created=created,
        task=draw(names),
        model=ModelFile(
            rng.bytes(32).hex(), draw(st.integers(1, MAX_MODEL_BYTES)), draw(st.sampled_from(KINDS))
        ),
        input=Input(shape, tuple(f"c{i}" for i in range(channels))),
        classes=tuple(draw(st.lists(titles, min_size=classes, max_size=classes, unique=True))),
        metric=draw(names),
        scores=draw(st.dictionaries(names, finite32, max_size=4)),
        sizes=draw(st.dictionaries(names, st.integers(0, 2**53 - 1), max_size=4)),
        parent=draw(st.none() | st.integers(1, version - 1)) if version > 1 else None,
        expires=created + draw(st.integers(1, 2**40)),
        self_test=SelfTest.of(x, rng.normal(size=(k, outputs)).astype(np.float32), 0.01),
        threshold=draw(st.none() | finite32) if anomaly else None,
        extra=draw(st.dictionaries(st.text(max_size=5), jsons, max_size=3)),
    )


@given(manifests())
def test_round_trip_is_exact_both_ways(m: Manifest) -> None:
    content = m.to_bytes()
    assert parse(content) == m
    assert parse(content).to_bytes() == content


def test_bytes_are_canonical_json_as_another_writer_makes_it() -> None:
    assert manifest().to_bytes() == written(GOOD)


def test_self_test_survives_with_every_bit() -> None:
    x = np.random.default_rng(1).normal(size=(2, 5, 2)).astype(np.float32)
    scores = np.random.default_rng(2).normal(size=(2, 3)).astype(np.float32)
    m = parse(manifest(self_test=SelfTest.of(x, scores, 0.5)).to_bytes())
    assert m.self_test_windows().tobytes() == x.tobytes()
    assert m.self_test_windows().shape == (2, 5, 2)
    assert m.self_test_scores().tobytes() == scores.tobytes()


def test_older_and_newer_schemas_are_refused_with_what_to_do() -> None:
    with pytest.raises(ReleaseError, match="older fedge: publish the model again"):
        parse(changed("schema", 1))
    with pytest.raises(ReleaseError, match="newer fedge: update this one"):
        parse(changed("schema", 4))


def one_score(**changes: Any) -> Manifest:
    x = np.zeros((2, 5, 2), np.float32)
    return manifest(self_test=SelfTest.of(x, np.ones((2, 1), np.float32), 0.1), **changes)


def test_number_has_one_score_and_no_classes() -> None:
    m = parse(one_score(classes=(), metric="negative_rmse", scores={"unseen": -41.5}).to_bytes())
    assert (m.outputs, m.target, m.threshold, m.scores["unseen"]) == (1, "number", None, -41.5)
    with pytest.raises(ReleaseError, match="rows of 3 scores; with 0 classes it must be 1"):
        manifest(classes=()).to_bytes()


def test_rows_of_different_lengths_are_refused_where_either_length_would_do() -> None:
    rows = SelfTest(np.zeros((2, 5, 2), "<f4").tobytes(), ((1.0,), (1.0, 2.0)), 0.1)
    with pytest.raises(ReleaseError, match="rows of 1 or 2 scores"):
        manifest(classes=("normal", "anomalous"), self_test=rows).to_bytes()


@pytest.mark.parametrize("shape", [[2**20, 2], [2**10, 2**10, 2]])
def test_window_above_the_limit_is_refused_as_such(shape: list[int]) -> None:
    with pytest.raises(ReleaseError, match="2097152 values; the limit is 1048576"):
        parse(changed("input.shape", shape))


@pytest.mark.parametrize("threshold", [None, -7.25, 0.0, 1e9])
def test_anomaly_score_has_two_classes_and_may_suggest_a_threshold(threshold: float | None) -> None:
    m = parse(one_score(classes=("normal", "anomalous"), threshold=threshold).to_bytes())
    assert (m.outputs, m.target, m.threshold) == (1, "anomaly", threshold)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, 1, True, "0.5", [0.5]])
def test_threshold_that_is_no_finite_number_is_refused(threshold: Any) -> None:
    with pytest.raises(ReleaseError):
        one_score(classes=("normal", "anomalous"), threshold=threshold).to_bytes()


def test_threshold_of_anything_but_an_anomaly_score_is_refused() -> None:
    two = SelfTest.of(np.zeros((2, 5, 2), np.float32), np.ones((2, 2), np.float32), 0.1)
    for wrong in (
        one_score(classes=(), threshold=0.5),
        manifest(threshold=0.5),
        manifest(self_test=two, classes=("normal", "anomalous"), threshold=0.5),
    ):
        with pytest.raises(ReleaseError, match="threshold"):
            wrong.to_bytes()


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_score_that_is_not_finite_cannot_be_written(score: float) -> None:
    """A score that is not defined is left out."""
    with pytest.raises(ReleaseError):
        manifest(scores={"unseen": score}).to_bytes()


def test_self_test_of_images_survives_with_every_bit() -> None:
    x = np.random.default_rng(3).integers(0, 256, (2, 4, 5, 3), np.uint8)
    test = SelfTest.of(x, np.ones((2, 3), np.float32), 0.5)
    m = manifest(input=Input((4, 5, 3), ("r", "g", "b")), self_test=test)
    read = parse(m.to_bytes())
    assert read.input.shape == (4, 5, 3)
    assert read.self_test_windows().tobytes() == x.astype(np.float32).tobytes()
    assert read.self_test_windows().shape == (2, 4, 5, 3)


@pytest.mark.parametrize("where", ["", "model", "input", "self_test"])
def test_unknown_key_in_manifest_is_refused(where: str) -> None:
    with pytest.raises(ReleaseError, match=r"unknown key|no others"):
        parse(changed(f"{where}.surprise".lstrip("."), 1))


def test_unknown_key_under_extra_is_kept() -> None:
    assert parse(changed("extra.surprise", [1, {"a": None}])).extra == {"surprise": [1, {"a": None}]}


@pytest.mark.parametrize("key", sorted(GOOD))
def test_missing_key_is_refused(key: str) -> None:
    with pytest.raises(ReleaseError):
        parse(written({k: v for k, v in GOOD.items() if k != key}))


WRONG: list[tuple[str, Any]] = [
    ("schema", 1),
    ("schema", 2),
    ("schema", 4),
    ("schema", 0),
    ("schema", "3"),
    ("schema", 3.0),
    ("schema", True),
    ("schema", None),
    ("federation", "0123"),
    ("federation", "0123456789ABCDEF"),
    ("federation", "f" * 65),
    ("federation", 16**16),
    ("version", 0),
    ("version", -1),
    ("version", True),
    ("version", 3.0),
    ("version", "3"),
    ("version", 2**53),
    ("version", None),
    ("round", -1),
    ("round", True),
    ("created", 1.5),
    ("expires", 1_700_000_000),  # not after created
    ("task", "../../etc"),
    ("task", "a" * 65),
    ("task", ""),
    ("metric", "Accuracy"),
    ("model", []),
    ("model.kind", "fp32"),
    ("model.sha256", "0" * 63),
    ("model.size", 0),
    ("model.size", MAX_MODEL_BYTES + 1),
    ("input.shape", [0, 2]),
    ("input.shape", [2**40, 2]),
    ("input.shape", [2**20, 2]),
    ("input.shape", [2**10, 2**10, 2]),
    ("input.shape", [5, 3]),
    ("input.shape", [2, 5]),  # channels first
    ("input.shape", [2]),
    ("input.shape", [5, 1, 1, 2]),
    ("input.shape", [5.0, 2]),
    ("input.shape", [True, 2]),
    ("input.shape", []),
    ("input.shape", 10),
    ("input.shape", None),
    ("input.names", ["ax", "ax"]),
    ("input.names", ["ax", "a\x1b[2J"]),
    ("input.names", ["ax", 1]),
    ("classes", []),
    ("classes", ["rest", "walk"]),  # the self-test has scores of three
    ("classes", [f"c{i}" for i in range(1025)]),
    ("classes", "rest"),
    ("scores", {"unseen": "high"}),
    ("scores", {"unseen": 1}),
    ("scores", {"unseen": True}),
    ("scores", {"Un seen": 0.5}),
    ("scores", {f"s{i}": 0.5 for i in range(65)}),
    ("sizes", {"parameters": -1}),
    ("sizes", {"parameters": 1.5}),
    ("parent", 3),  # not before this version
    ("parent", 0),
    ("self_test.tolerance", 0.0),
    ("self_test.tolerance", -1.0),
    ("self_test.scores", []),
    ("self_test.scores", [[0.0, 0.0, 0.0]]),  # one row for two windows
    ("self_test.scores", [[0.0, 0.0], [0.0, 0.0]]),
    ("self_test.scores", [[0.0, 0.0, 0.0], [0.0, 0.0]]),
    ("self_test.scores", [[0.0], [0.0]]),  # one score, and three classes
    ("self_test.scores", [[], []]),
    ("threshold", 0.5),  # three classes need none
    ("threshold", "0.5"),
    ("self_test.windows", ""),
    ("self_test.windows", "A" * 106 + "B="),  # a second spelling of the same bytes
    ("self_test.windows", "!" * 108),
    ("self_test.windows", base64.b64encode(np.full(20, np.nan, "<f4").tobytes()).decode()),
    ("self_test.windows", base64.b64encode(np.full(20, np.inf, "<f4").tobytes()).decode()),
    ("extra", []),
    ("extra", 1),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_value_of_wrong_type_or_outside_its_bounds_is_refused(path: str, value: object) -> None:
    with pytest.raises(ReleaseError):
        parse(changed(path, value))


def test_numbers_that_json_has_no_word_for_are_refused() -> None:
    text = manifest().to_bytes().decode()
    for bad in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000):
        with pytest.raises(ReleaseError):
            parse(text.replace('"unseen":0.9', f'"unseen":{bad}').encode())
        with pytest.raises(ReleaseError):
            parse(text.replace('"extra":{}', f'"extra":{{"a":{bad}}}').encode())


SPELLINGS: list[Callable[[bytes], bytes]] = [
    lambda b: b + b"\n",
    lambda b: b" " + b,
    lambda b: b.replace(b":", b": ", 1),
    lambda b: b.replace(b'"round":24', b'"round":24,"round":24'),
    lambda b: b.replace(b'"walk"', b'"\\u0077alk"'),
    lambda b: b.replace(b'"unseen":0.9', b'"unseen":0.90'),
    lambda b: b.replace(b'"unseen":0.9', b'"unseen":9e-1'),
    lambda b: b.decode().encode("utf-16"),
    lambda b: b"\xef\xbb\xbf" + b,
    lambda b: json.dumps(json.loads(b)).encode(),
    lambda b: json.dumps(json.loads(b), sort_keys=False, separators=(",", ":"), indent=0).encode(),
    lambda b: b.replace(b"walk", "wälk".encode()),
]


@pytest.mark.parametrize("spell", SPELLINGS)
def test_second_spelling_of_the_same_manifest_is_refused(spell: Callable[[bytes], bytes]) -> None:
    other = spell(manifest().to_bytes())
    assert other != manifest().to_bytes()
    with pytest.raises(ReleaseError):
        parse(other)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"a"',
        b"[" * 500_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"{" * 1000,
        b" " * (MAX_MANIFEST_BYTES + 1),
        b"9" * 1_000_000,
        b"\xff\xfe",
        b'{"schema":3}',
    ],
)
def test_hostile_json_ends_in_release_error(content: bytes) -> None:
    with pytest.raises(ReleaseError):
        parse(content)


def test_deep_extra_is_refused() -> None:
    deep: object = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(ReleaseError, match="deep"):
        parse(changed("extra.a", deep))


def test_oversized_manifest_is_refused_when_written_and_when_read() -> None:
    big = manifest(extra={"a": "x" * MAX_MANIFEST_BYTES})
    with pytest.raises(ReleaseError, match="limit"):
        big.to_bytes()
    with pytest.raises(ReleaseError, match="limit"):
        parse(changed("extra.a", "x" * MAX_MANIFEST_BYTES))


@pytest.mark.parametrize(
    "extra", [{"a": float("nan")}, {"a": {1, 2}}, {"a": b"raw"}, {1: "key"}, {"a": (1,)}]
)
def test_manifest_that_json_cannot_hold_as_it_is_cannot_be_written(extra: dict[Any, Any]) -> None:
    with pytest.raises(ReleaseError):
        manifest(extra=extra).to_bytes()


def test_message_names_the_field_but_does_not_repeat_an_attackers_text() -> None:
    with pytest.raises(ReleaseError, match="task") as refused:
        parse(changed("task", "\x1b[31m" + "A" * 5000))
    assert len(str(refused.value)) < 300
    assert "\x1b" not in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_blind_mutation_raises_release_error_or_stays_canonical(rng: random.Random, changes: int) -> None:
    content = bytearray(manifest().to_bytes())
    for _ in range(changes):
        at = rng.randrange(len(content))
        content[at : at + rng.randrange(3)] = rng.choice(
            [b"", b"0", b'"', b"{", b"}", b",", rng.randbytes(2)]
        )
    with contextlib.suppress(ReleaseError):
        assert parse(bytes(content)).to_bytes() == bytes(content)
