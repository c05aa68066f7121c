"""Reading, checking and splitting a data set (NumPy only)."""

from collections.abc import Sequence
from pathlib import Path

from fedge.data._names import natural_sorted
from fedge.data.folder import is_table, load_folder, load_table
from fedge.data.npz import read_npz
from fedge.data.types import Dataset
from fedge.data.watch import load_watch
from fedge.errors import DataError


def load(source: str | Path, *, window: int = 128, step: int = 64) -> Dataset:
    """Everyone's windows, from wherever ``source`` says.

    Args:
        source: ``"watch"``, an ``.npz`` file, or a folder with one file per client: CSV, Parquet, or the
            ``.npz`` files that ``fedge data split`` writes.
        window: samples in a window; for a folder only.
        step: samples from one window to the next; for a folder only.

    Raises:
        DataError: the data cannot be used.
        SetupError: a package is missing.
    """
    if source == "watch":
        return load_watch()
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        return load_client_files(files) if files else load_folder(path, window, step)
    if is_table(path):
        raise DataError(f"{path}: is one client's file; give the folder that holds one for each client")
    return read_npz(path)


def load_client_files(files: Sequence[Path]) -> Dataset:
    """One data set from one ``.npz`` file per client, as ``fedge data split`` writes them.

    Raises:
        DataError: a file cannot be used, holds several clients, or does not fit the others.
    """
    parts = [load_client(file) for file in files]
    first, clients = parts[0], {}
    for file, part in zip(files, parts, strict=True):
        if (part.classes, part.channels, part.window) != (first.classes, first.channels, first.window):
            raise DataError(f"{file}: other classes, channels or window than {files[0].name}")
        for client, windows in part.clients.items():
            if client in clients:
                raise DataError(f"{file}: client {client!r} is in another file too")
            clients[client] = windows
    if len(clients) < 3:
        raise DataError(f"{files[0].parent}: holds {len(clients)} client file(s); 3 or more are needed")
    return Dataset(files[0].parent.resolve().name, {c: clients[c] for c in natural_sorted(list(clients))},
                   first.classes, first.channels)  # fmt: skip


def load_client(
    path: str | Path, *, classes: Sequence[str] | None = None, window: int = 128, step: int = 64
) -> Dataset:
    """A device's own file: a data set with one client, which need not hold every class.

    Args:
        path: an ``.npz`` file as ``fedge data split`` writes it, or a CSV or Parquet file.
        classes: names of the classes of the model; a CSV or Parquet file's labels must be among them.
            None: the classes that the file itself names.
        window: samples in a window; for CSV and Parquet only.
        step: samples from one window to the next; for CSV and Parquet only.

    Raises:
        DataError: the data cannot be used, or is that of several clients.
        SetupError: a package is missing.
    """
    path = Path(path)
    if is_table(path):
        return load_table(path, window, step, classes)
    data = read_npz(path, min_clients=1, min_classes=1)
    if len(data.clients) != 1:
        raise DataError(f"{path}: holds {len(data.clients)} clients; a device has one file of its own")
    if classes is not None and data.classes != tuple(classes):
        raise DataError(f"{path}: has the classes {list(data.classes)}, the model {list(classes)}")
    return data
