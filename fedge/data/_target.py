"""What is to be learned of a window, as a user says it: target, array, and which windows are normal."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from fedge.data._names import MAX_NAME
from fedge.data.types import TargetKind, Windows
from fedge.errors import ConfigError, DataError

ANOMALY_CLASSES = ("normal", "anomalous")
"""Names of the classes where the target is ``"anomaly"``."""

_OTHERS = ("X", "client", "classes", "channels", "scale", "order", "group", "trainable")
_NAME = rf"[A-Za-z_][A-Za-z0-9_]{{0,{MAX_NAME - 1}}}"
_NUMBER = r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,4})?"
_RULE = re.compile(rf" *({_NAME}) *(>=|<=|==|!=|>|<) *({_NUMBER}) *")


@dataclass(frozen=True)
class Rule:
    """Which windows are normal: those where an array of the file compares so with a number."""

    name: str
    operator: str
    number: float

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {self.number:.15g}"

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """``[n]``: where ``values [n]`` compare so; the number is rounded as the values are."""
        compare = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal,
                   "==": np.equal, "!=": np.not_equal}[self.operator]  # fmt: skip
        kind = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
        with np.errstate(over="ignore"):
            number = np.array(self.number, kind)
        found: NDArray[np.bool_] = compare(values.astype(kind, copy=False), number)
        return found


@dataclass(frozen=True)
class Target:
    """What is to be learned.

    Attributes:
        kind: one of some classes, a number, or whether a window is out of the ordinary.
        key: the array of an ``.npz`` file that tells it.
        normal: which windows may be trained on; None where the labels or the file say it.
    """

    kind: TargetKind = "class"
    key: str = "y"
    normal: Rule | None = None

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays of a file that only this target asks for."""
        names = (self.key, *([self.normal.name] if self.normal else []))
        return (*names, "trainable") if self.kind == "anomaly" else names


def parse_target(target: TargetKind, key: str, normal: str) -> Target:
    """Check and bring together what the user said.

    Raises:
        ConfigError: an unknown target, a key that is another array's, or an expression that is none.
    """
    if target not in get_args(TargetKind):
        raise ConfigError(f"the target {target!r} is unknown; known: {', '.join(get_args(TargetKind))}")
    if not re.fullmatch(_NAME, key):
        raise ConfigError(f"data.target is {key[:40]!r}; give the name of an array: letters, digits and _")
    if key in _OTHERS:
        raise ConfigError(f"data.target is {key!r}, which means something else in the file; name the target")
    if not normal.strip():
        return Target(target, key)
    if target != "anomaly":
        raise ConfigError(f"data.normal is {normal[:40]!r}, but only an anomaly task asks what is normal")
    return Target(target, key, _parse_rule(normal))


def _parse_rule(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if not match or not np.isfinite(float(match[3])):
        raise ConfigError(
            f"data.normal is {text[:60]!r}; write NAME OP NUMBER with OP one of > >= < <= == !=, "
            "for example 'rul > 100'"
        )
    return Rule(match[1], match[2], float(match[3]))


def check_built_in(target: Target, source: str) -> None:
    """Refuse a target that a data set which comes with a package does not have.

    Raises:
        ConfigError: another target than a class, or another array than ``y``.
    """
    if target.kind != "class" or target.key != "y":
        what = target.kind if target.kind != "class" else f"the array {target.key!r} as target"
        raise ConfigError(f"the data set {source!r} has classes, not {what}; give --data FILE.npz")


def check_table(target: Target, path: object) -> None:
    """Refuse what only an ``.npz`` file can answer.

    Raises:
        ConfigError: data.target or data.normal is set.
    """
    for name, said in (("data.target", target.key != "y"), ("data.normal", target.normal is not None)):
        if said:
            raise ConfigError(f"{path}: {name} is for .npz files only; here the column 'label' says it")


def check_everyone(clients: Iterable[Windows], target: Target, where: object) -> None:
    """Refuse data of which nothing can be learned, once everyone's is together.

    Raises:
        DataError: one number everywhere, or no window that may be trained on.
    """
    if target.kind == "number":
        numbers = {float(n) for windows in clients for n in (windows.y.min(), windows.y.max())}
        if len(numbers) == 1:
            raise DataError(f"{where}: every window has the number {numbers.pop():g}; nothing can be learned")
    if target.kind == "anomaly" and not any(len(windows.to_train_on()) for windows in clients):
        reason = f"data.normal ({target.normal}) holds nowhere" if target.normal else "none is normal"
        raise DataError(f"{where}: no window of any client may be trained on: {reason}; some must be")
