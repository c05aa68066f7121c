"""The report in a few lines, for a terminal."""

from fedge.report.cost import virtual_line
from fedge.report.measure import measure
from fedge.report.more import summary_line
from fedge.report.read import Record, amount, cut_from, part, rows, savings, times_smaller, total_bytes
from fedge.report.words import clean, count, microseconds, plural, ratio, size


def summary_lines(report: Record) -> list[str]:
    """What the page says first, one fact a line, names in a column. Lines without a number are left out."""
    clients = _score(report, "clients")
    lines = [
        ("run", _run(report)),
        ("clients", clients),
        ("unseen", _score(report, "unseen", first=not clients)),
        ("further scores", summary_line(report)),
        ("bytes", _bytes(report)),
        ("virtual time", virtual_line(report)),
        ("model", _model(report)),
        ("channels cut", _cut(report)),
        ("latency", _latency(report)),
        ("re-distillation", _redistillation(report)),
        ("releases", _releases(report)),
    ]
    return [f"{name:<16}{words}" for name, words in lines if words]


def _run(report: Record) -> str:
    words = [clean(report[key], 60) for key in ("scenario", "task") if report.get(key)]
    counts = {key[:-1]: amount(report, key) for key in ("clients", "rounds")}
    words += [plural(int(many), one) for one, many in counts.items() if many is not None]
    if report.get("seed") is not None:
        words.append(f"seed {clean(report['seed'], 20)}")
    return ", ".join(words)


def _score(report: Record, key: str, *, first: bool = True) -> str:
    kind = measure(report)
    after, before = kind.of(report, "score", key), kind.of(report, "score", f"{key}_initial")
    if after is None:
        return ""
    words = f"{kind.name} {kind.shown(after)}{kind.direction if first else ''}"
    if before is not None:
        words += f", {kind.shown(before)} before the rounds ({kind.change(after - before)})"
    if (int8 := kind.of(report, "score", f"{key}_int8")) is not None:
        words += f", {kind.shown(int8)} as int8"
    own = kind.of(report, "personal") if key == "clients" else None
    return words if own is None else f"{words}, {kind.shown(own)} with their own heads"


def _bytes(report: Record) -> str:
    total, times = total_bytes(report), savings(report)
    if total is None:
        return ""
    shares = [amount(report, "bytes", key) for key in ("initial_download", "uplink", "downlink")]
    words = "{} per client: {} at the start, {} up, {} down".format(size(total), *map(size, shares))
    words = words if times is None else f"{words}; {ratio(times)} less than fp32 averaging"
    beside = amount(report, "release", "bytes_per_client")
    return f"{words}; releases {size(beside)} beside it" if beside else words


def _model(report: Record) -> str:
    own = "own " if part(report, "teacher").get("own") else ""
    parts = [
        (amount(report, "teacher", "bytes") or None, f"{own}teacher"),
        (amount(report, "student", "bytes_float32"), "student"),
        (amount(report, "student", "bytes_int8_onnx"), "int8 ONNX"),
    ]
    words = ", ".join(f"{name} {size(value)}" for value, name in parts if value is not None)
    times = times_smaller(report)
    return words if times is None else f"{words} ({ratio(times)} smaller than the teacher)"


def _cut(report: Record) -> str:
    keys = (("multiply_adds", "multiply-adds"), ("parameters", "parameters"))
    known = [(cut_from(report, key), amount(report, "student", key), name) for key, name in keys]
    return ", ".join(f"{name} {count(before)} to {count(after)}" for before, after, name in known if before)


def _latency(report: Record) -> str:
    keys = (("teacher_fp32", "teacher"), ("student_fp32", "student"), ("student_int8", "int8"))
    known = [(amount(report, "latency_us", key), name) for key, name in keys]
    return ", ".join(f"{name} {microseconds(value)}" for value, name in known if value is not None)


def _redistillation(report: Record) -> str:
    tried = rows(report, "redistillations")
    accepted = sum(bool(one.get("accepted")) for one in tried)
    if any(one.get("mode") == "gradient" for one in tried):
        return (
            f"the server's own step, judged {plural(len(tried), 'time')}, went on {plural(accepted, 'time')}"
        )
    return f"{len(tried)} tried, {accepted} accepted" if tried else ""


def _releases(report: Record) -> str:
    published = rows(report, "releases")
    if not published:
        version = (
            report.get("release", {}).get("version") if isinstance(report.get("release"), dict) else None
        )
        return "" if version is None else clean(version, 40)
    decisions = rows(published[-1], "decisions")
    taken = sum(one.get("taken") is True for one in decisions)
    words = f"{len(published)} published, the last is {clean(published[-1].get('version'), 40)}"
    return f"{words}, taken by {taken} of {len(decisions)}" if decisions else words
