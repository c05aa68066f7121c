"""What a device may believe of a repository of releases: The Update Framework, by python-tuf's client.

``tuf.ngclient.Updater`` verifies the signed metadata, in the order and by the rules of the specification
(5.3). It writes without flushing to the disk, so it works in a scratch folder, and what it came to trust is
handed back to be kept durably: also when it then refuses something, for what is trusted by then guards
against going back.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api import exceptions
from tuf.api.metadata import (  # type: ignore[attr-defined]  # it exports them without saying so
    Metadata,
    TargetFile,
    Targets,
)
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from fedge.edge.codes import NotTakenError
from fedge.edge.sources import FetchError, Source
from fedge.errors import PayloadError, SetupError
from fedge.release.pointer import (
    LATEST,
    MAX_ROOT_BYTES,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
    METADATA,
    PROMOTED,
    ROUNDS,
    Pointer,
    parse_pointer,
)

_BASE = "release:/"
_HISTORY = "root_history"
_NAME = re.compile(rf"(?:timestamp|snapshot|targets|{ROUNDS}|{_HISTORY}/[1-9]\d{{0,8}}\.root)\.json")
_CONFIG = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=2,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=MAX_TIMESTAMP_BYTES,
    snapshot_max_length=MAX_SNAPSHOT_BYTES,
    targets_max_length=MAX_TARGETS_BYTES,
    prefix_targets_with_hash=False,
)


@dataclass(frozen=True, eq=False)
class Offer:
    """A release that may be had.

    Attributes:
        pointer: which one, and the deltas that lead to it.
        files: what was signed of it: length and hashes, by path.
        source: where it comes from.
    """

    pointer: Pointer
    files: Mapping[str, TargetFile]
    source: Source

    def fetch(self, path: str, limit: int) -> bytes:
        """A file of it, which has the length and the hashes that were signed.

        Raises:
            NotTakenError: nobody signed it, it is said to be longer than ``limit``, or it is another file.
            FetchError: it cannot be had.
        """
        target = self.files.get(path)
        if target is None:
            raise NotTakenError("not_signed", f"nobody signed {path}")
        if target.length > limit:
            said = f"{path} is said to have {target.length} bytes; the limit is {limit}"
            raise NotTakenError("too_long", said)
        with _translated():
            content = self.source.fetch(path, target.length)
            target.verify_length_and_hashes(content)
        return content


@dataclass(frozen=True)
class View:
    """A repository, verified.

    Attributes:
        latest: the newest release that the delegated role signs; None if there is none.
        promoted: the release that the offline key promoted; None if there is none.
        vouchers: the keys of the delegated role as one word: 64 hex digits.
    """

    latest: Offer | None
    promoted: Offer | None
    vouchers: str


def look_at(
    source: Source,
    known: Mapping[str, str],
    root: bytes,
    now: int,
    scratch: Path,
    keep: Callable[[Mapping[str, str]], None],
    *,
    promoted_only: bool,
) -> View:
    """Verify what ``source`` hands over, from what was trusted before.

    Args:
        source: where the repository is.
        known: what ``keep`` was given last; empty on a new device.
        root: the first root's metadata, which the device was given when it was enrolled.
        now: Unix time in seconds.
        scratch: an empty folder, for python-tuf alone.
        keep: is given what is trusted afterwards, by name, before this returns or raises.
        promoted_only: whether the delegated role is left out.

    Raises:
        NotTakenError: signatures, versions, times, lengths or hashes are not as they must be.
        FetchError: a file cannot be had.
        SetupError: the scratch folder cannot be written.
    """
    _fill(scratch, known)
    try:
        with _translated():
            client = _client(source, root, now, scratch)
            client.refresh()
            if not promoted_only:
                client.get_targetinfo(LATEST)  # verifies the delegated role
    finally:
        keep(_collect(scratch))
    with _translated():
        targets = _targets(scratch, "targets")
        rounds = Targets() if promoted_only else _targets(scratch, ROUNDS)
    every = {**rounds.targets, **targets.targets}  # what the offline key says of a file counts more
    return View(
        _offer(rounds, LATEST, every, source),
        _offer(targets, PROMOTED, targets.targets, source),
        _vouchers(targets),
    )


class _Fetcher(FetcherInterface):
    """Hands python-tuf's requests to a source, with their limits."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        """Never called: it would not know the limit."""
        raise NotImplementedError(url)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """A metadata file."""
        try:
            return self._source.fetch(url.removeprefix(_BASE), max_length)
        except FetchError as error:
            if error.missing:
                raise exceptions.DownloadHTTPError(str(error), 404) from error
            raise exceptions.DownloadError(str(error)) from error
        except PayloadError as error:
            raise exceptions.DownloadLengthMismatchError(str(error)) from error


def _client(source: Source, root: bytes, now: int, scratch: Path) -> Updater:
    """python-tuf's client at the time ``now``.

    Its time is that of its construction. Only its own set of metadata holds it, so this reaches into that; a
    test says so if it moves.
    """
    client = Updater(
        str(scratch), f"{_BASE}{METADATA}/", fetcher=_Fetcher(source), config=_CONFIG, bootstrap=root
    )
    client._trusted_set.reference_time = datetime.fromtimestamp(now, UTC)
    return client


def _fill(scratch: Path, known: Mapping[str, str]) -> None:
    try:
        (scratch / _HISTORY).mkdir(parents=True, exist_ok=True)
        for name, text in known.items():
            if _NAME.fullmatch(name):
                (scratch / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"cannot write to {scratch}: {error.strerror}") from error


def _collect(scratch: Path) -> dict[str, str]:
    """What is trusted now, by name."""
    try:
        found = {p.relative_to(scratch).as_posix(): p for p in sorted(scratch.rglob("*.json"))}
        return {n: p.read_text(encoding="utf-8") for n, p in found.items() if _NAME.fullmatch(n)}
    except (OSError, ValueError) as error:
        raise SetupError(f"cannot read {scratch} again: {error}") from error


def _targets(scratch: Path, role: str) -> Targets:
    """What a role signs: the file was verified before it came to lie here."""
    return Metadata[Targets].from_bytes((scratch / f"{role}.json").read_bytes()).signed


def _offer(targets: Targets, name: str, files: Mapping[str, TargetFile], source: Source) -> Offer | None:
    target = targets.targets.get(name)
    try:
        return None if target is None else Offer(parse_pointer(target.custom), files, source)
    except PayloadError as error:
        raise NotTakenError("malformed", str(error)) from error


def _vouchers(targets: Targets) -> str:
    roles: Any = None if targets.delegations is None else targets.delegations.roles
    keys = sorted(roles[ROUNDS].keyids) if roles and ROUNDS in roles else []
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


_CODES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.DownloadLengthMismatchError, "too_long"),
    (PayloadError, "too_long"),
    (exceptions.ExpiredMetadataError, "expired"),
    (exceptions.BadVersionNumberError, "older"),
    (exceptions.UnsignedMetadataError, "not_signed"),
    (exceptions.LengthOrHashMismatchError, "altered"),
    (exceptions.RepositoryError, "malformed"),
)


@contextmanager
def _translated() -> Iterator[None]:
    """What python-tuf and a source raise, as our own errors."""
    try:
        yield
    except (exceptions.RepositoryError, exceptions.DownloadLengthMismatchError, PayloadError) as error:
        code = next(code for kind, code in _CODES if isinstance(error, kind))
        raise NotTakenError(code, f"the repository of releases is refused: {_line(error)}") from error
    except exceptions.DownloadHTTPError as error:
        raise FetchError(_line(error), missing=True) from error
    except exceptions.DownloadError as error:
        raise FetchError(_line(error)) from error
    except OSError as error:
        raise SetupError(f"cannot work in the scratch folder: {error.strerror}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
