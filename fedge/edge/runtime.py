"""A released model in ONNX Runtime: windows in the sensor's units in, scores out."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedge.edge._processor import adds_exactly
from fedge.edge.screen import screen
from fedge.errors import DataError, ReleaseError, SetupError
from fedge.preprocess import NOT_FINITE, as_float32, check_finite
from fedge.release.manifest import MAX_CLASSES, MAX_MODEL_BYTES, MAX_WINDOW

if TYPE_CHECKING:
    import onnxruntime

INPUT, OUTPUT = "window", "scores"
_FATAL = 4  # ONNX Runtime's severity above which it writes to standard error; its errors are raised
_FLOAT32, _BYTES = np.dtype(np.float32), np.dtype(np.uint8)
_BATCH, _VALUES = 256, 1 << 22  # windows, and values in them, answered in one call: bounds its memory


class Runtime:
    """One model, ready to answer. May be shared between threads, which do not wait for each other.

    The model takes ``window``, float32 ``[batch, time, channels]`` or ``[batch, height, width, channels]`` in
    the sensor's units, and gives ``scores``, float32 ``[batch, outputs]``, with a free batch size. It runs on
    one thread, which does not spin while idle.

    Attributes:
        window: shape of one window: ``(time, channels)``, or ``(height, width, channels)`` for an image.
        outputs: how many numbers it answers with: one per class, or 1.
    """

    def __init__(self, model: bytes | Path) -> None:
        """Open ``model``, the bytes of an ONNX file or its path.

        Raises:
            SetupError: the file cannot be read.
            ReleaseError: the model is no self-contained ONNX model with standard operators, does not
                open, or its input or output is not as above.
        """
        content = model if isinstance(model, bytes) else _read(model)
        if len(content) > MAX_MODEL_BYTES:
            raise ReleaseError(f"the model has {len(content)} bytes, above the limit of {MAX_MODEL_BYTES}")
        screen(content)
        self._session = open_session(content)
        self.window = _sizes(self._session.get_inputs(), INPUT, (2, 3))
        (self.outputs,) = _sizes(self._session.get_outputs(), OUTPUT, (1,))
        if math.prod(self.window) > MAX_WINDOW or self.outputs > MAX_CLASSES:
            raise ReleaseError("the model's window or the number of its answers is above the limit")
        self._batch = max(1, min(_BATCH, _VALUES // math.prod(self.window)))
        self._single = (1, *self.window)
        self._idle = [self._way()]

    def _way(self) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
        """A way for one window at a time, in memory of its own: nothing is allocated but the answer.

        Not for several threads at once.
        """
        binding = self._session.io_binding()
        window, scores = np.empty(self._single, np.float32), np.empty((1, self.outputs), np.float32)
        binding.bind_input(INPUT, "cpu", 0, np.float32, window.shape, window.ctypes.data)
        binding.bind_output(OUTPUT, "cpu", 0, np.float32, scores.shape, scores.ctypes.data)
        run, bound = _bare(self._session, binding)
        flat, checked, isfinite = window.reshape(-1), bytearray(window.size), np.isfinite
        finite = np.frombuffer(checked, np.bool_)

        def answer(x: NDArray[Any]) -> NDArray[np.float32]:
            values, kind = x.ravel(), x.dtype
            if kind is not _BYTES:  # a camera's are finite
                isfinite(values if kind is _FLOAT32 else as_float32(values), finite)
                if 0 in checked:
                    raise DataError(NOT_FINITE)
            flat[...] = values
            try:
                run(bound, None)
            except Exception as error:
                raise _failed(error) from error
            return scores.copy()

        return answer

    def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Scores of some windows.

        Args:
            x: ``[n, time, channels]`` or ``[n, height, width, channels]``, float or integer, in the sensor's
                units.

        Returns:
            ``[n, outputs]`` float32; whatever the model answers, NaN included.

        Raises:
            DataError: the windows have another shape, or hold NaN or infinity.
            ReleaseError: the model fails on them.
        """
        if x.shape != self._single:
            return self._predict_many(x)
        try:
            way = self._idle.pop()
        except IndexError:  # as many threads are answering as have ever done so at once
            way = self._way()
        try:
            return way(x)
        finally:
            self._idle.append(way)

    def _predict_many(self, x: NDArray[Any]) -> NDArray[np.float32]:
        if x.shape[1:] != self.window:
            sizes = ", ".join(map(str, self.window))
            raise DataError(f"the model takes windows [n, {sizes}], not {list(x.shape)}")
        scores = np.empty((len(x), self.outputs), np.float32)
        for start in range(0, len(x), self._batch):
            windows = np.ascontiguousarray(as_float32(x[start : start + self._batch]))
            check_finite(windows)
            part = scores[start : start + self._batch]
            try:
                (answer,) = self._session.run([OUTPUT], {INPUT: windows})
            except Exception as error:
                raise _failed(error) from error
            if answer.shape != part.shape:
                raise ReleaseError(f"the model answers with shape {answer.shape}, not {part.shape}")
            part[:] = answer
        return scores


def _read(path: Path) -> bytes:
    """The file's content, of which no more is read than the limit and one byte."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise SetupError(f"cannot read the model {path}: {error.strerror}") from error


class SlowError(ReleaseError):
    """A model that has not answered in time."""


def try_out(model: bytes, window: NDArray[np.float32], seconds: float) -> None:
    """Let a model that nobody knows answer ``window`` once, and give up after so many seconds.

    Nothing is optimized: ONNX Runtime would compute what depends on constants alone while it opens the
    model, where nobody can stop it. A model that passes may be opened in earnest. What it answers, and
    whether it is an answer at all, is not looked at here. One operator cannot be interrupted.

    Raises:
        ReleaseError: it does not open.
        SlowError: it takes too long.
    """
    import onnxruntime

    screen(model)
    session, options = open_session(model, optimized=False), onnxruntime.RunOptions()
    options.log_severity_level = _FATAL
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    start = time.monotonic()
    timer.start()
    with suppress(Exception):  # whatever else is wrong shows when it is opened in earnest
        session.run(None, {INPUT: window}, options)
    timer.cancel()
    if time.monotonic() - start > seconds:
        raise SlowError(f"the model has not answered its first window after {seconds:g} s")


def open_session(model: bytes, *, optimized: bool = True) -> "onnxruntime.InferenceSession":
    """ONNX Runtime with a model that :func:`fedge.edge.screen.screen` has passed, on one thread.

    Raises:
        ReleaseError: it does not open.
    """
    import onnxruntime  # 20 MB: a device that only trains, and has no release yet, goes without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if not adds_exactly():
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Otherwise bytes that look like ONNX Runtime's own format would be read as that, unscreened.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise ReleaseError(f"the model does not open in ONNX Runtime: {_first_line(error)}") from error


def _bare(
    session: "onnxruntime.InferenceSession", binding: "onnxruntime.IOBinding"
) -> tuple[Callable[[Any, None], None], Any]:
    """What runs a session, and its binding: without the Python around both, which takes as long as a layer.

    That is not public, so where it is not found as expected, it is the public call.
    """
    try:
        return session._sess.run_with_iobinding, binding._iobinding
    except AttributeError:
        return session.run_with_iobinding, binding


def _sizes(ports: "list[onnxruntime.NodeArg]", name: str, counts: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes after the batch of a model's only input or output, which must be called ``name``.

    ``counts``: how many sizes there may be.
    """
    try:
        names, shapes, kinds = zip(*((p.name, p.shape, p.type) for p in ports[:8]), strict=True)
    except ValueError as error:  # no port at all, or a name that is not UTF-8
        raise ReleaseError(f"the model's ports cannot be read: {_first_line(error)}") from error
    if len(ports) != 1 or names != (name,):
        found = ", ".join(names)
        raise ReleaseError(f"the model must have exactly one port {name!r} here; it has: {found}")
    shape, kind = shapes[0], kinds[0]
    if kind != "tensor(float)":
        raise ReleaseError(f"{name!r} of the model must be float32, not {kind}")
    free, *sizes = shape or [0]
    fixed = all(isinstance(s, int) and s > 0 for s in sizes)
    if isinstance(free, int) or len(sizes) not in counts or not fixed:
        wanted = " or ".join(map(str, counts))
        raise ReleaseError(
            f"{name!r} of the model must have a free batch and {wanted} fixed sizes, not {shape}"
        )
    return tuple(sizes)


def _failed(error: Exception) -> ReleaseError:
    return ReleaseError(f"the model fails on a window: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """ONNX Runtime's message without its later lines, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
