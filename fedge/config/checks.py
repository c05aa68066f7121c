"""Settings that contradict each other are refused, with the reason."""

from fedge.config.settings import Config
from fedge.errors import ConfigError


def redistils(config: Config) -> bool:
    """Whether this run ever tries a re-distilled student (``gradient`` mode asks after the first round)."""
    settings, rounds = config.redistill, config.rounds.rounds
    return settings.mode != "none" and rounds > (1 if settings.mode == "gradient" else settings.every)


def _check_robust(config: Config) -> None:
    """Refuse robust aggregation where it makes no sense."""
    rounds = config.rounds
    if rounds.robust == "trimmed_mean" and config.uplink.codec in ("ternary", "subspace"):
        raise ConfigError(
            "rounds.robust = 'trimmed_mean' takes each entry by itself, and most entries of a sparse update "
            "are 0: it would trim whatever is sent; use multikrum, or uplink.codec = 'quantized'"
        )
    if rounds.robust != "none" and rounds.optimizer == "dyn":
        raise ConfigError(
            "rounds.robust leaves updates out, and FedDyn needs them all; use another optimizer"
        )


def _check_buffer(config: Config) -> None:
    """Refuse asynchronous rounds that contradict other settings."""
    rounds = config.rounds
    if rounds.buffer and rounds.late != "count":
        raise ConfigError(
            "rounds.buffer waits for updates of any round, so late ones count: rounds.late = 'count'"
        )
    if rounds.buffer and rounds.over_select > 1:
        raise ConfigError("rounds.buffer and rounds.over_select both say when a round ends: give one of them")


def _check_fleet(config: Config) -> None:
    """Refuse links that nothing fits through."""
    if config.fleet.uplink_bytes and config.fleet.uplink_bits_per_second:
        raise ConfigError("fleet.uplink_bytes and fleet.uplink_bits_per_second: give one of them")
    if 0 < config.fleet.edge_bytes < 160:
        raise ConfigError("fleet.edge_bytes: the shortest answer has 160 bytes")


def check(config: Config) -> None:
    """Refuse combinations that cannot work, with the reason."""
    _check_robust(config)
    _check_buffer(config)
    _check_fleet(config)
    if config.local.final_learning_rate > config.local.learning_rate:
        raise ConfigError(
            f"local.final_learning_rate {config.local.final_learning_rate} is above local.learning_rate "
            f"{config.local.learning_rate}; the rate only falls"
        )
    if config.fleet.edges and config.rounds.optimizer == "dyn":
        raise ConfigError(
            "rounds.optimizer = 'dyn' goes by the share of all clients that took part, which a server above "
            "edge servers does not know: use another optimizer, or fleet.edges = 0"
        )
    if redistils(config) and config.redistill.judge == "clients" and config.data.judge_share == 0:
        raise ConfigError(
            "data.judge_share is 0, but re-distilled students are judged on that share; "
            "raise it, or set redistill.mode = 'none'"
        )
    if config.redistill.judge_clients and config.redistill.judge != "server":
        raise ConfigError("redistill.judge_clients goes with redistill.judge = 'server'")
    if (config.local.dynamic > 0) != (config.rounds.optimizer == "dyn"):
        raise ConfigError(
            "local.dynamic and rounds.optimizer = 'dyn' are two halves of FedDyn: set both or neither"
        )
    if len(config.local.rotate) % 3 or len(set(config.local.rotate)) < len(config.local.rotate):
        raise ConfigError("local.rotate: give three different channels for each sensor")
    if config.teacher.module and config.teacher.onnx:
        raise ConfigError("teacher.module and teacher.onnx: give one of them")
    if config.teacher.weights and not config.teacher.module:
        raise ConfigError("teacher.weights goes with teacher.module")
