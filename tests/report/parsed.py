"""A page read back as a program sees it."""

from html.parser import HTMLParser

_VOID = {"meta", "br", "hr"}


class Parsed(HTMLParser):
    """The page as a program sees it: every element closed in order, tables by caption, exact numbers."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.shape: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str]] = []
        self.values: list[float] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._caption = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "data":
            self.values.append(float(dict(attrs)["value"] or ""))
        if tag == "tr" and self._caption:
            self.tables[self._caption].append([])
        if tag in ("th", "td"):
            self.tables[self._caption][-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self._caption = ""

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] == "caption":
            self._caption = data
            self.tables[data] = []
        elif self.open and self.open[-1] in ("th", "td"):
            self.tables[self._caption][-1][-1] += data

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]

    def table(self, start: str) -> list[list[str]]:
        """The body of the table whose caption starts so."""
        return next(rows for caption, rows in self.tables.items() if caption.startswith(start))[1:]
