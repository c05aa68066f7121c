"""Reading ``report.json``: one check at the door, and access that never trips over what is missing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from fedge.errors import DataError

SCHEMA = 1
"""The version of ``report.json`` that this package writes and reads."""

MAX_BYTES = 64 << 20
"""Largest ``report.json`` that is read, in bytes: a thousand times what a long run writes."""

MAX_NUMBER = 1e15
"""Numbers beyond this are no scores, bytes or seconds: they count as not measured."""

Record = Mapping[str, Any]

_RECORDS = (
    "teacher",
    "student",
    "score",
    "bytes",
    "release",
    "plain_fp32",
    "latency_us",
    "agreement",
    "more_scores",
    "virtual",
)
_LISTS = ("rounds_log", "clients_log", "redistillations", "releases", "time_to_accuracy")


def load_report(folder: Path) -> dict[str, Any]:
    """The report of the run in ``folder``: its ``report.json``, checked.

    Raises:
        DataError: there is none, it is not readable, it is larger than ``MAX_BYTES``, it is not JSON,
            it was written by a newer fedge, or a part of it has the wrong type.
    """
    path = folder / "report.json"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES} bytes; this is not a report of fedge")
        report = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; `fedge simulate --out {folder}` writes one") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}; run the simulation again") from error
    _check(report, path)
    return dict(report)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check(report: object, path: Path) -> None:
    """The version, and the type of each part that the page reads.

    Raises:
        DataError: a part has the wrong type, or the version is not one that this package reads.
    """
    if not isinstance(report, dict):
        raise DataError(f"{path}: not a report: a JSON object is expected")
    schema = report.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise DataError(f'{path}: not a report: "schema" is missing or not a number')
    if schema > SCHEMA:
        raise DataError(
            f"{path} was written by a newer fedge (schema {schema}, this one reads {SCHEMA}): upgrade fedge"
        )
    for kind, word, keys in ((dict, "object", _RECORDS), (list, "list", _LISTS)):
        for key in keys:
            if report.get(key) is not None and not isinstance(report[key], kind):
                raise DataError(f'{path}: "{key}" must be a JSON {word}')
    for key in _LISTS:
        if not all(isinstance(row, dict) for row in report.get(key) or []):
            raise DataError(f'{path}: "{key}" must hold JSON objects')


def number(record: Record, *keys: str) -> float | None:
    """The finite number at that path, or ``None``: missing, of another type, or beyond ``MAX_NUMBER``."""
    value: object = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MAX_NUMBER else None


def amount(record: Record, *keys: str) -> float | None:
    """Like ``number``, for what cannot be negative: bytes, parameters, seconds, rounds."""
    value = number(record, *keys)
    return value if value is not None and value >= 0 else None


def part(record: Record, *keys: str) -> Record:
    """The object at that path, or an empty one."""
    value: object = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def rows(record: Record, key: str) -> list[Record]:
    """The objects in the list at ``key``; empty where there is no such list."""
    value = record.get(key)
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def rounds(record: Record) -> list[tuple[int, Record]]:
    """The rounds of a ``rounds_log`` with their numbers (counted where none is given), in order."""
    numbered = []
    for place, row in enumerate(rows(record, "rounds_log"), start=1):
        given = amount(row, "round")
        numbered.append((place if given is None else int(given), row))
    return sorted(numbered, key=lambda pair: pair[0])


def total_bytes(report: Record) -> float | None:
    """Bytes that one client received and sent over the whole run, on average; releases not counted."""
    sent = [amount(report, "bytes", key) for key in ("initial_download", "uplink", "downlink")]
    return None if None in sent else sum(value for value in sent if value is not None)


def cut_from(report: Record, key: str) -> float | None:
    """``parameters`` or ``multiply_adds`` of the student before channels were removed, if any were."""
    before, after = amount(report, "student", "uncut", key), amount(report, "student", key)
    return before if before and after and before > after else None


def savings(report: Record) -> float | None:
    """How many times fewer bytes than federated averaging of the same student in fp32, all in."""
    total, plain = total_bytes(report), amount(report, "plain_fp32", "total")
    return plain / total if total and plain else None


def times_smaller(report: Record) -> float | None:
    """How many times smaller the int8 student (ONNX) is than the teacher in fp32."""
    teacher, student = amount(report, "teacher", "bytes"), amount(report, "student", "bytes_int8_onnx")
    return teacher / student if teacher and student else None
