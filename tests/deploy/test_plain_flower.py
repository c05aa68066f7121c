"""Positive control: what the attacks of ``test_attacks`` do to Flower as it comes (1.41)."""

import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from flwr.app import Message, Metadata
from flwr.app.message.message import make_message
from flwr.serverapp import Grid

from deploy import live_federation as live
from deploy.plain_flower import ATTACKS, CONTENT, HONEST, NODES, TIMEOUT, full, play, reply
from deploy.plain_nodes import Node, lines, superlink, write_app
from fedge.deploy.flower_internals.nodes import Nodes
from fedge.deploy.flower_internals.runs import Runs
from fedge.simulation.flower_internals import own_run

OUTCOMES = {
    "garbage": "failed",
    "wrong-keys": "failed",
    "wrong-shape": "failed",
    "wrong-dtype": "failed",
    "nan": "poisoned",
    "infinity": "poisoned",
    "huge-norm": "taken over",
    "negative-weight": "failed",
    "huge-weight": "taken over",
    "stale": "moved",
}
BODY = 256 << 20
"""Bytes of an upload by nobody."""


class OneBadNode(Grid):
    """Two nodes that answer honestly and a third that does not, without a network."""

    def __init__(self, attack: str) -> None:
        self._bad = CONTENT[attack]

    def get_node_ids(self) -> Iterable[int]:
        return range(1, NODES + 1)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        del timeout
        return [self._answer(m.metadata) for m in messages]

    def _answer(self, asked: Metadata) -> Message:
        node = asked.dst_node_id
        about = Metadata(asked.run_id, "", node, 1, "asked", "", time.time(), 60.0, asked.message_type)
        return make_message(about, content=self._bad() if node == NODES else reply(full(HONEST)))

    def _never(self, *_: object, **__: object) -> None:
        raise NotImplementedError

    set_run = run = create_message = get_nodes = push_messages = pull_messages = _never  # type: ignore[assignment]


@pytest.mark.parametrize(("attack", "outcome"), OUTCOMES.items())
def test_one_bad_answer_fails_or_spoils_a_round_of_fedavg(attack: str, outcome: str) -> None:
    with own_run(1):
        played = play(OneBadNode(attack), attack)
    assert played.outcome == outcome, played


def test_without_an_attack_fedavg_gives_the_mean_of_the_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would say nothing."""
    monkeypatch.setitem(CONTENT, "none", lambda: reply(full(HONEST)))
    with own_run(1):
        played = play(OneBadNode("none"), "none")
    assert played.outcome == "stood", played


def _flood(port: int, size: int) -> None:
    """An upload, without a key or a signature."""
    head = "POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
    head += f"content-length: {size}\r\n\r\n"
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as plug:
        plug.sendall(head.encode())
        for _ in range(size >> 20):
            plug.sendall(bytes(1 << 20))
        plug.recv(100)


@pytest.mark.full
def test_a_plain_deployment_falls_to_nearly_every_attack(tmp_path: Path, wide: bool) -> None:
    """SuperLink, SuperExec and ServerApp as they come; the nodes are threads of this process.

    The ServerApp catches what ends a round, to go on with the next attack; a user's would have died of it.
    """
    if not wide:
        pytest.skip("the test above does the same to FedAvg without processes")
    port, out = live.free_port(), tmp_path / "out.jsonl"
    app = write_app(tmp_path / "app")
    with ExitStack() as stack:
        link = stack.enter_context(superlink(tmp_path, port))
        flower, runs = Nodes(f"127.0.0.1:{port}"), Runs(f"127.0.0.1:{port}")
        stack.callback(flower.close)
        stack.callback(runs.close)
        run_config = {"out": str(out), "attacks": " ".join(ATTACKS)}
        live.until(lambda: _started(runs, app, run_config))
        nodes = [Node(flower, port), Node(flower, port)]
        nodes.append(Node(flower, port, lambda: nodes[0].id))
        for node in nodes:
            stack.callback(node.close)
        live.until(lambda: _begun(out) == ATTACKS[-1], 240)
        time.sleep(4 * TIMEOUT)
        noted = [line for line in lines(out) if "outcome" in line]
        before = live.memory(link.pid)
        _flood(port, BODY)
        grown = live.memory(link.pid, "VmHWM") - before
    for line in noted:
        print(line)  # noqa: T201
    print({"oversized-body": f"{grown / 1e6:.0f} MB in the SuperLink"})  # noqa: T201
    outcomes = {line["attack"]: line["outcome"] for line in noted}
    assert {name: outcomes[name] for name in OUTCOMES} == OUTCOMES
    assert outcomes["garbage-object"] == "failed"
    by_name = {line["attack"]: line for line in noted}
    assert len(by_name["forged-sender"]["senders"]) == NODES
    assert len(set(by_name["forged-sender"]["senders"])) == NODES - 1  # believed
    assert by_name["repeated-chunk"]["memory"] - by_name["forged-sender"]["memory"] > 150e6
    assert "withheld-chunk" not in by_name  # the round goes on, four deadlines later
    assert grown > 0.8 * BODY


def _started(runs: Runs, app: Path, run_config: dict[str, str]) -> bool:
    try:
        runs.start(app, run_config)
    except ConnectionError:
        return False
    return True


def _begun(out: Path) -> str:
    """The attack that is being played."""
    return next((str(line["begins"]) for line in reversed(lines(out)) if "begins" in line), "")
