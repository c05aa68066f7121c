import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.data.roles import assign_roles
from fedge.errors import ConfigError, DataError

WATCH = [f"p{p:02d}-{side}" for p in range(1, 11) for side in ("left", "right")]


@given(st.integers(3, 60), st.randoms(use_true_random=False))
def test_by_default_the_first_fifth_is_the_servers_and_the_last_unseen(n, random):
    ids = [f"c{i}" for i in range(n)]
    shuffled = random.sample(ids, n)
    roles = assign_roles(shuffled)
    fifth = max(1, n // 5)
    assert roles.server == tuple(ids[:fifth])
    assert roles.unseen == tuple(ids[n - fifth :])
    assert roles.participants == tuple(ids[fifth : n - fifth])


def test_watch_keeps_whole_persons_on_each_side():
    roles = assign_roles(WATCH)
    assert {c[:3] for c in roles.server} == {"p01", "p02"}
    assert {c[:3] for c in roles.unseen} == {"p09", "p10"}
    assert {c[:3] for c in roles.participants} == {f"p{p:02d}" for p in range(3, 9)}


def test_explicit_ids_and_patterns_replace_the_defaults():
    roles = assign_roles(WATCH, ["p03-*"], ["p0[12]-left", "p10-right"])
    assert roles.server == ("p03-left", "p03-right")
    assert roles.unseen == ("p01-left", "p02-left", "p10-right")
    assert len(roles.participants) == 15


def test_a_default_fills_up_around_the_explicit_side():
    roles = assign_roles(WATCH, server_clients=["p10-*"])
    assert roles.unseen == ("p08-left", "p08-right", "p09-left", "p09-right")
    roles = assign_roles(WATCH, unseen_clients=["p01-*"])
    assert roles.server == ("p02-left", "p02-right", "p03-left", "p03-right")


def test_an_id_with_pattern_characters_is_an_id_first():
    assert assign_roles(["a[1]", "a1", "b", "c"], ["a[1]"]).server == ("a[1]",)


@given(st.integers(3, 30), st.data())
def test_everyone_has_one_role_at_most_and_only_take_leaves_someone_out(n, data):
    ids = [str(i) for i in range(n)]
    available = len(assign_roles(ids).participants)
    take = data.draw(st.none() | st.integers(1, available))
    roles = assign_roles(ids, take=take)
    everyone = [*roles.server, *roles.participants, *roles.unseen]
    assert len(set(everyone)) == len(everyone)
    assert len(everyone) == n - available + (take or available)
    assert roles.participants == assign_roles(ids).participants[:take]


def test_unlabelled_clients_have_no_other_role():
    plain = assign_roles(WATCH)
    roles = assign_roles(WATCH, unlabelled_clients=["p03-*", "p04-left"])
    assert roles.unlabelled == ("p03-left", "p03-right", "p04-left")
    assert (roles.server, roles.unseen) == (plain.server, plain.unseen)
    assert roles.participants == plain.participants[3:]
    assert plain.unlabelled == ()


def test_defaults_are_taken_around_the_unlabelled():
    roles = assign_roles(WATCH, unlabelled_clients=["p01-*", "p10-*"])
    assert {c[:3] for c in roles.server} == {"p02", "p03"}
    assert {c[:3] for c in roles.unseen} == {"p08", "p09"}


@given(st.integers(3, 30), st.data())
def test_everyone_has_exactly_one_role(n, data):
    ids = [str(i) for i in range(n)]
    unlabelled = data.draw(st.lists(st.sampled_from(ids), unique=True, max_size=n - 3))
    try:
        roles = assign_roles(ids, unlabelled_clients=unlabelled)
    except ConfigError:
        assert n - len(unlabelled) < 2 * max(1, n // 5) + 1
        return
    parts = [*roles.server, *roles.participants, *roles.unseen, *roles.unlabelled]
    assert sorted(parts) == sorted(ids)
    assert set(roles.unlabelled) == set(unlabelled)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"server_clients": ["p01-*"], "unlabelled_clients": ["p01-left"]},
         "'p01-left': in data.server_clients and in data.server_unlabelled"),
        ({"unseen_clients": ["p01-*"], "unlabelled_clients": ["p0*"]},
         "in data.unseen_clients and in data.server_unlabelled"),
        ({"unlabelled_clients": ["p99"]}, "data.server_unlabelled names 'p99'"),
        ({"unlabelled_clients": ["*"]}, "20 unlabelled, which leaves too few"),
        ({"unlabelled_clients": ["p0*"]}, "18 unlabelled, which leaves too few"),
    ],
)  # fmt: skip
def test_impossible_unlabelled_clients_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        assign_roles(WATCH, **settings)


@pytest.mark.parametrize(
    ("server", "unseen", "take", "words"),
    [
        (["p11-left"], [], None, "data.server_clients names 'p11-left'.*did you mean"),
        ([], ["q*"], None, r"data.unseen_clients names 'q\*'"),
        (["p01-*"], ["p01-left"], None, "'p01-left': in data.server_clients and in data.unseen"),
        (["*"], [], None, "leaves too few"),
        (["p0*"], ["p10-*"], None, "leaves too few"),
        ([], [], 13, "13 clients asked for, but 12 can"),
        ([], [], 0, "1 or more"),
    ],
)
def test_impossible_roles_are_refused_with_the_reason(server, unseen, take, words):
    with pytest.raises(ConfigError, match=words):
        assign_roles(WATCH, server, unseen, take)


def test_two_clients_are_too_few():
    with pytest.raises(DataError, match="3 or more"):
        assign_roles(["a", "b", "a"])
