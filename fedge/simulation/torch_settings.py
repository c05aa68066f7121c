"""How torch is set up wherever a simulation runs, so that a seed gives the same bits."""

import warnings

import torch


def repeatable() -> None:
    """One thread, deterministic kernels, no denormals (they are slow, and differ between kernels)."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # the other way to say it loads the compiler: 3 s, 70 MB
    torch.set_flush_denormal(True)
