"""``fedge release`` on a repository: verify, publish, refresh, renew."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedge.edge.release_command import repository_at, say
from fedge.edge.sources import FetchError, FolderSource, HttpSource, Source
from fedge.errors import InputError, RefusedError, ReleaseError, SetupError
from fedge.release import folder
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, Manifest, check_model, parse
from fedge.release.pointer import MANIFEST, MAX_ROOT_BYTES, Pointer, folder_name
from fedge.signing import load_key

if TYPE_CHECKING:
    from fedge.edge.trusted import Offer

_MAX_DAYS = 36_500.0


def do_verify(options: argparse.Namespace) -> None:
    """Print what a device that trusts ``--root`` would find.

    Raises:
        ReleaseError: something is not as it must be.
        SetupError: something cannot be had or read.
    """
    from fedge.edge.trusted import look_at

    root = read_root(options.root)
    source = source_at(options.path)
    with tempfile.TemporaryDirectory(prefix="fedge-verify-") as scratch:
        view = look_at(source, {}, root, int(time.time()), Path(scratch), lambda _: None, promoted_only=False)
    for what, offer in (("newest", view.latest), ("promoted", view.promoted)):
        if offer is None:
            say(f"{what}: none")
            continue
        manifest, bases = verified(offer, source)
        deltas = f"; deltas from {', '.join(map(str, bases))}" if bases else ""
        say(f"{what}: release {manifest.version}, sha256 {manifest.model.sha256}{deltas}")


def verified(offer: "Offer", source: Source) -> tuple[Manifest, list[int]]:
    """The manifest of a release whose files are all right, and from which releases a delta leads to it.

    Raises:
        ReleaseError: a file is not the one that was signed, or does not belong to the others.
        FetchError: a file cannot be had.
    """
    from fedge.release import delta

    pointer = offer.pointer
    manifest = parse(offer.fetch(pointer.manifest, MAX_MANIFEST_BYTES))
    check_model(manifest, model := offer.fetch(pointer.model, MAX_MODEL_BYTES))
    if manifest.version != pointer.version:
        raise ReleaseError(f"{pointer.manifest} says that it is release {manifest.version}")
    found = []
    for base in pointer.bases:
        change = offer.fetch(pointer.delta(base), MAX_MODEL_BYTES)
        try:
            old = source.fetch(Pointer(base).model, MAX_MODEL_BYTES)
            check_model(manifest, delta.decode(old, change, len(model)))
        except FetchError:  # the old release is not kept here: nothing to try the delta on
            continue
        except RefusedError as error:
            raise ReleaseError(f"{pointer.delta(base)} does not lead to the release: {error}") from error
        found.append(base)
    return manifest, found


def do_publish(options: argparse.Namespace) -> None:
    """Promote a release, and let the server's keys sign that if they are given.

    Raises:
        RefusedError: the release or the repository is refused.
        SetupError: a key or the repository cannot be used.
    """
    from fedge.release.offline import promote

    _check_days(options.days)
    place, key = repository_at(options.path), load_key(options.key)
    promote(place, key, options.version, time.time(), options.days)
    manifest = parse(folder.read(place / folder_name(options.version) / MANIFEST, MAX_MANIFEST_BYTES))
    scores = ", ".join(f"{name} {value:.4f}" for name, value in sorted(manifest.scores.items()))
    say(f"promoted release {manifest.version}; {manifest.metric}: {scores or '-'}")
    say(f"sha256 of its model: {manifest.model.sha256}")
    _sign(place, options.online)


def do_refresh(options: argparse.Namespace) -> None:
    """Sign again what has lived half of its life.

    Raises:
        RefusedError: the repository is damaged.
        SetupError: a key or the repository cannot be used.
    """
    _sign(repository_at(options.path), options.online)


def do_renew(options: argparse.Namespace) -> None:
    """Sign the next root.

    Raises:
        RefusedError: the repository is damaged.
        SetupError: a key or the repository cannot be used.
    """
    from fedge.release.keys import OnlineKeys
    from fedge.release.offline import TARGETS_DAYS, renew
    from fedge.release.trust import install

    _check_days(options.days)
    place, online = repository_at(options.path), options.online
    metadata = renew(
        place,
        time.time(),
        load_key(options.root_key),
        load_key(options.targets_key),
        root_days=options.days,
        targets_days=min(options.days, TARGETS_DAYS),
        online=None if online is None else OnlineKeys.load(online),
        new_root_key=None if options.new_root_key is None else load_key(options.new_root_key),
    )
    trust = install(place, metadata)
    say(f"root {trust.root.version}, valid until {trust.root.expires:%Y-%m-%d}")
    _sign(place, online)


def source_at(text: str) -> Source:
    """A web server or a folder.

    Raises:
        SetupError: there is none.
    """
    if "://" in text:
        return HttpSource(text)
    return FolderSource(repository_at(Path(text)))


def read_file(path: Path, limit: int) -> bytes:
    """A file that the user names.

    Raises:
        SetupError: it is missing, too long, or cannot be read.
    """
    try:
        return folder.read(path, limit)
    except ReleaseError as error:
        raise SetupError(str(error)) from error


def read_root(path: Path) -> bytes:
    """The first root's metadata, whom the user trusts.

    Raises:
        SetupError: it cannot be read, or is something else.
    """
    from fedge.release._tuf import Root
    from fedge.release._tuf import parse as parse_metadata

    content = read_file(path, MAX_ROOT_BYTES)
    try:
        parse_metadata(Root, content, str(path))
    except ReleaseError as error:
        raise SetupError(f"{error}; give root.json of a bundle") from error
    return content


def _sign(place: Path, online: Path | None) -> None:
    from fedge.release.chain import read_chain
    from fedge.release.keys import OnlineKeys
    from fedge.release.repository import Repository

    if online is None:
        say("it counts once the server has signed it: at its next look, or by fedge release refresh")
        return
    Repository(place, OnlineKeys.load(online)).refresh()
    say(f"signed until {min(read_chain(place).expires.values()):%Y-%m-%d %H:%M} UTC")


def _check_days(days: float) -> None:
    if not 0 < days <= _MAX_DAYS:
        raise InputError(f"--days {days:g}: give 1 to {_MAX_DAYS:g}")
