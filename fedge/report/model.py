"""The models: how large, how fast, how sparse."""

from fedge.report.charts import Bar, bars
from fedge.report.html import Html, el, table
from fedge.report.read import Record, amount, cut_from, number, part, rows, times_smaller
from fedge.report.svg import figure
from fedge.report.words import cell, clean, count, microseconds, ratio, seconds, share, size

MOST_LAYERS = 60
"""A chart shows no more layers than this; the table has them all."""

_STUDENTS = (("student, fp32", ""), ("student, int8", "one"))


def model_section(report: Record) -> Html | None:
    """Size, latency, agreement of float and int8, and pruning per layer."""
    charts = [chart for chart in (_size(report), _latency(report), _cut(report)) if chart]
    pruning = _pruning(report)
    if not charts and not pruning:
        return None
    pair = el("div", *charts, class_="pair") if charts else None
    return el("section", el("h2", "On the device"), pair, _agreement(report), pruning, id="device")


def _models(report: Record) -> tuple[tuple[str, str], ...]:
    """Names of the models, and the colour of each one's bar."""
    return (("own teacher" if part(report, "teacher").get("own") else "teacher, fp32", ""), *_STUDENTS)


def _bars(report: Record, values: tuple[float | None, ...], shown: list[str]) -> list[Bar]:
    named = zip(_models(report), values, shown, strict=True)
    return [Bar(name, value, words, kind) for (name, kind), value, words in named if value is not None]


def _size(report: Record) -> Html | None:
    values = (
        amount(report, "teacher", "bytes") or None,
        amount(report, "student", "bytes_float32"),
        amount(report, "student", "bytes_int8_onnx"),
    )
    drawn = _bars(report, values, [size(value) for value in values])
    if not drawn:
        return None
    times = times_smaller(report)
    finding = f"{ratio(times)} smaller than the teacher" if times else "Size"
    words = ", ".join(f"{bar.name} {bar.shown}" for bar in drawn)
    parameters = [
        amount(report, "teacher", "parameters") or None,
        *[amount(report, "student", "parameters")] * 2,
    ]
    body = [
        [name, cell(p), cell(v)] for (name, _), p, v in zip(_models(report), parameters, values, strict=True)
    ]
    numbers = table("Size", ["model", "parameters", "bytes"], body)
    return figure(
        "size-chart", finding, "size; int8 as the ONNX file", bars("size", "Size", words, drawn), numbers
    )


def _latency(report: Record) -> Html | None:
    keys = ("teacher_fp32", "student_fp32", "student_int8")
    values = tuple(amount(report, "latency_us", key) for key in keys)
    drawn = _bars(report, values, [microseconds(value) for value in values])
    if not drawn:
        return None
    teacher, small = values[0], values[2]
    finding = f"{ratio(teacher / small)} faster than the teacher" if teacher and small else "Latency"
    words = ", ".join(f"{bar.name} {bar.shown}" for bar in drawn)
    body = [[bar.name, f"{bar.value:.1f}"] for bar in drawn]
    numbers = table("Latency", ["model", "microseconds"], body)
    about = "median, one window at a time, one thread"
    if teacher is None:
        about += "; the teacher's was not measured"
    return figure("latency-chart", finding, about, bars("latency", "Latency", words, drawn), numbers)


def _cut(report: Record) -> Html | None:
    """The student before and after whole channels were removed; each bar as a share of what there was."""
    drawn, body = [], []
    for key, name in (("multiply_adds", "multiply-adds"), ("parameters", "parameters")):
        before, after = cut_from(report, key), amount(report, "student", key)
        if before is not None and after is not None:
            drawn += [Bar(name, 1.0, count(before)), Bar("after", after / before, count(after), "one")]
            body.append([name, count(before), count(after), ratio(before / after)])
    if not drawn:
        return None
    finding = f"Channels removed: {body[0][3]} fewer {body[0][0]}"
    words = ", ".join(f"{name} {before} to {after}" for name, before, after, _ in body)
    numbers = table("The student", ["", "before", "after", "fewer"], body)
    about = "the student before and after whole channels were removed"
    return figure("cut-chart", finding, about, bars("cut", "Channels removed", words, drawn), numbers)


def _agreement(report: Record) -> Html | None:
    agreed, windows = number(report, "agreement", "share"), amount(report, "agreement", "windows")
    if agreed is None:
        return None
    on = "" if windows is None else f" of {count(windows)} windows"
    return el(
        "p",
        f"The int8 ONNX model gives the same answer as the quantized training model on {share(agreed)}{on}.",
        class_="note",
    )


def _pruning(report: Record) -> Html | None:
    pruned = part(report, "pruning")
    layers = [row for row in rows(pruned, "layers") if amount(row, "zero_share") is not None]
    zero, stated = amount(pruned, "zero_share"), amount(pruned, "stated_share")
    if not layers and zero is None:
        return None
    finding = "Pruning" if zero is None else f"{share(zero)} of the weights are zero"
    asked = "" if stated is None else f"; {share(stated)} was asked for"
    if not layers:
        return el("p", finding + asked, class_="note")
    zeros = [(clean(row.get("name"), 100), amount(row, "zero_share") or 0.0) for row in layers[:MOST_LAYERS]]
    drawn = [Bar(name, zero_share, share(zero_share)) for name, zero_share in zeros]
    rule = None if stated is None else (stated, f"asked for {share(stated)}")
    chart = bars("pruning", "Zero weights per layer", finding, drawn, left=128, full=1.0, rule=rule)
    return figure("pruning-chart", finding, f"zero weights per layer{asked}", chart, _layers_table(layers))


def _layers_table(layers: list[Record]) -> Html:
    body = [
        [
            clean(row.get("name"), 100),
            cell(amount(row, "parameters")),
            share(amount(row, "zero_share")),
        ]
        for row in layers
    ]
    return table("Zero weights", ["layer", "parameters", "zero"], body)


def time_section(report: Record) -> Html | None:
    """Where the time of the run went."""
    spent = [
        (clean(k, 60), t) for k in part(report, "seconds") if (t := amount(report, "seconds", k)) is not None
    ]
    if not spent:
        return None
    drawn = [Bar(name, t, seconds(t)) for name, t in spent[:MOST_LAYERS]]
    total = f"{seconds(sum(t for _, t in spent))} in all"
    numbers = table("Seconds", ["stage", "seconds"], [[name, f"{t:.2f}"] for name, t in spent])
    chart = bars("time", "Time per stage", total, drawn, left=128)
    return el(
        "section", el("h2", "Time"), figure("time-chart", total, "per stage", chart, numbers), id="time"
    )
