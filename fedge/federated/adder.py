"""Adding updates up as they come: exact and at once, or kept for an aggregation that needs all of them."""

from fedge.errors import UpdateError
from fedge.federated.checks import as_update
from fedge.federated.coding import Weights
from fedge.federated.federation import Federation
from fedge.update import Update


class Adder:
    """The updates of one round.

    Without ``federation.robust`` each is added in fixed point and forgotten: memory is one sum, and any order
    of arrival gives the same bits. With it they are kept, ``rounds.robust_most`` at most, in order of the
    clients' names when they are put together, so that the order of arrival does not show there either.
    """

    def __init__(self, federation: Federation, version: int) -> None:
        self._federation, self._version = federation, version
        self._sum: Update | None = None
        self._kept: dict[str, tuple[Weights, int]] = {}

    def add(self, client: str, change: Weights, weight: int) -> None:
        """One client's change of the live entries.

        Raises:
            UnsoundError: so large that the sum could overflow.
            UpdateError: as many are kept as may be.
        """
        update = as_update(change, weight, self._version)
        if self._federation.robust is None:
            self._sum = update if self._sum is None else self._sum + update
            return
        most = self._federation.config.rounds.robust_most
        if len(self._kept) >= most:
            raise UpdateError(f"one of more than {most} updates; rounds.robust_most bounds what is kept")
        self._kept[client] = (change, weight)

    def total(self) -> Update | None:
        """What the round comes to; ``None`` where no update came."""
        robust = self._federation.robust
        if robust is None or not self._kept:
            return self._sum
        kept = [self._kept[client] for client in sorted(self._kept)]
        weights = [weight for _, weight in kept]
        return as_update(robust([change for change, _ in kept], weights), sum(weights), self._version)
