"""The ClientApp around the client's round: it wraps, and changes nothing."""

from collections.abc import Callable

import pytest
from federated.build import MemoryStore
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedge.federated.client import client_round
from fedge.federated.frames import Train, Welcome, encode_task
from fedge.federated.lineage import begin
from fedge.federated.prepare import Prepared
from fedge.flower.client_app import IDENTITY, ContextStore, make_client_app
from fedge.flower.messages import CANNOT_FOLLOW, REFUSED, frame_of, with_frame
from fedge.simulation.flower_internals import enter_run
from fedge.simulation.world import World


@pytest.fixture
def context() -> Context:
    return Context(1, 2, {"partition-id": 0}, RecordDict(), {})


@pytest.fixture
def app(small_world: World) -> ClientApp:
    enter_run(1)
    return make_client_app(lambda context: small_world.device(0, ContextStore(context)))


Ask = Callable[[str, bytes], Message]


@pytest.fixture
def ask(app: ClientApp, context: Context) -> Ask:
    return lambda kind, frame: app(Message(with_frame(frame), 2, kind), context)


def test_a_node_says_which_client_it_stands_for(app: ClientApp, context: Context) -> None:
    reply = app(Message(RecordDict(), 2, "query.who"), context)
    assert dict(reply.content["fedge"]) == {IDENTITY: "1"}


def test_the_app_answers_what_the_round_answers_and_keeps_what_it_keeps(
    ask: Ask, context: Context, small_world: World, small_prepared: Prepared
) -> None:
    store = MemoryStore()
    bare = small_world.device(0, store)
    name = begin(small_prepared.snapshot)
    for task in (
        Welcome(b"challenge", small_prepared.plan.to_dict(), small_prepared.snapshot),
        Train(1, 0, 0, name, (), 0.05),
        Train(2, 1, 1, name, (), 0.05),
    ):
        frame = encode_task(task)
        assert frame_of(ask("train", frame)) == client_round(frame, bare)
        assert ContextStore(context).load() == store.content


def test_an_error_of_the_round_becomes_an_error_reply_with_its_code(ask: Ask) -> None:
    unknown = ask("train", encode_task(Train(1, 0, 0, b"8 bytes!", (), 0.1)))
    assert (unknown.error.code, unknown.has_content()) == (CANNOT_FOLLOW, False)
    garbage = ask("train", b"garbage")
    assert garbage.error.code == REFUSED
    assert "unknown kind of task" in (garbage.error.reason or "")


def test_a_message_without_a_frame_is_refused_and_not_raised(app: ClientApp, context: Context) -> None:
    """Whatever else a server sends to ``train``, such as stock Flower's arrays and configuration."""
    reply = app(Message(RecordDict({"config": ConfigRecord({"lr": 0.1})}), 2, "train"), context)
    assert reply.error.code == REFUSED


def test_an_error_that_is_not_fedges_own_is_not_swallowed(context: Context) -> None:
    def broken(_context: Context) -> None:
        raise ZeroDivisionError("a bug")

    enter_run(1)
    with pytest.raises(ZeroDivisionError):
        make_client_app(broken)(Message(with_frame(b""), 2, "train"), context)  # type: ignore[arg-type]


@pytest.mark.parametrize("odd", [ConfigRecord({"state": "text"}), ConfigRecord({"other": b"x"})])
def test_a_context_that_holds_something_else_is_as_if_empty(context: Context, odd: ConfigRecord) -> None:
    store = ContextStore(context)
    assert store.load() is None
    context.state["fedge"] = odd
    assert store.load() is None
    store.save(b"state")
    assert store.load() == b"state"
