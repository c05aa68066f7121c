import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedge.errors import DataError, FedgeError, PayloadError, RefusedError, UpdateError
from fedge.flower.messages import error_reply, frame_of, with_frame
from fedge.simulation.flower_internals import enter_run


@pytest.fixture
def task() -> Message:
    """A message as a ServerApp makes it."""
    enter_run(1)
    return Message(RecordDict(), 2, "train")


@pytest.mark.parametrize("frame", [b"", b"\0", bytes(range(256)) * 100])
def test_a_frame_comes_back_as_it_was(task: Message, frame: bytes) -> None:
    reply = Message(with_frame(frame), reply_to=task)
    assert frame_of(reply) == frame


def test_a_frame_is_the_only_thing_in_a_message() -> None:
    content = with_frame(b"frame")
    assert {k: dict(v) for k, v in content.items()} == {"fedge": {"frame": b"frame"}}


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"fedge": ConfigRecord()}),
        RecordDict({"fedge": ConfigRecord({"frame": "text"})}),
        RecordDict({"fedge": ConfigRecord({"frame": [b"list"]})}),
        RecordDict({"other": ConfigRecord({"frame": b"bytes"})}),
    ],
)
def test_a_message_without_a_frame_is_refused(task: Message, content: RecordDict) -> None:
    with pytest.raises(PayloadError, match="carries no frame"):
        frame_of(Message(content, reply_to=task))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UpdateError("cannot follow"), UpdateError),
        (PayloadError("a frame is truncated"), RefusedError),
        (DataError("windows are odd"), RefusedError),
    ],
)
def test_an_error_keeps_its_reason_and_says_who_must_be_welcomed_again(
    task: Message, error: FedgeError, kind: type[FedgeError]
) -> None:
    reply = error_reply(error, task)
    assert reply.has_error()
    with pytest.raises(kind, match=str(error)) as raised:
        frame_of(reply)
    assert type(raised.value) is kind


@pytest.mark.parametrize("reason", ["it broke", None])
def test_an_error_of_flowers_own_is_a_failure_and_no_refusal(task: Message, reason: str | None) -> None:
    with pytest.raises(FedgeError, match=reason or "error 5 without a reason") as raised:
        frame_of(Message(Error(5, reason), reply_to=task))
    assert type(raised.value) is FedgeError
