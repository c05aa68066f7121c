"""From a scenario file and what the command line changes in it to settings, every key and value checked."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from fedge.config.checks import check
from fedge.config.settings import Config, Link
from fedge.errors import ConfigError
from fedge.plugins import nearest

_PACKAGE = Path(__file__).parents[1]
SCENARIOS = (
    _PACKAGE / "scenarios",  # in an installed wheel
    _PACKAGE.parent / "simulations",  # in a checkout
)
_LARGEST_TOML = 1 << 20
_T = TypeVar("_T")


def load_config(
    scenario: str | None,
    overrides: Mapping[str, Any],
    assignments: Sequence[str] = (),
    task: str | None = None,
    name: str = "custom",
) -> Config:
    """Read a scenario and what the command line changes in it.

    Args:
        scenario: a built-in name, a TOML file, or ``None`` for the defaults of the task.
        overrides: dotted keys to values, from options such as ``--rounds``.
        assignments: ``section.key=value`` strings from ``--set``, in order.
        task: replaces the scenario's task.
        name: what to call the run where there is no scenario.

    Raises:
        ConfigError: unknown scenario, key or value; the message names the nearest known word.
    """
    name, raw = (name, {}) if scenario is None else _read_scenario(scenario)
    for key, value in overrides.items():
        _assign(raw, key, value)
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--set {text}: write --set section.key=value")
        _assign(raw, key.strip(), _literal(value.strip()))
    if task is not None:
        raw["task"] = task
    if "scenario" in raw:
        raise ConfigError("unknown key 'scenario': a scenario's name is that of its file")
    config = _parse(Config, raw | {"scenario": name}, "")
    check(config)
    return config


def config_text(config: Config) -> str:
    """All settings as one string (JSON): what a resumed run is compared with, and what travels."""
    raw = config.to_dict()
    for link in ("uplink", "downlink"):
        raw[link] = {"codec": raw[link]["codec"], **raw[link]["settings"]}
    return json.dumps(raw, sort_keys=True)


def difference(saved: str, config: Config) -> str:
    """Which settings differ from those that ``config_text`` wrote, and how; empty if none does.

    It may have been an older fedge: a setting that it did not know had its default.
    """
    try:
        old = _flat(config_text(config_from(saved)))
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"they cannot be read: {error}"
    new = _flat(config_text(config))
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    shown = ", ".join(f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in changed[:3])
    return shown + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _flat(text: str) -> dict[str, Any]:
    raw = json.loads(text)
    top = {k: v for k, v in raw.items() if not isinstance(v, dict)}
    return top | {f"{k}.{n}": x for k, v in raw.items() if isinstance(v, dict) for n, x in v.items()}


def config_from(text: str) -> Config:
    """What ``config_text`` wrote.

    Raises:
        ConfigError: a key or value is not known.
    """
    raw = json.loads(text)
    return load_config(None, raw, name=raw.pop("scenario"))


def scenarios() -> list[str]:
    """Names of the built-in scenarios."""
    return sorted({p.stem for folder in SCENARIOS if folder.is_dir() for p in folder.glob("*.toml")})


def _read_scenario(scenario: str) -> tuple[str, dict[str, Any]]:
    candidates = [folder / f"{scenario}.toml" for folder in SCENARIOS]
    if scenario.endswith(".toml"):
        candidates = [Path(scenario)]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        hint = "no such file" if scenario.endswith(".toml") else nearest(scenario, scenarios())
        raise ConfigError(f"unknown scenario {scenario!r}; {hint}")
    try:
        if path.stat().st_size > _LARGEST_TOML:
            raise ConfigError(f"{path}: larger than 1 MiB, not a scenario")
        return path.stem, tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise ConfigError(f"{path}: {error}") from None


def _literal(text: str) -> Any:
    """A TOML value; anything that is none is taken as a plain string."""
    try:
        parsed = tomllib.loads(f"v = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["v"] if len(parsed) == 1 else text


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{key}: {section} is a value, not a table")
    raw[last] = value


def _parse(kind: type[_T], raw: Mapping[str, Any], where: str) -> _T:
    """Make a section from a table, checking every key."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in raw.items():
        path = f"{where}{key}"
        if key not in known or key == "settings":
            if kind is not Link or isinstance(value, dict):
                names = [f"{where}{n}" for n in known if n not in ("settings", "scenario")]
                raise ConfigError(f"unknown key {path!r}; {nearest(path, names)}")
            extra[key] = value
            continue
        values[key] = _value(known[key], value, path)
    if kind is Link:
        values["settings"] = extra
    return kind(**values)


def _value(spec: Any, value: Any, path: str) -> Any:
    default = spec.default
    if hasattr(default, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a table, got {value!r}")
        return _parse(type(default), value, f"{path}.")
    if isinstance(default, tuple) and spec.metadata.get("low") is not None:
        return tuple(_within(spec, _typed(0, v, path), path) for v in _listed(value))
    value = _within(spec, _typed(default, value, path), path)
    among = spec.metadata.get("among")
    if among and value not in among:
        raise ConfigError(f"{path}: unknown value {value!r}; {nearest(str(value), list(among))}")
    return value


def _within(spec: Any, value: Any, path: str) -> Any:
    """``value``, if it is within the range of its setting."""
    low, high = spec.metadata.get("low"), spec.metadata.get("high")
    if low is not None and not low <= value <= high:
        raise ConfigError(f"{path}: {value} is not within {low} .. {high} ({spec.metadata['doc']})")
    return value


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _typed(default: Any, value: Any, path: str) -> Any:
    """``value`` in the type of ``default``, or an error."""
    wanted = type(default)
    if wanted is tuple:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not all(type(v) in (str, int) for v in value):
            raise ConfigError(f"{path}: expected a list of ids, got {value!r}")
        return tuple(str(v) for v in value)
    if wanted is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{path}: expected {_KINDS[wanted]}, got {value!r}")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
