import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.serving._json import RequestError
from fedge.serving.limits import Limits
from fedge.serving.oip import Face, Inference, parse_inference
from fedge.serving.oip_answer import model_metadata, response
from fedge.serving.oip_tensor import DATATYPES, Tensor

SHAPE = (4, 3)
FACE = Face(
    "m", 7, Tensor("window", "FP32", SHAPE), Tensor("scores", "FP32", (2,)), "a" * 64, ("low", "high")
)
NUMBER = Face("m", 7, FACE.input, Tensor("scores", "FP32", (1,)), "a" * 64)
PART = Face("m", 7, Tensor("t", "UINT8", (12,)), FACE.output, "a" * 64)
LIMITS = Limits(windows=8, json_head_bytes=1024)
X = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)


def tensor(**changes: Any) -> dict[str, Any]:
    raw = {"name": "window", "shape": [2, *SHAPE], "datatype": "FP32", "data": X.ravel().tolist()} | changes
    return {key: value for key, value in raw.items() if value is not None}


def document(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs) or [tensor()], **more}).encode()


def binary(x: np.ndarray[Any, Any] = X, size: int | None = None, **changes: Any) -> tuple[bytes, int]:
    parameters = {"binary_data_size": x.nbytes if size is None else size}
    head = document(tensor(data=None, parameters=parameters, **changes))
    return head + x.tobytes(), len(head)


def parse(body: bytes, size: int | None = None, face: Face = FACE) -> Inference:
    return parse_inference(body, size, face, LIMITS)


def refused(body: bytes, size: int | None = None, status: int = 400, face: Face = FACE) -> str:
    with pytest.raises(RequestError) as caught:
        parse(body, size, face)
    assert caught.value.status == status
    return str(caught.value)


def test_the_same_windows_whichever_way_they_are_sent() -> None:
    nested = document(tensor(data=X.tolist()))
    rows = document(tensor(data=X.reshape(2, -1)[:, :].reshape(2, 4, 3).tolist()))
    for body, size in ((document(), None), (nested, None), (rows, None), binary(), (X.tobytes(), 0)):
        found = parse(body, size).x
        assert found.dtype == np.float32
        assert found.shape == X.shape
        assert np.array_equal(found, X)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_gives_the_numbers_that_were_sent(datatype: str) -> None:
    x = np.arange(24).reshape(2, *SHAPE).astype(DATATYPES[datatype])
    body, size = binary(x, datatype=datatype)
    assert np.array_equal(parse(body, size).x, np.arange(24, dtype=np.float32).reshape(2, *SHAPE))
    data = x.ravel().tolist()
    assert np.array_equal(parse(document(tensor(datatype=datatype, data=data))).x, parse(body, size).x)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=12, max_size=12))
def test_a_float_survives_json_bit_for_bit(values: list[float]) -> None:
    found = parse(document(tensor(shape=[1, *SHAPE], data=values))).x
    assert found.tobytes() == np.array(values, np.float32).tobytes()


def test_what_is_beyond_float32_becomes_infinity_for_the_model_to_refuse() -> None:
    assert np.isinf(parse(document(tensor(data=[1e300] * 24))).x).all()
    body, size = binary(np.full((2, *SHAPE), 1e300), datatype="FP64")
    assert np.isinf(parse(body, size).x).all()


def test_binary_windows_are_not_copied() -> None:
    body, size = binary()
    assert np.shares_memory(parse(body, size).x, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "other"}, "'window'"),
        ({"name": 7}, "name"),
        ({"name": None}, "name"),
        ({"name": "x" * 5000}, "text"),
        ({"datatype": "BYTES"}, "BYTES"),
        ({"datatype": "fp32"}, "fp32"),
        ({"datatype": ["FP32"]}, "datatype"),
        ({"shape": None}, "shape"),
        ({"shape": 24}, "shape"),
        ({"shape": []}, "shape"),
        ({"shape": list(SHAPE)}, "shape"),
        ({"shape": [2, *SHAPE, 1]}, "shape"),
        ({"shape": [2, 3, 4]}, "shape"),
        ({"shape": [-2, *SHAPE]}, "shape"),
        ({"shape": [2.0, *SHAPE]}, "shape"),
        ({"shape": [True, *SHAPE]}, "shape"),
        ({"shape": [1 << 80, *SHAPE]}, "shape"),
        ({"shape": [0, *SHAPE], "data": []}, "1 to 8"),
        ({"data": None}, "data"),
        ({"data": "x" * 24}, "data"),
        ({"data": [1.0] * 23}, "23"),
        ({"data": [1.0] * 25}, "25"),
        ({"data": ["1"] * 24}, "numbers"),
        ({"data": [True] * 24}, "numbers"),
        ({"data": [None] * 24}, "numbers"),
        ({"data": [10**400] * 24}, "FP32"),
        ({"data": [[1.0] * 12]}, "rows"),
        ({"data": [[1.0] * 11, [1.0] * 13]}, "nested"),
        ({"data": [[[1.0] * 3] * 4, [1.0] * 12]}, "nested"),
        ({"data": [[[[1.0]] * 3] * 4] * 2}, "numbers"),
        ({"datatype": "UINT8", "data": [256] * 24}, "0..255"),
        ({"datatype": "UINT8", "data": [-1] * 24}, "0..255"),
        ({"datatype": "INT32", "data": [1.0] * 24}, "whole"),
        ({"parameters": {"binary_data_size": 96}}, "not both"),
        ({"parameters": {"binary_data_size": "96"}, "data": None}, "binary_data_size"),
        ({"parameters": [1]}, "parameters"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory"),
    ],
)  # fmt: skip
def test_a_tensor_that_is_not_the_models_is_refused(changes: dict[str, Any], says: str) -> None:
    raw = json.loads(document())["inputs"][0]
    for key, value in changes.items():
        raw.pop(key) if value is None else raw.update({key: value})
    message = refused(document(raw))
    assert says in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"inputs": NaN}',
        b"{}", b'{"inputs": {}}', b'{"inputs": []}', b'{"inputs": [1]}', b'{"inputs": [[]]}',
        document(tensor(), tensor()), document(id=5), document(id="x" * 2000), document(parameters=[]),
        document(parameters={"binary_data_output": 1}), document(outputs={}), document(outputs=[1]),
        document(outputs=[{}]), document(outputs=[{"name": "other"}]),
        document(outputs=[{"name": "scores"}, {"name": "scores"}]),
        document(outputs=[{"name": "scores", "parameters": {"binary_data": "yes"}}]),
        document(outputs=[{"name": "scores", "parameters": {"classification": -1}}]),
        document(parameters={"model_sha256": 5}),
        document().replace(b"1.", b"1e999999,", 1), b'{"inputs": [' + b"9" * 6000 + b"]}",
    ],
)  # fmt: skip
def test_json_that_is_no_request_is_refused(body: bytes) -> None:
    assert refused(body)


def test_numbers_that_are_none_are_refused() -> None:
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        assert word.decode() in refused(document(tensor(data=[])).replace(b"[]", b"[" + word + b"]"))


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (binary()[0], None),
        (document(tensor(data=None, parameters={"binary_data_size": 96})), None),
        (binary()[0][:-1], binary()[1]),
        (binary()[0] + b"x", binary()[1]),
        (binary(size=95)[0], binary(size=95)[1]),
        (binary(size=0)[0], binary(size=0)[1]),
        (binary(datatype="FP64")[0], binary(datatype="FP64")[1]),
        (binary(shape=[3, *SHAPE])[0], binary(shape=[3, *SHAPE])[1]),
        (binary()[0], binary()[1] - 1),
        (binary()[0], binary()[1] + 1),
        (binary()[0], len(binary()[0]) + 1),
        (document() + b"xxxx", len(document())),
        (X.tobytes()[:-1], 0),
        (b"", 0),
    ],
)
def test_bytes_that_do_not_match_what_is_said_of_them_are_refused(body: bytes, size: int | None) -> None:
    assert refused(body, size)


def test_too_many_windows_are_refused_before_they_are_read() -> None:
    assert "1 to 8" in refused(document(tensor(shape=[9, *SHAPE], data=[])), status=413)
    assert "1 to 8" in refused(np.zeros((9, *SHAPE), np.float32).tobytes(), 0, status=413)
    assert FACE.most(Limits(values=24)) == 2
    assert FACE.most(Limits(values=1)) == 1


def test_json_that_would_swell_in_memory_is_refused_before_it_is_parsed() -> None:
    assert "[" in refused(b'{"inputs": [' + b"[]," * 300_000 + b"]}", status=413)
    assert "{" in refused(b'{"inputs": [' + b"{}," * 300 + b"]}", status=413)
    assert '"' in refused(b'{"inputs": [' + b'"ab",' * 3000 + b"]}", status=413)
    assert "1024" in refused(b" " * 2000 + b"x" * 8, 2000, status=413)
    assert "2097152" in refused(b" " * 2_100_000, status=413)


def test_the_same_small_head_is_read_once() -> None:
    """What one client asked must never come back for another: the head is remembered, the windows are not."""
    first, size = binary(X)
    second = first[:size] + (X + 1).tobytes()
    assert np.array_equal(parse(first, size).x, X)
    assert np.array_equal(parse(second, size).x, X + 1)
    assert refused(first, size, face=PART)  # remembered, and still checked against the model that is asked


def test_a_part_of_a_model_takes_its_own_datatype_only() -> None:
    x = np.arange(24, dtype=np.uint8).reshape(2, 12)
    body, size = binary(x, name="t", shape=[2, 12], datatype="UINT8")
    assert np.array_equal(parse(body, size, PART).x, x)
    assert "UINT8" in refused(*binary(x, name="t", shape=[2, 12], datatype="INT8"), face=PART)


def check_total(body: bytes, size: int | None) -> None:
    """It is read, or refused as the client's fault; nothing else is raised."""
    try:
        found = parse(body, size)
    except RequestError as error:
        statuses = {error.status}
    else:
        assert found.x.shape[1:] == SHAPE
        statuses = set()
    assert statuses <= {400, 413}


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(0, 400)))
def test_whatever_comes_is_read_or_refused(body: bytes, size: int | None) -> None:
    check_total(body, size)


@given(st.data())
def test_a_damaged_request_is_read_or_refused(data: st.DataObject) -> None:
    body, size = data.draw(st.sampled_from([binary(), (document(), None)]))
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + data.draw(st.binary(max_size=3)) + body[at + data.draw(st.integers(0, 3)) :]
    check_total(changed, size)


# Answers.


def asked(**changes: Any) -> Inference:
    plain: dict[str, Any] = {"id": None, "x": X, "binary": False, "classification": 0, "model": None}
    return Inference(**(plain | changes))


SCORES = np.array([[0.25, -1.5], [3.5, 1e-7]], np.float32)


def test_scores_in_json_are_those_that_the_model_gave() -> None:
    body, size = response(asked(id="q"), FACE, SCORES)
    raw = json.loads(body)
    assert size is None
    assert (raw["model_name"], raw["model_version"], raw["id"]) == ("m", "7", "q")
    (output,) = raw["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("scores", "FP32", [2, 2])
    assert np.array(output["data"], np.float32).tobytes() == SCORES.tobytes()


@pytest.mark.parametrize("id_", [None, "q"])
def test_scores_in_bytes_are_those_that_the_model_gave(id_: str | None) -> None:
    for _ in range(2):  # the second head is remembered
        body, size = response(asked(binary=True, id=id_), FACE, SCORES)
        assert size is not None
        raw = json.loads(body[:size])
        assert raw.get("id") == id_
        assert raw["outputs"][0]["parameters"]["binary_data_size"] == len(body) - size == SCORES.nbytes
        assert body[size:] == SCORES.tobytes()


def test_a_remembered_head_is_of_this_version_and_size() -> None:
    def head(face: Face, scores: Any) -> Any:
        body, size = response(asked(binary=True), face, scores)
        return json.loads(body[:size])

    newer = Face("m", 8, FACE.input, FACE.output, "b" * 64)
    assert head(FACE, SCORES)["model_version"] == "7"
    assert head(newer, SCORES)["model_version"] == "8"
    assert head(FACE, SCORES[:1])["outputs"][0]["shape"] == [1, 2]


def test_classes_come_best_first() -> None:
    body, _ = response(asked(classification=2), FACE, SCORES)
    (output,) = json.loads(body)["outputs"]
    assert output["datatype"] == "BYTES"
    assert output["shape"] == [2, 2]
    assert output["data"] == ["0.250000:0:low", "-1.500000:1:high", "3.500000:0:low", "0.000000:1:high"]
    body, size = response(asked(classification=1, binary=True), FACE, SCORES)
    assert size is not None
    assert body[size:] == b"\x0e\0\0\x000.250000:0:low\x0e\0\0\x003.500000:0:low"
    assert "classes" in refused(
        document(outputs=[{"name": "scores", "parameters": {"classification": 1}}]), face=NUMBER
    )


def test_metadata_say_what_the_model_takes() -> None:
    raw = json.loads(model_metadata(FACE, 8))
    assert raw["inputs"] == [{"name": "window", "datatype": "FP32", "shape": [-1, *SHAPE]}]
    assert raw["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}]
    assert raw["versions"] == ["7"]
    assert raw["parameters"]["max_batch_size"] == 8


def test_binary_size_is_in_the_limits() -> None:
    """The largest request that is taken must fit into the largest body that is read, as FP64."""
    limits = Limits()
    assert limits.body_bytes >= 8 * limits.values + limits.json_head_bytes
    assert FACE.most(limits) * math.prod(SHAPE) <= limits.values
