"""``python -I -S tied.py PARENT COMMAND...``: becomes COMMAND, which Linux kills when PARENT dies.

A process of its own between fork and command: no code of ours runs in the forked copy of a large process.
``prctl(2)``: the setting survives ``execve`` and is not inherited by what COMMAND starts itself.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Let Linux kill this process when its parent dies; end now if the parent is ``parent`` no more.

    Raises:
        OSError: the kernel refuses.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)  # it died before the tie was made


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  (our own command line)
