"""Where windows come from: a live stream or a file of samples, line by line, or a file of whole windows."""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.edge.labels import Labels
from fedge.edge.lines import MAX_LINE
from fedge.edge.stream import Window
from fedge.errors import DataError
from fedge.release.manifest import Manifest

_CHUNK = 1 << 16
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LINES, _WINDOWS = (".csv", ".jsonl", ".ndjson"), (".npz",)


class Stop:
    """Set by SIGTERM and SIGINT: the input has ended. Whoever waits for something else watches ``handle``."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.asked = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Let the first signal end the input, and the second the process, also while a model is answering.

    Python runs its handlers between two steps of its own, and a model is one step. So a thread listens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop(-1)
        return
    reads, writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    hears, tells = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(tells, False)
    stop, before = Stop(reads), {}
    listener = threading.Thread(target=_listen, args=(hears, writes, stop), daemon=True)
    listener.start()
    wakeup = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    try:
        for number in _SIGNALS:
            before[number] = signal.signal(number, lambda *_: None)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(tells)
        listener.join()
        for handle in (hears, reads, writes):
            os.close(handle)


def _listen(hears: int, writes: int, stop: Stop) -> None:
    """Read the numbers of the signals that come, until the other end is closed."""
    while number := os.read(hears, 1):
        if number[0] not in _SIGNALS:
            continue
        if stop.asked:
            os._exit(128 + number[0])
        stop.asked = True
        os.write(writes, number)


def lines(handle: int, stop: Stop, idle_seconds: float = 1.0) -> Iterator[bytes | None]:
    """The lines of an open file, pipe or terminal; None whenever nothing has come for a while.

    Ends with the file, or when ``stop`` is asked. A line that is too long comes as its first ``MAX_LINE`` + 1
    bytes, and no more than that is ever held.
    """
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    if stop.handle >= 0:
        poll.register(stop.handle, select.POLLIN)
    rest, drop = b"", False
    while not stop.asked:
        ready = poll.poll(1000 * idle_seconds)
        if stop.asked or not any(each == handle for each, _ in ready):
            yield None
            continue
        chunk = os.read(handle, _CHUNK)
        if not chunk:
            break
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if not drop:
                yield line[: MAX_LINE + 1]
            drop = False
        if len(rest) > MAX_LINE:
            if not drop:
                yield rest[: MAX_LINE + 1]
            rest, drop = b"", True
    if rest and not drop:
        yield rest


def files(path: Path) -> list[Path]:
    """``path`` itself, or the files in this folder, by name; hidden ones are left out.

    Raises:
        DataError: it cannot be read, or a file is of a kind that is not known.
    """
    try:
        found = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else [path]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    for file in found:
        if not file.is_file():
            raise DataError(f"{file}: is no file" if file.exists() else f"{file}: is not there")
        if file.suffix.lower() not in (*_LINES, *_WINDOWS):
            raise DataError(f"{file}: give .npz, .csv or .jsonl (JSON lines), or - for standard input")
    if not found:
        raise DataError(f"{path}: holds no files")
    return found


def holds_windows(file: Path) -> bool:
    """Whether a file holds whole windows; otherwise it is read sample by sample."""
    return file.suffix.lower() in _WINDOWS


def windows(
    file: Path, manifest: Manifest, complain: Callable[[str, str, int], None] = lambda *_: None
) -> Iterator[Window]:
    """The windows of an ``.npz`` file (see ``fedge.data.npz``), of which only ``X`` is needed.

    A window with NaN or infinity comes as it is. Labels that are none of the model's are left out, and
    ``complain`` is told once: the kind (``label``), why, and how many.

    Raises:
        DataError: the file cannot be used, or its windows have another shape than the model's.
    """
    from fedge.data._zip import read_arrays

    arrays, present = read_arrays(file, ("X", "y", "scale", "channels", "classes", "group"))
    if "X" not in arrays:
        raise DataError(f"{file}: has no array 'X'; it holds: {', '.join(present)[:200]}")
    x, shape = arrays["X"], manifest.input.shape
    if x.shape[1:] != shape or x.dtype.kind not in "iuf":
        sizes = ", ".join(map(str, shape))
        raise DataError(f"{file}: 'X' is {list(x.shape)} {x.dtype}; the model takes numbers [n, {sizes}]")
    _check_channels(arrays.get("channels"), manifest, file)
    scale = _scale(arrays.get("scale"), shape[-1], file)
    labels: list[str | float | None] = [None] * len(x)
    try:
        labels = _labels(arrays, manifest, len(x))
    except DataError as error:
        complain("label", f"{file}: its labels are left out: {error}", len(x))
    group = arrays["group"] if arrays.get("group", x).shape == (len(x),) else np.zeros(len(x), np.int8)
    stretch = np.cumsum(np.concatenate([[0], group[1:] != group[:-1]])) if len(x) else group
    for n in range(len(x)):
        with np.errstate(over="ignore"):
            one = (x[n] if scale is None else x[n] * scale).astype(np.float32)
        yield Window(one, n, float(n), float(n), False, None, (labels[n],), int(stretch[n]))


def _check_channels(names: NDArray[Any] | None, manifest: Manifest, file: Path) -> None:
    if names is not None and tuple(map(str, names.tolist())) != manifest.input.names:
        theirs, ours = (", ".join(map(str, n))[:200] for n in (names.tolist(), manifest.input.names))
        raise DataError(f"{file}: has the channels {theirs}; the model takes {ours}")


def _scale(scale: NDArray[Any] | None, channels: int, file: Path) -> NDArray[np.float64] | None:
    if scale is None:
        return None
    if scale.shape != (channels,) or scale.dtype.kind not in "iuf":
        raise DataError(f"{file}: 'scale' has the shape {scale.shape}; give a number for each channel")
    return scale.astype(np.float64)


def _labels(arrays: dict[str, NDArray[Any]], manifest: Manifest, n: int) -> list[str | float | None]:
    """Each window's label, as it would be written; None throughout where there is no ``y``.

    Raises:
        DataError: ``y`` is none of the model's.
    """
    y, names = arrays.get("y"), arrays.get("classes")
    if y is None:
        return [None] * n
    if y.shape != (n,) or y.dtype.kind not in "biuf":
        raise DataError(f"'y' is {list(y.shape)} {y.dtype}; give a number for each of the {n} windows")
    known = Labels.of(manifest)
    if manifest.target == "number":
        return [float(v) for v in y]
    classes = known.names if names is None else tuple(map(str, names.tolist()))
    whole = np.isfinite(y) & (y == np.floor(y)) & (y >= 0) & (y < len(classes))
    if not whole.all():
        wrong = y[~whole][0]
        raise DataError(f"'y' holds {wrong:g}, which is no index of {_some(classes)} (from 0)")
    if manifest.target == "class" and not set(classes) <= set(known.names):
        raise DataError(f"its classes are {_some(classes)}; the model knows {_some(known.names)}")
    return [classes[int(v)] if manifest.target == "class" else float(v) for v in y]


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names)[:200]})"
