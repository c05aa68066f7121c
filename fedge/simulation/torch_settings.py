"""How torch is set up wherever a simulation runs, so that a seed gives the same bits."""

import warnings

import torch


def repeatable() -> None:
    """One thread, deterministic kernels, no denormals (they are slow, and differ between kernels)."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
