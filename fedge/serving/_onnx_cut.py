"""An ONNX model cut into parts, without the onnx package: reading and writing just enough of its protobuf.

The model names type and shape of the tensors at which it may be cut. Where one of them parts what comes
before from what comes after, the model can be cut there; tensors that go around it (there is one in a student
that reconstructs) go along. Which cuts are chosen follows from the model alone, so all devices agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from fedge.edge.screen import screen
from fedge.errors import ReleaseError
from fedge.serving._protobuf import fields, inside, message, numbers, texts

BYTE_COST = 50
"""Multiply-adds that one byte between two devices is worth: 5 G a second against 100 MB a second."""
DTYPES = {1: ("<f4", 4), 2: ("|u1", 1), 3: ("|i1", 1)}
"""Element types of onnx.proto at which a model may be cut: as NumPy calls them, and bytes."""

_MOST_NODES = 5_000
_GRAPH = 7  # field numbers of onnx.proto: of a model, and of its graph
_NODE, _NAME, _CONSTANT, _INPUT, _OUTPUT, _INFO = 1, 2, 5, 11, 12, 13


@dataclass(frozen=True, eq=False)
class Node:
    """An operator: its bytes, kind, and the names of what it takes and gives."""

    raw: bytes
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Port:
    """A tensor that is declared: name, element type, sizes after the batch; and the declaration's bytes."""

    name: str
    kind: int
    shape: tuple[int, ...]
    raw: bytes = field(repr=False, compare=False)

    @property
    def bytes(self) -> int:
        """For one window."""
        return DTYPES[self.kind][1] * math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Part:
    """One part: a model of its own, what it takes and gives. What it takes and gives alike is not in it."""

    model: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """A model, read.

    Attributes:
        head: the model's fields but its graph, as bytes.
        nodes: in the order of the file, which is one in which they can be run.
        constants: name -> bytes and sizes.
        infos: the tensors at which it may be cut.
        window: its input.
        scores: its output.
    """

    head: bytes
    nodes: tuple[Node, ...]
    constants: dict[str, tuple[bytes, tuple[int, ...]]]
    infos: dict[str, Port]
    window: Port
    scores: Port

    @cached_property
    def maker(self) -> dict[str, Node]:
        """Which node gives a tensor."""
        return {name: node for node in self.nodes for name in node.outputs}

    def needed(self, wanted: Sequence[str], given: set[str]) -> tuple[list[Node], set[str]]:
        """The nodes that make ``wanted`` from ``given`` and constants, and which inputs they need."""
        ahead, seen, ports, chosen = list(wanted), set[str](), set[str](), set[int]()
        while ahead:
            name = ahead.pop()
            if name in seen or not name or name in self.constants:
                continue
            seen.add(name)
            node = self.maker.get(name)
            if name in given or node is None:
                ports.add(name)
            else:
                chosen.add(id(node))
                ahead += node.inputs
        return [node for node in self.nodes if id(node) in chosen], ports

    def work(self, wanted: Sequence[str]) -> int:
        """Multiply-adds of one window up to ``wanted``."""
        nodes, _ = self.needed(wanted, {self.window.name})
        return sum(self._cost(node) for node in nodes)

    def _cost(self, node: Node) -> int:
        if node.kind not in ("Conv", "Gemm", "MatMul"):
            return 0
        weights = [math.prod(self._sizes(name)) for name in node.inputs[1:2]]
        return sum(weights) * (self._positions(node) if node.kind == "Conv" else 1)

    def _sizes(self, name: str) -> tuple[int, ...]:
        """Of a constant, perhaps one that a node dequantizes; nothing of any other."""
        while name not in self.constants:
            if name not in self.maker or not self.maker[name].inputs:
                return (0,)
            name = self.maker[name].inputs[0]
        return self.constants[name][1]

    def _positions(self, node: Node) -> int:
        """At how many places a convolution is applied: from the next tensor whose shape is declared."""
        ahead = list(node.outputs)
        for name in ahead:  # grows while it is walked
            if name in self.infos:
                return math.prod(self.infos[name].shape[1:])
            ahead += [out for user in self.nodes if name in user.inputs for out in user.outputs]
            if len(ahead) > len(self.nodes):
                break
        return 1


def parts(model: bytes, count: int) -> list[Part]:
    """``model`` cut into ``count`` parts, first to last.

    The slowest part is as fast as can be, counting multiply-adds and the bytes that it hands on.

    Raises:
        ReleaseError: it is no model, or cannot be cut into so many parts.
    """
    graph = read(model)
    cuts = _cuts(graph)
    if not 1 <= count <= len(cuts) + 1:
        raise ReleaseError(f"this model can be cut into 1 to {len(cuts) + 1} parts, not {count}")
    chosen = _choose(graph, cuts, count)
    edges: list[tuple[Port, ...]] = [(graph.window,), *chosen, (graph.scores,)]
    return [_part(graph, before, after) for before, after in pairwise(edges)]


def _cuts(graph: Graph) -> list[tuple[Port, ...]]:
    """Where it can be cut, in the order of the work before each: the tensors that cross."""
    above = {name: graph.needed([name], set())[0] for name in graph.infos}
    made = {name: {out for node in nodes for out in node.outputs} for name, nodes in above.items()}
    found = []
    for name in graph.infos:
        around = {n for n in graph.infos if n not in made[name] and name not in made[n]}
        _, crossing = graph.needed([graph.scores.name], {name, *around})
        if name in crossing and crossing <= set(graph.infos):
            found.append((graph.work(sorted(crossing)), len(made[name]), sorted(crossing)))
    cuts, before = [], {graph.window.name}
    for _, _, names in sorted(found):
        if set(names) != before and graph.needed(names, before)[1] <= before:
            cuts.append(tuple(graph.infos[name] for name in names))
            before = set(names)
    return cuts


def _choose(graph: Graph, cuts: list[tuple[Port, ...]], count: int) -> list[tuple[Port, ...]]:
    """The ``count - 1`` cuts with which the dearest part is cheapest; among equals the earliest."""
    work = [0, *(graph.work([p.name for p in cut]) for cut in cuts), graph.work([graph.scores.name])]
    sent = [0, *(BYTE_COST * sum(p.bytes for p in cut) for cut in cuts), 0]
    best: list[tuple[float, tuple[int, ...]]] = [
        (work[end] + sent[end], (end,)) for end in range(1, len(work))
    ]
    for _ in range(count - 1):
        best = [
            min(
                (max(best[middle - 1][0], work[end] - work[middle] + sent[end]), (*best[middle - 1][1], end))
                for middle in range(1, end)
            ) if end > 1 else (math.inf, ())
            for end in range(1, len(work))
        ]  # fmt: skip
    return [cuts[end - 1] for end in best[-1][1][:-1]]


def _part(graph: Graph, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> Part:
    own = [port for port in outputs if port not in inputs]
    nodes, ports = graph.needed([p.name for p in own], {p.name for p in inputs})
    used = {name for node in nodes for name in node.inputs}
    body = b"".join(
        [
            *(message(_NODE, node.raw) for node in nodes),
            message(_NAME, b"part"),
            *(message(_CONSTANT, raw) for name, (raw, _) in graph.constants.items() if name in used),
            *(message(_INPUT, port.raw) for port in inputs if port.name in ports),
            *(message(_OUTPUT, port.raw) for port in own),
        ]
    )
    return Part(graph.head + message(_GRAPH, body), inputs, outputs)


def read(model: bytes) -> Graph:
    """The model's graph.

    Raises:
        ReleaseError: it is no self-contained ONNX model, or has not one input and one output.
    """
    screen(model)
    try:
        (graph,) = inside(model, _GRAPH)
        nodes = tuple(_node(raw) for raw in inside(graph, _NODE))
        constants = {
            name: (raw, sizes) for raw in inside(graph, _CONSTANT) for name, sizes in [_constant(raw)]
        }
        (window,), (scores,) = (map(_port, inside(graph, n)) for n in (_INPUT, _OUTPUT))
        infos = {port.name: port for port in map(_port, inside(graph, _INFO)) if _may_cross(port)}
    except ValueError as error:
        raise ReleaseError(f"the model cannot be cut: {error}") from None
    if len(nodes) > _MOST_NODES:
        raise ReleaseError(f"the model has {len(nodes)} operators; one with {_MOST_NODES} can be cut")
    head = b"".join(raw for number, _, raw in fields(model) if number != _GRAPH)
    return Graph(head, nodes, constants, infos, window, scores)


def _node(raw: bytes) -> Node:
    return Node(raw, "".join(texts(raw, 4)), texts(raw, 1), texts(raw, 2))


def _constant(raw: bytes) -> tuple[str, tuple[int, ...]]:
    return "".join(texts(raw, 8)), numbers(raw, 1)


def _port(raw: bytes) -> Port:
    """A ValueInfoProto of a tensor; sizes that are not fixed count as 0, the batch not at all."""
    (tensor,) = [tensor for kind in inside(raw, 2) for tensor in inside(kind, 1)]
    sizes = [(*numbers(size, 1), 0)[0] for shape in inside(tensor, 2) for size in inside(shape, 1)]
    return Port("".join(texts(raw, 1)), (*numbers(tensor, 1), 0)[0], tuple(sizes[1:]), raw)


def _may_cross(port: Port) -> bool:
    return port.kind in DTYPES and bool(port.shape) and min(port.shape) > 0
