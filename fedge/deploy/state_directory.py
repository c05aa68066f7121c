"""A state directory is one server's at a time, and for ever one federation's with one set of settings."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedge.config import Config, config_text, difference
from fedge.errors import SetupError
from fedge.federated.journal import Journal

JOURNAL, METRICS = "journal.sqlite", "metrics.jsonl"


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """The state directory is ours alone.

    Raises:
        SetupError: it cannot be used, or another server runs on it.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"the state directory {state} cannot be used: {error}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise SetupError(f"another server runs on {state}") from None
    try:
        yield
    except OSError as error:
        raise SetupError(f"the state directory {state} cannot be used: {error}") from None
    finally:
        os.close(handle)


def bind(journal: Journal, config: Config, federation: str) -> None:
    """Tie a journal to a federation and its settings, or check that it is tied to them.

    Raises:
        SetupError: it belongs to another federation, or other settings were given than it began with.
    """
    _check_bound(journal, config, federation)
    for key, value in (("federation", federation), ("config", config_text(config))):
        if journal.meta(key) is None:
            journal.set_meta(key, value)


def check_state(state: Path, config: Config, federation: str) -> None:
    """Find out before anything is started whether a state directory fits, if there is one.

    Raises:
        SetupError: it belongs to another federation or to other settings, was written by a newer fedge, is
            damaged, cannot be used, or another server runs on it.
    """
    try:
        if not (state / JOURNAL).exists():
            return
    except OSError as error:
        raise SetupError(f"the state directory {state} cannot be used: {error}") from None
    with locked(state), Journal(state / JOURNAL) as journal:
        _check_bound(journal, config, federation)


def _check_bound(journal: Journal, config: Config, federation: str) -> None:
    """The same check, and nothing is written.

    Raises:
        SetupError: likewise.
    """
    owner, saved = journal.meta("federation"), journal.meta("config")
    hint = "name another with --state"
    if owner not in (None, federation):
        raise SetupError(f"the state directory belongs to another federation; {hint}")
    if saved is not None and (changed := difference(saved, config)):
        raise SetupError(f"the state directory belongs to other settings ({changed}); {hint}")
