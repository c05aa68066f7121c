"""Releases in the course of the rounds: published when due, offered to every client, verdicts collected."""

from dataclasses import replace
from typing import Any

from fedge.errors import FedgeError, UpdateError
from fedge.federated import frames
from fedge.federated.federation import Federation, Traffic, ask, available, refused, welcomed
from fedge.federated.frames import Offer, Verdict
from fedge.federated.publish import Published, publish_release
from fedge.federated.state import FederationState


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
    decisions = _offer(
        federation,
        published,
        welcomed(state, [c for c in available(federation) if c in state.clients]),
        number,
    )
    record["release"] = {
        "version": published.version,
        "path": published.path.relative_to(publisher.folder).as_posix(),
        "sha256": published.sha256,
        "model_bytes": published.model_bytes,
        "bytes": len(published.bundle),
        "decisions": decisions,
    }
    taken = sum(d["taken"] for d in decisions)
    federation.observer.event(
        "release",
        version=published.version,
        round=number,
        bytes=len(published.bundle),
        taken=taken,
        refused=len(decisions) - taken,
    )
    return replace(state, released=published.version)


def _offer(
    federation: Federation, published: Published, clients: list[str], number: int
) -> list[dict[str, Any]]:
    frame = frames.encode_task(Offer(published.bundle))
    decisions = []
    for client, answer in ask(federation, dict.fromkeys(clients, frame), Traffic()):
        try:
            if isinstance(answer, FedgeError):
                raise answer
            verdict = frames.decode_reply(answer)
            if not isinstance(verdict, Verdict):
                raise UpdateError("answered an offer with something else")
        except FedgeError as error:
            refused(federation, client, number, error)
            continue
        decisions.append(
            {
                "client": client,
                "taken": verdict.taken,
                "reason": verdict.code,
                "current": _number(verdict.current),
                "candidate": _number(verdict.candidate),
                "windows": verdict.windows,
            }
        )
    return sorted(decisions, key=lambda d: str(d["client"]))


def _number(value: float) -> float | None:
    return None if value != value else value
