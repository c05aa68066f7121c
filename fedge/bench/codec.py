"""``fedge bench codec``: bytes, error, distance from the entropy and speed of the codecs, beside others.

Bytes and errors are those of real updates: the changes that clients made in a short run of ``watch``. Speeds
are those of one larger update with the same distribution, because the real ones are coded in less time than
a call costs. ``docs/bench.md`` says what each number means.
"""

import sys
from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from fedge.bench._contenders import Field, Job
from fedge.bench._entropy import relative_error
from fedge.bench._peers import bytewise, ideal
from fedge.bench._timing import race
from fedge.bench._updates import Recorded, Sequences, record, stretched
from fedge.codec import Arrays, Codec
from fedge.federated.coding import limits
from fedge.observe import Observer, Terminal

LARGE = 1_000_000
"""Parameters of the synthetic update."""

REPEATS = 5
SHORTEST_PAYLOAD = 1000
"""Bytes; the entropy of a shorter payload's sequence says little about its coder."""

_KEYS = ("ratio_to_entropy", "encode_mb_s", "decode_mb_s", "bytes_per_parameter", "relative_error")
_RATIOS = ("ratio_to_entropy", "ratio_to_entropy_by_array")
_CPU_KEYS = ("encode_cpu_mb_s", "decode_cpu_mb_s")

Row = dict[str, Any]


def run() -> dict[str, Any]:
    """Measure on updates of ``watch``; returns the JSON object. Progress goes to standard error."""
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    observer = Terminal(sys.stderr)
    return measure(record(observer), observer)


def measure(
    recorded: Recorded, observer: Observer, large: int = LARGE, repeats: int = REPEATS
) -> dict[str, Any]:
    """Measure on ``recorded`` updates, and on one of about ``large`` parameters made from the first."""
    coders, missing = bytewise()
    entropy_coder, more = ideal()
    field = Field(recorded.uplink, coders, entropy_coder)
    synthetic = stretched(recorded.all[0], large, seed=0)
    sizes = {
        "real": _measure("real updates", field, recorded.all, repeats, observer),
        "synthetic": _measure("synthetic update", field, [synthetic], repeats, observer),
    }
    codecs = {name: _combined(name, sizes) for name in sizes["real"]["codecs"]}
    for name, codec in field.codecs(sizes["real"]["parameters"]).items():
        codecs[name]["relative_error_of_sum"] = error_of_sum(codec, recorded.updates)
    default = recorded.uplink.codec
    return {
        **{key: codecs[default][key] for key in (*_KEYS, *_CPU_KEYS)},
        "default": {"codec": default, **recorded.uplink.settings},
        "codecs": codecs,
        "ratios": _ratios(default, codecs),
        "sizes": sizes,
        "not_measured": missing + more,
    }


def error_of_sum(codec: Codec, updates: Sequences) -> float:
    """Relative error of the sum of a client's updates, coded in order with their residual; median.

    What error feedback is for: what one payload leaves out, later ones bring.
    """
    errors = []
    for sequence in updates.values():
        shapes = {name: a.shape for name, a in sequence[0].items()}
        state, received = codec.init(shapes), []
        for update in sequence:
            state, payload = codec.encode(state, update)
            received.append(codec.decode(payload, limits(shapes)))
        errors.append(relative_error(_sum(sequence), _sum(received)))
    return median(errors)


def _sum(updates: list[Arrays] | list[dict[str, Any]]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    return [np.sum([u[name] for u in updates], axis=0, dtype=np.float32) for name in updates[0]]


def _measure(
    title: str, field: Field, updates: list[Arrays], repeats: int, observer: Observer
) -> dict[str, Any]:
    """Sizes and errors of all ``updates``, speeds of the first."""
    parameters = sum(a.size for a in updates[0].values())
    with observer.stage(f"{title}: {parameters:,} parameters") as stage:
        jobs = [field.jobs(update) for update in updates]
        rows = {name: _row([each[name] for each in jobs], parameters) for name in jobs[0]}
        for name, speeds in _speeds(jobs[0], parameters, repeats).items():
            rows[name] |= speeds
        stage.result = f"{len(rows)} ways to code it"
    return {"parameters": parameters, "updates": len(updates), "codecs": rows}


def _row(jobs: list[Job], parameters: int) -> Row:
    """One contender's sizes and errors: medians over the updates."""
    payloads = [job.encode() for job in jobs]
    pairs = list(zip(jobs, payloads, strict=True))
    size = median(len(payload) for payload in payloads)
    return {
        "payload_bytes": size,
        "header_bytes": jobs[0].header,
        "bytes_per_parameter": size / parameters,
        "relative_error": median(job.error(job.decode(payload)) for job, payload in pairs),
        "ratio_to_entropy": _distance([(len(p) - j.header, len(p), j.entropy) for j, p in pairs]),
        "ratio_to_entropy_by_array": _distance(
            [(len(p) - j.header, len(p), j.entropy_by_array) for j, p in pairs]
        ),
    }


def _distance(sizes: list[tuple[int, int, float | None]]) -> float | None:
    """Median of body over entropy, for ``(body bytes, payload bytes, entropy bits)`` of long payloads."""
    ratios = [8 * body / bits for body, payload, bits in sizes if bits and payload >= SHORTEST_PAYLOAD]
    return median(ratios) if ratios else None


def _speeds(jobs: Mapping[str, Job], parameters: int, repeats: int) -> dict[str, Row]:
    """MB (10^6 bytes) of float32 a second, both ways."""
    payloads = {name: job.encode() for name, job in jobs.items()}
    encode = race({name: job.encode for name, job in jobs.items()}, repeats)
    decode = race({name: partial(job.decode, payloads[name]) for name, job in jobs.items()}, repeats)
    megabytes = 4 * parameters / 1e6
    return {
        name: {
            "encode_mb_s": megabytes / encode[name].wall,
            "decode_mb_s": megabytes / decode[name].wall,
            "encode_cpu_mb_s": megabytes / encode[name].cpu,
            "decode_cpu_mb_s": megabytes / decode[name].cpu,
        }
        for name in jobs
    }


def _combined(name: str, sizes: Mapping[str, Any]) -> Row:
    """Bytes and errors of the real updates, speeds of the large one, the worse of the ratios there are."""
    real, large = sizes["real"]["codecs"][name], sizes["synthetic"]["codecs"][name]
    return {
        **{key: _worse(real[key], large[key]) for key in _RATIOS},
        **{key: large[key] for key in ("encode_mb_s", "decode_mb_s", *_CPU_KEYS)},
        **{key: real[key] for key in ("bytes_per_parameter", "relative_error", "header_bytes")},
    }


def _worse(a: float | None, b: float | None) -> float | None:
    return max((r for r in (a, b) if r is not None), default=None)


def _ratios(default: str, codecs: Mapping[str, Row]) -> dict[str, Row]:
    """The default codec over each general coder that coded the same levels: bytes, and speeds by CPU time."""
    keys = ("bytes_per_parameter", *_CPU_KEYS)
    mine, start = codecs[default], f"{default}+"
    return {
        name.removeprefix(start): {key: mine[key] / row[key] for key in keys}
        for name, row in codecs.items()
        if name.startswith(start)
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result for a person."""
    real, large = result["sizes"]["real"], result["sizes"]["synthetic"]
    settings = ", ".join(f"{k} {v}" for k, v in result["default"].items())
    header = result["codecs"][result["default"]["codec"]]["header_bytes"]
    shown = ["codec", "bytes/parameter", "error", "of sum", "to entropy", "by array", "enc MB/s", "dec MB/s"]
    rows = [shown, *(_cells(name, row) for name, row in result["codecs"].items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(shown))]
    table = ["  ".join(_aligned(row, widths)) for row in rows]
    return [
        f"bytes and errors: medians of {real['updates']} real updates of {real['parameters']:,} parameters",
        f"speeds: one synthetic update of {large['parameters']:,} parameters, same distribution, one thread",
        f"default: {settings}; {header} bytes of a payload are container, not in the ratios to the entropy",
        "",
        *table,
        "",
        *(_ratio_line(peer, row) for peer, row in result["ratios"].items()),
        *(f"not measured: {line}" for line in result["not_measured"]),
    ]


def _cells(name: str, row: Row) -> list[str]:
    return [
        name,
        f"{row['bytes_per_parameter']:.4f}",
        f"{row['relative_error']:.3f}",
        _number(row.get("relative_error_of_sum"), 3),
        *(_number(row[key], 4) for key in _RATIOS),
        _speed(row, "encode"),
        _speed(row, "decode"),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _speed(row: Row, way: str) -> str:
    """By the clock; in brackets by CPU time, where that is another number."""
    wall, cpu = row[f"{way}_mb_s"], row[f"{way}_cpu_mb_s"]
    return f"{wall:.0f}" if abs(cpu / wall - 1) < 0.1 else f"{wall:.0f} (cpu {cpu:.0f})"


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]


def _ratio_line(peer: str, row: Row) -> str:
    return (
        f"against {peer} on the same levels: {row['bytes_per_parameter']:.2f} times its bytes, "
        f"{row['encode_cpu_mb_s']:.2g} times its speed encoding, {row['decode_cpu_mb_s']:.2g} decoding"
    )
