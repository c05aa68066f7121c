"""The folders are the registries: a codec, a task or a distillation loss is one file in its folder."""

import difflib
import importlib
import pkgutil
from types import ModuleType

from fedge.errors import ConfigError

_FOLDERS = {"codec": "fedge.codec", "task": "fedge.tasks", "distillation loss": "fedge.distill"}


def names(kind: str) -> list[str]:
    """The plugins of one kind, sorted: the public modules of its folder.

    Only file names are read here; a module of the folder that is no plugin starts with ``_``.
    """
    package = importlib.import_module(_FOLDERS[kind])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """Import the plugin ``name`` of ``kind``, and nothing that is not in that folder.

    Raises:
        ConfigError: no such plugin; the message names the nearest one.
    """
    known = names(kind)
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}; {nearest(name, known)}")
    return importlib.import_module(f"{_FOLDERS[kind]}.{name}")


def nearest(name: str, known: list[str]) -> str:
    """The end of a sentence that names the known word nearest to ``name``, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
