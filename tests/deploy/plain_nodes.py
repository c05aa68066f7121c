"""A plain SuperLink in processes of its own, and nodes in threads that speak Flower's calls to it."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from deploy import live_federation as live
from deploy.plain_flower import ATTACKS, CONTENT, HONEST, OWN, WIRE, bomb, full, reply
from fedge.deploy.flower_internals.keys import NodeKey
from fedge.deploy.flower_internals.nodes import Nodes

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "plain-flower"
version = "1.0.0"
description = "FedAvg under attack."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedge"
fab-include = ["plain_server.py", "plain_client.py"]

[tool.flwr.app.components]
serverapp = "plain_server:app"
clientapp = "plain_client:app"

[tool.flwr.app.config]
out = ""
attacks = ""
"""


def write_app(folder: Path) -> Path:
    """The Flower app; nobody runs its ClientApp."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(_PYPROJECT)
    (folder / "plain_server.py").write_text("from deploy.plain_flower import app as app\n")
    (folder / "plain_client.py").write_text("from flwr.clientapp import ClientApp\n\napp = ClientApp()\n")
    return folder


def superlink(folder: Path, port: int) -> live.Process:
    """``flower-superlink`` as it comes, without TLS, telemetry and installs at run time."""
    programs = Path(sys.executable).parent
    line = [str(programs / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "FLWR_HOME": str(folder / "flwr")}
    env |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return live.Process([*line, "--disable-runtime-dependency-installation"], folder / "log", env)


class Garbage(ConfigRecord):
    """An object of a few bytes that says it is a record, and is none."""

    def deflate(self) -> bytes:
        return add_header_to_object_body(b"\xff\xff\xff", ConfigRecord())


class Node:
    """A node of the federation; the ``n``-th task that it gets is that of the ``n``-th attack."""

    def __init__(self, flower: Nodes, port: int, forge: Callable[[], int] | None = None) -> None:
        """Join; ``forge`` makes it the attacker, and gives the id of the node that it may claim to be."""
        self._key, self._forge, self._done = NodeKey(), forge, 0
        self.id = flower.join(self._key)
        address = f"http://127.0.0.1:{port}"
        self._fleet = FleetHttpClient(address, interceptors=[self], verify=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._fleet.close()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self._key.headers())
        return call_next(context)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for message in self._fleet.PullMessages(PullMessagesRequest(node=self._me())).messages_list:
                self._answer(message_from_proto(message).metadata)

    def _me(self) -> NodeProto:
        return NodeProto(node_id=self.id)

    def _answer(self, asked: Metadata) -> None:
        attack = ATTACKS[self._done] if self._forge and self._done < len(ATTACKS) else ""
        self._done += 1
        source = self._forge() if self._forge is not None and attack == "forged-sender" else self.id
        about = Metadata(
            asked.run_id, "", source, asked.src_node_id, asked.message_id, asked.group_id, time.time(), 60.0,
            asked.message_type,
        )  # fmt: skip
        self._push(make_message(about, content=_content(attack)), withheld=attack == "withheld-chunk")

    def _push(self, message: Message, *, withheld: bool) -> None:
        """Forged is only what is inside: the SuperLink looks at what is outside, the ServerApp does not."""
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            objects = {name: made.deflate() for name, made in get_all_nested_objects(message).items()}
            outside = message_to_proto(remove_content_from_message(message))
            outside.metadata.src_node_id = self.id
            request = PushMessagesRequest(
                node=self._me(),
                messages_list=[outside],
                message_object_trees=[get_object_tree(message)],
                clientapp_runtime_list=[0.0],
            )
        response = self._fleet.PushMessages(request)
        for wanted in response.objects_to_push:
            if withheld and b"ArrayChunk" in objects[wanted][:20]:
                continue
            self._fleet.PushObject(
                PushObjectRequest(
                    node=self._me(),
                    run_id=message.metadata.run_id,
                    session_id=response.session_id,
                    object_id=wanted,
                    object_content=objects[wanted],
                )
            )


def _content(attack: str) -> RecordDict:
    if attack == "garbage-object":
        return RecordDict({**reply(full(HONEST)), "fedge": Garbage()})
    if attack == "repeated-chunk":
        return bomb()
    if attack in WIRE:
        return reply(full(OWN))
    return CONTENT.get(attack, lambda: reply(full(HONEST)))()


def lines(path: Path) -> list[dict[str, Any]]:
    """What the ServerApp has noted so far."""
    text = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]
