"""The picture of the communication bench: score against bytes, as one SVG that needs nothing else.

Two panels above each other, clients and unseen, on one logarithmic axis of total bytes per client. A ring
marks where a method gets to the target.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.bench._curves import TRAILING, trailing
from fedge.bench._summary import BASELINE, OURS, size
from fedge.errors import SetupError
from fedge.report.html import Html, el, join
from fedge.report.svg import Axis, linear, spread_apart

_WIDTH, _LEFT, _RIGHT, _TOP, _PANEL, _GAP = 905.0, 52.0, 185.0, 94.0, 250.0, 46.0
_HEIGHT = _TOP + 2 * _PANEL + _GAP + 44
_BYTES = Axis(1e3, 1e7, (1e3, 1e4, 1e5, 1e6, 1e7), log=True)
_LINE, _APART = 15.0, 70.0
_TARGET = "within a point of FedAvg fp32's end, in both panels"

_STYLE = """
svg { color-scheme: light dark; --paper: #fbfaf7; --ink: #1b1e22; --soft: #565c63; --rule: #e2dfd8;
  --one: #1d5fb4; --two: #a8480f; --plain: #5f656c; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14171a; --ink: #ebe8e2; --soft: #a9aeb4; --rule: #2c3136;
    --one: #7fb4ff; --two: #f2a76e; --plain: #a0a6ad; }
}
text { font: 12.5px ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  fill: var(--ink); font-variant-numeric: tabular-nums; }
.paper { fill: var(--paper); } .title { font-size: 17px; font-weight: 600; } .strong { font-weight: 600; }
.tick { fill: var(--soft); } .rule { stroke: var(--rule); }
.limit { stroke: var(--ink); stroke-dasharray: 4 3; stroke-opacity: 0.6; }
.between { stroke: var(--ink); stroke-width: 1.6; } .drop { stroke: var(--ink); stroke-opacity: 0.35; }
.fedge { --hue: var(--one); } .fedavg { --hue: var(--two); } .random { --hue: var(--plain); }
.line { fill: none; stroke: var(--hue); stroke-width: 1.3; stroke-linejoin: round; stroke-linecap: round;
  stroke-opacity: 0.75; }
.line.main { stroke-width: 2.8; stroke-opacity: 1; }
.ring { fill: var(--paper); stroke: var(--hue); stroke-width: 2; } .end { fill: var(--hue); }
.halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
"""


@dataclass(frozen=True)
class _Line:
    """One method in one panel: CSS classes, ``(bytes, score)`` by round, the point at the target if any."""

    label: str
    kind: str
    points: Sequence[tuple[float, float]]
    reached: tuple[float, float] | None


def write_plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw ``result`` (of ``communication.run``) into ``path``.

    Raises:
        SetupError: it cannot be written.
    """
    try:
        path.write_text(plot(result), encoding="utf-8")
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None


def plot(result: Mapping[str, Any]) -> str:
    """The picture as SVG."""
    seeds = f"mean of {result['seeds']} seeds" if result["seeds"] > 1 else "one seed"
    about = f"{result['data']}, {seeds}, trailing mean of {TRAILING} rounds; rings: {_TARGET}"
    base, ours = result["methods"][BASELINE], result["methods"][OURS]
    words = f"{base['label']} needs {size(base['total'])} per client, {ours['label']} {size(ours['total'])}."
    body = [
        el("title", "Score against bytes per client"),
        el("desc", words),
        el("style", Html(_STYLE)),
        el("rect", width=f"{_WIDTH:g}", height=f"{_HEIGHT:g}", class_="paper"),
        _text(
            _LEFT, 28, "Score against all bytes of a client, up and down, first download included", "title"
        ),
        _text(_LEFT, 50, about, "tick"),
        _panel(result, "clients", "participants, on their own later data", _TOP),
        _between(result),
        _panel(result, "unseen", "clients that never took part", _TOP + _PANEL + _GAP),
        _decades(),
    ]
    drawing = el(
        "svg", *body, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        width=f"{_WIDTH:g}", height=f"{_HEIGHT:g}", role="img",
    )  # fmt: skip
    return f"{drawing}\n"


def _x(amount: float) -> float:
    return _LEFT + _BYTES.at(amount) * (_WIDTH - _LEFT - _RIGHT)


def _text(x: float, y: float, words: object, kind: str, anchor: str = "start") -> Html:
    return el("text", words, x=f"{x:.1f}", y=f"{y:.1f}", dy="0.35em", text_anchor=anchor, class_=kind)


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return el("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=kind)


def _decades() -> Html:
    y = _HEIGHT - 28
    names = [_text(_x(t), y, size(t), "tick", "middle") for t in _BYTES.ticks]
    return join([*names, _text(_WIDTH - 12, y, "per client", "tick", "end")])


def _panel(result: Mapping[str, Any], key: str, name: str, top: float) -> Html:
    lines = [_line_of(result, method, key) for method in result["methods"]]
    axis = _axis(lines, result["target"][key])
    bottom = top + _PANEL

    def y(value: float) -> float:
        return bottom - axis.at(value) * _PANEL

    clip = el(
        "rect",
        x=f"{_LEFT:g}",
        y=f"{top - 4:g}",
        width=f"{_WIDTH - _LEFT - _RIGHT + 4:g}",
        height=f"{_PANEL + 4:g}",
    )
    right = _WIDTH - _RIGHT
    body = [
        el("clipPath", clip, id=f"clip-{key}"),
        *(_rule(_LEFT, y(t), right, y(t), "rule") for t in axis.ticks),
        *(_text(_LEFT - 8, y(t), f"{t:.2f}", "tick", "end") for t in axis.ticks),
        *(_rule(_x(t), top, _x(t), bottom, "rule") for t in _BYTES.ticks),
        _rule(_LEFT, y(result["target"][key]), right, y(result["target"][key]), "limit"),
        el("g", *(_curve(one, y) for one in lines), clip_path=f"url(#clip-{key})"),
        *(_ring(one, y) for one in lines),
        _names(lines, y, top, bottom),
        _text(_LEFT + 6, top - 12, name, "strong"),
    ]
    return el("g", *body)


def _line_of(result: Mapping[str, Any], method: str, key: str) -> _Line:
    row, curve = result["methods"][method], result["curves"][method]
    scores = [trailing(curve[key], r, TRAILING) for r in range(len(curve[key]))]
    totals = [curve["initial"] + u + d for u, d in zip(curve["uplink"], curve["downlink"], strict=True)]
    family = "random" if "random" in method else "fedavg" if method.startswith("fedavg") else "fedge"
    main = " main" if method in (BASELINE, OURS) else ""
    reached = (row["total"], scores[row["rounds"]]) if row["reached"] else None
    return _Line(row["label"], family + main, list(zip(totals, scores, strict=True)), reached)


def _axis(lines: Sequence[_Line], target: float) -> Axis:
    """Over all scores but those from random weights, which begin far below and may leave the panel."""
    shown = [score for one in lines if "random" not in one.kind for _, score in one.points]
    return linear([*shown, target], 5, at_least=0.05)


def _curve(one: _Line, y: Callable[[float], float]) -> Html:
    points = " ".join(f"{_x(amount):.1f},{y(score):.1f}" for amount, score in one.points)
    return el("polyline", points=points, class_=f"line {one.kind}")


def _ring(one: _Line, y: Callable[[float], float]) -> Html | None:
    if one.reached is None:
        return None
    amount, score = one.reached
    return el("circle", cx=f"{_x(amount):.1f}", cy=f"{y(score):.1f}", r="4", class_=f"ring {one.kind}")


def _between(result: Mapping[str, Any]) -> Html | None:
    """How far apart fedge and FedAvg are at the target: a bracket on top of the first panel."""
    ratio = result["ratio"]["total"]
    if ratio is None:
        return None
    left, right = sorted(_x(result["methods"][m]["total"]) for m in (OURS, BASELINE))
    bottom = _TOP + 2 * _PANEL + _GAP
    drops = [_rule(x, _TOP, x, bottom, "drop") for x in (left, right)]
    words = _text((left + right) / 2, _TOP - 12, f"{ratio:.0f} times fewer bytes", "strong", "middle")
    return join([*drops, _rule(left, _TOP, right, _TOP, "between"), words])


def _names(lines: Sequence[_Line], y: Callable[[float], float], top: float, bottom: float) -> Html:
    """Each name at the end of its line; moved apart within each group of lines that end side by side.

    Of several groups the first, with nothing but paper on its left, has its names there.
    """
    drawn, groups = [], _groups(lines)
    for group in groups:
        left = group is groups[0] and len(groups) > 1
        places = spread_apart([y(one.points[-1][1]) for one in group], _LINE, top, bottom)
        x = min(_x(one.points[0][0]) for one in group) - 9 if left else max(map(_end, group)) + 9
        for one, place in zip(group, places, strict=True):
            kind = f"end halo {one.kind}" + (" strong" if "main" in one.kind else "")
            drawn.append(_text(x, place, one.label, kind, "end" if left else "start"))
    return join(drawn)


def _end(one: _Line) -> float:
    return _x(one.points[-1][0])


def _groups(lines: Sequence[_Line]) -> list[list[_Line]]:
    """Lines by where they end: a new group where the next end is ``_APART`` pixels to the right or more."""
    groups: list[list[_Line]] = []
    for one in sorted(lines, key=_end):
        if groups and _end(one) - _end(groups[-1][-1]) < _APART:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups
