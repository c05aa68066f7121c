"""What ``fedge doctor`` looks at on this machine. Each check gives findings; none changes anything."""

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROLES = ("device", "client", "server", "simulation")
"""device: infers only; client: learns, too; server: runs a federation; simulation: all on one machine."""
State = Literal["ok", "warning", "missing"]

_MEMORY_MB = {"device": 128, "client": 512, "server": 1024, "simulation": 2048}
_DISK_MB = {"device": 100, "client": 500, "server": 1024, "simulation": 1024}
_NOT_BEFORE = 1_735_689_600  # 2025-01-01: nothing of this fedge is older
_NOT_AFTER = 4_102_444_800  # 2100-01-01
_INT8_FLAGS = {
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "amx_int8": "AMX",
    "asimddp": "dot product",
    "i8mm": "int8 matrix product",
}
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
_CLAUSE = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9]+(?:\.[0-9]+)*)(\.\*)?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([a-z]+)['\"]")


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        what: was looked at.
        found: on this machine.
        state: ``missing`` keeps ``roles`` from running, ``warning`` does not.
        roles: that need it.
        remedy: a command, or what to do; empty where nothing is to be done.
    """

    what: str
    found: str
    state: State = "ok"
    roles: tuple[str, ...] = ROLES
    remedy: str = ""


def python() -> Finding:
    """The interpreter; an older one would not have come as far as this."""
    where = f"{platform.python_implementation()} on {platform.machine()} {platform.system()}"
    state: State = "ok" if sys.platform == "linux" else "warning"
    return Finding(
        "Python", f"{platform.python_version()}, {where}", state, remedy="" if state == "ok" else "Linux"
    )


def packages(requirements: Iterable[str] | None = None) -> list[Finding]:
    """What fedge's own metadata asks of each role, against what is installed. Nothing is imported."""
    if requirements is None:
        try:
            requirements = importlib.metadata.requires("fedge") or []
        except importlib.metadata.PackageNotFoundError:
            return [
                Finding(
                    "fedge", "runs from a folder and is not installed", "missing", ROLES, "pip install fedge"
                )
            ]
    needed = needs_of(requirements)
    return [_package(name, clauses, roles) for (name, clauses), roles in needed.items()]


def needs_of(requirements: Iterable[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Which roles need which package: ``(name, version clauses) -> roles``.

    Understands the requirements that fedge's metadata has (PEP 508: name, extras, clauses, ``extra == ...``);
    what has another condition is not needed by any role.
    """
    base: list[tuple[str, str]] = []
    extras: dict[str, list[tuple[str, str]]] = {}
    includes: dict[str, list[str]] = {}
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None:
            continue
        name, inner, clauses, marker = match[1], match[2] or "", match[3].strip(), (match[4] or "").strip()
        extra = _EXTRA.fullmatch(marker)
        if name.lower() == "fedge" and extra:
            includes.setdefault(extra[1], []).extend(part.strip() for part in inner.split(","))
        elif extra:
            extras.setdefault(extra[1], []).append((name, clauses))
        elif not marker:
            base.append((name, clauses))
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for role in ROLES:
        for need in dict.fromkeys([*base, *_closure(role, extras, includes)]):
            found[need] = (*found.get(need, ()), role)
    return found


def fits(version: str, clauses: str) -> bool:
    """Whether ``version`` is within ``clauses`` such as ``>=1.26,<3``; only the numbers are compared."""
    numbers = _numbers(version)
    for operator, bound, wild in _CLAUSE.findall(clauses):
        limit = _numbers(bound)
        width = len(limit) if wild else max(len(limit), len(numbers))
        a, b = _padded(numbers, width), _padded(limit, width)
        results = {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}
        if not results[operator]:
            return False
    return True


def cpu(info: Path = Path("/proc/cpuinfo")) -> Finding:
    """Instructions for int8, which make the released models fast; they run without, too."""
    try:
        text = info.read_text(errors="replace")
    except OSError:
        return Finding("CPU int8", f"{info} cannot be read", "warning")
    lines = [
        line.partition(":")[2].split()
        for line in text.splitlines()
        if line.lower().startswith(("flags", "features"))
    ]
    flags = set(lines[0]) if lines else set()
    found = sorted({words for flag, words in _INT8_FLAGS.items() if flag in flags})
    if found:
        return Finding("CPU int8", ", ".join(found))
    return Finding("CPU int8", "no VNNI or dot product", "warning", remedy="int8 models run, but slower")


def cores() -> Finding:
    """Cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", str(count))


def memory(info: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Finding:
    """Memory of the machine or, if that is less, of this control group."""
    try:
        values = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        total, free = (int(values[key].split()[0]) // 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError, IndexError):
        return Finding("memory", f"{info} cannot be read", "warning")
    with suppress(OSError, ValueError):  # no control group, or "max"
        total = min(total, int(limit.read_text()) >> 20)
    short = tuple(role for role in ROLES if total < _MEMORY_MB[role])
    if short:
        return Finding("memory", f"{total} MB", "missing", short, f"{_MEMORY_MB[short[0]]} MB or more")
    low = tuple(role for role in ROLES if min(free, total) < _MEMORY_MB[role])
    remedy = "end other programs" if low else ""
    return Finding("memory", f"{total} MB, {free} MB free", "warning" if low else "ok", low or ROLES, remedy)


def disk(folder: Path) -> Finding:
    """Space where ``folder`` is, or will be."""
    place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free >> 20
    short = tuple(role for role in ROLES if free < _DISK_MB[role])
    remedy = f"{_DISK_MB[short[0]]} MB or more in {place}" if short else ""
    return Finding("disk", f"{free} MB free in {place}", "missing" if short else "ok", short or ROLES, remedy)


def clock(now: float) -> Finding:
    """Whether the clock can be right at all (Unix seconds)."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if _NOT_BEFORE <= now <= _NOT_AFTER:
        return Finding("clock", shown)
    return Finding("clock", f"{shown}, which cannot be", "missing", ROLES, "sudo timedatectl set-ntp true")


def port(number: int) -> Finding:
    """Whether the server could listen on ``number``."""
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):  # noqa: S104 closed at once
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((host, number))
                probe.listen(1)
        except PermissionError:
            what, remedy = "only root may listen there", "choose a port above 1023"
        except OSError as error:
            if family == socket.AF_INET6 and not _taken(error):
                continue  # no IPv6 on this machine
            what, remedy = (
                "taken",
                f"ss -ltnp 'sport = :{number}' shows by whom; a running fedge server is fine",
            )
        else:
            continue
        return Finding(f"port {number}", what, "missing", ("server",), remedy)
    return Finding(f"port {number}", "free", "ok", ("server",))


def _taken(error: OSError) -> bool:
    import errno

    return error.errno == errno.EADDRINUSE


def _package(name: str, clauses: str, roles: tuple[str, ...]) -> Finding:
    asked = f"{name}{clauses}"
    extra = "" if "device" in roles else f"[{roles[0]}]"
    remedy = f"pip install 'fedge{extra}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(asked, "not installed", "missing", roles, remedy)
    if not fits(version, clauses):
        return Finding(asked, version, "missing", roles, f"pip install '{asked}'")
    return Finding(asked, version, "ok", roles)


def _closure(
    role: str, extras: Mapping[str, list[tuple[str, str]]], includes: Mapping[str, list[str]]
) -> list[tuple[str, str]]:
    """What the extra called ``role`` asks for, with the extras it includes."""
    found: list[tuple[str, str]] = []
    waiting, seen = [role], set[str]()
    while waiting:
        extra = waiting.pop(0)
        if extra not in seen:
            seen.add(extra)
            found += extras.get(extra, [])
            waiting += includes.get(extra, [])
    return found


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\s*v?([0-9]+(?:\.[0-9]+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def _padded(numbers: tuple[int, ...], width: int) -> tuple[int, ...]:
    return (numbers + (0,) * width)[:width]
