"""What ``fedge bench edge`` found, as tables for the terminal."""

from collections.abc import Mapping
from typing import Any

_MB = 1e6


def lines(result: Mapping[str, Any]) -> list[str]:
    """Tables for the terminal."""
    told = []
    if "p50_us" in result:
        told += [*_told_models(result), *_told_students(result["students"])]
    if "start" in result:
        told += _told_start(result["start"])
    if "serve" in result:
        told += _told_serve(result["serve"])
    if "devices" in result:
        told += _told_devices(result["devices"])
    return told


def _told_models(result: Mapping[str, Any]) -> list[str]:
    us, size = result["p50_us"], result["bytes"]
    rows = [
        ("teacher, float32", "teacher_fp32"),
        ("student, float32, as torch exports it", "student_fp32_usual"),
        ("student, float32 release", "student_fp32"),
        ("student, int8 release", "student_int8"),
    ]
    return [
        f"{'':<38}{'us a window':>12}{'us for 256':>12}{'kB':>9}",
        *(
            f"{text:<38}{us[name]:>12.1f}{result['batch256_us'][name]:>12,.0f}{size[name] / 1000:>9,.1f}"
            for text, name in rows
        ),
        f"int8 student against the teacher: {result['teacher_ratio']:.1f} times faster, with 256 windows "
        f"{result['batch256_teacher_ratio']:.0f} times; {result['size_ratio']:.0f} times smaller",
        f"256 windows: int8 {result['batch256_speedup']:.1f} times faster than float32 as torch exports it, "
        f"{result['batch256_speedup_float32_release']:.1f} times faster than a float32 release",
        f"window in, scores out: {result['overhead_us']:.1f} us more than ONNX Runtime with bound memory; "
        f"InferenceSession.run: {result['run_overhead_us']:.1f} us more",
    ]


def _told_students(rows: Mapping[str, Any]) -> list[str]:
    head = f"{'':<18}{'parameters':>11}{'int8 kB':>9}{'int8 us':>9}{'float32':>9}{'usual':>8}"
    told = ["", f"{head}{'int8, 256':>11}{'float32':>10}{'usual':>9}"]
    for name, row in rows.items():
        us, many, size = row["p50_us"], row["batch256_us"], row["bytes"]
        told.append(
            f"{name:<18}{row['parameters']:>11,}{size['int8'] / 1000:>9.1f}"
            f"{us['int8']:>9.1f}{us['float32']:>9.1f}{us['usual']:>8.1f}"
            f"{many['int8']:>11,.0f}{many['float32']:>10,.0f}{many['usual']:>9,.0f}"
        )
    return told


def _told_start(start: Mapping[str, Any]) -> list[str]:
    found = sorted({*start["imported"]["infer"], *start["imported"]["serve"]})
    return [
        "",
        f"fedge infer, one window: {start['infer_s']:.2f} s ({start['infer_cpu_s']:.2f} s of CPU time), "
        f"{start['infer_peak_mb']:.0f} MB at most",
        f"fedge serve: ready after {start['serve_ready_s']:.2f} s, {start['serve_idle_mb']:.0f} MB when idle",
        f"of the packages that a device does without, imported: {', '.join(found) or 'none'}",
    ]


def _told_serve(serve: Mapping[str, Any]) -> list[str]:
    rows = [
        f"{name:<12}{each['requests_per_s']:>13,.0f}{each['p50_ms']:>9.2f}{each['p99_ms']:>9.2f}"
        f"{each['resident_bytes'] / _MB:>8.0f}"
        for name in ("fedge", "fastapi")
        if (each := serve.get(name))
    ]
    told = [
        "",
        f"{serve['connections']} connections{'requests/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'MB':>8}",
        *rows,
    ]
    if serve["ratio"] is None:
        return [*told, "FastAPI is not installed: pip install 'fedge[dev]'"]
    return [*told, f"fedge serve answers {serve['ratio']:.1f} times as many requests a second"]


def _told_devices(devices: Mapping[str, Any]) -> list[str]:
    if devices["ratio"] is None:
        return ["", "--devices: not measured, for there is a single core"]
    return [
        "",
        f"--devices: one answers {devices['one_per_s']:,.0f} windows a second, two "
        f"{devices['two_per_s']:,.0f}: "
        f"{devices['ratio']:.2f} times as many (the machine's load was {devices['load']:.1f})",
    ]
