"""Reading, checking and splitting a data set (NumPy only)."""

from collections.abc import Sequence
from pathlib import Path

from fedge.data._names import natural_sorted
from fedge.data._target import check_built_in, check_everyone, check_table, parse_target
from fedge.data.digits import load_digits
from fedge.data.folder import is_table, load_folder, load_table
from fedge.data.kept import is_kept, read_kept
from fedge.data.npz import read_npz
from fedge.data.types import Dataset, TargetKind
from fedge.data.watch import load_watch
from fedge.errors import DataError

_BUILT_IN = {"watch": load_watch, "digits": load_digits}


def load(
    source: str | Path,
    *,
    window: int = 128,
    step: int = 64,
    target: TargetKind = "class",
    key: str = "y",
    normal: str = "",
) -> Dataset:
    """Everyone's windows, from wherever ``source`` says.

    Args:
        source: ``"watch"``, ``"digits"``, an ``.npz`` file, or a folder with one file per client: CSV,
            Parquet, or the ``.npz`` files that ``fedge data split`` writes.
        window: samples in a window; for CSV and Parquet only.
        step: samples from one window to the next; for CSV and Parquet only.
        target: what is learned: ``"class"``, ``"number"`` or ``"anomaly"``.
        key: the array of an ``.npz`` file that holds it.
        normal: for an anomaly task, which windows of an ``.npz`` file may be trained on: ``NAME OP NUMBER``
            over one of its arrays, such as ``rul > 100``. By default those not labelled anomalous.

    Raises:
        DataError: the data cannot be used.
        ConfigError: a setting is out of range, or does not go with the others.
        SetupError: a package is missing.
    """
    wanted = parse_target(target, key, normal)
    if source == "":
        raise DataError("this scenario has no data of its own: give --data FILE.npz")
    if isinstance(source, str) and source in _BUILT_IN:
        check_built_in(wanted, source)
        return _BUILT_IN[source]()
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if files:
            return load_client_files(files, target=target, key=key, normal=normal)
        check_table(wanted, path)
        return load_folder(path, window, step, target=target)
    if is_table(path):
        raise DataError(f"{path}: is one client's file; give the folder that holds one for each client")
    return read_npz(path, target=target, key=key, normal=normal)


def load_client_files(
    files: Sequence[Path], *, target: TargetKind = "class", key: str = "y", normal: str = ""
) -> Dataset:
    """One data set from one ``.npz`` file per client, as ``fedge data split`` writes them.

    Args:
        files: one or more.
        target: as for ``load``.
        key: as for ``load``.
        normal: as for ``load``.

    Raises:
        DataError: a file cannot be used, holds several clients, or does not fit the others.
        ConfigError: ``target``, ``key`` or ``normal`` makes no sense.
    """
    parts = [load_client(file, target=target, key=key, normal=normal) for file in files]
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
    check_everyone(clients.values(), parse_target(target, key, normal), files[0].parent)
    return Dataset(files[0].parent.resolve().name, {c: clients[c] for c in natural_sorted(list(clients))},
                   first.classes, first.channels)  # fmt: skip


def load_client(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    window: int = 128,
    step: int = 64,
    target: TargetKind = "class",
    key: str = "y",
    normal: str = "",
) -> Dataset:
    """A device's own data: a data set with one client, which need not hold every class.

    Args:
        path: an ``.npz`` file as ``fedge data split`` writes it, a CSV or Parquet file, or the folder that
            ``fedge infer --keep`` fills: of this the windows with a label, perhaps none yet.
        classes: names of the classes of the model; a CSV or Parquet file's labels must be among them.
            None: the classes that the file itself names. Empty where the target is a number.
        window: samples in a window; for CSV and Parquet only.
        step: samples from one window to the next; for CSV and Parquet only.
        target: as for ``load``.
        key: as for ``load``.
        normal: as for ``load``.

    Raises:
        DataError: the data cannot be used, or is that of several clients.
        ConfigError: a setting is out of range, or does not go with the others.
        SetupError: a package is missing.
    """
    path, wanted = Path(path), parse_target(target, key, normal)
    if is_kept(path):
        check_table(wanted, path)
        data = read_kept(path, window, target)
    elif is_table(path):
        check_table(wanted, path)
        data = load_table(path, window, step, classes, target=target)
    else:
        data = read_npz(path, min_clients=1, min_classes=1, target=target, key=key, normal=normal)
    if len(data.clients) != 1:
        raise DataError(f"{path}: holds {len(data.clients)} clients; a device has one file of its own")
    if classes is not None and data.classes != tuple(classes):
        raise DataError(f"{path}: has the classes {list(data.classes)}, the model {list(classes)}")
    return data
