"""Parts of a model together are the model: in what they compute, bit for bit, and in their work."""

import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest
from compress.students import ALL
from compress.test_export import Exported, exported
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedge.edge.runtime import Runtime, open_session
from fedge.errors import ReleaseError
from fedge.serving import _onnx_cut as cut
from fedge.serving import _protobuf as protobuf
from fedge.serving.stages import packed, unpacked

from .build import MODEL

STUDENTS = [each for each in ALL if each[1] == "tiny"] + [("plain", "large", (50, 6), False)]


@pytest.fixture(scope="module")
def students() -> dict[Any, Exported]:
    return {each: exported(each[1], each[2], each[0], each[3]) for each in STUDENTS}


def chained(parts: list[cut.Part], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The parts one after the other, with what crosses each cut as the bytes that travel."""
    given = {parts[0].inputs[0].name: x}
    for part in parts:
        session = open_session(part.model)
        inner = [port.name for port in part.outputs if port not in part.inputs]
        made = session.run(inner, {port.name: given[port.name] for port in session.get_inputs()})
        found = given | dict(zip(inner, made, strict=True))
        given = unpacked(packed([found[port.name] for port in part.outputs]), part.outputs)
    return given["scores"]


@pytest.mark.parametrize("student", STUDENTS)
def test_the_parts_answer_bit_for_bit_as_the_whole(student: Any, students: dict[Any, Exported]) -> None:
    made = students[student]
    rng = np.random.default_rng(3)
    for model in (made.int8, made.float32):
        whole = Runtime(model)
        for count in range(1, len(cut._cuts(cut.read(model))) + 2):
            parts = cut.parts(model, count)
            assert len(parts) == count
            for n in (1, 5):
                x = rng.normal(size=(n, *made.spec.window)).astype(np.float32)
                assert chained(parts, x).tobytes() == whole.predict(x).tobytes()


@pytest.mark.parametrize("student", STUDENTS)
def test_every_part_is_a_model_in_itself(student: Any, students: dict[Any, Exported]) -> None:
    made = students[student]
    for part in cut.parts(made.int8, 3):
        onnx.checker.check_model(onnx.load_from_string(part.model), full_check=True)
    assert sum(len(part.model) for part in cut.parts(made.int8, 3)) < 1.2 * len(made.int8) + 2000


@pytest.mark.parametrize("student", STUDENTS)
def test_work_is_counted_as_it_is_from_all_the_shapes(student: Any, students: dict[Any, Exported]) -> None:
    made = students[student]
    for model in (made.int8, made.float32):
        assert cut.read(model).work(["scores"]) == multiply_adds(onnx.load_from_string(model))


def multiply_adds(model: onnx.ModelProto) -> int:
    """Of one window, from the shapes that onnx infers."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    tensors = [*graph.value_info, *graph.output]
    shapes = {t.name: [d.dim_value for d in t.type.tensor_type.shape.dim] for t in tensors}
    shapes |= {t.name: list(t.dims) for t in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    return sum(math.prod(shapes[node.input[1]]) * math.prod(shapes[node.output[0]][2:]) for node in nodes)


@pytest.mark.parametrize("student", STUDENTS)
def test_no_other_choice_of_cuts_is_better(student: Any, students: dict[Any, Exported]) -> None:
    """Against trying all of them."""
    graph = cut.read(students[student].int8)
    cuts = cut._cuts(graph)
    total = graph.work([graph.scores.name])

    def dearest(chosen: Any) -> int:
        work = [0, *(graph.work([port.name for port in each]) for each in chosen), total]
        sent = [*(cut.BYTE_COST * sum(port.bytes for port in each) for each in chosen), 0]
        return max(b - a + s for (a, b), s in zip(itertools.pairwise(work), sent, strict=True))

    for count in range(1, len(cuts) + 2):
        best = min(map(dearest, itertools.combinations(cuts, count - 1)))
        assert dearest(cut._choose(graph, cuts, count)) == best


def test_all_devices_choose_the_same_cuts(students: dict[Any, Exported]) -> None:
    model = students[STUDENTS[0]].int8
    assert [p.model for p in cut.parts(model, 3)] == [p.model for p in cut.parts(model, 3)]


def test_what_goes_around_the_cut_goes_along(students: dict[Any, Exported]) -> None:
    (rebuilds,) = (each for each in STUDENTS if each[3] and each[0] == "plain")
    first, second = cut.parts(students[rebuilds].int8, 2)
    assert first.outputs == second.inputs
    assert "summary" in [port.name for port in first.outputs]


def test_too_many_parts_are_refused(students: dict[Any, Exported]) -> None:
    model = students[STUDENTS[0]].int8
    most = len(cut._cuts(cut.read(model))) + 1
    for count in (0, most + 1):
        with pytest.raises(ReleaseError, match=f"1 to {most} parts"):
            cut.parts(model, count)
    with pytest.raises(ReleaseError, match="1 to 1 parts"):  # it declares no tensor in between
        cut.parts(MODEL, 2)


@given(st.data())
def test_a_damaged_model_is_cut_or_refused(data: st.DataObject) -> None:
    model = exported().int8
    at = data.draw(st.integers(0, len(model) - 1))
    changed = model[:at] + data.draw(st.binary(max_size=4)) + model[at + data.draw(st.integers(0, 4)) :]
    try:
        parts = cut.parts(changed, 2)
    except ReleaseError:
        parts = []
    assert len(parts) in (0, 2)


def test_protobuf_is_read_as_google_reads_it(students: dict[Any, Exported]) -> None:
    for made in students.values():
        model, graph = onnx.load_from_string(made.int8), cut.read(made.int8)
        assert [n.op_type for n in model.graph.node] == [n.kind for n in graph.nodes]
        assert [tuple(n.input) for n in model.graph.node] == [n.inputs for n in graph.nodes]
        assert {t.name: tuple(t.dims) for t in model.graph.initializer} == {
            name: sizes for name, (_, sizes) in graph.constants.items()
        }
        for info in model.graph.value_info:
            sizes = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)[1:]
            assert graph.infos[info.name].shape == sizes
            assert graph.infos[info.name].kind == info.type.tensor_type.elem_type


def test_packed_numbers_are_read_and_what_is_cut_off_is_refused() -> None:
    packed_field = protobuf.message(1, b"\x01\xac\x02")
    assert protobuf.numbers(packed_field + b"\x08\x07", 1) == (1, 300, 7)
    long = protobuf.message(5, bytes(1000))
    assert protobuf.inside(long, 5) == [bytes(1000)]
    for bad in (long[:-1], b"\x08", b"\x08" + b"\xff" * 11, b"\x0f", b"\x0d\x00"):
        with pytest.raises(ValueError, match=r"cut off|wire type"):
            list(protobuf.fields(bad))
