import random

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fedge.edge.runtime import Runtime
from fedge.edge.screen import MAX_FIELDS, screen
from fedge.errors import FedgeError, ReleaseError

from .build import CHANNELS, CLASSES, TIME, image_model, mean_times_weights, model, windows

GOOD = model().SerializeToString()


def external(location: str = "/etc/hostname") -> onnx.TensorProto:
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def in_branch(inner: onnx.NodeProto | onnx.TensorProto) -> onnx.ModelProto:
    """A model whose ``If`` has ``inner`` in one of its branches."""
    node, tensor = (inner, None) if isinstance(inner, onnx.NodeProto) else (None, inner)
    out = helper.make_tensor_value_info("same", TensorProto.FLOAT, None)
    body = [node or helper.make_node("Identity", ["mean"], ["same"])]
    branch = helper.make_graph(body, "branch", [], [out], [tensor] if tensor else [])
    condition = numpy_helper.from_array(np.array(True), "yes")
    first, second = mean_times_weights()
    second.input[0] = "same"
    choose = helper.make_node("If", ["yes"], ["same"], then_branch=branch, else_branch=branch)
    return model([first, choose, second], more=(condition,))


def test_ordinary_models_pass() -> None:
    screen(GOOD)
    screen(in_branch(helper.make_node("Identity", ["mean"], ["same"])).SerializeToString())


def test_every_operator_of_a_students_graph_passes_and_runs() -> None:
    """One model with all of them: two kinds of convolution, both sorts of pooling, a reconstruction error."""
    small = {"step": np.float32(0.05), "low": np.float32(0), "high": np.float32(6), "one": np.float32(1)}
    more = [numpy_helper.from_array(np.asarray(v), k) for k, v in small.items()]
    for name, ints in {
        "pads": [0, 0, 1, 0, 0, 1],
        "from": [0],
        "to": [4],
        "axis": [2],
        "flat": [-1, 4],
        "whole": [TIME, CHANNELS],
    }.items():
        more.append(numpy_helper.from_array(np.array(ints, np.int64), name))
    more.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    rng = np.random.default_rng(3)
    for name, shape in {"wide": (4, CHANNELS, 3), "each": (4, 1, 3), "dense": (4, 4), "bias": (4,)}.items():
        more.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    more.append(numpy_helper.from_array(rng.normal(size=(8, CLASSES)).astype(np.float32), "out"))
    graph: list[tuple[str, str, str, dict[str, object]]] = [
        ("Expand", "one whole", "ones", {}),
        ("Sub", "window ones", "centred", {}),
        ("Transpose", "centred", "turned", {"perm": [0, 2, 1]}),
        ("QuantizeLinear", "turned step zero", "q", {}),
        ("DequantizeLinear", "q step zero", "dq", {}),
        ("Pad", "dq pads", "padded", {}),
        ("Conv", "padded wide", "conv", {}),
        ("Clip", "conv low high", "clipped", {}),
        ("Conv", "clipped each", "depthwise", {"group": 4}),
        ("Relu", "depthwise", "relu", {}),
        ("AveragePool", "relu", "halves", {"kernel_shape": [2], "strides": [2]}),
        ("Slice", "relu from to axis", "first", {}),
        ("ReduceMean", "first", "segment", {"axes": [2], "keepdims": 0}),
        ("GlobalAveragePool", "halves", "pooled", {}),
        ("Flatten", "pooled", "means", {}),
        ("Gemm", "means dense bias", "made", {"transB": 1}),
        ("Reshape", "made flat", "again", {}),
        ("Sub", "again segment", "error", {}),
        ("Mul", "error error", "square", {}),
        ("Add", "square one", "above", {}),
        ("Sqrt", "above", "root", {}),
        ("Log", "root", "log", {}),
        ("Div", "log root", "ratio", {}),
        ("Concat", "ratio means", "both", {"axis": 1}),
        ("MatMul", "both out", "scores", {}),
    ]
    nodes = [helper.make_node(op, before.split(), [name], **extra) for op, before, name, extra in graph]
    answer = Runtime(model(nodes, more=tuple(more)).SerializeToString()).predict(windows(3))
    assert answer.shape == (3, CLASSES)
    assert np.isfinite(answer).all()


def test_image_models_pass_the_screen_and_its_refusals_hold_for_them() -> None:
    screen(image_model().SerializeToString())
    outside, foreign = image_model(), image_model()
    outside.graph.initializer.append(external())
    foreign.graph.node[1].domain = "com.microsoft"
    for built, reason in ((outside, "another file"), (foreign, "domain")):
        with pytest.raises(ReleaseError, match=reason):
            screen(built.SerializeToString())


@pytest.mark.parametrize("location", ["/etc/hostname", "../weights", "weights.bin"])
def test_weights_in_another_file_are_refused(location: str) -> None:
    with pytest.raises(ReleaseError, match="another file"):
        screen(model(more=(external(location),)).SerializeToString())


def test_weights_in_another_file_are_refused_inside_a_branch_and_an_attribute() -> None:
    with pytest.raises(ReleaseError, match="another file"):
        screen(in_branch(external()).SerializeToString())
    constant = helper.make_node("Constant", [], ["unused"], value=external())
    with pytest.raises(ReleaseError, match="another file"):
        screen(model([constant, *mean_times_weights()]).SerializeToString())


def test_either_sign_of_another_file_is_enough() -> None:
    no_name, no_mark = external(), external()
    del no_name.external_data[:]
    no_mark.ClearField("data_location")
    for tensor in (no_name, no_mark):
        with pytest.raises(ReleaseError, match="another file"):
            screen(model(more=(tensor,)).SerializeToString())


def test_weights_in_another_file_are_refused_in_a_list_of_tensors() -> None:
    built = model()
    built.graph.node[0].attribute.add(name="list").tensors.append(external())
    with pytest.raises(ReleaseError, match="another file"):
        screen(built.SerializeToString())


def test_model_that_onnx_runtime_would_open_is_screened_first() -> None:
    node = helper.make_node("Gelu", ["mean"], ["same"], domain="com.microsoft")
    first, second = mean_times_weights()
    second.input[0] = "same"
    built = model([first, node, second])
    built.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    content = built.SerializeToString()
    onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with pytest.raises(ReleaseError, match="domain"):
        Runtime(content)


def test_unused_import_of_another_domain_is_harmless() -> None:
    """The quantization tools leave some behind."""
    built = model()
    built.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    screen(built.SerializeToString())


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "evil", "ai.onnx.", "\x1b[31m"])
def test_operators_of_another_domain_are_refused(domain: str) -> None:
    node = helper.make_node("Gelu", ["mean"], ["same"], domain=domain)
    first, second = mean_times_weights()
    for built in (model([first, node, second]), in_branch(node)):
        with pytest.raises(ReleaseError, match="domain") as refused:
            screen(built.SerializeToString())
        assert "\x1b" not in str(refused.value)


def test_domain_hidden_behind_a_second_copy_of_the_graph_is_found() -> None:
    node = helper.make_node("Gelu", ["mean"], ["more"], domain="com.microsoft")
    hidden = onnx.ModelProto(graph=onnx.GraphProto(node=[node]))
    merged = GOOD + hidden.SerializeToString()  # protobuf merges the two
    assert (
        len(onnx.ModelProto.FromString(merged).graph.node)
        == len(onnx.ModelProto.FromString(GOOD).graph.node) + 1
    )
    with pytest.raises(ReleaseError, match="domain"):
        screen(merged)


def test_functions_training_parts_and_sparse_weights_are_refused() -> None:
    with_function = model()
    with_function.functions.add(name="f", domain="")
    with_training = model()
    with_training.training_info.add()
    with_sparse = model()
    with_sparse.graph.sparse_initializer.add()
    sparse_attribute = model()
    sparse_attribute.graph.node[0].attribute.add(name="sparse_value").sparse_tensor.dims.append(1)
    for built in (with_function, with_training, with_sparse, sparse_attribute):
        with pytest.raises(ReleaseError, match="must not"):
            screen(built.SerializeToString())


def test_deep_nesting_is_refused() -> None:
    graph = onnx.GraphProto()
    for _ in range(20):
        outer = onnx.GraphProto()
        outer.node.add().attribute.add(name="g").g.CopyFrom(graph)
        graph = outer
    with pytest.raises(ReleaseError, match="deep"):
        screen(onnx.ModelProto(graph=graph).SerializeToString())


def test_number_of_parts_is_bounded() -> None:
    with pytest.raises(ReleaseError, match="parts"):
        screen(b"\x08\x01" * (MAX_FIELDS + 1))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x01",  # a version and no graph
        b"not a model at all",
        b"\xff" * 100,
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a graph of 2^63 bytes
        b"\x3b\x00",  # a group
        b"\x00\x00",  # field 0
        b"\x3d\x00",  # four bytes that are not there
    ],
)
def test_bytes_that_are_no_model_are_refused(content: bytes) -> None:
    with pytest.raises(ReleaseError):
        screen(content)


def test_truncated_model_never_opens() -> None:
    for length in range(0, len(GOOD), 7):
        with pytest.raises(ReleaseError):
            Runtime(GOOD[:length])


def test_onnx_runtimes_own_format_is_not_read_unscreened() -> None:
    """A file that is both: ONNX Runtime would take it for its own format by bytes 4 to 7."""
    disguised = b"\x12\x06" + b"xxORTM" + GOOD  # field 2, the producer's name
    assert disguised[4:8] == b"ORTM"
    assert Runtime(disguised).predict(windows(1)).shape == (1, CLASSES)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_blind_mutation_opens_or_raises_the_error_tree(rng: random.Random, changes: int) -> None:
    content = bytearray(GOOD)
    for _ in range(changes):
        at = rng.randrange(len(content))
        content[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    try:
        runtime = Runtime(bytes(content))
        answer = runtime.predict(np.zeros((1, TIME, CHANNELS), np.float32))
    except FedgeError:
        return
    assert answer.shape == (1, runtime.outputs)


def test_a_dimension_that_is_no_text_is_refused() -> None:
    """ONNX Runtime opens such a model and stumbles only when asked for its shape."""
    damaged = GOOD.replace(b"batch", b"b\x80tch")
    assert damaged != GOOD
    with pytest.raises(ReleaseError, match="cannot be read"):
        Runtime(damaged)


def looping(kind: str) -> onnx.ModelProto:
    """A model that adds its answer to itself 2^62 times."""
    out = helper.make_tensor_value_info("doubled", TensorProto.FLOAT, None)
    known = [
        helper.make_tensor_value_info(name, kind_, [])
        for name, kind_ in (("turn", TensorProto.INT64), ("on", TensorProto.BOOL))
    ]
    again = helper.make_tensor_value_info("again", TensorProto.BOOL, [])
    nodes = [
        helper.make_node("Identity", ["on"], ["again"]),
        helper.make_node("Add", ["v", "v"], ["doubled"]),
    ]
    body = helper.make_graph(
        nodes, "body", [*known, helper.make_tensor_value_info("v", TensorProto.FLOAT, None)], [again, out]
    )
    more = tuple(
        numpy_helper.from_array(np.array(value), name) for name, value in (("turns", 2**62), ("go", True))
    )
    loop = helper.make_node(kind, ["turns", "go", "first"], ["scores"], body=body)
    return model([*mean_times_weights("first"), loop], more=more)


@pytest.mark.parametrize("kind", ["Loop", "Scan", "SequenceMap"])
def test_loops_are_refused_for_they_may_never_end(kind: str) -> None:
    with pytest.raises(ReleaseError, match=f"loop \\({kind}\\)"):
        screen(looping(kind).SerializeToString())


def test_loop_in_a_branch_is_refused() -> None:
    inner = next(node for node in looping("Loop").graph.node if node.op_type == "Loop")
    with pytest.raises(ReleaseError, match="loop"):
        screen(in_branch(inner).SerializeToString())
