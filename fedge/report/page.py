"""The page: one file that asks nobody for anything, with no script in it."""

import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from fedge.errors import SetupError
from fedge.report.cost import cost_section
from fedge.report.html import Html, el, folded, join
from fedge.report.learning import clients_section, score_section
from fedge.report.model import model_section, time_section
from fedge.report.overview import header
from fedge.report.read import Record, part
from fedge.report.redistillation import redistillation_section
from fedge.report.releases import releases_section
from fedge.report.traffic import traffic_section
from fedge.report.words import clean

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_SECTIONS = (
    ("score", "Score", score_section),
    ("bytes", "Bytes", traffic_section),
    ("cost", "Cost", cost_section),
    ("clients", "Clients", clients_section),
    ("device", "Device", model_section),
    ("redistillation", "Re-distillation", redistillation_section),
    ("releases", "Releases", releases_section),
    ("time", "Time", time_section),
)


def write_html(report: Record, path: Path) -> None:
    """Write the page of ``report`` to ``path``, whole or not at all; the same report gives the same bytes.

    Raises:
        SetupError: the file cannot be written.
    """
    write_page(page(report), path)


def write_page(text: str, path: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        SetupError: the file cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise SetupError(f"cannot write {path}: {error.strerror}") from error


def page(report: Record) -> str:
    """The page as text. What is not in the report is left out, or called not measured."""
    drawn = [(key, name, section) for key, name, make in _SECTIONS if (section := make(report)) is not None]
    settings = _settings(report)
    links = [el("a", name, href=f"#{key}") for key, name, _ in drawn]
    links += [el("a", "Configuration", href="#configuration")] if settings else []
    body = el(
        "body",
        header(report),
        el(
            "main",
            el("nav", *links, aria_label="Sections") if links else None,
            *(section for _, _, section in drawn),
            settings,
        ),
        el("footer", _footer(report)),
    )
    return document(clean(report.get("scenario") or "run", 80), body)


def document(title: str, body: Html) -> str:
    """A whole file around a ``body`` element: the style inside, nothing loaded, no script."""
    return f"<!doctype html>\n{el('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Html:
    style = files("fedge.report").joinpath("style.css").read_text(encoding="utf-8")
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("title", f"{title} - fedge report"),
        el("style", Html(style)),
    )


def _footer(report: Record) -> str:
    version = clean(report.get("fedge_version") or "", 40)
    return (
        f"Made by fedge {version}".rstrip() + " from report.json; this page loads nothing and runs no script."
    )


def _settings(report: Record) -> Html | None:
    groups = [(clean(name, 80), group) for name, group in part(report, "config").items()]
    blocks = [_group(name, group) for name, group in groups]
    blocks += [_group("dataset", part(report, "dataset"))] if part(report, "dataset") else []
    if not blocks:
        return None
    inside = el("div", *blocks, class_="settings")
    return el("section", el("h2", "Configuration"), folded("Every setting used", inside), id="configuration")


def _group(name: str, group: object) -> Html:
    """One section of the configuration; a value that is no section stands alone."""
    pairs = group.items() if isinstance(group, Mapping) else [("", group)]
    inside = join(join([el("dt", clean(k, 80)), el("dd", el("code", _setting(v)))]) for k, v in pairs)
    return el("div", el("h3", name), el("dl", inside))


def _setting(value: object) -> str:
    """A setting as one would write it."""
    if isinstance(value, str):
        return clean(value, 300)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return clean(", ".join(value), 300)
    return clean(json.dumps(value, default=str), 300)
