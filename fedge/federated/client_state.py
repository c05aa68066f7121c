"""What a client keeps between rounds, and how it becomes one byte string on its disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedge.errors import PayloadError, UpdateError
from fedge.federated.coding import Support, Weights
from fedge.federated.plan import Plan
from fedge.packing import pack, unpack

Residual = Mapping[str, NDArray[np.generic]]


class StateStore(Protocol):
    """Where a client's state lives. ``save`` replaces the whole of it or nothing."""

    def load(self) -> bytes | None:
        """What was saved last, or ``None``."""

    def save(self, content: bytes) -> None:
        """Replace what was saved."""


@dataclass(frozen=True)
class Pending:
    """An update that was sent, until the server says whether it counted.

    Attributes:
        round: its round.
        task: digest of the task that it answers.
        reply: the answer, to be sent again if the same task comes again.
        residual: the codec's state after it.
        memory: the client's memory after it.
    """

    round: int
    task: bytes
    reply: bytes
    residual: Residual
    memory: Weights


@dataclass(frozen=True)
class ClientState:
    """Everything a client remembers.

    Attributes:
        plan: the federation's plan.
        support: which weights are alive.
        weights: the global weights that the client holds.
        version: their version.
        lineage: their name (``lineage.py``).
        residual: the uplink codec's state, as of the last update that counted.
        memory: what else training left behind, likewise: ``drift/<array>`` (FedDyn) and ``head/<array>`` (a
            personal head). It never leaves the device.
        pending: the last update, until its fate is known.
        models: the home of its releases, where that has no disk of its own (``MemoryDisk``); or empty.
        offer: digest (16 bytes) of the last genuine offer, and the answer to it; or empty.
    """

    plan: Plan
    support: Support
    weights: Weights
    version: int
    lineage: bytes
    residual: Residual
    memory: Weights = field(default_factory=dict)
    pending: Pending | None = None
    models: bytes = b""
    offer: bytes = b""

    def save(self, store: StateStore) -> None:
        """Write everything, at once."""
        arrays: dict[str, NDArray[Any]] = {"models": _bytes(self.models), "offer": _bytes(self.offer)}
        arrays |= {f"weights/{n}": w for n, w in self.weights.items()}
        arrays |= {f"alive/{n}": np.packbits(a) for n, a in self.support.alive.items()}
        arrays |= {f"residual/{n}": np.asarray(r) for n, r in self.residual.items()}
        arrays |= {f"memory/{n}": m for n, m in self.memory.items()}
        meta: dict[str, Any] = {
            "plan": self.plan.to_dict(),
            "version": self.version,
            "lineage": self.lineage.hex(),
            "pending": None,
        }
        if (p := self.pending) is not None:
            meta["pending"] = {"round": p.round, "task": p.task.hex()}
            arrays["pending"] = _bytes(p.reply)
            arrays |= {f"after/{n}": np.asarray(r) for n, r in p.residual.items()}
            arrays |= {f"later/{n}": m for n, m in p.memory.items()}
        store.save(pack(meta, arrays))

    @staticmethod
    def load(store: StateStore) -> "ClientState":
        """Read what was saved.

        Raises:
            UpdateError: there is nothing: the client has not been welcomed.
            PayloadError: what is there is damaged.
        """
        content = store.load()
        if content is None:
            raise UpdateError("this client holds no state: it must be welcomed first")
        meta, arrays = unpack(content)
        try:
            return _restore(meta, arrays)
        except (KeyError, ValueError, TypeError) as error:
            raise PayloadError(f"the saved state is damaged: {error}") from None


def _restore(meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ClientState:
    plan = Plan.from_dict(meta["plan"])
    weights = _below(arrays, "weights/")
    alive = {
        n: np.unpackbits(bits, count=weights[n].size).astype(bool).reshape(weights[n].shape)
        for n, bits in _below(arrays, "alive/").items()
    }
    pending = None
    if (p := meta["pending"]) is not None:
        after, later = _below(arrays, "after/"), _below(arrays, "later/")
        pending = Pending(p["round"], bytes.fromhex(p["task"]), arrays["pending"].tobytes(), after, later)
    return ClientState(
        plan=plan,
        support=Support(alive),
        weights=weights,
        version=meta["version"],
        lineage=bytes.fromhex(meta["lineage"]),
        residual=_below(arrays, "residual/"),
        memory=_below(arrays, "memory/"),
        pending=pending,
        models=arrays["models"].tobytes(),
        offer=arrays["offer"].tobytes(),
    )


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _bytes(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)
