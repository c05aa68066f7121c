"""Re-distillation in the course of the rounds: when it is due, who learns, what the journal keeps."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedge.config import Config
from fedge.errors import PayloadError
from fedge.federated import teaching
from fedge.federated.coding import Weights
from fedge.federated.federation import Federation
from fedge.federated.frames import Scores
from fedge.federated.redistill import School, judge_on_server, make_candidate, server_step, teach_teacher
from fedge.federated.state import Candidate, FederationState
from fedge.federated.strategy import Judgement, candidate_due
from fedge.packing import pack, unpack


def make_copy(federation: Federation, state: FederationState) -> Federation:
    """The federation with a teacher of its own that can learn: as prepared, or as the journal has it.

    Raises:
        SetupError: the journal does not have the teacher that the state speaks of.
    """
    if not federation.config.redistill.teacher_epochs:
        return federation
    teacher = copy.deepcopy(federation.prepared.teacher)
    if state.taught:
        saved = federation.journal.stage(_stage(state.taught))
        if saved is None:
            raise federation.journal.damaged(PayloadError("the teacher is missing"))
        _, arrays = unpack(saved)
        teacher.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()})
    return replace(federation, prepared=replace(federation.prepared, teacher=teacher.eval()))


def redistil(state: FederationState, federation: Federation, members: Sequence[Weights]) -> FederationState:
    """Make a candidate if one is due and there is a round left to judge it in; teach the teacher first."""
    config, number = federation.config, state.round
    if not candidate_due(config, state):
        return state
    school = School(config, federation.task, federation.prepared, state.weights, members, number)
    if config.redistill.teacher_epochs:
        teach_teacher(school)
        arrays = {n: v.numpy() for n, v in teaching.state_arrays(federation.prepared.teacher).items()}
        federation.journal.set_stage(_stage(number), pack({}, arrays))
        state = replace(state, taught=number)
    step = make_candidate(school)
    on_server = config.redistill.judge == "server"
    scores = judge_on_server(school, step) if on_server else {}
    return replace(state, candidate=Candidate(number, step, scores))


def forget_older_teachers(state: FederationState, federation: Federation) -> None:
    """Once a round is in the journal, the teachers before the one that it speaks of are not needed."""
    if state.taught:
        federation.journal.drop_stages("teacher-", keep=_stage(state.taught))


def nudge(state: FederationState, federation: Federation) -> Weights | None:
    """In ``gradient`` mode, and if the judges agree: the server's own step in this round."""
    if not state.nudged:
        return None
    number = state.round + 1
    return server_step(
        School(federation.config, federation.task, federation.prepared, state.weights, (), number)
    )


def _stage(number: int) -> str:
    return f"teacher-{number}"


def evidence(
    config: Config, tried: Candidate, judgement: Judgement, number: int, scores: Mapping[str, Scores]
) -> dict[str, Any]:
    """What a round's record says of a candidate and its judges."""
    return {
        "round": tried.made,
        "mode": config.redistill.mode,
        "judged_in_round": number,
        "judges": [
            {
                "client": client,
                "windows": s.windows,
                "aggregate": _known(s.score_held),
                "candidate": _known(s.score_candidate),
                "aggregate_loss": s.loss_held,
                "candidate_loss": s.loss_candidate,
            }
            for client, s in sorted(scores.items())
        ],
        "aggregate": judgement.held,
        "candidate": judgement.candidate,
        "accepted": judgement.accepted,
        "reason": judgement.reason,
        "bytes": len(tried.step.payload),
    }


def _known(score: float) -> float | None:
    """JSON has no NaN: a score that is not defined is null."""
    return None if score != score else score
