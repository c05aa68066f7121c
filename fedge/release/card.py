"""A release's card: what its manifest says, for people (Mitchell et al. 2019, arXiv 1810.03993)."""

from collections.abc import Mapping
from datetime import UTC, datetime

from fedge.release.manifest import Manifest

_ANSWERS = {
    "class": "the class of a window: one score for each",
    "number": "a number",
    "anomaly": "how anomalous a window is: one score, higher is more anomalous",
}


_FORM = "It tells {what}. An ONNX model ({kind}) that takes windows in the sensor's own units."
_SCORES = """By {metric}; higher is better. `unseen` is a mean over clients that took no part in training,
`clients` over those that did, each on its own later data; `int8` in a name means this very file."""
_DATA = """Learned in {rounds} rounds from the private data of the clients of this federation, after
distillation on the server's own data. The clients' data never left them, so what is known of them are the
names above and the scores. Test the model on data of your own; a device does that before it uses it."""
_USE = """```
fedge infer v{version:04d} windows.npz
fedge serve v{version:04d}
```

On a device, `fedge client` or `fedge release fetch` brings it: verified, and tested before it is used."""


def card(manifest: Manifest) -> str:
    """The card of a release, in Markdown. All of it is said by the manifest; nothing else is known here."""
    kind, metric = _text(manifest.model.kind), _text(manifest.metric)
    parts = [
        f"# Release {manifest.version}: {_text(manifest.task)}",
        _FORM.format(what=_ANSWERS[manifest.target], kind=kind),
        _table("What it is", _facts(manifest)),
        _table("Scores", {name: f"{value:.4f}" for name, value in sorted(manifest.scores.items())}),
        _SCORES.format(metric=metric) if manifest.scores else "",
        _table("Input", _input(manifest)),
        _table("Sizes", {name: str(value) for name, value in sorted(manifest.sizes.items())}),
        _table("Also said", {name: _text(value) for name, value in sorted(manifest.extra.items())}),
        "## Data",
        _DATA.format(rounds=manifest.round),
        "## How to use it",
        _USE.format(version=manifest.version),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(manifest: Manifest) -> Mapping[str, str]:
    parent = "none" if manifest.parent is None else f"release {manifest.parent}"
    return {
        "version": str(manifest.version),
        "made from": parent,
        "after round": str(manifest.round),
        "created": _day(manifest.created),
        "expires": _day(manifest.expires),
        "federation": manifest.federation,
        "model": f"{manifest.model.size} bytes",
        "SHA-256": manifest.model.sha256,
    }


def _input(manifest: Manifest) -> Mapping[str, str]:
    sizes = ", ".join(map(str, manifest.input.shape))
    alarm = {} if manifest.threshold is None else {"anomalous above": f"{manifest.threshold:.6g}"}
    return {
        "window": f"[{sizes}]",
        "channels": ", ".join(map(_text, manifest.input.names)),
        "classes": ", ".join(map(_text, manifest.classes)) or "none",
        **alarm,
    }


def _table(title: str, rows: Mapping[str, str]) -> str:
    """A section with one table; nothing where there are no rows."""
    if not rows:
        return ""
    lines = [f"| {_text(name)} | {value} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])


def _day(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"


def _text(value: object) -> str:
    """Text that is no Markdown or HTML, whatever it holds."""
    plain = "".join(c if c.isprintable() else " " for c in str(value))
    return "".join(f"&#{ord(c)};" if c in "|`*_<>&[]\\#!" else c for c in plain)
