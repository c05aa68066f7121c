"""A client is offered a release: it verifies it, tries it on its own data, and says what came of it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedge.data.types import ClientData
from fedge.edge.disk import Disk
from fedge.edge.gate import GateInputs
from fedge.edge.home import Home
from fedge.edge.sources import FetchError, PackageSource
from fedge.edge.updater import Outcome, Updater
from fedge.errors import PayloadError
from fedge.federated.frames import Verdict
from fedge.release.package import parse_package

_log = logging.getLogger("fedge.client")
_RECENT = 512  # windows, to compare answers on where none of the device's own is labelled

BROKEN = "package"
"""The verdict on a package that this device cannot read: it was made for one that holds another release."""

WANTS_PROMOTED = "wants_promoted"
"""The verdict of a device that takes promoted releases only, on a package that leads to another one."""


@dataclass(frozen=True)
class Releases:
    """How a device takes releases. All of it is its own, and a server can set none of it.

    Attributes:
        root: the first root of trust (``1.root.json``), as it was enrolled with it.
        margin: how much worse than the current model a release may score here.
        timed: whether the gate measures how long a window takes; a simulation does not.
        promoted_only: take only what was promoted with the offline key.
        recent: windows ``[n, *shape]`` that it saw lately, labelled or not, for a gate without labels;
            ``None``: those that it learns from.
        disk: the device's home; ``None``: it is part of the client's state (a simulation).
        now: Unix time in seconds, for what expires.
    """

    root: bytes
    margin: float
    timed: bool = False
    promoted_only: bool = False
    recent: Callable[[], NDArray[np.float32]] | None = None
    disk: Disk | None = None
    now: Callable[[], int] = lambda: int(time.time())


def consider(package: bytes, federation: str, releases: Releases, disk: Disk, data: ClientData) -> Verdict:
    """Take the release in ``package`` into the home on ``disk``, if it is genuine and passes the gate.

    Raises:
        SetupError: the disk cannot be read or written.
        DataError: the client's own windows cannot be used.
    """
    home = Home(disk)
    try:
        source = _opened(package, home)
    except PayloadError:
        return _verdict(Outcome(0, False, BROKEN, ""))
    updater = Updater(
        home, releases.root, federation, releases.now, insist_on_promoted=releases.promoted_only
    )
    try:
        outcome = updater.update(source, _test(releases, data))
        done = "taken" if outcome.taken else "not taken"
        _log.info("release %s %s (%s): %s", outcome.version or "", done, outcome.code, outcome.reason)
        return _verdict(outcome)
    except FetchError:
        return _verdict(Outcome(0, False, WANTS_PROMOTED if releases.promoted_only else BROKEN, ""))


def _opened(package: bytes, home: Home) -> PackageSource:
    """The files of a package, which may be coded from the manifest of a release that is here."""
    for installed in home.held():
        try:
            return PackageSource(parse_package(package, installed.manifest.to_bytes()))
        except PayloadError:
            continue
    return PackageSource(parse_package(package))


def _test(releases: Releases, data: ClientData) -> GateInputs:
    own = np.concatenate([data.train.x, data.judge.x])[-_RECENT:]
    recent = own if releases.recent is None else releases.recent()
    timed = GateInputs(data.later, recent, releases.margin)
    return timed if releases.timed else GateInputs(data.later, recent, releases.margin, latency_factor=None)


def _verdict(outcome: Outcome) -> Verdict:
    current, candidate = (
        float("nan") if s is None else s for s in (outcome.current_score, outcome.candidate_score)
    )
    taken = outcome.taken or outcome.code == "up_to_date"  # taken just before this process was stopped
    return Verdict(outcome.version, taken, outcome.code, current, candidate, outcome.windows)
