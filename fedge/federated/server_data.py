"""The windows that a server has of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedge.data.types import Windows


@dataclass(frozen=True, eq=False)
class ServerData:
    """What the server has to learn from.

    Attributes:
        labelled: its own windows, with labels.
        unlabelled: further windows, of which it does not look at the labels; may be empty.
        judges: windows of people held back whole, by name: neither the teacher nor the student sees them.
    """

    labelled: Windows
    unlabelled: Windows | None = None
    judges: Mapping[str, Windows] = field(default_factory=dict)
