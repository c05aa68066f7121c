"""What an edge server remembers: as a client of the server above it, and as a server of its own clients."""

from dataclasses import dataclass, field

import numpy as np

from fedge.errors import PayloadError
from fedge.federated.client_state import ClientState
from fedge.federated.state import FederationState
from fedge.packing import pack, unpack


@dataclass(frozen=True, eq=False)
class EdgeState:
    """Everything, between two tasks.

    Attributes:
        above: as a client: plan, weights, residual, and the last answer until its fate is known. Its memory
            is the last mean change that the parent has not counted (``owed``).
        below: as a server: what its clients hold, and the steps that led to the weights.
        snapshot: the student as it was first sent; newcomers get it.
        rounds: that its own journal holds.
    """

    above: ClientState
    below: FederationState
    snapshot: bytes
    rounds: int = 0

    def to_bytes(self) -> bytes:
        """Everything, exact."""
        store = _Held()
        self.above.save(store)
        parts = {"above": store.content, "below": self.below.to_bytes(), "snapshot": self.snapshot}
        return pack({"rounds": self.rounds}, {n: np.frombuffer(c, np.uint8) for n, c in parts.items()})

    @staticmethod
    def from_bytes(content: bytes) -> "EdgeState":
        """What ``to_bytes`` wrote.

        Raises:
            PayloadError: damaged.
        """
        meta, arrays = unpack(content)
        try:
            above, below = arrays["above"].tobytes(), arrays["below"].tobytes()
            rounds, snapshot = int(meta["rounds"]), arrays["snapshot"].tobytes()
        except (KeyError, ValueError, TypeError) as error:
            raise PayloadError(f"the saved state is damaged: {error}") from None
        return EdgeState(ClientState.load(_Held(above)), FederationState.from_bytes(below), snapshot, rounds)


@dataclass
class _Held:
    """A ``StateStore`` in memory."""

    content: bytes = field(default=b"")

    def load(self) -> bytes | None:
        return self.content

    def save(self, content: bytes) -> None:
        self.content = content
