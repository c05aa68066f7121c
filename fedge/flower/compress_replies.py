"""Which answers a wrapped strategy may see: Flower's own stop the run at the first odd one."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable

from flwr.app import Message, MetricRecord

from fedge.errors import UpdateError


def weight_key(strategy: object) -> str | None:
    """The metric that ``strategy``, or the one that it wraps, weighs answers by; ``None`` if neither does."""
    key = getattr(strategy, "weighted_by_key", None)
    if isinstance(key, str):
        return key
    wrapped = getattr(strategy, "strategy", None)
    return None if wrapped is None else weight_key(wrapped)


def check_metrics(message: Message, key: str | None, max_weight: float) -> None:
    """All metrics are finite; if answers are weighed, by ``key``, there is one weight, and it is in range.

    Raises:
        UpdateError: they are not.
    """
    records = list(message.content.metric_records.values())
    for name, value in (item for record in records for item in record.items()):
        if not all(math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            raise UpdateError(f"metric {name!r} is not finite")
    if key is None:
        return
    if len(records) != 1 or key not in records[0]:
        raise UpdateError(f"expected one MetricRecord with {key!r}")
    weight = records[0][key]
    if isinstance(weight, list) or not 0 < weight <= max_weight:
        raise UpdateError(f"{key!r} is {weight}; expected one above 0 and up to {max_weight:g}")


def alike(messages: Iterable[Message]) -> tuple[list[Message], list[Message]]:
    """Messages of the most common form, and the others.

    The form is the names and kinds of all records, and the names and lengths of all metrics. Of forms that
    are equally common, that of the first message is kept.
    """
    forms = [(_form(m), m) for m in messages]
    if not forms:
        return [], []
    common = Counter(form for form, _ in forms).most_common(1)[0][0]
    kept = [m for form, m in forms if form == common]
    return kept, [m for form, m in forms if form != common]


def _form(message: Message) -> Hashable:
    rows: list[Hashable] = []
    for name, record in message.content.items():
        lengths = frozenset(
            (key, len(value) if isinstance(value, list) else -1)
            for key, value in (record.items() if isinstance(record, MetricRecord) else ())
        )
        rows.append((name, type(record).__name__, lengths))
    return frozenset(rows)
