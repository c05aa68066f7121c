"""Who keeps back an answer is found; a link that is slow, stalls or breaks is never taken for it."""

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.link.transfer import announce
from fedge.link.withheld import Finding, Watch

TRANSFER, NEXT = announce(b"1" * 16, b"one"), announce(b"2" * 16, b"two")
CHUNK, PONG = "chunk", "pong"
ACTIONS = ("looks", "ping arrives", "device wakes", "something arrives")


@dataclass
class Wire:
    """A device with so many chunks to send, and a gateway that watches; everything in between takes its time.

    As in ``device_link``: when the device wakes it hears what has come, answers pings, and puts chunks behind
    them for as long as fewer than ``ahead`` things wait for its socket.
    """

    chunks: int
    ahead: int
    withholds_after: int = 10**9
    watch: Watch = field(default_factory=Watch)
    at: int = 0
    signs: int = 0
    sent: int = 0
    pings_on_the_way: int = 0
    pings_heard: int = 0
    out: deque[str] = field(default_factory=deque)

    def do(self, action: str) -> Finding:
        if action == "looks":
            finding = self.watch.look(TRANSFER, self.at, self.signs)
            self.pings_on_the_way += finding is Finding.ASK
            return finding
        if action == "ping arrives":
            self.pings_heard += self.pings_on_the_way
            self.pings_on_the_way = 0
        elif action == "device wakes":
            self._wake()
        elif self.out:
            if self.out.popleft() == CHUNK:
                self.at += 1
            else:
                self.signs += 1
        return Finding.WAIT

    def _wake(self) -> None:
        while len(self.out) < self.ahead:
            pongs, self.pings_heard = self.pings_heard, 0
            more = self.sent < min(self.chunks, self.withholds_after)
            self.out += [PONG] * pongs + [CHUNK] * more
            self.sent += more
            if not more:
                return

    @property
    def whole(self) -> bool:
        return self.at == self.chunks


@settings(max_examples=500)
@given(st.integers(3, 30), st.integers(1, 5), st.lists(st.sampled_from(ACTIONS), min_size=40, max_size=200))
def test_an_honest_device_is_never_found_to_withhold_however_slow_its_link(
    chunks: int, ahead: int, actions: list[str]
) -> None:
    wire = Wire(chunks, ahead)
    for action in actions:
        if wire.whole:
            return
        assert wire.do(action) is not Finding.WITHHELD


@given(st.integers(0, 5), st.integers(1, 5), st.lists(st.sampled_from(ACTIONS), max_size=40))
def test_a_device_that_answers_pings_and_sends_no_more_is_found(
    sends: int, ahead: int, before: list[str]
) -> None:
    wire = Wire(6, ahead, withholds_after=sends)
    found = [wire.do(action) for action in [*before, *(list(ACTIONS) * (2 * sends + 8))]]
    assert Finding.WITHHELD in found


@given(st.integers(0, 10))
def test_a_device_that_says_nothing_at_all_is_not_blamed(at: int) -> None:
    """Its link may be broken: it is hung up on for its silence, and the deadline ends the wait."""
    watch = Watch()
    found = [watch.look(TRANSFER, at, 0) for _ in range(50)]
    assert found.count(Finding.ASK) == 1
    assert Finding.WITHHELD not in found


def test_a_transfer_that_grows_is_not_even_asked_after() -> None:
    watch = Watch()
    assert {watch.look(TRANSFER, at, 0) for at in range(100)} == {Finding.WAIT}


def test_a_sign_that_was_asked_for_before_the_last_bytes_came_proves_nothing_alone() -> None:
    watch = Watch()
    assert [watch.look(TRANSFER, 5, 0), watch.look(TRANSFER, 5, 0)] == [Finding.WAIT, Finding.ASK]
    assert watch.look(TRANSFER, 9, 0) is Finding.WAIT  # bytes came first; the sign is on its way
    assert watch.look(TRANSFER, 9, 1) is Finding.ASK
    assert watch.look(TRANSFER, 9, 2) is Finding.WITHHELD


def test_what_was_found_of_one_transfer_says_nothing_of_the_next() -> None:
    watch, signs = Watch(), iter(range(100))
    while watch.look(TRANSFER, 5, next(signs)) is not Finding.WITHHELD:
        """It answers every ping."""
    assert watch.look(NEXT, 5, next(signs)) is Finding.WAIT
    assert watch.look(NEXT, 5, next(signs)) is Finding.ASK
    assert watch.look(NEXT, 5, next(signs)) is Finding.ASK
    assert watch.look(NEXT, 5, next(signs)) is Finding.WITHHELD
