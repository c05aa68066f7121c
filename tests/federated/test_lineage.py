"""The names of weights: who took the same steps from the same snapshot has the same name, and nobody else."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from fedge.federated.frames import HASH_BYTES, Step, StepKind
from fedge.federated.lineage import begin, follow

_PAYLOAD = st.binary(max_size=40)
_OTHER = st.builds(Step, st.sampled_from([k for k in StepKind if k is not StepKind.SNAPSHOT]), _PAYLOAD)
_STEP = st.builds(Step, st.sampled_from(StepKind), _PAYLOAD)
_STEPS = st.lists(_STEP, max_size=6)


def _naive(snapshot: bytes, steps: list[Step]) -> bytes:
    """The chain written out from its description: only what follows the last snapshot is in it."""
    name = hashlib.blake2b(b"snapshot" + snapshot, digest_size=8, person=b"fedge lineage").digest()
    for step in steps:
        said = b"snapshot" if step.kind == 3 else name + step.kind.value.to_bytes(1, "little")
        name = hashlib.blake2b(said + step.payload, digest_size=8, person=b"fedge lineage").digest()
    return name


@given(_PAYLOAD, _STEPS)
def test_a_name_is_the_chain_of_hashes_that_is_described(snapshot: bytes, steps: list[Step]) -> None:
    assert follow(begin(snapshot), steps) == _naive(snapshot, steps)
    assert len(follow(begin(snapshot), steps)) == HASH_BYTES


def test_names_do_not_change_between_versions_of_the_code() -> None:
    """Clients keep them on disk, and their server may be newer than they are."""
    steps = [Step(StepKind.UPDATE, b"one"), Step(StepKind.CHANGE, b"two")]
    assert begin(b"student").hex() == "eac48849e7067cac"
    assert follow(begin(b"student"), steps).hex() == "822b62cdccfe35ca"


@given(_PAYLOAD, _STEPS, _STEPS)
def test_it_does_not_matter_in_how_many_rounds_the_steps_came(
    snapshot: bytes, first: list[Step], then: list[Step]
) -> None:
    name = begin(snapshot)
    assert follow(name, []) == name
    assert follow(follow(name, first), then) == follow(name, first + then)


@given(_PAYLOAD, _STEPS, _PAYLOAD, st.lists(_OTHER, max_size=4))
def test_a_snapshot_begins_anew_whatever_came_before(
    first: bytes, before: list[Step], snapshot: bytes, after: list[Step]
) -> None:
    whole = follow(begin(first), [*before, Step(StepKind.SNAPSHOT, snapshot), *after])
    assert whole == follow(begin(snapshot), after)


@given(_PAYLOAD, _PAYLOAD, st.lists(_OTHER, max_size=5))
def test_two_lineages_never_meet_on_the_same_steps(one: bytes, other: bytes, steps: list[Step]) -> None:
    """Only a snapshot for both brings them together: a step is added to what each one holds."""
    pair = begin(one), begin(other)
    for step in steps:
        assert (pair[0] == pair[1]) == (one == other)
        pair = follow(pair[0], [step]), follow(pair[1], [step])
    assert (pair[0] == pair[1]) == (one == other)
    snapshot = [Step(StepKind.SNAPSHOT, b"the same")]
    assert follow(pair[0], snapshot) == follow(pair[1], snapshot)


@given(_PAYLOAD, st.lists(_OTHER, min_size=1, max_size=5), st.data())
def test_one_step_more_less_changed_or_moved_is_another_name(
    snapshot: bytes, steps: list[Step], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(steps) - 1))
    step = steps[at]
    kinds = {StepKind.UPDATE: StepKind.CHANGE, StepKind.CHANGE: StepKind.UPDATE}
    turned = list(reversed(steps))
    others = [
        steps[:at] + steps[at + 1 :],
        [*steps, step],
        [*steps[:at], Step(step.kind, step.payload + b"\0"), *steps[at + 1 :]],
        [*steps[:at], Step(kinds[step.kind], step.payload), *steps[at + 1 :]],
        [*steps[:at], Step(StepKind.SNAPSHOT, step.payload), *steps[at + 1 :]],
        *([turned] if turned != steps else []),
    ]
    assert follow(begin(snapshot), steps) not in {follow(begin(snapshot), o) for o in others}


def test_where_one_payload_ends_and_the_next_begins_is_part_of_the_name() -> None:
    def name(*payloads: bytes) -> bytes:
        return follow(begin(b"s"), [Step(StepKind.UPDATE, p) for p in payloads])

    assert (
        len({name(b"ab", b"c"), name(b"a", b"bc"), name(b"abc"), name(b"abc", b""), name(b"", b"abc")}) == 5
    )
    kind = bytes([StepKind.UPDATE])
    assert begin(kind + b"x") != follow(begin(b""), [Step(StepKind.UPDATE, b"x")])
