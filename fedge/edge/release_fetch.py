"""``fedge release fetch``: take the newest release from a web server, a folder or a USB stick."""

import argparse
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedge.data.types import Windows
from fedge.edge.disk import FolderDisk
from fedge.edge.gate import GateInputs
from fedge.edge.home import STATE, Home
from fedge.edge.release_command import say
from fedge.edge.release_repository import read_file, read_root
from fedge.edge.sources import FolderSource, HttpSource, Source
from fedge.edge.updater import Updater
from fedge.errors import ConfigError, InputError, PayloadError, ReleaseError, SetupError
from fedge.release.manifest import MAX_MANIFEST_BYTES, Manifest, parse
from fedge.release.pointer import LATEST, MAX_POINTER_BYTES, PROMOTED, parse_pointer

_MAX_ENROLMENT_BYTES = 16_384
_HEX = re.compile(r"[0-9a-f]{16,64}")
_NOTHING_NEW = ("up_to_date", "nothing", "pinned")


@dataclass(frozen=True)
class _Trusted:
    """Whom to believe, and whose releases are wanted."""

    root: bytes
    federation: str
    tls: Path | None


def do_fetch(options: argparse.Namespace) -> int | None:
    """Take the newest release, if it is genuine, newer, and passes the gate; say what came of it.

    Returns:
        1 where a release was refused.

    Raises:
        InputError: an option makes no sense, or the device's own data cannot be used.
        SetupError: something cannot be had, read or written.
    """
    if not 0 <= options.margin <= 1:
        raise ConfigError(f"--margin {options.margin:g}: give 0 to 1")
    if options.budget_us is not None and not 0 < options.budget_us < math.inf:
        raise ConfigError(f"--budget-us {options.budget_us:g}: give more than 0 microseconds")
    if options.federation is not None and not _HEX.fullmatch(options.federation):
        raise ConfigError(f"--federation {options.federation!r:.80}: give its 16 to 64 hex digits")
    place = options.home / "model" if (options.home / "model" / STATE).is_file() else options.home
    home = Home(FolderDisk(place))
    trusted = _trusted(options, home)
    source = _source(options.source, trusted.tls)
    now = int(time.time())
    updater = Updater(
        home, trusted.root, trusted.federation, lambda: now,
        insist_on_promoted=options.promoted_only, again=options.again,
    )  # fmt: skip
    announced = _announced(source, options.promoted_only) or _current(home)
    outcome = updater.update(source, _test(options, announced))
    if outcome.taken:
        say(f"release {outcome.version} runs here now ({outcome.code}): {outcome.reason}")
        return None
    about = f"release {outcome.version} not" if outcome.version else "nothing"
    known = any(finding.version == outcome.version for finding in home.slots().findings)
    hint = (
        "; --again tests it once more"
        if outcome.code == "tried_before" and known and not options.again
        else ""
    )
    say(f"{about} taken ({outcome.code}): {outcome.reason}{hint}")
    return None if outcome.code in _NOTHING_NEW else 1


def _trusted(options: argparse.Namespace, home: Home) -> _Trusted:
    """From the device's bundle, or from what is named instead."""
    bundle = options.bundle
    if bundle is None:
        if options.root is None:
            raise InputError("say whom to trust: --bundle DIR, or --root FILE")
        federation = options.federation or home.slots().federation
        if not federation:
            raise InputError(f"{options.home} is new: say whose releases it takes: --federation or --bundle")
        return _Trusted(read_root(options.root), federation, None)
    if options.root or options.federation:
        raise InputError("--bundle says whom to trust; leave --root and --federation out")
    root = read_root(bundle / "root.json")
    return _Trusted(root, _federation(bundle / "device.json"), bundle)


def _federation(path: Path) -> str:
    try:
        raw = json.loads(read_file(path, _MAX_ENROLMENT_BYTES))
        federation = raw["federation"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SetupError(f"{path} is no part of an enrolment bundle: it names no federation") from error
    if not isinstance(federation, str):
        raise SetupError(f"{path} is no part of an enrolment bundle: it names no federation")
    return federation


def _source(text: str, tls: Path | None) -> Source:
    if "://" in text:
        return HttpSource(text, tls if text.startswith("https://") else None)
    if not Path(text).is_dir():
        raise SetupError(f"{text} is no folder, and no address of a web server")
    return FolderSource(Path(text))


def _announced(source: Source, promoted_only: bool) -> Manifest | None:
    """What the release seems to be, unverified: only to read the device's own data in its shape."""
    try:
        name = PROMOTED if promoted_only else LATEST
        pointer = parse_pointer(source.fetch(name, MAX_POINTER_BYTES))
        return parse(source.fetch(pointer.manifest, MAX_MANIFEST_BYTES))
    except (SetupError, PayloadError, ReleaseError):
        return None


def _current(home: Home) -> Manifest | None:
    installed = home.current()
    return None if installed is None else installed.manifest


def _test(options: argparse.Namespace, manifest: Manifest | None) -> GateInputs:
    """What the release is tested on. Without a manifest there is none, and the updater will say why."""
    shape = (1, 1) if manifest is None else manifest.input.shape
    labelled = Windows(np.zeros((0, *shape), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    recent = None
    if options.data is not None and manifest is not None:
        labelled, recent = _own_data(options.data, manifest)
    return GateInputs(labelled, recent, options.margin, latency_budget_us=options.budget_us)


def _own_data(path: Path, manifest: Manifest) -> tuple[Windows, NDArray[np.float32]]:
    """The later part of the labelled windows, and the last ones, labelled or not."""
    from fedge.data import load_client
    from fedge.data.kept import is_kept, recent
    from fedge.data.split import split_client

    time_steps, target = manifest.input.shape[0], manifest.target
    data = load_client(
        path, classes=manifest.classes, window=time_steps, step=max(1, time_steps // 2), target=target
    )
    (windows,) = data.clients.values()
    if len(windows) == 0:
        return windows, recent(path) if is_kept(path) else windows.x
    return split_client(windows, target=target).later, recent(path) if is_kept(path) else windows.x
