"""What the server lets in: who says it, whether it can be, and what it is then worth.

Three kinds of refusal, all ``FedgeError``: no proof of who says it (nobody is blamed for that, since anyone
can claim a name), content that its own signer answers for (``UnsoundError``: so often in a row, and the
client is barred), and a client that says itself that it cannot.
"""

import numpy as np

from fedge.codec import Codec
from fedge.errors import FedgeError, PayloadError, UpdateError
from fedge.federated import frames
from fedge.federated.client import HELLO, UPDATE, signed_parts
from fedge.federated.coding import Weights, limits
from fedge.federated.federation import Federation
from fedge.federated.frames import Hello, Train, Trained
from fedge.federated.unsound import UnsoundError
from fedge.metrics import RANGES
from fedge.signing import verify
from fedge.update import Term

MOST_WINDOWS = 1_000_000
"""Largest weight of one update: a client that claims more windows is refused."""


def check_hello(client: str, answer: bytes | FedgeError, challenge: bytes, federation: Federation) -> None:
    """The client proved with its enrolled key that it is who it says."""
    if isinstance(answer, FedgeError):
        raise answer
    hello = frames.decode_reply(answer)
    if not isinstance(hello, Hello):
        raise UpdateError("answered a welcome with something else")
    parts = (federation.prepared.plan.federation.encode(), client.encode(), challenge)
    verify(_key(client, federation), hello.signature, HELLO, *parts)


def check_trained(client: str, answer: bytes | FedgeError, task: Train, federation: Federation) -> Trained:
    """The answer is one to this task, on its weights, by this client, and says nothing impossible.

    Raises:
        UnsoundError: it is this client's, and says something impossible.
        FedgeError: it is no proof of anything.
    """
    if isinstance(answer, FedgeError):
        raise answer
    trained = frames.decode_reply(answer)
    if not isinstance(trained, Trained) or trained.round != task.round:
        raise UpdateError(f"answered something else than round {task.round}")
    parts = signed_parts(federation.prepared.plan.federation, client, task.lineage, trained)
    verify(_key(client, federation), trained.signature, UPDATE, *parts)
    if trained.weight > MOST_WINDOWS:
        raise UnsoundError(f"claims {trained.weight} windows; at most {MOST_WINDOWS} count")
    if trained.judged is not None and not 0 < trained.judged.windows <= MOST_WINDOWS:
        raise UnsoundError("judged on an impossible number of windows")
    judged = (j.score_held, j.score_candidate) if (j := trained.judged) is not None else ()
    low, high = RANGES[federation.task.metric]
    if not all(low <= score <= high or score != score for score in (trained.score, *judged)):
        raise UnsoundError(f"claims a score that is not within {low:g} .. {high:g}")
    return trained


def sound_change(trained: Trained, federation: Federation, uplink: Codec) -> tuple[Weights, int] | None:
    """Change of the live entries and weight of an answer, within limits; ``None`` where nothing was trained.

    Raises:
        UnsoundError: it does not decode, or is larger than allowed.
    """
    if trained.weight == 0:
        return None
    rounds = federation.config.rounds
    bounds = limits(federation.prepared.support.shapes(), rounds.max_change)
    try:
        change = uplink.decode(trained.payload, bounds)
    except PayloadError as error:
        raise UnsoundError(str(error)) from None
    if rounds.max_norm:
        norm = float(np.sqrt(sum(float(np.square(c, dtype=np.float64).sum()) for c in change.values())))
        if not norm <= rounds.max_norm:
            raise UnsoundError(f"an update of norm {norm:.3g}; at most {rounds.max_norm:g} is taken")
    return change, min(trained.weight, rounds.max_weight)


def as_term(change: Weights, weight: int) -> Term:
    """An update that can be added up.

    Raises:
        UnsoundError: so large that a sum could overflow.
    """
    try:
        return Term.of(change, weight)
    except UpdateError as error:
        raise UnsoundError(str(error)) from None


def _key(client: str, federation: Federation) -> bytes:
    """The public key that a client is enrolled with now: it may have been revoked since it was asked."""
    if (key := federation.enrolled.get(client)) is None:
        raise UpdateError("is not enrolled any more")
    return key
