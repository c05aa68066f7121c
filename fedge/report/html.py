"""Markup that cannot be forgotten to be escaped: text becomes ``Html`` only through ``el``.

A child or an attribute that is not ``Html`` already is cleaned of control characters and escaped.
"""

import html
from collections.abc import Iterable, Sequence

from fedge.report.words import clean

_VOID = frozenset({"meta", "br", "hr"})


class Html(str):
    """Markup that is safe to put into a page."""


def text(value: object) -> Html:
    """Any value as escaped text; ``Html`` stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(clean(value), quote=True))


def join(children: Iterable[object]) -> Html:
    """Children one after the other, each escaped unless it is ``Html``; ``None`` is left out."""
    return Html("".join(text(child) for child in children if child is not None))


def el(tag: str, *children: object, **attributes: object) -> Html:
    """One element. ``class_`` becomes ``class``, ``stroke_width`` ``stroke-width``; ``None`` is left out.

    >>> el("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(clean(value, 4000), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{given}>" if tag in _VOID else f"<{tag}{given}>{join(children)}</{tag}>")


def value(number: float | None, shown: str) -> Html:
    """A number as it is shown, with the exact one beside it for programs."""
    return el("span", shown, class_="none") if number is None else el("data", shown, value=repr(number))


def table(caption: str, head: Sequence[object], body: Iterable[Sequence[object]]) -> Html:
    """A table whose first column names the row; it scrolls in its own box where the page is narrow."""
    columns = el("tr", *(el("th", cell, scope="col") for cell in head))
    lines = [
        el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:])) for row in body if row
    ]
    whole = el("table", el("caption", caption), el("thead", columns), el("tbody", *lines))
    return el("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def folded(summary: object, *children: object) -> Html:
    """Something that is there for who wants it, closed at first."""
    return el("details", el("summary", summary), *children)
