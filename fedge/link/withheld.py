"""Whether an answer that was announced is kept back, told apart from a link that is slow or broken."""

from dataclasses import dataclass
from enum import Enum

from fedge.link.frames import Announced

_PROOF = 2  # signs of life in a row with nothing of the transfer before the second


class Finding(Enum):
    """What a look at a transfer comes to."""

    WAIT = 0
    ASK = 1  # for a sign of life
    WITHHELD = 2


@dataclass
class Watch:
    """Watches the transfers on one connection, from the end that receives them. Look again and again.

    A connection delivers in order, and an end that has bytes of a transfer left sends some of them right
    after a sign of life, at the latest. So two signs of life, the second asked for after the first was here,
    with nothing of the transfer between them, prove that the other end sends none. A link that is slow,
    stalls or breaks holds up the signs of life, too, and proves nothing.
    """

    _place: tuple[Announced, int] | None = None
    _asked: int | None = None  # signs that had come when one was asked for last
    _empty: int = 0

    def look(self, transfer: Announced, at: int, signs: int) -> Finding:
        """Look at a transfer of which ``at`` bytes are here, on a connection that gave so many ``signs``."""
        came = self._asked is not None and signs > self._asked
        if came:
            self._asked = None
        if self._place != (transfer, at):
            self._place, self._empty = (transfer, at), 0
            return Finding.WAIT
        self._empty += came
        if self._empty >= _PROOF:
            return Finding.WITHHELD
        if self._asked is not None:
            return Finding.WAIT
        self._asked = signs
        return Finding.ASK
