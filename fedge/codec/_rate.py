"""Rate control: the most that fits into a budget of bytes."""

from collections.abc import Callable

from fedge.errors import ConfigError

SMALLEST_BUDGET = 24
"""Bytes that the container, a codec's fields and one value always fit into, whatever the shapes."""


def check_budget(budget_bytes: int | None) -> None:
    """Check a budget of a codec's settings.

    Raises:
        ConfigError: there is one, and not even a header and one value fit.
    """
    if budget_bytes is not None and budget_bytes < SMALLEST_BUDGET:
        raise ConfigError(
            f"budget_bytes is {budget_bytes}, too small for a header and one value; "
            f"give at least {SMALLEST_BUDGET}, or none"
        )


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest of ``low..high`` that fits, if sizes grow with it, and one that fits, or ``low``, if not.

    ``low`` is taken to fit and is not tried.
    """
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
