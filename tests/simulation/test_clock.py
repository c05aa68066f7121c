"""Virtual time: when answers arrive, deadlines, late answers, drop-outs, hours, energy, resuming."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from fedge.errors import ConfigError, FedgeError, PayloadError
from fedge.federated import frames
from fedge.federated.federation import NotYetError
from fedge.federated.frames import Train, Welcome
from fedge.simulation.clock import VirtualClients
from fedge.simulation.cost import SECONDS_PER_ROUND, SECONDS_PER_STEP, Work
from fedge.simulation.profiles import DAY, Profile

TASK = frames.encode_task(Train(1, 0, 0, bytes(8), (), 0.1))
SCORE = frames.encode_task(Train(1, 0, 0, bytes(8), (), 0.0))
WORK = Work(multiply_adds=0, windows=32, later=0, epochs=1, batch=16)
TRAINS = SECONDS_PER_ROUND + 2 * SECONDS_PER_STEP


@dataclass
class Echo:
    """Every client answers with its own name."""

    asked: list[str] = field(default_factory=list)
    error: frozenset[str] = frozenset()

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        assert deadline is None
        assert enough is None
        for client in sorted(tasks, reverse=True):
            self.asked.append(client)
            yield client, FedgeError("broken") if client in self.error else client.encode()


def _profile(**values: object) -> Profile:
    base = {"name": "p", "share": 1.0, "compute": 1.0, "uplink": 8.0, "downlink": 8e9, "latency": 0.0}
    return Profile(**{**base, **values})  # type: ignore[arg-type]


def _fleet(profiles: Mapping[str, Profile], **more: object) -> VirtualClients:
    return VirtualClients(Echo(), profiles, dict.fromkeys(profiles, WORK), 0, **more)  # type: ignore[arg-type]


def test_an_answer_takes_the_way_down_the_work_and_the_way_up() -> None:
    fleet = _fleet({"a": _profile(downlink=8 * len(TASK) / 3.0, latency=0.25, compute=0.5, uplink=4.0)})
    assert [a for _, a in fleet.ask({"a": TASK})] == [b"a"]
    assert fleet.now == pytest.approx(3.0 + 2 * 0.25 + TRAINS / 0.5 + 8 * 1 / 4.0)


def test_a_task_without_training_costs_no_step() -> None:
    fleet = _fleet({"a": _profile(uplink=8e9, downlink=8e12)})
    list(fleet.ask({"a": SCORE}))
    assert fleet.now == pytest.approx(SECONDS_PER_ROUND, abs=1e-6)


def test_answers_come_in_the_order_of_their_arrival_not_of_their_making() -> None:
    fleet = _fleet({"a": _profile(latency=3), "b": _profile(latency=1), "c": _profile(latency=2)})
    assert [c for c, _ in fleet.ask(dict.fromkeys("abc", TASK))] == ["b", "c", "a"]


def test_who_misses_the_deadline_is_told_and_time_stands_at_the_deadline() -> None:
    fleet = _fleet({"a": _profile(latency=50), "b": _profile()})
    answers = list(fleet.ask(dict.fromkeys("ab", TASK), deadline=20.0))
    assert answers[0] == ("b", b"b")
    assert isinstance(answers[1][1], NotYetError)
    assert fleet.now == 20.0


def test_a_late_answer_comes_in_a_later_round_if_late_answers_count() -> None:
    for keeps in (True, False):
        fleet = _fleet({"a": _profile(latency=15), "b": _profile()}, keeps_late=keeps)
        list(fleet.ask(dict.fromkeys("ab", TASK), deadline=20.0))
        assert set(fleet.present()) == {"b"}
        came = [c for _ in range(20) for c, _ in fleet.ask({"b": TASK}, deadline=20.0)]
        assert came.count("a") == int(keeps)
        assert set(fleet.present()) == {"a", "b"}


def test_once_enough_have_answered_nobody_is_waited_for() -> None:
    fleet = _fleet({c: _profile(latency=i) for i, c in enumerate("abcd", 1)})
    answers = list(fleet.ask(dict.fromkeys("abcd", TASK), enough=2))
    assert [c for c, _ in answers] == ["a", "b"]
    assert fleet.now < 6


def test_errors_do_not_count_as_answers() -> None:
    fleet = VirtualClients(
        Echo(error=frozenset("a")), dict.fromkeys("ab", _profile()), dict.fromkeys("ab", WORK), 0
    )
    assert len(list(fleet.ask(dict.fromkeys("ab", TASK), enough=1))) == 2


def test_drop_outs_follow_from_the_seed_and_are_given_up() -> None:
    names = [f"c{i}" for i in range(200)]

    def dropped(seed: int) -> set[str]:
        fleet = VirtualClients(
            Echo(), dict.fromkeys(names, _profile(drop=0.3)), dict.fromkeys(names, WORK), seed
        )
        answers = dict(fleet.ask(dict.fromkeys(names, TASK)))
        assert math.isfinite(fleet.now)
        return {c for c, a in answers.items() if isinstance(a, FedgeError)}

    assert dropped(1) == dropped(1) != dropped(2)
    assert 40 <= len(dropped(1)) <= 80


def test_a_device_is_there_in_its_hours_only_and_time_passes_until_then() -> None:
    night = _profile(hours=((22 * 3600.0, DAY),))
    fleet = _fleet({"a": night}, now=12 * 3600.0)
    assert not fleet.present()
    fleet.wait()
    assert fleet.now == 22 * 3600.0
    assert list(fleet.present()) == ["a"]


def test_work_that_outlasts_the_hours_is_sent_the_next_day() -> None:
    slow = _profile(hours=((22 * 3600.0, DAY),), compute=TRAINS / (3 * 3600), uplink=8e9, downlink=8e9)
    fleet = _fleet({"a": slow}, now=23 * 3600.0)
    list(fleet.ask({"a": TASK}))
    assert fleet.now == pytest.approx(DAY + 22 * 3600, abs=1e-3)


def test_a_device_without_energy_stays_away_until_tomorrow() -> None:
    fleet = _fleet({"a": _profile(compute_watts=1.0, battery_joules=1e-3)})
    list(fleet.ask({"a": TASK}))
    assert fleet.spent["a"].joules == pytest.approx(TRAINS)
    assert not fleet.present()
    fleet.wait()
    assert fleet.now == DAY
    assert list(fleet.present()) == ["a"]


def test_a_fleet_that_is_never_there_is_said_to_be() -> None:
    fleet = _fleet({"a": _profile(latency=3600.0, uplink=1e-6)})
    list(fleet.ask({"a": TASK}, deadline=1.0))
    with pytest.raises(ConfigError, match="no device is there"):
        fleet.wait()


def test_energy_is_of_work_and_radio() -> None:
    fleet = _fleet({"a": _profile(compute_watts=2.0, joules_per_byte=0.5, joules_per_message=3.0)})
    list(fleet.ask({"a": TASK}))
    assert fleet.spent["a"].joules == pytest.approx(2 * TRAINS + 0.5 * (len(TASK) + 1) + 6)


def test_a_run_that_goes_on_later_is_the_run_that_was_not_stopped() -> None:
    profiles = {c: _profile(latency=4.0 * i, drop=0.2) for i, c in enumerate("abcdef")}

    def some(fleet: VirtualClients, rounds: int) -> list[tuple[str, str]]:
        came = []
        for _ in range(rounds):
            tasks = dict.fromkeys(fleet.present(), TASK)
            came += [(c, str(a)) for c, a in fleet.ask(tasks, deadline=10.0)]
            fleet.sleep(1.0)
        return came

    whole, first = (_fleet(profiles, keeps_late=True) for _ in range(2))
    expected = some(whole, 12)
    begun = some(first, 5)
    second = _fleet(profiles, keeps_late=True)
    second.restore(first.to_bytes())
    assert begun + some(second, 7) == expected
    assert second.now == whole.now
    assert second.to_bytes() == whole.to_bytes()


def test_a_clock_that_was_not_kept_whole_is_refused() -> None:
    fleet = _fleet({"a": _profile()})
    for damaged in (b"", b"FP1\0", fleet.to_bytes()[:-3]):
        with pytest.raises(PayloadError):
            fleet.restore(damaged)


def test_asynchronous_rounds_wait_for_answers_to_earlier_tasks_too() -> None:
    """Two updates end a round, whenever they were asked for; nobody's work is lost."""
    fleet = _fleet({c: _profile(latency=i) for i, c in enumerate("abcd", 1)}, keeps_late=True)
    first = [c for c, _ in fleet.ask(dict.fromkeys("abcd", TASK), enough=2)]
    second = [c for c, _ in fleet.ask(dict.fromkeys("ab", TASK), enough=2)]
    third = [c for c, _ in fleet.ask({}, enough=2)]
    assert (first, second) == (["a", "b"], ["c", "a"])  # b was asked again, and is on its way
    assert third == ["d", "b"]


def test_rounds_that_are_not_asynchronous_do_not_wait_for_earlier_answers() -> None:
    fleet = _fleet({"a": _profile(), "b": _profile(latency=40)}, keeps_late=True)
    list(fleet.ask(dict.fromkeys("ab", TASK), deadline=5.0))
    assert [c for c, _ in fleet.ask({"a": TASK})] == ["a"]
    assert fleet.now < 15


def _always_drops(**values: object) -> Profile:
    return _profile(drop=1.0, **values)


def test_a_drop_out_is_waited_for_until_the_deadline_as_on_machines_however_long_it_is() -> None:
    for deadline in (7.0, 500.0):
        fleet = _fleet({"a": _always_drops(), "b": _profile()})
        answers = dict(fleet.ask(dict.fromkeys("ab", TASK), deadline=deadline))
        assert isinstance(answers["a"], NotYetError)
        assert answers["b"] == b"b"
        assert fleet.now == deadline


def test_without_a_deadline_a_drop_out_is_given_up_after_a_minute() -> None:
    """``GridClients`` waits so long for a client that has left."""
    for task in (TASK, SCORE):
        fleet = _fleet({"a": _always_drops(), "b": _profile()})
        assert [c for c, _ in fleet.ask(dict.fromkeys("ab", task))] == ["b", "a"]
        assert fleet.now == 60.0


def test_a_drop_out_does_not_hold_up_a_round_that_has_enough() -> None:
    for deadline in (None, 500.0):
        fleet = _fleet({"a": _always_drops(), "b": _profile(), "c": _profile()})
        assert [c for c, _ in fleet.ask(dict.fromkeys("abc", TASK), deadline, enough=2)] == ["b", "c"]
        assert fleet.now < 10


def test_the_server_learns_of_a_drop_out_that_it_did_not_wait_for() -> None:
    """Or an asynchronous round would expect its answer for ``late_rounds`` rounds, and not ask it."""
    fleet = _fleet({"a": _always_drops(), "b": _profile()}, keeps_late=True)
    list(fleet.ask(dict.fromkeys("ab", TASK), enough=1))
    came = [(c, a) for _ in range(100) for c, a in fleet.ask({"b": TASK}, enough=1) if c == "a"]
    ((_, error),) = came
    assert isinstance(error, FedgeError)
    assert fleet.now > 60


def test_a_late_hello_never_passes_for_the_answer_to_a_later_task() -> None:
    welcome = frames.encode_task(Welcome(bytes(16), {}, b""))
    fleet = _fleet({"a": _profile(latency=15), "b": _profile()}, keeps_late=True)
    list(fleet.ask(dict.fromkeys("ab", welcome), deadline=20.0))
    assert not [c for _ in range(20) for c, _ in fleet.ask({"b": TASK}, deadline=20.0) if c == "a"]


def test_an_answer_that_nobody_took_is_forgotten_with_the_next_task() -> None:
    fleet = _fleet({"a": _profile(latency=15)}, keeps_late=True)
    list(fleet.ask({"a": TASK}, deadline=20.0))
    fleet.sleep(100.0)
    started = fleet.now
    assert [c for c, _ in fleet.ask({"a": TASK}, deadline=60.0)] == ["a"]
    assert fleet.now > started + 30


def test_a_clock_keeps_who_is_known_to_have_dropped_out() -> None:
    whole, first, second = (_fleet({"a": _always_drops(), "b": _profile()}, keeps_late=True) for _ in "123")
    for fleet in (whole, first):
        list(fleet.ask(dict.fromkeys("ab", TASK), enough=1))
    second.restore(first.to_bytes())
    assert second.to_bytes() == first.to_bytes()
    for _ in range(12):
        assert [(c, str(a)) for c, a in whole.ask({"b": TASK}, enough=1)] == [
            (c, str(a)) for c, a in second.ask({"b": TASK}, enough=1)
        ]
    assert second.to_bytes() == whole.to_bytes()
