"""Answers that come after their round: dropped or counted for less, and nothing of a client's is lost."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fedge.errors import FedgeError
from fedge.federated.client_state import ClientState
from fedge.federated.federation import NotYetError
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.server import run_rounds
from fedge.federated.strategy import discounted
from fedge.simulation.world import World
from tests.federated.build import Fleet, federation_of, fleet_of, is_training, without_time

SLOW = "3"


class Dawdling:
    """A fleet of which one client's answer to the first round comes two rounds later."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.held = fleet, b""
        self.asked: list[set[str]] = []

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        del deadline, enough
        training = all(is_training(task) for task in tasks.values())
        if training:
            self.asked.append(set(tasks))
        for client, answer in self.fleet.ask(tasks):
            if training and client == SLOW and len(self.asked) == 1:
                assert isinstance(answer, bytes)
                self.held = answer
                yield client, NotYetError("no answer within 1 s")
            else:
                yield client, answer
        if training and len(self.asked) == 3:
            yield SLOW, self.held


@pytest.fixture
def dawdle(small_world: World, small_prepared: Prepared, tmp_path: Path):  # type: ignore[no-untyped-def]
    def go(late: str):  # type: ignore[no-untyped-def]
        clients = Dawdling(fleet_of(small_world))
        settings = replace(
            small_world.config.rounds, rounds=4, late=late, deadline_seconds=1.0, late_rounds=5
        )
        with Journal(tmp_path / f"journal-{late}") as journal:
            federation, watcher = federation_of(
                small_world,
                small_prepared,
                clients.fleet,
                journal,
                rounds=settings,
                redistill=replace(small_world.config.redistill, mode="none"),
            )
            state = run_rounds(replace(federation, clients=clients))
            return clients, state, [without_time(r) for r in journal.rounds()], watcher

    return go


def test_a_late_answer_counts_for_less_and_its_client_is_not_asked_meanwhile(dawdle) -> None:  # type: ignore[no-untyped-def]
    clients, state, records, _ = dawdle("count")
    weight = len(clients.fleet.devices[SLOW].data.train)
    assert SLOW not in records[0]["counted"]
    assert SLOW not in clients.asked[1] | clients.asked[2]
    assert records[2]["late"] == {SLOW: discounted(weight, 2)}
    assert 1 <= discounted(weight, 2) < weight
    assert SLOW in clients.asked[3]
    assert not state.late


def test_a_client_whose_late_update_counted_keeps_what_it_had_not_sent(dawdle) -> None:  # type: ignore[no-untyped-def]
    clients, state, records, _ = dawdle("count")
    held = ClientState.load(clients.fleet.store(SLOW))
    assert SLOW in records[3]["counted"]
    assert state.clients[SLOW].counted == 4
    assert held.version == state.round


def test_by_default_a_late_answer_is_nothing(dawdle) -> None:  # type: ignore[no-untyped-def]
    clients, state, records, _ = dawdle("drop")
    assert SLOW in clients.asked[1]
    assert all(not r["late"] for r in records)
    assert SLOW in records[1]["counted"]
    assert not state.late


def test_a_late_answer_that_was_tampered_with_does_not_count(dawdle, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    honest = Dawdling.ask

    def forged(self, tasks, deadline=None, enough=None):  # type: ignore[no-untyped-def]
        for client, answer in honest(self, tasks, deadline, enough):
            late = client == SLOW and client not in tasks
            yield client, answer[:-1] + bytes([answer[-1] ^ 1]) if late else answer

    monkeypatch.setattr(Dawdling, "ask", forged)
    _, state, records, watcher = dawdle("count")
    assert all(not r["late"] for r in records)
    assert any(r["client"] == SLOW for r in watcher.of("refused"))
    assert SLOW not in state.late


@pytest.mark.parametrize(("weight", "staleness", "expected"), [(100, 0, 100), (100, 3, 50), (1, 99, 1)])
def test_the_discount_is_the_root_of_the_staleness(weight: int, staleness: int, expected: int) -> None:
    assert discounted(weight, staleness) == expected


def test_a_round_that_late_updates_alone_fill_is_not_given_up(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    """A deployment wants one update a round; in an asynchronous one it may be one of an earlier task."""

    class OnlyLate(Dawdling):
        def ask(
            self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
        ) -> Iterator[tuple[str, bytes | FedgeError]]:
            for client, answer in super().ask(tasks, deadline, enough):
                failed = len(self.asked) == 2 and all(is_training(task) for task in tasks.values())
                yield client, FedgeError("gone") if failed else answer
            if len(self.asked) == 2:
                yield SLOW, self.held

    clients = OnlyLate(fleet_of(small_world))
    rounds = replace(
        small_world.config.rounds, rounds=2, late="count", deadline_seconds=1.0, least=1, attempts=2
    )
    with Journal(tmp_path / "journal") as journal:
        federation, watcher = federation_of(
            small_world,
            small_prepared,
            clients.fleet,
            journal,
            rounds=rounds,
            redistill=replace(small_world.config.redistill, mode="none"),
        )
        run_rounds(replace(federation, clients=clients))
        second = journal.rounds()[1]
    assert not second["counted"]
    assert list(second["late"]) == [SLOW]
    assert not watcher.of("given_up")
