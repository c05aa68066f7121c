"""A simulation sets torch up, and leaves it as it was."""

from pathlib import Path

import pytest
import torch

from fedge.federated.journal import Journal
from fedge.observe import silent
from fedge.simulation.folder import JOURNAL
from fedge.simulation.life import simulate
from fedge.simulation.torch_settings import flushes_denormals, repeatably
from fedge.simulation.world import World

State = tuple[int, int, bool]


def _state() -> State:
    return torch.get_num_threads(), torch.get_deterministic_debug_mode(), flushes_denormals()


@pytest.mark.parametrize("flushes", [False, True])
def test_whether_denormals_are_flushed_is_found_out(flushes: bool) -> None:
    torch.set_flush_denormal(flushes)
    assert flushes_denormals() == flushes
    torch.set_flush_denormal(False)


@repeatably()
def _interrupted() -> None:
    assert _state() == (1, 2, True)
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", [(1, 0, False), (2, 1, False), (1, 2, True)])
def test_torch_is_as_it_was_also_after_an_error(before: State) -> None:
    kept = _state()
    torch.set_num_threads(before[0])
    torch.set_deterministic_debug_mode(before[1])
    torch.set_flush_denormal(before[2])
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupted()
        assert _state() == before
    finally:
        torch.set_num_threads(kept[0])
        torch.set_deterministic_debug_mode(kept[1])
        torch.set_flush_denormal(kept[2])


def test_a_simulation_leaves_denormals_to_whoever_comes_next(small_world: World, tmp_path: Path) -> None:
    """Its clients run in this process, and set torch up as they do in one of their own."""
    before = _state()
    with Journal(tmp_path / JOURNAL) as journal:
        simulate(small_world.config, small_world, tmp_path, journal, silent)
    assert _state() == before
