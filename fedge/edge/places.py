"""Opening a model at a place: a device's home, the folder of a release, or an ``.onnx`` file."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedge.edge.runtime import Runtime
from fedge.errors import FedgeError, ReleaseError, SetupError
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, Manifest, parse

if TYPE_CHECKING:
    from fedge.edge.home import Home, Installed


_GIVE = (
    "give a device's home (it has no model before its first release), the folder of a release, or an .onnx "
    "file with manifest.json beside it"
)


@dataclass(frozen=True, eq=False)
class Model:
    """A release that is open and answers."""

    manifest: Manifest
    runtime: Runtime


class NoReleaseYetError(SetupError):
    """A home that is not there, or holds no release: there may be one later."""


@contextlib.contextmanager
def named_by_user(place: Path) -> Iterator[None]:
    """A damaged model that the user names is the user's to mend.

    Raises:
        SetupError: in place of any ``ReleaseError``, with the place.
    """
    try:
        yield
    except ReleaseError as error:
        raise SetupError(f"{place}: {error}") from error


def settled(place: Path) -> Path:
    """``place``, or the home in it, where it is the state folder of ``fedge client``."""
    inner = place / "model"
    if not inner.is_dir():
        return place
    from fedge.edge.home import STATE

    return inner if (inner / STATE).is_file() else place


def is_home(place: Path) -> bool:
    """Whether a device's home may be at ``place``: a folder that is not the folder of a release."""
    return place.is_dir() and not (place / "manifest.json").exists()


def open_model(manifest: Manifest, content: bytes) -> Model:
    """Open a model whose manifest has been parsed.

    Raises:
        ReleaseError: it is not the one that the manifest names, does not open, or has other sizes.
    """
    _check_named(manifest, content)
    runtime = Runtime(content)
    if (runtime.window, runtime.outputs) != (manifest.input.shape, manifest.outputs):
        found, said = f"{runtime.window}, {runtime.outputs}", f"{manifest.input.shape}, {manifest.outputs}"
        raise ReleaseError(f"the model has windows and outputs {found}; its manifest says {said}")
    return Model(manifest, runtime)


def open_files(place: Path) -> Model:
    """Open the folder of a release, or an ``.onnx`` file with ``manifest.json`` beside it.

    Who signed it is not asked: ``fedge release verify`` does that.

    Raises:
        SetupError: a file is missing or cannot be read.
        ReleaseError: as for :func:`open_model`.
    """
    return open_model(*_read_files(place))


def contents(place: Path) -> tuple[Manifest, bytes]:
    """Manifest and model of what is at ``place``, unopened; nothing is told to a home.

    Raises:
        SetupError: there is nothing, or it cannot be read.
        ReleaseError: the manifest is malformed, or the model is not the one that it names.
    """
    place = settled(place)
    if is_home(place):
        home = home_at(place)
        installed = home.current()
        if installed is None:
            raise _empty(home, place)
        return installed.manifest, installed.model
    manifest, content = _read_files(place)
    _check_named(manifest, content)
    return manifest, content


def _read_files(place: Path) -> tuple[Manifest, bytes]:
    if not place.exists():
        raise NoReleaseYetError(f"{place} is not there; {_GIVE}")
    model = place / "model.onnx" if place.is_dir() else place
    path = model.with_name("manifest.json")
    try:
        manifest = parse(_read(path, MAX_MANIFEST_BYTES))
    except ReleaseError as error:
        raise ReleaseError(f"{path.name}: {error}") from error
    return manifest, _read(model, MAX_MODEL_BYTES)


def _read(path: Path, limit: int) -> bytes:
    """A file's content, of which no more is read than ``limit`` and one byte."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SetupError(f"{path}: is no file; {_GIVE}")
            content = file.read(limit + 1)
    except OSError as error:
        raise SetupError(f"{path}: cannot be read ({error.strerror}); {_GIVE}") from None
    if len(content) > limit:
        raise ReleaseError(f"{path}: has more than {limit} bytes, the limit for such a file")
    return content


def _check_named(manifest: Manifest, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != manifest.model.sha256:
        raise ReleaseError("the model is not the one that its manifest names: damaged, or of another release")


def home_at(place: Path) -> "Home":
    """The home at ``place``; nothing is read yet."""
    from fedge.edge.disk import FolderDisk
    from fedge.edge.home import Home

    return Home(FolderDisk(place))


def open_home(home: "Home", place: Path) -> tuple[Model, str | None]:
    """Open the home's current model; where that is damaged or does not open, the other one, and say so.

    Raises:
        SetupError: it holds none, or cannot be read.
        ReleaseError: none of them opens.
    """
    lost = home.settle()
    installed = _about_to_open(home, place)
    said = None if lost is None else f"{damaged(lost)}; release {installed.version} answers"
    try:
        return open_model(installed.manifest, installed.model), said
    except ReleaseError as error:
        with contextlib.suppress(FedgeError):
            home.give_up(installed.version, "does_not_open")
        before = home.current()
        if before is None or before.version == installed.version:
            raise
        said = f"release {installed.version} does not open: {error}; release {before.version} answers"
        return open_model(before.manifest, before.model), said


def damaged(version: int) -> str:
    """What is said of a release that a home has lost."""
    return f"release {version} is damaged on this device's disk"


def _about_to_open(home: "Home", place: Path) -> "Installed":
    """The home's current model, once the home knows that a process starts with it."""
    installed = home.current()
    if installed is None:
        raise _empty(home, place)
    try:
        changed = home.started(installed.version)
    except SetupError:  # a full disk, or a home that is only read here: no reason not to answer
        return installed
    return (home.current() if changed else None) or installed


def _empty(home: "Home", place: Path) -> SetupError:
    """Why there is nothing to open in a home."""
    state = home.slots()
    lost = [f"{held.version}" for held in (state.a, state.b) if held is not None]
    if lost:
        said = f"{place}: what it holds is damaged (release {', '.join(lost)})"
        return SetupError(f"{said}; the device's updater, or fedge release fetch, gets it again")
    below = sorted(place.glob("v[0-9]*")) or sorted(place.glob("releases/v[0-9]*"))
    hint = f"; is {below[-1]} meant?" if below else ""
    return NoReleaseYetError(f"{place}: holds no release yet, and is not the folder of one{hint}")
