"""Releases in the course of the rounds: published when due, offered to every client, verdicts collected."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fedge.errors import FedgeError, UpdateError
from fedge.federated import frames
from fedge.federated.consider import BROKEN, WANTS_PROMOTED
from fedge.federated.federation import Federation, Traffic, ask, available, refused, welcomed
from fedge.federated.frames import Offer, Verdict
from fedge.federated.publish import publish_release
from fedge.federated.state import ClientRecord, FederationState
from fedge.release.manifest import Manifest
from fedge.release.pointer import folder_name


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
    traffic = Traffic()
    verdicts = offer(state, federation, publisher.repository.package, number, traffic)
    record["release"] = {
        "version": published.version,
        "path": _shown(published.path),
        "sha256": published.sha256,
        "model_bytes": published.model_bytes,
        **_offered(verdicts, traffic),
    }
    tell(federation, published.version, number, verdicts, traffic)
    return replace(state, released=published.version, clients=running(state.clients, verdicts))


def tell(
    federation: Federation, version: int, number: int, verdicts: Mapping[str, Verdict], traffic: Traffic
) -> None:
    """Tell the operator what became of a release after round ``number``."""
    taken = sum(v.taken for v in verdicts.values())
    refused = len(verdicts) - taken
    federation.observer.event(
        "release", version=version, round=number, bytes=_per_client(traffic), taken=taken, refused=refused
    )


class Packages(Protocol):
    """Gives what leads from a release (or none) to the newest, or to the promoted one."""

    def __call__(self, held: int | None, *, promoted: bool = False) -> bytes:
        """The package (``fedge.release.shelf``)."""


def offer(
    state: FederationState, federation: Federation, package: Packages, number: int, traffic: Traffic
) -> dict[str, Verdict]:
    """Send everyone what leads from the release that it runs to the newest; what each made of it.

    Who takes promoted releases only says so, and is sent what leads to the promoted one.
    """
    there = welcomed(state, [c for c in available(federation) if c in state.clients])
    verdicts = _ask(there, state, federation, package, number, traffic)
    careful = [c for c, v in verdicts.items() if v.code == WANTS_PROMOTED]
    return verdicts | _ask(careful, state, federation, partial(package, promoted=True), number, traffic)


def _ask(
    clients: list[str],
    state: FederationState,
    federation: Federation,
    package: Callable[[int | None], bytes],
    number: int,
    traffic: Traffic,
) -> dict[str, Verdict]:
    tasks, verdicts = {}, {}
    for client in clients:
        tasks[client] = frames.encode_task(Offer(package(state.clients[client].release or None)))
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


def running(clients: Mapping[str, ClientRecord], verdicts: Mapping[str, Verdict]) -> dict[str, ClientRecord]:
    """Which release each client runs, as far as it said. One that could not read its package gets all of the
    next one.
    """
    records = dict(clients)
    for client, verdict in verdicts.items():
        if verdict.taken:
            records[client] = replace(records[client], release=verdict.version)
        elif verdict.code in (BROKEN, WANTS_PROMOTED):
            records[client] = replace(records[client], release=0)
    return records


def _per_client(traffic: Traffic) -> int:
    """Mean bytes of a package, in whole bytes."""
    return round(sum(traffic.down.values()) / len(traffic.down)) if traffic.down else 0


def _shown(path: Path) -> str:
    """Relative to the folder of the run."""
    return f"{path.parent.name}/{path.name}"


def noted_release(release: Manifest, verdicts: Mapping[str, Verdict], traffic: Traffic) -> dict[str, Any]:
    """What the record of an edge server, which passes a release on, says of it."""
    return {
        "version": release.version,
        "path": f"releases/{folder_name(release.version)}",
        "sha256": release.model.sha256,
        "model_bytes": release.model.size,
        **_offered(verdicts, traffic),
        "down": dict(sorted(traffic.down.items())),
    }


def _offered(verdicts: Mapping[str, Verdict], traffic: Traffic) -> dict[str, Any]:
    decisions = [_decision(client, verdict) for client, verdict in sorted(verdicts.items())]
    return {"bytes": _per_client(traffic), "decisions": decisions}


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
