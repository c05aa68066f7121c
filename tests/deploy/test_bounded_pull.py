"""Replies are taken one by one, and no sooner than all of them is there."""

from collections.abc import Collection
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, Metadata
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.superlink.grid import HttpGrid

from fedge.deploy.flower_internals.replies import BoundedPull
from fedge.flower.messages import frame_of, with_frame


@dataclass
class Flower:
    """What a SuperLink says of one reply, whose parts come in one by one. ``parts``: root first."""

    reply: Message
    there: set[str] = field(default_factory=set)
    looked: list[str] = field(default_factory=list)
    confirmed: bool = False

    def __post_init__(self) -> None:
        with no_object_id_recompute():
            self.reply.metadata.__dict__["_message_id"] = self.reply.object_id
            self.objects = {i: o.deflate() for i, o in get_all_nested_objects(self.reply).items()}
            self.tree = get_object_tree(self.reply)
            self.proto = message_to_proto(remove_content_from_message(self.reply))
        content = self.tree.children[0]
        self.parts = [self.tree.object_id, content.object_id, content.children[0].object_id]

    def PullMessages(self, _request: Any) -> Any:  # noqa: N802  (as Flower has it)
        return SimpleNamespace(messages_list=[self.proto], message_object_trees=[self.tree])

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        self.looked.append(request.object_id)
        available = request.object_id in self.there
        content = self.objects[request.object_id] if available else b""
        return SimpleNamespace(object_available=available, object_content=content)

    def ConfirmMessageReceived(self, _request: Any) -> None:  # noqa: N802
        self.confirmed = True

    def pull(self, whole: Collection[str] = ()) -> BoundedPull:
        grid = HttpGrid(token="t")  # noqa: S106
        grid._client = self  # type: ignore[assignment]
        return BoundedPull(grid, 1000, lambda message: message in whole)


@pytest.fixture
def flower() -> Flower:
    about = Metadata(1, "", 7, 1, "asked", "", 1e9, 1e9, "train")
    return Flower(make_message(about, content=with_frame(b"answer")))


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_reply_is_not_taken_while_its_node_still_sends(flower: Flower, last: int) -> None:
    """Flower forgets a reply that was taken, and refuses the node what it sends of it then."""
    pull = flower.pull()
    flower.there = set(flower.parts) - {flower.parts[last]}
    assert list(pull(["asked"])) == []
    assert not flower.confirmed
    flower.there = set(flower.parts)
    [reply] = pull(["asked"])
    assert frame_of(reply) == b"answer"
    assert flower.confirmed


def test_of_a_reply_that_was_announced_only_its_content_is_looked_for(flower: Flower) -> None:
    flower.there = set(flower.parts)
    [reply] = flower.pull(["asked"])(["asked"])
    assert frame_of(reply) == b"answer"
    assert flower.looked == [flower.parts[2]]
