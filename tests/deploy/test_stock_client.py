"""The app that a stock SuperNode runs: what is wrong on the device is told, not thrown."""

from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig

from deploy.provisioned import make_federation
from fedge.deploy.stock_client import app
from fedge.flower.messages import REFUSED, with_frame
from fedge.simulation.flower_internals import enter_run, give_id


def _reply(config: UserConfig) -> Message:
    enter_run(1)
    message = Message(with_frame(b"no task at all"), 2, "train")
    give_id(message, "m")
    return app(message, Context(1, 2, config, RecordDict(), {}))


@pytest.mark.parametrize(
    ("missing", "said"), [("bundle", "'bundle'"), ("data", "'data'"), ("state", "'state'"), (None, "")]
)
def test_a_node_that_is_set_up_wrongly_says_so(tmp_path: Path, missing: str | None, said: str) -> None:
    make_federation(tmp_path / "f", "n")
    config: UserConfig = {
        "bundle": str(tmp_path / "f/devices/n"),
        "data": str(tmp_path / "none.npz"),
        "state": str(tmp_path / "state"),
    }
    reply = _reply({k: v for k, v in config.items() if k != missing})
    assert reply.has_error()
    assert reply.error.code == REFUSED
    assert reply.error.reason is not None
    assert said in reply.error.reason
    assert "Traceback" not in reply.error.reason
