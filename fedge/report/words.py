"""Numbers as people write them, and text from elsewhere made fit to show."""

from collections.abc import Callable

NOT_MEASURED = "not measured"


def clean(value: object, limit: int = 1000) -> str:
    """Text with its control characters, surrogates and direction marks shown as a replacement character.

    At most ``limit`` characters; what was longer ends in an ellipsis. ``None`` is no text at all.
    """
    raw = "" if value is None else str(value)[: limit + 1]
    text = "".join(c if c.isprintable() or c == "\u00a0" else "\ufffd" for c in raw)
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


def signed(value: float, decimals: int) -> str:
    """A difference with its sign: ``+2.4``; ``±0.0`` where it is none."""
    rounded = round(value, decimals) + 0.0
    text = f"{rounded:+,.{decimals}f}" if rounded else f"\u00b1{0:.{decimals}f}"
    return text.replace("-", "\u2212")


def size(amount: float | None) -> str:
    """Bytes to three significant digits, decimal units as on a network: ``12.4 kB``."""
    if amount is None:
        return NOT_MEASURED
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{_three(amount) if unit != 'B' else f'{amount:.0f}'} {unit}"
        amount /= 1000
    return f"{_three(amount)} TB"


def round_size(amount: float) -> str:
    """Bytes that are a round number, as on an axis: ``10 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:g} {unit}"
        amount /= 1000
    return f"{amount:g} TB"


def microseconds(value: float | None) -> str:
    """A latency given in microseconds, to three significant digits: ``14.1 us``, ``1.20 ms``."""
    if value is None:
        return NOT_MEASURED
    return f"{_three(value)} \u00b5s" if value < 999.5 else f"{_three(value / 1000)} ms"


def seconds(value: float | None) -> str:
    """A duration given in seconds: ``0.42 s``, ``3 min 05 s``, ``2 h 10 min``, ``3.15 days``."""
    if value is None:
        return NOT_MEASURED
    if value < 59.5:
        return f"{_three(value)} s" if value >= 0.0995 else f"{1000 * value:.0f} ms"
    whole = round(value)
    if whole >= 48 * 3600:
        return f"{_three(whole / 86400)} days"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def energy(value: float | None) -> str:
    """Joules to three significant digits: ``12.4 J``, ``1.20 kJ``."""
    if value is None:
        return NOT_MEASURED
    if value < 0.9995:
        return f"{_three(1000 * value)} mJ"
    return f"{_three(value)} J" if value < 999.5 else f"{_three(value / 1000)} kJ"


def ratio(value: float | None) -> str:
    """A ratio to a sensible precision: ``309x``, ``3.4x`` (with a real multiplication sign)."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}\u00d7" if value >= 9.95 else f"{value:.1f}\u00d7"


def share(value: float | None) -> str:
    """A fraction as per cent: ``50.0 %``."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}\u00a0%"


def count(value: float | None) -> str:
    """A whole number with thousands set apart: ``20,312``."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def cell(value: float | None, shown: Callable[[float], str] = count) -> str:
    """A number for a table, where what was not measured is left empty."""
    return "" if value is None else shown(value)


def plural(number: int, one: str, many: str = "") -> str:
    """``1 client``, ``2 clients``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _three(value: float) -> str:
    """Three significant digits, never in exponent form."""
    if value <= 0:
        return "0"
    decimals = 2 - int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{min(max(decimals, 0), 3)}f}"
