"""What simulated clients keep, one file each: any process can run any client, and none holds them all."""

import os
from pathlib import Path

from fedge.durable import unfinished
from fedge.errors import SetupError


class ClientFiles:
    """A folder with the state of each client that has one.

    A file is there whole or not at all, whenever a process is killed. It is not flushed: after a power cut
    the run has to be started anew. The operating system keeps in memory what there is room for.
    """

    def __init__(self, folder: Path) -> None:
        """Make ``folder`` if it is not there.

        Raises:
            SetupError: it cannot be made.
        """
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise SetupError(f"cannot keep the clients' states in {folder}: {error.strerror}") from None
        self._folder = folder

    def load(self, client: int) -> bytes | None:
        """What client number ``client`` saved last; ``None`` if it never did.

        Raises:
            SetupError: its file cannot be read.
        """
        path = self._folder / str(client)
        try:
            with path.open("rb", buffering=0) as file:
                return file.readall()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SetupError(f"cannot read {path}: {error.strerror}; start the run anew") from None

    def save(self, client: int, content: bytes) -> None:
        """Replace it.

        Raises:
            SetupError: the file cannot be written; what was there before is still there.
        """
        path = self._folder / str(client)
        new = unfinished(path)
        try:
            new.write_bytes(content)
            os.rename(new, path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise SetupError(f"cannot write {path}: {error.strerror}") from None
