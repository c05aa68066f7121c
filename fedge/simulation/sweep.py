"""``fedge simulate --sweep``: a grid of settings, one run after the other, then a table and plots of all.

A sweep's folder holds one folder for each point, named after what is particular of it, ``sweep.json`` and
``sweep.html``. The same command goes on where it was stopped: a point that has a report is not run again.
"""

import gc
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fedge.config import Config
from fedge.errors import ConfigError, SetupError
from fedge.observe import Terminal
from fedge.report import load_report, sweep_lines, write_sweep_html
from fedge.report.reach import same_score
from fedge.simulation.folder import JOURNAL, check_fresh, fresh_folder
from fedge.simulation.run import run
from fedge.simulation.summary import write_json, write_whole
from fedge.simulation.torch_settings import repeatably
from fedge.simulation.virtual import check_fleet
from fedge.simulation.world import build_world

SWEEP = "sweep.json"
MOST_POINTS = 1000
_LONGEST_NAME = 100
Row = dict[str, Any]
_OF_RUN = ("metric", "score", "bytes", "virtual")
_OF_ROUND = ("round", "score_clients", "score_unseen", "bytes_per_client", "virtual_seconds", "joules")


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        settings: what is particular of it, by key, as written.
        config: all of its settings.
    """

    settings: dict[str, str]
    config: Config

    @property
    def folder(self) -> str:
        """Name of its folder: the same for the same settings."""
        name = ",".join(f"{key}={value}" for key, value in self.settings.items())
        plain = re.sub(r"[^\w.=,+-]", "_", name)[:_LONGEST_NAME]
        return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def grid(texts: Sequence[str], config: Callable[[Sequence[str]], Config]) -> list[Point]:
    """Every combination of the values, the last key changing fastest.

    Args:
        texts: ``key=a,b,c``, one for each key.
        config: makes the settings from ``key=value`` assignments.

    Raises:
        ConfigError: a list that is empty or says a value twice, a key that is there twice, too many
            combinations, or settings that are not known, out of range or contradict each other.
    """
    axes = dict(_axis(text) for text in texts)
    if len(axes) < len(texts):
        raise ConfigError("--sweep: a key is there twice; give all of its values in one list")
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_POINTS:
        raise ConfigError(f"--sweep: {count} combinations; {MOST_POINTS} are the most")
    chosen = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [Point(one, config([f"{key}={value}" for key, value in one.items()])) for one in chosen]


def _axis(text: str) -> tuple[str, list[str]]:
    key, separator, listed = text.partition("=")
    key, values = key.strip(), [value.strip() for value in _split(listed)]
    if not separator or not key:
        raise ConfigError(f"--sweep {text}: write --sweep section.key=a,b,c")
    if not all(values):
        raise ConfigError(f"--sweep {text}: the list of values is empty, or one of them is")
    if len(set(values)) < len(values):
        raise ConfigError(f"--sweep {text}: a value is there twice")
    return key, values


def _split(text: str) -> list[str]:
    """At the commas that are not inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "\"'":
            quote = ("" if letter == quote else quote) if quote else letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@repeatably()
def run_sweep(points: Sequence[Point], wanted: Path | None, *, engine: str, workers: int | None) -> None:
    """Run every point that has no report yet, and write ``sweep.json`` and ``sweep.html`` after each.

    Args:
        points: the grid.
        wanted: its folder: a new one, or that of a sweep; ``None``: the next free one.
        engine: as for ``run``.
        workers: as for ``run``.

    Raises:
        InputError: a point cannot be run as it is (said before anything runs), or the folder holds
            something else.
        KeyboardInterrupt: interrupted; its text says how to go on.
    """
    going_on = wanted is not None and (wanted / SWEEP).is_file()
    if not going_on:
        check_fresh(wanted)
    done = _finished(points, wanted) if going_on and wanted else {}
    todo = [p for p in points if p.folder not in done]
    for point in todo:
        check_fleet(build_world(point.config))
    out = wanted if going_on and wanted else fresh_folder(wanted, f"{points[0].config.scenario}-sweep")
    terminal, sweep = Terminal(), _write(points, done, out)
    for place, point in enumerate(todo, 1):
        terminal.event("note", text=f"run {place} of {len(todo)}: {point.folder}")
        _run_point(point, out, engine, workers)
        done |= _finished([point], out)
        sweep = _write(points, done, out)
    for line in [*sweep_lines(sweep), f"sweep: {out / 'sweep.html'}"]:
        terminal.event("note", text=line)


def _run_point(point: Point, out: Path, engine: str, workers: int | None) -> None:
    folder = out / point.folder
    resume = (folder / JOURNAL).is_file() and engine == "local"
    gc.unfreeze()  # what the run before has frozen, or it would stay for ever
    gc.collect()
    try:
        run(point.config, folder, resume=resume, engine=engine, workers=workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; go on with the same command and --out {out}") from None


def _finished(points: Sequence[Point], out: Path) -> dict[str, Row]:
    """What ``sweep.json`` says of those that have a report, by folder.

    Raises:
        SetupError: a report is of other settings.
    """
    found = {}
    for point in points:
        folder = out / point.folder
        if not (folder / "report.json").is_file():
            continue
        report = load_report(folder)
        if report.get("config") != json.loads(json.dumps(point.config.to_dict())):
            raise SetupError(f"{folder} holds a run with other settings; name another folder with --out")
        log = [{key: row[key] for key in _OF_ROUND if key in row} for row in report["rounds_log"]]
        kept = {key: report[key] for key in _OF_RUN if key in report}
        found[point.folder] = {"folder": point.folder, "settings": point.settings, **kept, "rounds_log": log}
    return found


def _write(points: Sequence[Point], done: Mapping[str, Row], out: Path) -> Row:
    """``sweep.json``, which is returned too, and ``sweep.html``: all that is finished, in order."""
    rows = [done[p.folder] for p in points if p.folder in done]
    metric = rows[0]["metric"] if rows else None
    reached = same_score(metric, [row["rounds_log"] for row in rows]) if metric else []
    if len(reached) == len(rows):
        rows = [row | {"same_score": one} for row, one in zip(rows, reached, strict=True)]
    axes = {key: list(dict.fromkeys(p.settings[key] for p in points)) for key in points[0].settings}
    scenario = points[0].config.scenario
    sweep = {"schema": 1, "scenario": scenario, "metric": metric, "sweep": axes, "points": rows}
    write_whole(out / "sweep.html", lambda path: write_sweep_html(sweep, path))
    write_whole(out / SWEEP, lambda path: write_json(sweep, path))
    return sweep
