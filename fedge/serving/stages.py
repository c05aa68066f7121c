"""One part of a model cut into several, each served by a device; together they answer as one process would.

A part takes what the part before it gives: one tensor, in which the bytes of everything that crosses the cut
lie one after the other, window by window. It hands on to the next part by the protocol that it speaks itself,
and gives back the scores that come from there. The whole model's hash goes along, so parts of two models
never answer together.
"""

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.edge.places import contents
from fedge.edge.runtime import open_session
from fedge.errors import ConfigError, FedgeError, ReleaseError
from fedge.preprocess import check_finite
from fedge.release.manifest import Manifest
from fedge.serving._onnx_cut import DTYPES, Port, parts
from fedge.serving.about import PATH, About, parse_about
from fedge.serving.model import Answered, face_of
from fedge.serving.oip import Face
from fedge.serving.oip_tensor import Tensor
from fedge.serving.peer import Address, Peer
from fedge.serving.tls import Peer as Tls

MOST_STAGES = 16


@dataclass(frozen=True)
class Place:
    """Which part: ``index`` of ``count``, from 1."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> "Place":
        """From ``I/N``.

        Raises:
            ConfigError: it is something else.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count) <= MOST_STAGES):
            raise ConfigError(f"--stage {text!r:.20}: give I/N, such as 1/2, with N up to {MOST_STAGES}")
        return Place(int(index), int(count))

    @property
    def last(self) -> bool:
        """Whether no part comes after it."""
        return self.index == self.count

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class Ahead:
    """The next part: where it is served, and connections to it for as many threads as ask."""

    def __init__(self, address: Address, tls: Tls | None, deadline: float) -> None:
        """``deadline``: seconds for its answer."""
        self.address, self._tls, self._deadline = address, tls, deadline
        self._idle: queue.SimpleQueue[Peer] = queue.SimpleQueue()

    def infer(self, face: Face, port: Tensor, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scores of what crosses the cut; ``face`` is that of the part before it.

        Raises:
            PeerError: it does not answer in time, or refuses.
        """
        with self._peer() as peer:
            return peer.infer(face.name, face.model, port.name, port.datatype, x, face.output.size)

    def about(self) -> About:
        """What it says of itself.

        Raises:
            PeerError: it does not answer.
            PayloadError: it is something else.
        """
        with self._peer() as peer:
            return parse_about(peer.get(PATH).body)

    def close(self) -> None:
        """End the connections that nobody uses."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    @contextmanager
    def _peer(self) -> Iterator[Peer]:
        try:
            peer = self._idle.get_nowait()
        except queue.Empty:
            peer = Peer(self.address, self._tls, self._deadline)
        try:
            yield peer
        finally:
            self._idle.put(peer)


class Stage:
    """One part of a model; see :class:`fedge.serving.model.Served`. It stays the same for its whole life."""

    def __init__(self, manifest: Manifest, model: bytes, place: Place, name: str | None, ahead: Ahead | None):
        """``ahead`` is where the next part is served; None for the last.

        Raises:
            ConfigError: the last part has a next one, or another has none.
            ReleaseError: the model cannot be cut so, or a part does not open.
        """
        if place.last != (ahead is None):
            which = "the last part has no --next" if place.last else "give --next HOST:PORT, the next part"
            raise ConfigError(f"--stage {place}: {which}")
        cut = parts(model, place.count)
        self._manifest, self._place, self._ahead = manifest, place, ahead
        self._part = cut[place.index - 1]
        self._inner = [port.name for port in self._part.outputs if port not in self._part.inputs]
        self._session = open_session(self._part.model)
        self._asks = {port.name for port in self._session.get_inputs()}
        self._next_port = None if place.last else _tensor(cut[place.index].inputs)
        whole = face_of(manifest, name)
        port = whole.input if place.index == 1 else _tensor(self._part.inputs)
        self._face = replace(whole, input=port, details={**whole.details, "stage": str(place)})
        self._ahead_ready, self._said = place.last, ""

    def face(self) -> Face:
        """See ``Served``."""
        return self._face

    def manifest(self) -> bytes:
        """See ``Served``."""
        return self._manifest.to_bytes()

    def ready(self) -> bool:
        """See ``Served``. A part is ready when those after it are."""
        return self._ahead_ready

    def predict(self, x: NDArray[Any]) -> Answered:
        """See ``Served``. Waits for the parts after this one."""
        if self._place.index == 1:
            check_finite(x)
            given = {self._part.inputs[0].name: np.ascontiguousarray(x)}
        else:
            given = unpacked(x, self._part.inputs)
        try:
            made = self._session.run(self._inner, {name: given[name] for name in self._asks})
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            raise ReleaseError(f"part {self._place} fails on a window: {str(error)[:200]}") from error
        found = given | dict(zip(self._inner, made, strict=True))
        tensors = [found[port.name] for port in self._part.outputs]
        if self._ahead is None or self._next_port is None:
            (scores,) = tensors
            if not np.isfinite(scores).all():
                raise ReleaseError("the model answers with NaN or infinity")
            return self._face, scores
        return self._face, self._ahead.infer(self._face, self._next_port, packed(tensors))

    def warm(self, count: int) -> None:
        """See ``Served``. This part alone."""
        shapes = {port.name: (count, *port.shape) for port in self._part.inputs}
        kinds = {port.name: DTYPES[port.kind][0] for port in self._part.inputs}
        self._session.run(self._inner, {n: np.zeros(shapes[n], kinds[n]) for n in self._asks})

    def follow(self) -> str | None:
        """See ``Served``. Looks whether the next part is there, and is the next part."""
        if self._ahead is None:
            return None
        try:
            self._check(self._ahead.about())
            self._ahead_ready, said = True, f"part {self._place.index + 1} answers at {self._ahead.address}"
        except FedgeError as error:
            self._ahead_ready, said = False, f"part {self._place} waits: {error}"
        changed, self._said = said != self._said, said
        return said if changed else None

    def close(self) -> str | None:
        """See ``Served``."""
        if self._ahead is not None:
            self._ahead.close()
        return None

    def _check(self, about: About) -> None:
        """Check that the next part is of the same model and cut, and is ready itself.

        Raises:
            ReleaseError: it is not.
        """
        assert self._ahead is not None  # noqa: S101 (for the type checker)
        wanted = f"{self._place.index + 1}/{self._place.count}"
        where = self._ahead.address
        if about.model != self._face.model:
            mine, theirs = self._face.model[:12], about.model[:12]
            raise ReleaseError(
                f"{where} serves another model ({theirs}, here {mine}): start all from one release"
            )
        if about.stage != wanted or about.input != self._next_port or about.name != self._face.name:
            raise ReleaseError(f"{where} serves part {about.stage or 'all'} of {about.name!r}, not {wanted}")
        if not about.ready:
            raise ReleaseError(f"{where} is not ready")


def open_stage(place: Path, which: Place, name: str | None, ahead: Ahead | None) -> Stage:
    """Open one part of what is at ``place``: a device's home, a release's folder or an ``.onnx`` file.

    Raises:
        ConfigError, ReleaseError: as for :class:`Stage`.
        SetupError: there is nothing to open, or it cannot be read.
    """
    manifest, model = contents(place)
    return Stage(manifest, model, which, name, ahead)


def packed(tensors: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """``[n, ...]`` each, as the bytes of each window, one tensor after the other: ``[n, bytes]``."""
    rows = [np.ascontiguousarray(t).reshape(len(t), -1).view(np.uint8) for t in tensors]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


def unpacked(x: NDArray[np.uint8], ports: Sequence[Port]) -> dict[str, NDArray[Any]]:
    """The tensors in ``x [n, bytes]``, by name."""
    found, at = {}, 0
    for port in ports:
        own = np.ascontiguousarray(x[:, at : at + port.bytes])
        found[port.name] = own.view(DTYPES[port.kind][0]).reshape(len(x), *port.shape)
        at += port.bytes
    return found


def _tensor(ports: Sequence[Port]) -> Tensor:
    """How what crosses a cut is called in the protocol."""
    return Tensor("+".join(port.name for port in ports), "UINT8", (sum(port.bytes for port in ports),))
