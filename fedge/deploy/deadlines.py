"""Settings as servers on machines need them: no round without a deadline, none without an update."""

from dataclasses import replace

from fedge.config import Config

_SERVER = 600.0
"""Seconds, where the settings give none: a device that hangs must not stop the others."""

_EDGE_SERVER = 300.0
"""Seconds, where the settings give none: half of what a server waits for an answer by default."""


def for_deployment(config: Config) -> Config:
    """With a deadline and at least one update a round, where the settings leave these open."""
    rounds = config.rounds
    rounds = replace(rounds, deadline_seconds=rounds.deadline_seconds or _SERVER, least=max(1, rounds.least))
    return replace(config, rounds=rounds)


def for_edge(config: Config) -> Config:
    """With a deadline that the parent's outlasts, where the settings give none."""
    rounds = config.rounds
    rounds = replace(rounds, deadline_seconds=rounds.deadline_seconds or _EDGE_SERVER)
    return for_deployment(replace(config, rounds=rounds))
