"""One client's round, from bytes to bytes. Flower's ``ClientApp`` wraps it; a device process calls it.

    decode the task -> settle what became of the last update -> take the new global weights
    -> score them (and a candidate, if asked to judge one) -> fine-tune -> encode -> sign -> save -> answer

The state is saved before the answer leaves. It holds the last update together with the residual as it was
before *and* after it, until the server says whether that update was counted: counted, the residual after it
is kept; not counted (lost, late, the server died), the residual before it is, as if the round had not been.
The same task again gets the very same answer. So a client killed at any point loses nothing and counts
nothing twice.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedge import plugins
from fedge.data.types import ClientData, Windows
from fedge.edge.disk import MemoryDisk
from fedge.errors import ConfigError, DataError, PayloadError, UpdateError
from fedge.federated import frames
from fedge.federated.client_state import ClientState, Pending, Residual, StateStore
from fedge.federated.coding import Arrays, Support, Weights, apply_step, build_codec, decode_dense
from fedge.federated.consider import Releases, consider
from fedge.federated.frames import Hello, Offer, Scores, Train, Trained, Welcome
from fedge.federated.lineage import begin, follow
from fedge.federated.plan import Coding, Plan
from fedge.federated.training import answers, drifted, fine_tune, loss_and_score
from fedge.seeding import derive
from fedge.signing import SigningKey
from fedge.tasks import Task

_REPLY_BYTES = 128
"""More than everything in an answer but the payload: numbers, a judge's numbers, signature, lengths."""

SMALLEST_BUDGET = _REPLY_BYTES + 32

_DRIFT, _HEAD = "drift/", "head/"  # what a client's memory is of

HELLO, UPDATE = "fedge hello", "fedge update"
"""Purposes of a client's signatures."""


def link_budget(bits_per_second: float, seconds: float) -> int:
    """Bytes of the longest answer that an uplink carries in ``seconds``.

    Raises:
        ConfigError: fewer than ``SMALLEST_BUDGET``: the shortest answer would take longer.
    """
    budget = int(bits_per_second * seconds / 8)
    if budget < SMALLEST_BUDGET:
        needed = SMALLEST_BUDGET * 8 / bits_per_second
        raise ConfigError(
            f"an uplink of {bits_per_second:g} bit/s carries {budget} bytes in {seconds:g} s, but the "
            f"shortest answer has {SMALLEST_BUDGET}: allow {needed:.3g} s or more"
        )
    return budget


@dataclass(frozen=True)
class Device:
    """What a client brings along: all of it is its own, and a server can set none of it.

    Attributes:
        id: the name that the client is enrolled under.
        key: proves that an update is this client's.
        data: the client's windows. They are read here and go nowhere.
        store: where its state survives a restart.
        releases: how it takes releases.
        seed: of local training.
        uplink_budget: most bytes of one round's answer (``SMALLEST_BUDGET`` or more); ``None``: no limit.
    """

    id: str
    key: SigningKey
    data: ClientData
    store: StateStore
    releases: Releases
    seed: int
    uplink_budget: int | None = None


def client_round(frame: bytes, device: Device) -> bytes:
    """Answer one task of the server.

    Raises:
        PayloadError: the task, or something in it, is not what it claims to be.
        UpdateError: the task does not fit what this client holds; the server should welcome it again.
        DataError: the client's data do not fit the federation's student.
    """
    task = frames.decode_task(frame)
    if isinstance(task, Welcome):
        return frames.encode_reply(_welcome(task, device))
    state = _held(device.store)
    digest = hashlib.blake2b(frame, digest_size=16).digest()
    if isinstance(task, Offer):
        return _consider(task, digest, state, device)
    if state.pending is not None and state.pending.task == digest:
        return state.pending.reply
    return _train(task, digest, state, device)


def _held(store: StateStore) -> ClientState:
    """The client's state; where its disk was damaged it holds none that could follow, like a new client."""
    try:
        return ClientState.load(store)
    except PayloadError as error:
        raise UpdateError(f"{error}; this client must be welcomed again") from None


def _welcome(task: Welcome, device: Device) -> Hello:
    """Take the plan and the student, and say who this is."""
    plan = Plan.from_dict(task.plan)
    weights = decode_dense(task.snapshot, plan.spec.shapes())
    _check_fit(device.data, plan)
    support = Support.of(weights)
    residual = build_codec(plan.uplink).init(support.shapes())
    state = ClientState(plan, support, weights, 0, begin(task.snapshot), residual)
    _keep_release(state, device).save(device.store)
    signature = device.key.sign(HELLO, plan.federation.encode(), device.id.encode(), task.challenge)
    return Hello(device.key.public, signature)


def _keep_release(state: ClientState, device: Device) -> ClientState:
    """Welcomed again, a client starts to learn anew, but the way to older releases stays closed."""
    try:
        before = ClientState.load(device.store)
    except (UpdateError, PayloadError):
        return state  # a new client, or one whose disk was damaged
    if before.plan.federation != state.plan.federation:
        return state
    return replace(state, **{n: getattr(before, n) for n in ("models", "offer")})


def _check_fit(data: ClientData, plan: Plan) -> None:
    found, spec = data.train.x.shape[1:], plan.spec
    if found != spec.window:
        wanted = list(spec.window)
        raise DataError(f"this client's windows are {list(found)}; the federation's student takes {wanted}")
    labels = np.concatenate([data.train.y, data.judge.y, data.later.y])
    whole = spec.number is None and spec.reconstruction is None
    if whole and labels.dtype.kind not in "iu":
        raise DataError(f"this client's labels are {labels.dtype}; the federation's student knows classes")
    if whole and len(labels) and not 0 <= labels.min() <= labels.max() < spec.outputs:
        raise DataError(
            f"this client has labels {labels.min()} .. {labels.max()}; the federation's student knows "
            f"0 .. {spec.outputs - 1}"
        )


def _train(task: Train, digest: bytes, state: ClientState, device: Device) -> bytes:
    """The round itself. Without training the last update stays pending: its round may be run again."""
    state = lead_on(task, settle(task, state) if task.learning_rate > 0 else state)
    plan, learned = state.plan, plugins.load("task", state.plan.task).TASK
    later = _score(plan, learned, _own(state.weights, state.memory), device.data.later)
    judged = _judge(task, state, learned, device.data.judge)
    reply = Trained(task.round, 0, 0.0, later, judged, b"", b"")
    residual, memory = state.residual, state.memory
    if task.learning_rate > 0 and len(device.data.train):
        change, memory, loss = _learn(task, state, learned, device)
        live = state.support.gather(change)
        residual, payload = encode_change(plan.uplink, device.uplink_budget, residual, live)
        reply = replace(reply, weight=len(device.data.train), loss=loss, payload=payload)
    parts = signed_parts(plan.federation, device.id, task.lineage, reply)
    answer = frames.encode_reply(replace(reply, signature=device.key.sign(UPDATE, *parts)))
    if task.learning_rate > 0:
        state = replace(state, pending=Pending(task.round, digest, answer, residual, memory))
    state.save(device.store)
    return answer


def _learn(task: Train, state: ClientState, learned: Task, device: Device) -> tuple[Arrays, Weights, float]:
    """Fine-tune on the client's own windows: the change for the server, the memory after it, and the loss."""
    plan, how = state.plan, state.plan.training
    start, seed = _own(state.weights, state.memory), derive(device.seed, "local", task.round)
    drift = {n.removeprefix(_DRIFT): m for n, m in state.memory.items() if n.startswith(_DRIFT)}
    data = _tensors(plan, device.data.train)
    tuned, loss = fine_tune(plan, learned, start, state.support, data, task.learning_rate, seed, drift)
    change = {n: tuned[n] - start[n] for n in tuned}
    memory: Arrays = {}
    if how.dynamic > 0:
        memory |= {_DRIFT + n: m for n, m in drifted(drift, change, how.dynamic).items()}
    if how.personal_head:
        memory |= {_HEAD + n: tuned[n] for n in tuned if n.startswith("head.")}
        change = {n: np.zeros_like(c) if n.startswith("head.") else c for n, c in change.items()}
    return change, memory, loss


def _own(weights: Weights, memory: Weights) -> Weights:
    """The global weights, with the client's own head where it has one."""
    return {n: memory.get(_HEAD + n, w) for n, w in weights.items()}


def encode_change(
    coding: Coding, budget: int | None, residual: Residual, change: Weights
) -> tuple[Residual, bytes]:
    """The change as a payload, and the residual after it; within the device's own budget, if it has one."""
    after, payload = build_codec(coding).encode(residual, change)
    if budget is None or len(payload) + _REPLY_BYTES <= budget:
        return after, payload
    tight = replace(coding, settings={**coding.settings, "budget_bytes": budget - _REPLY_BYTES})
    return build_codec(tight).encode(residual, change)


def signed_parts(federation: str, client: str, base: bytes, reply: Trained) -> tuple[bytes, ...]:
    """What a client signs in an answer: where it belongs, who says it, and all of its content."""
    return federation.encode(), client.encode(), base, reply.signed_part()


def settle(task: Train, state: ClientState) -> ClientState:
    """Keep the residual after the last update if the server counted it, else the one before it."""
    if state.pending is None:
        return state
    kept = state.pending if state.pending.round == task.counted else state
    return replace(state, residual=kept.residual, memory=kept.memory, pending=None)


def lead_on(task: Train, state: ClientState) -> ClientState:
    """Walk the steps from the weights held to the task's version."""
    weights, name, codec = state.weights, state.lineage, build_codec(state.plan.downlink)
    first = task.version - len(task.steps) + 1
    for version, group in enumerate(task.steps, first):
        for step in group if version > state.version else ():
            weights = apply_step(step, weights, state.support, codec)
            name = follow(name, [step])
    if name != task.lineage:
        raise UpdateError(
            f"round {task.round}: the steps do not lead from version {state.version} to {task.version}"
        )
    return replace(state, weights=weights, version=task.version, lineage=name)


def _judge(task: Train, state: ClientState, learned: Task, windows: Windows) -> Scores | None:
    """Loss and score of the weights held and of the candidate, on windows that were never trained on."""
    if task.candidate is None or not len(windows):
        return None
    codec = build_codec(state.plan.downlink)
    candidate = apply_step(task.candidate, state.weights, state.support, codec)
    data = _tensors(state.plan, windows)
    held = loss_and_score(state.plan, learned, _own(state.weights, state.memory), *data)
    return Scores(
        len(windows), *held, *loss_and_score(state.plan, learned, _own(candidate, state.memory), *data)
    )


def _score(plan: Plan, task: Task, weights: Weights, windows: Windows) -> float:
    if not len(windows):
        return float("nan")
    x, y = _tensors(plan, windows)
    return task.score(answers(plan, weights, x, quantized=True), y.numpy())


def _tensors(plan: Plan, windows: Windows) -> tuple[Tensor, Tensor]:
    """Windows as the student takes them, ``[n, channels, *size]``, and labels or numbers ``[n]``."""
    return torch.from_numpy(plan.preprocess.apply(windows.x)), torch.from_numpy(windows.y)


def _consider(task: Offer, digest: bytes, state: ClientState, device: Device) -> bytes:
    """Take the release, if it is good. The same offer again (the server may have died) gets the same answer.

    Whatever the home's disk keeps, a release that ends this process is not tried a second time.
    """
    if state.offer.startswith(digest):
        return state.offer[len(digest) :]
    releases, federation = device.releases, state.plan.federation
    disk = releases.disk or (MemoryDisk.from_bytes(state.models) if state.models else MemoryDisk())
    answer = frames.encode_reply(consider(task.package, federation, releases, disk, device.data))
    models = disk.to_bytes() if isinstance(disk, MemoryDisk) else b""
    replace(state, models=models, offer=digest + answer).save(device.store)
    return answer
