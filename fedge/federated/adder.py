"""Adding updates up as they come: exact and at once, or kept for an aggregation that needs all of them."""

from fedge.errors import UpdateError
from fedge.federated.checks import as_term
from fedge.federated.coding import Weights
from fedge.federated.federation import Federation
from fedge.update import Sum, Update


class Adder:
    """The updates of one round.

    Without ``federation.robust`` each is added in fixed point and forgotten: memory is one sum, and any order
    of arrival gives the same bits. With it they are kept, ``rounds.robust_most`` at most, in order of the
    clients' names when they are put together, so that the order of arrival does not show there either.
    """

    def __init__(self, federation: Federation, version: int) -> None:
        self._federation, self._version = federation, version
        self._sum = Sum(version)
        self._kept: dict[str, tuple[Weights, int]] = {}

    def add(self, client: str, change: Weights, weight: int) -> None:
        """One client's change of the live entries.

        Raises:
            UnsoundError: so large that the sum could overflow.
            UpdateError: as many are kept as may be.
        """
        term = as_term(change, weight)
        if self._federation.robust is None:
            self._sum.add(term)
            return
        most = self._federation.config.rounds.robust_most
        if len(self._kept) >= most:
            raise UpdateError(f"one of more than {most} updates; rounds.robust_most bounds what is kept")
        self._kept[client] = (change, weight)

    def total(self) -> Update | None:
        """What the round comes to; ``None`` where no update came."""
        robust = self._federation.robust
        if robust is None or not self._kept:
            return self._sum.update()
        kept = [self._kept[client] for client in sorted(self._kept)]
        weights = [weight for _, weight in kept]
        whole = Sum(self._version)
        whole.add(as_term(robust([change for change, _ in kept], weights), sum(weights)))
        return whole.update()
