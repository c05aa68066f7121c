"""Server optimizers: from the mean update of a round to the step that the global weights take.

Records of pure functions (the shape of fedjax's algorithms): state goes in and comes back, nothing is kept,
and nothing that is given is changed. All arithmetic is elementwise in float32, so the same updates give the
same bits in whatever order the arrays are named. An entry that no update touched has a mean update of 0,
which is normal where updates are sparse. State is plain arrays that anyone can store.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedge.codec import Arrays, Shapes
from fedge.errors import ConfigError
from fedge.plugins import nearest

State = Mapping[str, NDArray[Any]]
"""What an optimizer remembers: ``"<what>/<array>"``, float32 of that array's shape, and ``"rounds"``."""

Step = dict[str, NDArray[np.float32]]
_N = TypeVar("_N", bound=np.generic)
_POSITIVE = {"adam": ("tau",), "dyn": ("alpha",)}


@dataclass(frozen=True)
class Optimizer:
    """Which optimizer, and its settings; those that are not its own are ignored.

    Attributes:
        name: a key of ``OPTIMIZERS``.
        learning_rate: factor on the step, above 0; every optimizer's. ``adam`` steps by about this much per
            entry, whatever the size of the updates, so it needs a small one (0.001 to 0.1).
        momentum: share of the last step's memory that is kept, in [0, 1) (``avgm``; ``adam``'s beta 1).
        beta2: the same for the squares (``adam``), in [0, 1).
        tau: added to the root of the squares, above 0, in units of a weight (``adam``): how far it adapts.
            Entries whose updates are much smaller than ``tau`` move in proportion to them.
        alpha: weight of the clients' regulariser, above 0 (``dyn``); the clients must use the same.

    Raises:
        ConfigError: an unknown name, or a setting out of its range.
    """

    name: str = "avg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    alpha: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.name not in OPTIMIZERS:
            raise ConfigError(
                f"unknown server optimizer {self.name!r}; {nearest(self.name, sorted(OPTIMIZERS))}"
            )
        for key in ("learning_rate", *_POSITIVE.get(self.name, ())):
            value = getattr(self, key)
            if not 1e-12 <= value < math.inf:
                raise ConfigError(
                    f"server optimizer: {key} is {value}; give one of 1e-12 or more, and finite"
                )
        for key in ("momentum", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"server optimizer: {key} is {getattr(self, key)}; give 0 or more, below 1")


@dataclass(frozen=True)
class ServerOptimizer:
    """One way of turning mean updates into steps.

    Attributes:
        init: shapes of the arrays to a fresh state (zeros).
        step: ``(settings, state, mean_update, share) -> (state, step)``. ``mean_update`` is the weighted mean
            of the counted updates, float32 (new weights minus old, so a step *adds* it); ``share`` is the
            number of updates in it over the number of all clients, in (0, 1]. Raises ``ConfigError`` if the
            state is another optimizer's or of other arrays.
    """

    init: Callable[[Shapes], State]
    step: Callable[[Optimizer, State, Arrays, float], tuple[State, Step]]


def _avg(settings: Optimizer, state: State, mean_update: Arrays, _share: float) -> tuple[State, Step]:
    """``step = lr * u`` (McMahan et al. 2017; the server's learning rate: Reddi et al. 2021, algorithm 1)."""
    rate = np.float32(settings.learning_rate)
    return state, {name: rate * u for name, u in mean_update.items()}


def _avgm(settings: Optimizer, state: State, mean_update: Arrays, _share: float) -> tuple[State, Step]:
    """``v <- momentum * v + u; step = lr * v`` (FedAvgM; Hsu, Qi, Brown 2019, section 4.3), not dampened."""
    velocity = _moved(state, "velocity", settings.momentum, mean_update, 1)
    rate = np.float32(settings.learning_rate)
    return _named("velocity", velocity), {name: rate * v for name, v in velocity.items()}


def _adam(settings: Optimizer, state: State, mean_update: Arrays, _share: float) -> tuple[State, Step]:
    """FedAdam (Reddi et al. 2021, algorithm 2) with the bias correction of the paper's code.

        m <- beta1 * m + (1 - beta1) * u;   v <- beta2 * v + (1 - beta2) * u^2
        step = lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + tau)

    Algorithm 2 has no correction and starts from ``v >= tau^2``. The paper's experiments ran Keras' Adam
    with ``epsilon = tau``, which starts from 0 and corrects by a factor on the learning rate (Kingma and Ba
    2015, end of section 2), so ``tau`` itself is not corrected; so does this. ``t`` counts rounds.
    """
    t = int(_held(state, "rounds", np.zeros((), np.int64))) + 1
    b1, b2 = settings.momentum, settings.beta2
    first = _moved(state, "first", b1, mean_update, 1 - b1)
    second = _moved(state, "second", b2, {name: np.square(u) for name, u in mean_update.items()}, 1 - b2)
    rate = np.float32(settings.learning_rate * math.sqrt(1 - b2**t) / (1 - b1**t))
    tau = np.float32(settings.tau)
    step: Step = {n: np.divide(rate * first[n], np.sqrt(v) + tau) for n, v in second.items()}
    counted = {"rounds": np.asarray(t, np.int64)}
    return {**counted, **_named("first", first), **_named("second", second)}, step


def _dyn(settings: Optimizer, state: State, mean_update: Arrays, share: float) -> tuple[State, Step]:
    """``h <- h - alpha * share * u; step = lr * (u - h / alpha)`` (FedDyn; Acar et al. 2021, algorithm 1).

    The sum over the clients that took part, over all clients, is ``share`` times their mean. The paper's
    mean is not weighted and its ``lr`` is 1. ``alpha`` cancels in the step as long as it stays the same; it
    is the clients' half of the method that it governs.

    Raises:
        ConfigError: ``share`` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(
            f"the share of the clients that took part is {share}; it must be above 0, at most 1"
        )
    h = _moved(state, "h", 1, mean_update, -settings.alpha * share)
    alpha, rate = np.float32(settings.alpha), np.float32(settings.learning_rate)
    return _named("h", h), {name: rate * (u - h[name] / alpha) for name, u in mean_update.items()}


def _zeros(*kinds: str) -> Callable[[Shapes], State]:
    def init(shapes: Shapes) -> State:
        return {f"{kind}/{n}": np.zeros(s, np.float32) for kind in kinds for n, s in shapes.items()}

    return init


def _adam_init(shapes: Shapes) -> State:
    return {"rounds": np.zeros((), np.int64), **_zeros("first", "second")(shapes)}


def _moved(state: State, kind: str, keep: float, change: Arrays, factor: float) -> Step:
    """``keep * state + factor * change``, array by array in float32."""
    moved: Step = {}
    for name, value in change.items():
        moved[name] = _held(state, f"{kind}/{name}", value) * np.float32(keep)
        moved[name] += value * np.float32(factor)
    return moved


def _held(state: State, key: str, like: NDArray[_N]) -> NDArray[_N]:
    """The array ``key`` of the state, which must be as ``like``."""
    held = state.get(key)
    if held is None or held.shape != like.shape or held.dtype != like.dtype:
        raise ConfigError(f"the server optimizer's state has no {key!r} {like.dtype}{list(like.shape)}")
    return held


def _named(kind: str, arrays: Arrays) -> Step:
    return {f"{kind}/{name}": value for name, value in arrays.items()}


OPTIMIZERS: Mapping[str, ServerOptimizer] = {
    "avg": ServerOptimizer(_zeros(), _avg),
    "avgm": ServerOptimizer(_zeros("velocity"), _avgm),
    "adam": ServerOptimizer(_adam_init, _adam),
    "dyn": ServerOptimizer(_zeros("h"), _dyn),
}
