"""What the engines of ``fedge simulate`` need, checked before anything heavy is imported."""

import os
from importlib.util import find_spec

from fedge.errors import ConfigError, SetupError


def check_engine(engine: str, workers: int | None, *, resume: bool) -> None:
    """Refuse what cannot be done.

    Args:
        engine: ``local`` or ``ray``.
        workers: processes that run the clients; ``None``: not said.
        resume: whether an interrupted run is to go on.

    Raises:
        SetupError: Ray is wanted and not installed.
        ConfigError: the engine cannot do that.
    """
    if workers is not None and not 0 <= workers <= 10_000:
        raise ConfigError(f"--workers {workers}: give 0 to 10000")
    if engine != "ray":
        return
    if find_spec("ray") is None:
        raise SetupError("--engine ray needs Ray, which is not installed: pip install 'fedge[ray]'")
    if resume:
        raise ConfigError("a run on Ray cannot be resumed: what its clients hold was in Ray's memory")
    if workers == 0:
        raise ConfigError("--workers 0 runs the clients in this process; Ray has processes of its own")
    if workers is not None and "RAY_ADDRESS" in os.environ:
        raise ConfigError("--workers is for Ray on this machine; the cluster at RAY_ADDRESS has its own")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
