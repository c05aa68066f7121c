"""Windows answered by several devices, each of which runs ``fedge serve`` with the same release.

Every device has a few threads here, each with a connection of its own. A batch is cut into parts that they
take as they become free (``fedge.serving.split`` has the rules). All parts of a batch are answered by one
release: a device that has changed over is left out until the others have, too.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedge.edge.live import Model
from fedge.edge.runtime import Runtime
from fedge.errors import DataError, FedgeError, ReleaseError
from fedge.release.manifest import parse
from fedge.serving.about import MANIFEST_PATH, PATH, About, parse_about
from fedge.serving.peer import Address, Peer, PeerError, PeerRefusalError
from fedge.serving.split import Split
from fedge.serving.tls import Peer as Tls

STREAMS = 2
"""Requests at a time to each device: one that it works on, and one on the way."""
_LEAST, _LARGEST = 16, 256  # windows in one part
_SHARES = 4  # parts for each stream, where a batch is large enough
_PATIENCE = 2.0  # seconds for which the last devices may keep those waiting that have said what they serve
_ASK_AGAIN = 5.0  # seconds between two times that the devices are asked what they serve
_TICK = 0.02  # seconds between two looks of a stream that has nothing to do
_OTHER_RELEASE, _BUSY, _BAD, _BROKEN = 409, 503, 400, 500


@dataclass(eq=False)
class _Job:
    """One batch on its way. ``split`` and everything below it is under the lock of :class:`Devices`."""

    about: About
    x: NDArray[Any]
    size: int
    scores: NDArray[np.float32]
    split: Split
    error: FedgeError | None = None
    moved: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.error is not None or self.split.finished

    def part(self, number: int) -> slice:
        """Which windows a part has."""
        return slice(number * self.size, (number + 1) * self.size)


@dataclass(frozen=True, eq=False)
class _Far:
    """Stands for the runtime of a model that is elsewhere."""

    devices: "Devices"
    window: tuple[int, ...]
    outputs: int

    def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """See ``Runtime``."""
        return self.devices.predict(x)[1]


class Devices:
    """Several servers as one model; see ``fedge.edge.live.Answering``.

    Attributes:
        current: the release that they answer with.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        tls: Tls | None = None,
        deadline: float = 10.0,
        streams: int = STREAMS,
    ) -> None:
        """Ask all of them what they serve.

        Args:
            addresses: where they listen.
            tls: None for none.
            deadline: seconds for one part.
            streams: requests at a time to each.

        Raises:
            PeerError: none of them answers.
            ReleaseError: the manifest is damaged, or is not that of what they serve.
        """
        self._addresses, self._tls, self._deadline = addresses, tls, deadline
        self._turn, self._change = threading.Lock(), threading.Condition()
        self._job: _Job | None = None
        self._stale = self._closed = False
        self._about, self.current = self._choose()
        self._peers = [self._peer(address) for address in addresses for _ in range(streams)]
        for number in range(len(self._peers)):
            threading.Thread(target=self._work, args=(number,), daemon=True).start()

    def predict(self, x: NDArray[Any]) -> tuple[Model, NDArray[np.float32]]:
        """Scores ``[n, outputs]`` of windows ``[n, *shape]``, in order, and the release that gave them.

        Raises:
            DataError: the windows have another shape, or hold NaN or infinity.
            ReleaseError: the model fails on them on every device.
            PeerError: no device answers.
        """
        if len(x) == 0:
            return self.current, np.empty((0, self._about.outputs), np.float32)
        with self._turn:
            model = self.current
            try:
                return model, self._run(x)
            except PeerError:
                if not self._stale:
                    raise
            self._refresh()
            if self.current is model:
                raise PeerError("the devices serve different releases, or change over now: try again later")
            return self.current, self._run(x)

    def follow(self) -> str | None:
        """Ask again what they serve, if one of them has said that it serves another release."""
        if not self._stale or time.monotonic() - self._asked < _ASK_AGAIN:
            return None
        with self._turn:
            before = self.current
            try:
                self._refresh()
            except FedgeError as error:
                return str(error)
        version = self.current.manifest.version
        return None if self.current is before else f"release {version} answers from now on"

    def close(self) -> str | None:
        """End the connections, as far as nobody waits on them."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        return None

    def judge(self, model: Model, scores: NDArray[np.float32], label: float) -> None:
        """Nobody asks: the devices watch over their own models."""

    def _refresh(self) -> None:
        self._stale = False
        about, model = self._choose()
        if about.model != self._about.model:
            self._about, self.current = about, model

    def _choose(self) -> tuple[About, Model]:
        """The release that most of the devices serve; among equals the newest."""
        found, said = self._ask_all()
        self._asked = time.monotonic()
        if not found:
            raise PeerError(f"no device answers: {'; '.join(said)}")
        votes = Counter(about.model for about, _ in found)
        about, address = max(found, key=lambda each: (votes[each[0].model], each[0].version))
        return about, self._model(about, address)

    def _peer(self, address: Address) -> Peer:
        return Peer(address, self._tls, self._deadline)

    def _ask_all(self) -> tuple[list[tuple[About, Address]], list[str]]:
        """What each of them says, and what is wrong with the others."""
        found: list[tuple[About, Address]] = []
        said: list[str] = []

        def ask(address: Address) -> None:
            try:
                with self._peer(address) as peer:
                    about = parse_about(peer.get(PATH).body)
                if about.stage.partition("/")[0] not in ("", "1"):
                    raise PeerError(f"{address} serves part {about.stage} of a model")
                found.append((about, address))
            except FedgeError as error:
                said.append(str(error))

        threads = [threading.Thread(target=ask, args=(a,), daemon=True) for a in self._addresses]
        for thread in threads:
            thread.start()
        start = time.monotonic()
        for thread in threads:  # one that answers nothing holds the others up for a moment only
            while thread.is_alive() and (not found or time.monotonic() - start < _PATIENCE):
                thread.join(_TICK)
        return list(found), list(said)

    def _model(self, about: About, address: Address) -> Model:
        with self._peer(address) as peer:
            manifest = parse(peer.get(MANIFEST_PATH).body)
        said = (about.model, about.input.shape, about.outputs)
        if said != (manifest.model.sha256, manifest.input.shape, manifest.outputs):
            raise ReleaseError(f"{address} does not serve what its manifest says")
        far = _Far(self, manifest.input.shape, manifest.outputs)
        return Model(manifest, cast("Runtime", far))

    def _run(self, x: NDArray[Any]) -> NDArray[np.float32]:
        about = self._about
        if x.shape[1:] != about.input.shape:
            wanted = ", ".join(map(str, about.input.shape))
            raise DataError(f"the model takes windows [n, {wanted}], not {list(x.shape)}")
        size = min(about.most, _LARGEST, max(_LEAST, len(x) // (_SHARES * len(self._peers))))
        names = [str(peer.address) for peer in self._peers]
        split = Split(-(-len(x) // size), names, 3 * self._deadline, time.monotonic())
        job = _Job(about, x, size, np.empty((len(x), about.outputs), np.float32), split)
        with self._change:
            self._job = job
            self._change.notify_all()
            while not job.over:
                self._change.wait(_TICK * 10)
                try:
                    split.check(time.monotonic())
                except PeerError as error:
                    job.error = error
            self._job = None
        self._stale = self._stale or job.moved > 0
        if job.error is not None:
            raise job.error
        return job.scores

    def _work(self, number: int) -> None:
        """One stream, for as long as there is work."""
        peer = self._peers[number]
        while (taken := self._take(number)) is not None:
            job, part = taken
            start = time.monotonic()
            try:
                answer = self._ask(peer, job, part)
            except Exception as error:  # a stream that ended would be missing for good
                with self._change:
                    self._note(job, number, part, error)
                    self._change.notify_all()
                continue
            now = time.monotonic()
            with self._change:
                if job.split.done(number, part, now, now - start):
                    job.scores[job.part(part)] = answer
                self._change.notify_all()
        peer.close()

    def _take(self, number: int) -> tuple[_Job, int] | None:
        """The next part for a stream, once there is one; None when all is over."""
        with self._change:
            while not self._closed:
                job = self._job
                if job is not None and not job.over:
                    part = job.split.take(number, time.monotonic())
                    if part is not None:
                        return job, part
                self._change.wait(_TICK if job is not None else None)
        return None

    def _ask(self, peer: Peer, job: _Job, part: int) -> NDArray[np.float32]:
        about, x = job.about, np.ascontiguousarray(job.x[job.part(part)], np.float32)
        return peer.infer(about.name, about.model, about.input.name, "FP32", x, about.outputs)

    def _note(self, job: _Job, number: int, part: int, error: Exception) -> None:
        """What an error means for the batch."""
        now, status = time.monotonic(), error.status if isinstance(error, PeerRefusalError) else 0
        try:
            if status == _BAD:
                raise DataError(str(error))
            if status == _BUSY:
                job.split.busy(number, part, now, str(error))
            elif status == _BROKEN:
                job.split.broken(number, part, now, str(error))
            else:
                job.moved += status == _OTHER_RELEASE
                job.split.failed(number, part, now, str(error))
        except FedgeError as hopeless:
            job.error = job.error or hopeless
