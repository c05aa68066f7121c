"""The five keys of a repository of releases: which is whose, and the files they live in.

Root and targets stay offline, in the hands of whoever runs the federation. Snapshot, timestamp and rounds
are on the server. One key per role: each can be replaced without the others (``fedge release renew``).
"""

from dataclasses import dataclass
from pathlib import Path

from fedge.signing import SigningKey, load_key, save_key


@dataclass(frozen=True)
class OnlineKeys:
    """What the server signs with.

    Attributes:
        snapshot: says which versions of the signed lists belong together.
        timestamp: says which snapshot is the newest, and until when.
        rounds: signs the releases that come out of the rounds.
    """

    snapshot: SigningKey
    timestamp: SigningKey
    rounds: SigningKey

    @staticmethod
    def generate() -> "OnlineKeys":
        """New keys."""
        return OnlineKeys(SigningKey.generate(), SigningKey.generate(), SigningKey.generate())

    def save(self, folder: Path) -> None:
        """Write ``snapshot.key``, ``timestamp.key`` and ``rounds.key``, readable by their owner only.

        Raises:
            SetupError: one of them exists already, or cannot be written.
        """
        for name in ONLINE:
            save_key(getattr(self, name), folder / f"{name}.key")

    @staticmethod
    def load(folder: Path) -> "OnlineKeys":
        """Read what :meth:`save` wrote.

        Raises:
            SetupError: a file is missing, open to others, or no key.
        """
        return OnlineKeys(*(load_key(folder / f"{name}.key") for name in ONLINE))


@dataclass(frozen=True)
class Keys:
    """All keys of a repository.

    Attributes:
        root: says whose the other keys are.
        targets: promotes releases, and delegates to ``rounds``.
        online: see :class:`OnlineKeys`.
    """

    root: SigningKey
    targets: SigningKey
    online: OnlineKeys

    @staticmethod
    def generate() -> "Keys":
        """New keys."""
        return Keys(SigningKey.generate(), SigningKey.generate(), OnlineKeys.generate())

    def save(self, offline: Path, online: Path) -> None:
        """Write ``root.key`` and ``targets.key`` to the folder ``offline``, the others to ``online``.

        Raises:
            SetupError: one of them exists already, or cannot be written.
        """
        save_key(self.root, offline / "root.key")
        save_key(self.targets, offline / "targets.key")
        self.online.save(online)


ONLINE = ("snapshot", "timestamp", "rounds")
