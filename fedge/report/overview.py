"""The top of the page: what was learned, in one sentence, and the four figures that matter."""

from fedge.report.html import Html, el, join, value
from fedge.report.measure import Measure, measure
from fedge.report.read import Record, amount, cut_from, part, rows, savings, times_smaller, total_bytes
from fedge.report.words import (
    NOT_MEASURED,
    clean,
    count,
    microseconds,
    plural,
    ratio,
    seconds,
    size,
)


def header(report: Record) -> Html:
    """Title, the result in a sentence, and what was run."""
    dataset = part(report, "dataset")
    title = clean(report.get("scenario") or dataset.get("name") or report.get("task") or "A run", 80)
    return el(
        "header",
        el("p", "Federated learning report", class_="eyebrow"),
        el("h1", title),
        el("p", lead(report), class_="lead"),
        el("p", _facts(report), class_="facts"),
        el("dl", *_figures(report), class_="figures"),
    )


def lead(report: Record) -> str:
    """What the run achieved, in one or two sentences."""
    told = [_learned(report)]
    if (total := total_bytes(report)) is not None:
        times = savings(report)
        than = f", {ratio(times)} less than federated averaging in fp32" if times and times > 1 else ""
        beside = amount(report, "release", "bytes_per_client")
        told.append(f"To learn, each client exchanged {size(total)}{than}.")
        if beside:
            told.append(f"Releases took another {size(beside)}.")
    if (small := amount(report, "student", "bytes_int8_onnx")) is not None:
        times = times_smaller(report)
        than = f", {ratio(times)} smaller than the teacher" if times and times > 1 else ""
        told.append(f"What runs on a device is {size(small)} of int8 ONNX{than}.")
    return " ".join(filter(None, told)) or "This report holds no measurements yet."


def _learned(report: Record) -> str:
    kind = measure(report)
    before, after = kind.of(report, "score", "clients_initial"), kind.of(report, "score", "clients")
    if before is None or after is None:
        return ""
    verb = ("rose" if after > before else "fell") if not kind.lower else _VERBS[after < before]
    shown = kind.shown(after)
    moved = f"{verb} from {kind.shown(before)} to" if shown != kind.shown(before) else "stayed at"
    words = f"In {_rounds(report)} the {kind.name} on the clients' own later data {moved} {shown}"
    own = kind.of(report, "personal")
    return f"{words}." if own is None else f"{words}, and with their own heads it is {kind.shown(own)}."


_VERBS = {True: "improved", False: "worsened"}


def _rounds(report: Record) -> str:
    number_of = amount(report, "rounds")
    return "this run" if number_of is None else plural(int(number_of), "round")


def _facts(report: Record) -> str:
    dataset = part(report, "dataset")
    facts = [clean(report[key], 80) for key in ("task",) if report.get(key)]
    if dataset.get("name"):
        facts.append(f"data {clean(dataset['name'], 80)}")
    if (clients := amount(report, "clients")) is not None:
        facts.append(plural(int(clients), "client"))
    if (unseen := sum(row.get("role") == "unseen" for row in rows(report, "clients_log"))) > 0:
        facts.append(f"{unseen} more never seen in training")
    facts += _what(report, dataset)
    facts += [f"{key} {clean(report[key], 40)}" for key in ("engine", "seed") if report.get(key) is not None]
    times = [t for key in part(report, "seconds") if (t := amount(report, "seconds", key)) is not None]
    if times:
        facts.append(f"took {seconds(sum(times))}")
    return "  \u00b7  ".join(facts)


def _what(report: Record, dataset: Record) -> list[str]:
    """What was learned from, and from whom."""
    facts, window = [], dataset.get("window")
    if isinstance(window, list) and len(window) == 3:
        facts.append("images of " + " \u00d7 ".join(clean(side, 8) for side in window[:2]))
    classes = dataset.get("classes")
    if isinstance(classes, list) and classes and report.get("task") != "anomaly":
        facts.append(plural(len(classes), "class", "classes"))
    if own := part(report, "teacher").get("own"):
        facts.append(f"own teacher {clean(own, 80)}")
    return facts


def _figures(report: Record) -> list[Html]:
    kind = measure(report)
    return [
        _score_figure(report, f"Clients, {kind.name}{kind.direction}", "clients", "participant"),
        _score_figure(report, f"Unseen clients, {kind.name}", "unseen", "unseen"),
        _bytes_figure(report),
        _device_figure(report),
    ]


def _figure(name: str, big: Html, *lines: object) -> Html:
    small = [el("dd", text, class_="from") for text in lines if text]
    return el("div", el("dt", name), el("dd", big, class_="big"), *small)


def _score_figure(report: Record, name: str, key: str, role: str) -> Html:
    kind = measure(report)
    after, before = kind.of(report, "score", key), kind.of(report, "score", f"{key}_initial")
    lines: list[Html | None] = []
    if after is not None and before is not None:
        gain = el("b", kind.change(after - before))
        lines.append(join([gain, " from ", value(before, kind.shown(before)), " before the rounds"]))
    lines.append(_spread(kind, report, key, role))
    if (int8 := kind.of(report, "score", f"{key}_int8")) is not None:
        lines.append(join([value(int8, kind.shown(int8)), " as the int8 model"]))
    if role == "participant" and (own := kind.of(report, "personal")) is not None:
        lines.append(join([value(own, kind.shown(own)), " with their own heads"]))
    return _figure(name, value(after, kind.shown(after)), *lines)


def _spread(kind: Measure, report: Record, key: str, role: str) -> Html | None:
    if (deviation := amount(report, "score", f"{key}_std")) is not None:
        return join(["\u00b1 ", value(deviation, kind.shown(deviation)), " standard deviation"])
    finals = [kind.of(row, "score_final") for row in rows(report, "clients_log") if row.get("role") == role]
    known = [final for final in finals if final is not None]
    if len(known) < 2:
        return None
    return join(
        [f"{kind.shown(min(known))} to {kind.shown(max(known))} across {plural(len(known), 'client')}"]
    )


def _bytes_figure(report: Record) -> Html:
    total, times = total_bytes(report), savings(report)
    lines: list[Html | None] = []
    if times is not None and (plain := amount(report, "plain_fp32", "total")) is not None:
        fewer = el("b", value(times, ratio(times)), " less" if times >= 1 else " of")
        lines.append(join([fewer, " than fp32 averaging, ", value(plain, size(plain))]))
    shares = [(amount(report, "bytes", key), words) for key, words in _SHARES]
    if total is not None:
        lines.append(
            join(
                [
                    f"{size(sent)} {words}{end}"
                    for (sent, words), end in zip(shares, (", ", ", ", ""), strict=True)
                ]
            )
        )
    return _figure("Bytes per client, whole run", value(total, size(total)), *lines)


_SHARES = (("initial_download", "at the start"), ("uplink", "up"), ("downlink", "down"))


def _device_figure(report: Record) -> Html:
    small, latency = (
        amount(report, "student", "bytes_int8_onnx"),
        amount(report, "latency_us", "student_int8"),
    )
    lines: list[Html | None] = []
    if (times := times_smaller(report)) is not None and (
        teacher := amount(report, "teacher", "bytes")
    ) is not None:
        lines.append(
            join([el("b", value(times, ratio(times)), " smaller"), f" than the teacher, {size(teacher)}"])
        )
    if (dense := amount(report, "student", "parameters")) is not None:
        whole = cut_from(report, "parameters")
        cut = f", cut from {count(whole)}" if whole else ""
        lines.append(join([value(dense, count(dense)), f" parameters{cut}"]))
    if (work := amount(report, "student", "multiply_adds")) is not None:
        lines.append(join([value(work, count(work)), " multiply-adds"]))
    if latency is not None:
        lines.append(join([value(latency, microseconds(latency)), " per window, one thread"]))
    else:
        lines.append(join([f"latency {NOT_MEASURED}"]))
    return _figure("On the device, int8 ONNX", value(small, size(small)), *lines)
