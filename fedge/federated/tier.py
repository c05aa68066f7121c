"""An edge server's round: to the server above it a client, to its own clients a server.

    decode the task -> settle what became of the last answer -> take the new global weights
    -> one task for each of its own clients -> check and add up the answers as they come
    -> encode the mean -> sign -> commit to the journal -> answer

The weights are the parent's, bit for bit, and its steps are handed on as they came, so one federation has one
plan, one name and one line of weights, whatever the number of tiers; only the sum of the updates goes up
(hierarchical federated averaging: Liu et al. 2020, "Client-edge-cloud hierarchical federated learning", with
one edge round for each round of the cloud). Both hops are compressed with error feedback, and signed.

What the parent did not count is not lost either: it is added to the next answer as a late update would be.
A round that the parent asks for again, in whatever words, gets the update that it got before.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fedge import plugins
from fedge.errors import PayloadError, RefusedError, UpdateError
from fedge.federated import frames
from fedge.federated.asking import ask_once, deliver
from fedge.federated.checks import MOST_WINDOWS
from fedge.federated.client import HELLO, UPDATE, encode_change, lead_on, settle, signed_parts
from fedge.federated.client_state import ClientState, Pending
from fedge.federated.coding import build_codec
from fedge.federated.consider import BROKEN
from fedge.federated.federation import Federation, Traffic, available
from fedge.federated.frames import Hello, Offer, Step, StepKind, Train, Trained, Verdict, Welcome
from fedge.federated.journal import Journal
from fedge.federated.lineage import begin
from fedge.federated.offer import noted_release, offer, running, tell
from fedge.federated.outcome import Outcome, summary
from fedge.federated.plan import Plan
from fedge.federated.prepare import Prepared
from fedge.federated.state import Candidate, ClientRecord, FederationState
from fedge.federated.strategy import (
    choose,
    eligible,
    enrolled,
    marked,
    needed,
    noted,
    recent,
    settled_late,
    snapshot_bytes,
)
from fedge.federated.tier_state import EdgeState
from fedge.federated.tier_sums import judged, mean, owed, together, with_owed
from fedge.release.mirror import Mirror
from fedge.signing import SigningKey
from fedge.tasks import Task
from fedge.update import Update

Members = Callable[[Prepared, Task], Federation]
"""Gives an edge server's federation of its own clients, once it is known what is learned."""


class EdgeServer:
    """Answers the parent's tasks, one after the other."""

    def __init__(
        self, name: str, key: SigningKey, journal: Journal, members: Members, mirror: Mirror | None
    ) -> None:
        """Go on from what ``journal`` holds.

        Args:
            name: that it is enrolled under with its parent.
            key: proves that an answer is its own.
            journal: of its own rounds; its state is in it too.
            members: its federation. Rates and re-distillation in its settings are the parent's affair, and
                are not looked at.
            mirror: keeps the parent's releases for its clients; ``None``: it passes none on.

        Raises:
            SetupError: the journal cannot be read or is damaged.
        """
        self._name, self._key, self._journal = name, key, journal
        self._members, self._mirror = members, mirror
        try:
            saved = journal.state()
            self._state = None if saved is None else EdgeState.from_bytes(saved)
        except PayloadError as error:
            raise journal.damaged(error) from None

    def __call__(self, frame: bytes) -> bytes:
        """Answer one task of the parent.

        Raises:
            PayloadError: the task, or something in it, is not what it claims to be.
            UpdateError: it does not fit what this server holds; it must be welcomed again.
            SetupError: the journal cannot be written.
        """
        task = frames.decode_task(frame)
        if isinstance(task, Welcome):
            return frames.encode_reply(self._welcome(task))
        if (state := self._state) is None:
            raise UpdateError("this edge server holds no state: it must be welcomed first")
        digest = digest_of(frame)
        if isinstance(task, Offer):
            return self._pass_on(task, digest, state)
        pending = state.above.pending
        if pending is not None and pending.task == digest:
            return pending.reply
        if pending is not None and task.learning_rate > 0 and _same_round(task, pending, state.above):
            return self._once_more(task, pending, state.above)
        return self._round(task, digest, state)

    def _welcome(self, task: Welcome) -> Hello:
        """Take plan and student; welcome its own clients anew, if the weights that they hold may be others.

        What an earlier answer was worth is not known after that: nothing of it is owed any more.
        """
        plan, before = Plan.from_dict(task.plan), self._state
        prepared = Prepared.received(plan, task.snapshot)
        residual = build_codec(plan.uplink).init(prepared.support.shapes())
        above = ClientState(plan, prepared.support, prepared.weights, 0, begin(task.snapshot), residual)
        below, rounds = FederationState(0, prepared.weights, {}), 0
        if before is not None:
            rounds = before.rounds
            if before.snapshot == task.snapshot and before.above.plan.to_dict() == plan.to_dict():
                if before.above.version == 0:  # the parent died in the first round
                    above, below = replace(before.above, memory={}), before.below
                else:
                    below = replace(below, clients=_strangers(before.below.clients))
        self._save(EdgeState(above, below, task.snapshot, rounds))
        signature = self._key.sign(HELLO, plan.federation.encode(), self._name.encode(), task.challenge)
        return Hello(self._key.public, signature)

    def _round(self, task: Train, digest: bytes, state: EdgeState) -> bytes:
        """Ask the own clients. Nothing is pending after a round without an update: it may be run again."""
        if task.round != task.version + 1:
            raise PayloadError(f"round {task.round} is not the one after version {task.version}")
        if task.version < state.above.version:
            raise UpdateError(f"version {task.version} is older than {state.above.version}, which is held")
        began, traffic = time.perf_counter(), Traffic()
        above = lead_on(task, settle(task, state.above) if task.learning_rate > 0 else state.above)
        federation = self._federation(task, above.plan, state.snapshot)
        below = led(state.below, task, above, federation)
        if not task.learning_rate > 0:
            below, initial, outcome = deliver(below, federation, traffic), Traffic(), Outcome([])
        else:
            below, initial, outcome = _ask(below, federation, traffic)
        total = with_owed(outcome.total, above.memory, task)
        budget = federation.config.fleet.edge_bytes or None
        answer, above = self._answer(task, digest, outcome, total, above, budget)
        record = outcome.record(state.rounds + 1, traffic, initial, {})
        record |= {"parent_round": task.round, "task": digest.hex()}
        if total is None:
            record["answer"] = answer.hex()
        new = replace(state, above=above, below=replace(below, candidate=None))
        self._commit(new, record, began, federation)
        federation.observer.event("round", rounds=0, **summary(record))
        return answer

    def _commit(self, state: EdgeState, record: dict[str, Any], began: float, federation: Federation) -> None:
        """One more task is done: its record and the state after it, in one transaction."""
        state = replace(state, rounds=state.rounds + 1)
        record["seconds"] = round(time.perf_counter() - began, 3)
        record |= federation.ended(state.rounds)
        self._journal.commit_round(state.rounds, record, state.to_bytes())
        self._state = state

    def _once_more(self, task: Train, pending: Pending, above: ClientState) -> bytes:
        """The update of this round, which was made before the parent asked for it in other words.

        They differ in who judges a candidate; a judgement of another task is not given.
        """
        before = frames.decode_reply(pending.reply)
        if not isinstance(before, Trained):
            raise AssertionError("an edge server's own answer is no answer to a round")
        return self._signed(task, replace(before, judged=None), above)

    def _signed(self, task: Train, reply: Trained, above: ClientState) -> bytes:
        parts = signed_parts(above.plan.federation, self._name, task.lineage, reply)
        return frames.encode_reply(replace(reply, signature=self._key.sign(UPDATE, *parts)))

    def _answer(
        self,
        task: Train,
        digest: bytes,
        outcome: Outcome,
        total: Update | None,
        above: ClientState,
        budget: int | None,
    ) -> tuple[bytes, ClientState]:
        """The signed answer, of ``budget`` bytes at most; and what is remembered until its fate is known."""
        loss = mean(outcome.losses) if outcome.losses else 0.0
        reply = Trained(task.round, 0, loss, mean(outcome.own_scores), judged(outcome.scores), b"", b"")
        if total is None:
            return self._signed(task, reply, above), above
        change, weight = total.mean(), min(total.weight, MOST_WINDOWS)
        residual, payload = encode_change(above.plan.uplink, budget, above.residual, change)
        answer = self._signed(task, replace(reply, weight=weight, payload=payload), above)
        pending = Pending(task.round, digest, answer, residual, {})
        return answer, replace(above, pending=pending, memory=owed(change, weight, task.round))

    def _pass_on(self, task: Offer, digest: bytes, state: EdgeState) -> bytes:
        """Keep the release, offer it to the own clients, and say what they made of it, all together."""
        if state.above.offer.startswith(digest):
            return state.above.offer[len(digest) :]
        if self._mirror is None:
            raise UpdateError("this edge server passes no releases on")
        began, traffic = time.perf_counter(), Traffic()
        federation = self._federation(None, state.above.plan, state.snapshot)
        try:
            made = self._mirror.take(task.package)
        except RefusedError as error:
            federation.observer.event("warning", text=f"a release cannot be passed on: {error}")
            return frames.encode_reply(Verdict(0, False, BROKEN, math.nan, math.nan, 0))
        verdicts = offer(state.below, federation, self._mirror.package, state.below.round, traffic)
        version = 0 if made is None else made.version
        answer = frames.encode_reply(together(version, verdicts))
        below = replace(state.below, clients=running(state.below.clients, verdicts))
        above = replace(state.above, offer=digest + answer)
        record = Outcome([]).record(state.rounds + 1, Traffic(), Traffic(), {})
        record |= {"parent_round": state.above.version + 1, "task": digest.hex(), "answer": answer.hex()}
        if made is not None:
            record["release"] = noted_release(made, verdicts, traffic)
        self._commit(replace(state, above=above, below=below), record, began, federation)
        tell(federation, version, state.below.round, verdicts, traffic)
        return answer

    def _federation(self, task: Train | None, plan: Plan, snapshot: bytes) -> Federation:
        """The own clients, with the parent's rate and without lessons of this server's own."""
        federation = self._members(Prepared.received(plan, snapshot), plugins.load("task", plan.task).TASK)
        config = federation.config
        config = replace(config, redistill=replace(config.redistill, mode="none"))
        if task is not None:
            rate = task.learning_rate
            local = replace(config.local, learning_rate=rate, final_learning_rate=rate)
            config = replace(config, local=local)
        return replace(federation, config=config)

    def _save(self, state: EdgeState) -> None:
        self._journal.set_state(state.to_bytes())
        self._state = state


def digest_of(frame: bytes) -> bytes:
    """Names a task, in the state and (as ``task``, in hexadecimal digits) in the journal's records."""
    return hashlib.blake2b(frame, digest_size=16).digest()


def _same_round(task: Train, pending: Pending, above: ClientState) -> bool:
    """Whether the pending answer is one to this round, on these weights, and not counted yet."""
    asked = pending.round == task.round and task.counted < pending.round
    return asked and (task.version, task.lineage) == (above.version, above.lineage)


def _strangers(clients: Mapping[str, ClientRecord]) -> dict[str, ClientRecord]:
    """Clients that must be welcomed again; how they stand, and the release that they run, stays known."""
    return {c: replace(r, version=None, lineage=b"", counted=0) for c, r in clients.items()}


def led(below: FederationState, task: Train, above: ClientState, federation: Federation) -> FederationState:
    """The state of the own clients before a round: the parent's weights, and the steps that led to them.

    Args:
        below: after the last round.
        task: the parent's.
        above: after the steps of ``task``.
        federation: of the own clients.
    """
    first = task.version - len(task.steps) + 1
    # only those that were walked just now: nothing says that older ones in the task are right
    taken = {v: group for v, group in enumerate(task.steps, first) if v > below.round}
    history = recent(
        _unbroken({**below.history, **taken}, task.version), snapshot_bytes(federation.config, above.support)
    )
    candidate = None if task.candidate is None else Candidate(task.version, task.candidate)
    return replace(below, round=task.version, weights=above.weights, history=history, candidate=candidate)


def _unbroken(steps: Mapping[int, tuple[Step, ...]], version: int) -> dict[int, tuple[Step, ...]]:
    """The steps to ``version`` without a gap, from a snapshot on or as far back as they are known."""
    kept: dict[int, tuple[Step, ...]] = {}
    while version in steps:
        kept[version] = steps[version]
        if any(step.kind is StepKind.SNAPSHOT for step in steps[version]):
            break
        version -= 1
    return kept


def _ask(
    below: FederationState, federation: Federation, traffic: Traffic
) -> tuple[FederationState, Traffic, Outcome]:
    """One round of the own clients, as far as enough of them are there; else nothing of it counts."""
    config, number = federation.config, below.round + 1
    there = available(federation)
    below = enrolled(below, {*federation.enrolled, *there})
    there = eligible(below, there)
    participants = choose(config, number, there) if there else []
    below, initial, outcome = ask_once(below, federation, participants, traffic, len(there))
    counted, least = outcome.added, needed(config, len(there))
    if counted < least:
        federation.observer.event("given_up", round=number, counted=counted, needed=least)
        outcome.total = None
        outcome.losses.clear()
        outcome.late = dict.fromkeys(outcome.late, 0)
    late = [c for c, weight in outcome.late.items() if weight]
    below = marked(config, below, outcome.told, outcome.unsound)
    below = replace(below, clients=noted(below, outcome.told, outcome.counted, outcome.lost))
    after = settled_late(config, replace(below, round=number), outcome.late, late, outcome.missing)
    return replace(after, round=below.round), initial, outcome
