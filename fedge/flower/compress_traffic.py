"""Bytes that went each way, by node."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Traffic:
    """Bytes by node, both ways.

    Attributes:
        down: of the payloads handed to Flower.
        up: of the payloads that came from Flower, refused ones included.
        plain_down: what the values of the arrays that went down take uncompressed.
        plain_up: likewise of those that came up.
    """

    down: Mapping[int, int]
    up: Mapping[int, int]
    plain_down: Mapping[int, int]
    plain_up: Mapping[int, int]

    @property
    def ratio(self) -> float:
        """How many times fewer bytes, both ways together; 1 before anything was sent."""
        plain = sum(self.plain_down.values()) + sum(self.plain_up.values())
        return plain / (sum(self.down.values()) + sum(self.up.values())) if plain else 1.0


@dataclass(frozen=True)
class Count:
    """Adds up."""

    down: Counter[int] = field(default_factory=Counter)
    up: Counter[int] = field(default_factory=Counter)
    plain_down: Counter[int] = field(default_factory=Counter)
    plain_up: Counter[int] = field(default_factory=Counter)

    def so_far(self) -> Traffic:
        """As of now."""
        return Traffic(dict(self.down), dict(self.up), dict(self.plain_down), dict(self.plain_up))
