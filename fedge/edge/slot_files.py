"""The two files of a slot: a manifest and its model, read only if they are what they should be."""

from dataclasses import dataclass

from fedge.edge.disk import Disk
from fedge.edge.slots import Held, Slot, Slots
from fedge.errors import PayloadError, ReleaseError
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, Manifest, check_model, parse


@dataclass(frozen=True)
class Installed:
    """A model that a device may run: it is what was verified when it was installed.

    Attributes:
        version: of the release.
        manifest: what the release says about itself.
        model: its ONNX file.
    """

    version: int
    manifest: Manifest
    model: bytes


def write_slot(disk: Disk, slot: Slot, manifest: bytes, model: bytes) -> None:
    """Replace what ``slot`` holds; between the two writes it holds nothing that belongs together.

    Raises:
        SetupError: the disk cannot be written.
    """
    disk.replace(f"{slot}.json", manifest)
    disk.replace(f"{slot}.onnx", model)


def read_slot(disk: Disk, state: Slots, slot: Slot | None) -> Installed | None:
    """What ``slot`` holds; None if that is nothing, or not what ``state`` says that it is.

    Raises:
        SetupError: the disk cannot be read.
    """
    held = state.held(slot)
    if held is None or slot is None or (found := _files(disk, slot)) is None:
        return None
    if Held.of(held.version, *found) != held:
        return None
    try:
        return Installed(held.version, parse(found[0]), found[1])
    except ReleaseError:  # of a format that this fedge does not read any more
        return None


def told_by_itself(disk: Disk, slot: Slot) -> Held | None:
    """What ``slot`` holds by its own account: a manifest and the model that it names.

    Raises:
        SetupError: the disk cannot be read.
    """
    if (found := _files(disk, slot)) is None:
        return None
    manifest, model = found
    try:
        release = parse(manifest)
        check_model(release, model)
    except ReleaseError:
        return None
    return Held.of(release.version, manifest, model)


def _files(disk: Disk, slot: Slot) -> tuple[bytes, bytes] | None:
    """Manifest and model; None if one of them is missing or too large."""
    try:
        manifest = disk.read(f"{slot}.json", MAX_MANIFEST_BYTES)
        model = disk.read(f"{slot}.onnx", MAX_MODEL_BYTES)
    except PayloadError:
        return None
    return None if manifest is None or model is None else (manifest, model)
