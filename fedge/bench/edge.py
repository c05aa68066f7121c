"""``fedge bench edge``: microseconds, megabytes and requests a second of what a device runs.

Teacher and students in ONNX Runtime on one thread, as a device calls them and bare; ``fedge infer`` and
``fedge serve`` as processes of their own; ``fedge serve`` under load beside FastAPI; one device, and two
behind ``--devices``. Weights are random, which makes no difference to time or size.
``docs/bench-edge.md`` says what is compared.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from fedge.bench import _edge_devices as devices
from fedge.bench import _edge_serve as serving
from fedge.bench import _edge_start as starts
from fedge.bench import _edge_times as times
from fedge.bench._edge_lines import lines
from fedge.bench._edge_models import Student, release, student, teacher, windows
from fedge.bench._processes import free_ports
from fedge.config import load_config
from fedge.errors import ConfigError
from fedge.models.student_families import FAMILIES
from fedge.models.student_families import SIZES as STUDENT_SIZES
from fedge.observe import Observer, Terminal

BATCH = 256
PARTS = ("models", "start", "serve", "devices")
_MB = 1e6

__all__ = ["Sizes", "lines", "measure", "run"]


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        repeats: of everything that is timed in this process; medians are taken over them.
        calls: single windows in each.
        batch_calls: batches in each.
        students: families and sizes.
        starts: runs of ``fedge infer``.
        connections: to a server under load.
        seconds: of load, in each of its repeats.
        load_repeats: of it.
        shared: windows that are split over devices.
        device_repeats: of that.
    """

    repeats: int = 11
    calls: int = 300
    batch_calls: int = 5
    students: tuple[tuple[str, str], ...] = tuple((f, s) for f in FAMILIES for s in STUDENT_SIZES)
    starts: int = 7
    connections: int = 64
    seconds: float = 4.0
    load_repeats: int = 3
    shared: int = 8192
    device_repeats: int = 5


def run(repeats: int = Sizes.repeats, only: str = "") -> dict[str, Any]:
    """Measure; returns the JSON object. Progress goes to standard error.

    Args:
        repeats: see :class:`Sizes`.
        only: names of parts with commas between; by default all.

    Raises:
        ConfigError: no such part.
        FedgeError: a process ended before its time, or failed.
    """
    parts = tuple(only.split(",")) if only else PARTS
    if unknown := set(parts) - set(PARTS):
        raise ConfigError(f"--only: no part {sorted(unknown)[0]!r}; known: {', '.join(PARTS)}")
    return measure(Sizes(repeats=repeats), Terminal(sys.stderr), parts)


def measure(sizes: Sizes, observer: Observer, parts: tuple[str, ...] = PARTS) -> dict[str, Any]:
    """Measure that much."""
    from fedge.bench.server import one_thread

    with one_thread(), tempfile.TemporaryDirectory(prefix="fedge-bench-") as name:
        config, folder = load_config("watch", {}), Path(name)
        ours = student(config.student.family, config.student.size)
        found: dict[str, Any] = {}
        if "models" in parts:
            with observer.stage("teacher and student") as stage:
                large = teacher(config.teacher.family or "residual", config.teacher.size)
                found |= _headline(ours, large, sizes)
                stage.result = f"{found['p50_us']['student_int8']:.1f} us a window"
            found["students"] = _students(sizes, observer)
        place = release(folder / "release", ours.int8)
        if "start" in parts:
            with observer.stage("start-up and memory") as stage:
                found["start"] = _start(place, folder, sizes)
                stage.result = f"fedge infer {found['start']['infer_s']:.2f} s"
        if "serve" in parts:
            with observer.stage("fedge serve under load") as stage:
                found["serve"] = serving.under_load(
                    place, folder, sizes.connections, sizes.seconds, sizes.load_repeats
                )
                stage.result = f"{found['serve']['fedge']['requests_per_s']:,.0f} requests a second"
        if "devices" in parts:
            with observer.stage("one device and two") as stage:
                large = teacher(config.teacher.family or "residual", config.teacher.size)
                big = release(folder / "large", large)
                found["devices"] = devices.across(big, folder, sizes.shared, sizes.device_repeats)
                stage.result = f"{found['devices']['ratio'] or 'not measured: one core'}"
    return {**found, "machine": _machine(), "settings": asdict(sizes)}


def _headline(ours: Student, large: bytes, sizes: Sizes) -> dict[str, Any]:
    """The scenario's teacher and student, and what a device adds to bare ONNX Runtime."""
    x = windows(1)
    around = times.p50(
        {
            "bound": times.bound(ours.int8, x),
            "run": times.bare(ours.int8, x),
            "device": times.device(ours.int8, x),
        },
        sizes.repeats,
        sizes.calls,
    )
    models = {
        "teacher_fp32": large,
        "student_fp32": ours.float32,
        "student_fp32_usual": ours.usual,
        "student_int8": ours.int8,
    }
    taken = times.singles(models, x, sizes.repeats, sizes.calls)
    batches = times.batches(models, windows(BATCH), sizes.repeats, sizes.batch_calls)
    return {
        "overhead_us": _difference(around, "device", "bound"),
        "p50_us": {name: times.middle(values) for name, values in taken.items()},
        "size_ratio": round(len(large) / len(ours.int8), 1),
        "batch256_speedup": _ratio(batches, "student_fp32_usual", "student_int8"),
        "batch256_speedup_float32_release": _ratio(batches, "student_fp32", "student_int8"),
        "teacher_ratio": _ratio(taken, "teacher_fp32", "student_int8"),
        "batch256_teacher_ratio": _ratio(batches, "teacher_fp32", "student_int8"),
        "bytes": {name: len(model) for name, model in models.items()},
        "student": ours.name,
        "int8_us": {name: times.middle(values) for name, values in around.items()},
        "run_overhead_us": _difference(around, "run", "bound"),
        "batch256_us": {name: times.middle(values) for name, values in batches.items()},
    }


def _students(sizes: Sizes, observer: Observer) -> dict[str, Any]:
    """All of them, one after the other; the models of each in turns."""
    rows: dict[str, Any] = {}
    with observer.stage("all students") as stage:
        for number, (family, size) in enumerate(sizes.students):
            made = student(family, size)
            rows[made.name] = _row(made, sizes)
            observer.progress(number + 1, len(sizes.students))
        stage.result = f"{len(rows)} of them"
    return rows


def _row(made: Student, sizes: Sizes) -> dict[str, Any]:
    one = times.singles(made.models, windows(1), sizes.repeats, sizes.calls)
    many = times.batches(made.models, windows(BATCH), sizes.repeats, sizes.batch_calls)
    return {
        "parameters": made.parameters,
        "multiply_adds": made.multiply_adds,
        "bytes": {name: len(model) for name, model in made.models.items()},
        "p50_us": {name: times.middle(values) for name, values in one.items()},
        "batch256_us": {name: times.middle(values) for name, values in many.items()},
        "speedup": {name: _ratio(one, name, "int8") for name in ("usual", "float32")},
        "batch256_speedup": {name: _ratio(many, name, "int8") for name in ("usual", "float32")},
    }


def _ratio(taken: Mapping[str, list[float]], one: str, other: str) -> float:
    """How many times longer ``one`` takes; the median over repeats."""
    return round(median(a / b for a, b in zip(taken[one], taken[other], strict=True)), 2)


def _difference(taken: Mapping[str, list[float]], one: str, other: str) -> float:
    """How many microseconds longer ``one`` takes; the median over repeats."""
    return times.middle([a - b for a, b in zip(taken[one], taken[other], strict=True)])


def _start(place: Path, folder: Path, sizes: Sizes) -> dict[str, Any]:
    window = starts.write_window(folder)
    starts.infer(place, window)  # the first finds its files on the disk
    runs = [starts.infer(place, window) for _ in range(sizes.starts)]
    idle_port, traced_port = free_ports(2)
    idle = starts.serve_idle(place, idle_port, folder)
    return {
        "infer_s": round(median(r.seconds for r in runs), 3),
        "infer_cpu_s": round(median(r.cpu_seconds for r in runs), 3),
        "infer_slowest_s": round(max(r.seconds for r in runs), 3),
        "infer_peak_mb": round(max(r.peak_bytes for r in runs) / _MB, 1),
        "serve_ready_s": round(idle["seconds"], 3),
        "serve_idle_mb": round(idle["idle_bytes"] / _MB, 1),
        "imported": {
            "infer": starts.infer_imports(place, window),
            "serve": starts.serve_imports(place, traced_port, folder),
        },
    }


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "onnxruntime": version("onnxruntime"),
        "numpy": version("numpy"),
    }
