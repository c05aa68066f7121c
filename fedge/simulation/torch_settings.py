"""How torch is set up wherever a simulation runs, so that a seed gives the same bits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def repeatable() -> None:
    """One thread, deterministic kernels, no denormals (they are slow, and differ between kernels).

    For a process that does nothing else; it holds in the calling thread and those that it starts.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # the other way to say it loads the compiler: 3 s, 70 MB
    torch.set_flush_denormal(True)


@contextmanager
def repeatably() -> Iterator[None]:
    """The same for a while: what comes after finds torch as it was before."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    flushes = flushes_denormals()
    with warnings.catch_warnings():
        repeatable()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(mode)
            torch.set_flush_denormal(flushes)


def flushes_denormals() -> bool:
    """Whether they count as zero in this thread; torch can be told so, and does not tell."""
    return not bool((torch.full((1,), 1e-38) / 1000).any())
