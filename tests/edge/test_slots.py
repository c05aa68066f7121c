"""The rules of what a device holds: no version twice, none that falls, and always a model."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.edge import _state_file, slots
from fedge.edge._sealed import seal
from fedge.edge.codes import NotTakenError
from fedge.edge.slots import SLOTS, Held, Slots
from fedge.edge.watch import Finding, Promise, Watch
from fedge.errors import PayloadError, ReleaseError

FEDERATION, ROUNDS, OTHER = "ab" * 8, "1" * 64, "2" * 64


def held(version: int) -> Held:
    return Held(version, f"{version:064x}", f"{version + 1000:064x}")


def with_versions(*versions: int) -> Slots:
    state = slots.vouched(slots.joined(Slots(), FEDERATION), ROUNDS)
    for version in versions:
        state = slots.installed(slots.attempted(state, version), held(version), Promise())
    return state


def offered(state: Slots, version: int, *, again: bool = False) -> str:
    """The code with which a version is refused; empty if it may be tried."""
    try:
        slots.check_offer(state, version, held(version).manifest, again=again)
    except NotTakenError as error:
        return error.code
    return ""


def test_new_release_goes_to_the_spare_slot_and_the_other_stays() -> None:
    state = with_versions(1, 2, 3)
    assert (state.current, state.held(state.spare)) == (held(3), held(2))
    assert state.trial


@given(st.lists(st.integers(1, 12), max_size=12))
def test_no_version_is_ever_tried_twice(order: list[int]) -> None:
    state, tried = Slots(), list[int]()
    for version in order:
        if not offered(state, version):
            state = slots.attempted(state, version)
            tried.append(version)
    assert tried == sorted(set(tried))


@given(st.data())
def test_whatever_happens_the_mark_never_falls_and_there_is_a_model(data: st.DataObject) -> None:
    """Any order of installs, returns, choices, damage and pins."""
    state, mark, version = with_versions(1), 1, 1
    for _ in range(data.draw(st.integers(0, 20))):
        what = data.draw(st.sampled_from(["install", "refuse", "back", "choose", "damage", "pin"]))
        if what in ("install", "refuse"):
            version += data.draw(st.integers(1, 3))
            state = slots.attempted(replace(state, pinned=False), version)
            finding = Finding(version, "worse", 0.5, 0.9)
            end = slots.installed(state, held(version), Promise())
            state = end if what == "install" else slots.found(state, finding)
        elif what == "back" and state.earlier is not None:
            state = slots.gone_back(state, Finding(state.current.version, "live_errors"))  # type: ignore[union-attr]
        elif what == "choose" and (other := state.held(state.spare)) is not None:
            state = slots.chosen(state, other.version)
        elif what == "damage" and state.held(state.spare) is not None:
            whole = {state.spare}
            state = slots.without_damaged(state, whole)
        elif what == "pin":
            state = replace(state, pinned=True)
        assert state.current is not None
        assert state.highest >= mark
        assert all(
            offered(state, v) for v in range(mark + 1) if state.lost is None or v != state.lost.version
        )
        mark = state.highest
        assert _state_file.parse(_state_file.to_bytes(state)) == state


def test_refused_one_is_not_tried_again_and_a_newer_one_is() -> None:
    state = slots.found(slots.attempted(with_versions(1), 2), Finding(2, "worse", 0.5, 0.9))
    assert offered(state, 2) == "tried_before"
    assert offered(state, 3) == ""
    with pytest.raises(NotTakenError, match=r"worse.*0\.5.*0\.9"):
        slots.check_offer(state, 2, held(2).manifest)


def test_one_whose_test_ended_the_process_is_not_tried_again() -> None:
    state = slots.attempted(with_versions(1), 2)
    assert [f.code for f in state.findings] == ["stopped"]
    assert offered(state, 2) == "tried_before"


def test_attempt_that_ended_through_no_fault_of_the_release_may_be_repeated() -> None:
    before = with_versions(1)
    assert slots.undone(slots.attempted(before, 2), 2, before) == before


def test_undoing_an_attempt_leaves_what_happened_meanwhile() -> None:
    before = with_versions(1, 2)
    during = slots.gone_back(slots.attempted(before, 3), Finding(2, "live_errors", 0.5, 0.05))
    after = slots.undone(during, 3, before)
    assert after.current == held(1)
    assert [f.version for f in after.findings] == [2]
    assert offered(after, 2) == "tried_before"
    assert offered(after, 3) == ""


def test_nothing_below_the_promoted_one_is_taken() -> None:
    state = slots.promoted(with_versions(1), 5)
    assert [offered(state, v) for v in (2, 4, 5, 6)] == ["below_promoted", "below_promoted", "", ""]
    assert slots.promoted(state, 3).floor == 5


def test_pinned_device_takes_nothing() -> None:
    assert offered(replace(with_versions(1), pinned=True), 2) == "pinned"


def test_going_back_keeps_the_mark() -> None:
    state = slots.gone_back(with_versions(1, 2), Finding(2, "live_errors", 0.5, 0.05))
    assert (state.current, state.highest, state.trial) == (held(1), 2, False)
    assert [offered(state, v) for v in (1, 2, 3)] == ["tried_before", "tried_before", ""]


def test_there_is_no_going_back_to_a_later_one_or_to_nothing() -> None:
    back = slots.gone_back(with_versions(1, 2), Finding(2, "live_errors"))
    for state in (back, with_versions(1), Slots()):
        with pytest.raises(ReleaseError, match="no earlier"):
            slots.gone_back(state, Finding(1, "live_errors"))


def test_owner_may_go_forward_again() -> None:
    back = slots.chosen(with_versions(1, 2), 1)
    assert [f.code for f in back.findings] == ["by_hand"]
    forward = slots.chosen(back, 2)
    assert (forward.current, forward.findings) == (held(2), ())
    with pytest.raises(ReleaseError, match="2, 1"):
        slots.chosen(forward, 3)


def test_keys_of_a_thief_that_used_up_all_numbers_are_not_the_end() -> None:
    """The offline key has put another in the stolen one's place: versions count from the promoted one."""
    state = slots.promoted(with_versions(1, 2, 10**15), 2)
    assert offered(state, 3) == "tried_before"
    renewed = slots.vouched(state, OTHER)
    assert [offered(renewed, v) for v in (1, 2, 3)] == ["below_promoted", "tried_before", ""]
    assert slots.vouched(renewed, OTHER) == renewed


def test_release_refused_by_a_mistake_may_be_tried_again_where_the_owner_says_so() -> None:
    state = slots.found(slots.attempted(with_versions(1), 2), Finding(2, "slow", 9.0))
    assert offered(state, 2) == "tried_before"
    assert offered(state, 2, again=True) == ""
    assert offered(slots.promoted(state, 3), 2, again=True) == "below_promoted"
    assert offered(replace(state, pinned=True), 2, again=True) == "pinned"


def test_trying_again_takes_nothing_that_is_older_or_unknown() -> None:
    state = slots.gone_back(with_versions(1, 2, 4), Finding(4, "by_hand"))
    assert [offered(state, v, again=True) for v in (1, 2, 3, 4)] == ["tried_before"] * 3 + [""]
    found = slots.found(with_versions(1, 4), Finding(3, "worse"))
    assert offered(found, 3, again=True) == "tried_before"  # below the one in use


def test_another_federation_starts_anew_and_the_model_stays() -> None:
    state = slots.joined(slots.promoted(with_versions(1, 50), 50), "cd" * 8)
    assert (state.current, state.highest, state.floor) == (held(50), 0, 0)
    assert offered(state, 1) == ""


def test_damaged_model_gives_way_to_the_other_and_may_come_again() -> None:
    state = slots.without_damaged(with_versions(1, 2), {"a"})
    assert (state.current, state.lost) == (held(1), held(2))
    assert offered(state, 2) == ""
    other = replace(held(2), manifest="0" * 64)
    with pytest.raises(NotTakenError):
        slots.check_offer(state, 2, other.manifest)
    assert offered(slots.attempted(state, 3), 2) == ""
    assert slots.installed(state, held(2), Promise()).lost is None


def test_damage_to_both_leaves_none_and_to_the_spare_one_nothing_else() -> None:
    state = with_versions(1, 2)
    none = slots.without_damaged(state, set())
    assert (none.active, none.current, none.lost) == (None, None, held(2))
    spare = slots.without_damaged(state, {"b"})
    assert (spare.current, spare.a, spare.lost) == (held(2), None, None)


def test_findings_are_kept_within_bounds() -> None:
    state = Slots()
    for version in range(1, 40):
        state = slots.found(state, Finding(version, "worse"))
    assert [f.version for f in state.findings] == list(range(24, 40))


def full() -> Slots:
    watch = Watch(Promise(41.5, 0.875, 1.0), 1, 20, 19, 1, 2, 55.5, 30, 0.75)
    state = slots.found(with_versions(3, 4), Finding(5, "slow", 99.5, 50.25))
    return replace(slots.promoted(state, 3), watch=watch, lost=held(2), pinned=True)


@pytest.mark.parametrize("state", [Slots(), with_versions(1), with_versions(1, 2), full()])
def test_state_survives_its_file(state: Slots) -> None:
    assert _state_file.parse(_state_file.to_bytes(state)) == state
    assert len(_state_file.to_bytes(state)) < _state_file.MAX_STATE_BYTES


def _changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *steps, last = path.split(".")
    inner = raw
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("active", "c"),
        ("active", ["a"]),
        ("b", None),
        ("b.version", 0),
        ("b.version", True),
        ("b.model", "xyz"),
        ("highest", -1),
        ("highest", 1 << 60),
        ("highest", 1.0),
        ("floor", None),
        ("vouchers", "12"),
        ("federation", "12"),
        ("pinned", 1),
        ("trial", None),
        ("watch.starts", -1),
        ("watch.score", "0.5"),
        ("watch.promise", None),
        ("watch.promise.latency_us", True),
        ("watch.extra", 1),
        ("findings", {}),
        ("findings", [{}] * 17),
        ("findings", [{"version": 1, "code": "Not a code", "value": None, "limit": None}]),
        ("more", 1),
    ],
)
def test_state_that_no_device_writes_is_refused(path: str, value: Any) -> None:
    from dataclasses import asdict

    raw = _changed(asdict(full()) | {"schema": 1}, path, value)
    with pytest.raises(PayloadError):
        _state_file.parse(seal(raw))


def test_one_changed_byte_anywhere_is_seen() -> None:
    content = _state_file.to_bytes(full())
    for at in range(len(content)):
        with pytest.raises(PayloadError):
            _state_file.parse(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    for end in range(len(content)):
        with pytest.raises(PayloadError):
            _state_file.parse(content[:end])


@given(st.binary(max_size=200))
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(PayloadError):
        _state_file.parse(content)


def test_file_that_nests_without_end_is_refused() -> None:
    with pytest.raises(PayloadError):
        _state_file.parse(b'{"content":' + b"[" * 60_000)


def test_device_whose_state_is_gone_takes_the_highest_that_is_whole() -> None:
    state = slots.recovered({SLOTS[0]: held(4), SLOTS[1]: held(3)})
    assert (state.current, state.earlier, state.highest) == (held(4), held(3), 4)
    assert slots.recovered({}) == Slots()
