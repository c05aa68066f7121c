"""Releases in the course of the rounds: published when due, offered to every client, verdicts collected."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError, UpdateError
from fedge.federated import frames
from fedge.federated.consider import BROKEN
from fedge.federated.federation import Federation, Traffic, ask, available, refused, welcomed
from fedge.federated.frames import Offer, Verdict
from fedge.federated.publish import Publisher, publish_release
from fedge.federated.state import ClientRecord, FederationState


def release(
    state: FederationState, federation: Federation, number: int, record: dict[str, Any]
) -> FederationState:
    """Publish a release if one is due, and offer it to every client."""
    config, publisher = federation.config, federation.publisher
    due = number % config.release.every == 0 or number == config.rounds.rounds
    if publisher is None or not due:
        return state
    mean = {k: v for k, v in record["scores"].items() if k in ("clients", "unseen")}
    published = publish_release(
        config,
        publisher,
        federation.prepared,
        state.weights,
        state.released + 1,
        number,
        federation.task.metric,
        mean,
    )
    clients = welcomed(state, [c for c in available(federation) if c in state.clients])
    traffic = Traffic()
    verdicts = _offer(state, federation, publisher, clients, number, traffic)
    record["release"] = {
        "version": published.version,
        "path": _shown(published.path),
        "sha256": published.sha256,
        "model_bytes": published.model_bytes,
        "bytes": _per_client(traffic),
        "decisions": [_decision(c, v) for c, v in sorted(verdicts.items())],
    }
    taken = sum(v.taken for v in verdicts.values())
    federation.observer.event(
        "release",
        version=published.version,
        round=number,
        bytes=record["release"]["bytes"],
        taken=taken,
        refused=len(verdicts) - taken,
    )
    return replace(state, released=published.version, clients=_running(state.clients, verdicts))


def _offer(
    state: FederationState,
    federation: Federation,
    publisher: Publisher,
    clients: list[str],
    number: int,
    traffic: Traffic,
) -> dict[str, Verdict]:
    """Send everyone what leads from the release that it runs to the newest; what each made of it."""
    tasks, verdicts = {}, {}
    for client in clients:
        package = publisher.repository.package(state.clients[client].release or None)
        tasks[client] = frames.encode_task(Offer(package))
    for client, answer in ask(federation, tasks, traffic):
        try:
            if isinstance(answer, FedgeError):
                raise answer
            verdict = frames.decode_reply(answer)
            if not isinstance(verdict, Verdict):
                raise UpdateError("answered an offer with something else")
            verdicts[client] = verdict
        except FedgeError as error:
            refused(federation, client, number, error)
    return verdicts


def _running(clients: Mapping[str, ClientRecord], verdicts: Mapping[str, Verdict]) -> dict[str, ClientRecord]:
    """Which release each client runs, as far as it said. One that could not read its package gets all of the
    next one.
    """
    records = dict(clients)
    for client, verdict in verdicts.items():
        if verdict.taken:
            records[client] = replace(records[client], release=verdict.version)
        elif verdict.code == BROKEN:
            records[client] = replace(records[client], release=0)
    return records


def _per_client(traffic: Traffic) -> int:
    """Mean bytes of a package, in whole bytes."""
    return round(sum(traffic.down.values()) / len(traffic.down)) if traffic.down else 0


def _shown(path: Path) -> str:
    """Relative to the folder of the run."""
    return f"{path.parent.name}/{path.name}"


def _decision(client: str, verdict: Verdict) -> dict[str, Any]:
    return {
        "client": client,
        "taken": verdict.taken,
        "reason": verdict.code,
        "current": _number(verdict.current),
        "candidate": _number(verdict.candidate),
        "windows": verdict.windows,
    }


def _number(value: float) -> float | None:
    return None if value != value else value
