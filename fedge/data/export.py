"""One data set into one file per client, as devices would hold it."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fedge.data import load
from fedge.data.types import Dataset, TargetKind, Windows
from fedge.errors import SetupError


def split_to_files(
    source: str | Path,
    out: str | Path,
    *,
    target: TargetKind = "class",
    key: str = "y",
    normal: str = "",
) -> list[tuple[str, Path, int]]:
    """Write ``client_ID.npz`` into ``out`` for each client of ``source``, in the format of ``--data``.

    The files are written into a temporary folder beside ``out``, which takes its name at the end: either
    all of them are there or none. What ``scale``, ``order``, ``key`` and ``normal`` said is applied: the
    files hold the target as ``y``, and for an anomaly task ``trainable``.

    Args:
        source: ``"watch"``, ``"digits"``, an ``.npz`` file or a folder, as for ``fedge.data.load``.
        out: the folder; it must not exist, or be empty.
        target: what is learned, as for ``fedge.data.load``.
        key: the array that holds it, likewise.
        normal: what may be trained on, likewise.

    Returns:
        For each client its id, its file, and its number of windows.

    Raises:
        DataError: the data cannot be used.
        ConfigError: ``target``, ``key`` or ``normal`` makes no sense.
        SetupError: ``out`` is in the way or cannot be written.
    """
    out = Path(out)
    _check_out(out)
    data = load(source, target=target, key=key, normal=normal)
    names = file_names(data.clients)
    work = out.absolute().parent / f".{out.name}.{os.getpid()}.part"
    try:
        work.mkdir(parents=True)
        for client, windows in data.clients.items():
            _write(work / names[client], client, windows, data)
        work.rename(out)
    except OSError as error:
        raise SetupError(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [(client, out / names[client], len(windows)) for client, windows in data.clients.items()]


def file_names(clients: Iterable[str]) -> dict[str, str]:
    """A file name for each client: letters, digits, ``-`` and ``_`` only, different even without case.

    An id that has to be changed for that gets the first 12 digits of its SHA-256 behind it, and a name that
    is taken gets ``_``.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for client in clients:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", client)[:80]
        if plain != client:
            plain = f"{plain}-{hashlib.sha256(client.encode()).hexdigest()[:12]}"
        while plain.casefold() in taken:
            plain += "_"
        taken.add(plain.casefold())
        names[client] = f"client_{plain}.npz"
    return names


def _check_out(out: Path) -> None:
    try:
        in_the_way = next(iter(out.iterdir()), None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SetupError(f"{out}: cannot be the output folder ({error.strerror})") from None
    if in_the_way is not None:
        raise SetupError(f"{out}: is not empty ({in_the_way.name}); give a new folder")


def _write(path: Path, client: str, windows: Windows, data: Dataset) -> None:
    arrays: dict[str, Any] = {
        "X": windows.x,
        "y": windows.y,
        "client": np.full(len(windows), client),
        "channels": np.array(data.channels),
        "group": windows.group,
    }
    if data.classes:
        arrays["classes"] = np.array(data.classes)
    if windows.trainable is not None:
        arrays["trainable"] = windows.trainable
    np.savez_compressed(path, **arrays)
