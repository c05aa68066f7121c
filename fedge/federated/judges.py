"""Whom of its own people the server holds back whole, to judge re-distilled students on their windows."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from fedge.config import Config, redistils
from fedge.errors import ConfigError


def held_back(config: Config, server: Sequence[str]) -> tuple[str, ...]:
    """The judges among the clients whose data is the server's; nobody where clients judge.

    Those that ``redistill.judge_clients`` names (ids or patterns such as ``p04-*``), or the last quarter.

    Raises:
        ConfigError: a name fits nobody, there are fewer than two, or nobody is left to learn from.
    """
    settings = config.redistill
    if not redistils(config) or settings.judge != "server":
        return ()
    for name in settings.judge_clients:
        if not any(fnmatchcase(c, name) for c in server):
            raise ConfigError(f"redistill.judge_clients names {name!r}; none of the server's clients is it")
    named = [c for c in server if any(fnmatchcase(c, name) for name in settings.judge_clients)]
    judges = tuple(named or server[-max(2, len(server) // 4) :])
    if len(judges) == len(server):
        raise ConfigError("redistill.judge = 'server' holds back all of the server's clients; give it more")
    if len(judges) < 2:
        raise ConfigError("redistill.judge_clients names one judge; two or more are needed")
    return judges
