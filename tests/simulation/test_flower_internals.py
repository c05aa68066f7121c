"""What the simulation takes from inside Flower is still there; if not, the failure names the version."""

from importlib.metadata import version

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedge.simulation.flower_internals import SERVER_NODE, enter_run, give_id

BROKE = f"Flower {version('flwr')} broke fedge/simulation/flower_internals.py: "


def test_the_names_that_are_used_still_exist() -> None:
    try:
        from flwr.supercore.run import Run
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError as error:
        pytest.fail(f"{BROKE}{error}")
    for owner, names in ((TaskIdentity, ("task_id", "run_id", "node_id")), (Run, ("create_empty",))):
        for name in names:
            there = name in vars(owner) or name in vars(
                type(owner)
            )  # not asked for: some raise until they are set
            assert there, f"{BROKE}{owner.__name__} has no {name}"


def test_a_message_made_after_entering_a_run_belongs_to_it() -> None:
    run = enter_run(7)
    message = Message(RecordDict({"a": ConfigRecord({"b": 1})}), 5, "train")
    assert run.run_id == 7, BROKE
    assert message.metadata.run_id == 7, BROKE
    assert message.metadata.src_node_id == SERVER_NODE, BROKE
    enter_run(1)


def test_a_message_takes_the_id_that_it_is_given_and_its_reply_refers_to_it() -> None:
    enter_run(1)
    message = Message(RecordDict(), 5, "train")
    assert "_message_id" in message.metadata.__dict__, f"{BROKE}metadata has no _message_id"
    give_id(message, "mine")
    assert message.metadata.message_id == "mine", BROKE
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "mine", BROKE
