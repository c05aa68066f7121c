"""Flower's ``ClientApp`` around the client's round."""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedge.errors import FedgeError
from fedge.federated.client import Device, client_round
from fedge.flower.messages import error_reply, frame_of, with_frame

IDENTITY = "id"
"""Key of the answer to "who are you?": which client a node stands for. Signatures prove it later."""


class ContextStore:
    """A client's state in the context that Flower keeps for its node."""

    def __init__(self, context: Context) -> None:
        """Keep it in ``context``."""
        self._context = context

    def load(self) -> bytes | None:
        """What was saved last."""
        record = self._context.state.get("fedge")
        content = record.get("state") if isinstance(record, ConfigRecord) else None
        return content if isinstance(content, bytes) else None

    def save(self, content: bytes) -> None:
        """Replace it."""
        self._context.state["fedge"] = ConfigRecord({"state": content})


def make_client_app(device_of: Callable[[Context], Device]) -> ClientApp:
    """A ClientApp that answers frames for the device that ``device_of`` finds for a node."""
    app = ClientApp()

    @app.query("who")
    def who(message: Message, context: Context) -> Message:
        identity = ConfigRecord({IDENTITY: device_of(context).id})
        return Message(RecordDict({"fedge": identity}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        try:
            answer = client_round(frame_of(message), device_of(context))
        except FedgeError as error:
            return error_reply(error, message)
        return Message(with_frame(answer), reply_to=message)

    return app
