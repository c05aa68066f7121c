"""The ``ClientApp`` of a stock ``flower-supernode``: the round of ``fedge client``, a process per message.

The device has fedge installed, and its node config says where things are, for only the device knows that:

    flower-supernode --node-config "bundle='/etc/fedge/bundle' data='/srv/x.npz' state='/var/lib/fedge'" ...
"""

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedge.config import Release
from fedge.deploy.device_work import HOME, DataSource, Round
from fedge.deploy.federation import Enrolment
from fedge.errors import ConfigError, FedgeError
from fedge.federated.file_store import FileStore
from fedge.flower.messages import error_reply, frame_of, with_frame

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one task."""
    try:
        return Message(with_frame(_answer(frame_of(message), context.node_config)), reply_to=message)
    except FedgeError as error:
        return error_reply(error, message)


def _answer(frame: bytes, node_config: Mapping[str, object]) -> bytes:
    bundle, data, state = (_path(node_config, key) for key in ("bundle", "data", "state"))
    enrolment = Enrolment.load(bundle)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileStore(state / "client.state") as store:
        margin = node_config.get("release-margin", Release.margin)
        if not isinstance(margin, (int, float)) or isinstance(margin, bool):
            raise ConfigError("the node config's 'release-margin' is no number")
        key, home = enrolment.signing_key(), state / HOME
        return Round(enrolment, key, DataSource(data), store, home, float(margin))(frame)


def _path(node_config: Mapping[str, object], key: str) -> Path:
    value = node_config.get(key)
    if not isinstance(value, str):
        raise ConfigError(f"the node config does not say {key!r}: --node-config \"{key}='/path'\"")
    return Path(value)
