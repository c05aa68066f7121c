"""A small federation, made once: data, settings, everyone's part, teacher and student."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fedge.config import Config
    from fedge.federated.prepare import Prepared
    from fedge.simulation.world import World

# The same examples every time; under FEDGE_FULL=1 new ones, to look further.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("wide", derandomize=False, deadline=None)
settings.load_profile("wide" if os.environ.get("FEDGE_FULL") == "1" else "same")

# Imports stand inside the fixtures: tests of the parts that need no torch must not load it.


@pytest.fixture(scope="session")
def wide() -> bool:
    """Whether the wide tests run in full."""
    return os.environ.get("FEDGE_FULL") == "1"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds what an earlier run has left in the user's cache, or leaves anything there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def torch_as_before() -> Iterator[None]:
    """A simulated client sets torch up for a process of its own, without denormals; no other test sees it."""
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads or torch.get_num_threads())
        torch.set_deterministic_debug_mode("default")
        torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def fleet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everyone's windows, as a user would give them."""
    from federated.build import write_fleet

    return write_fleet(tmp_path_factory.mktemp("data") / "fleet.npz")


@pytest.fixture(scope="session")
def small_config(fleet_file: Path) -> "Config":
    """Settings with which a whole life takes seconds."""
    import torch
    from federated.build import config_for

    torch.set_num_threads(1)
    return config_for(fleet_file)


@pytest.fixture(scope="session")
def small_world(small_config: "Config") -> "World":
    """Six participants, one client of the server's, one unseen."""
    from fedge.simulation.world import build_world

    return build_world(small_config)


@pytest.fixture(scope="session")
def small_prepared(small_world: "World") -> "Prepared":
    """A trained teacher and the student that is sent out. Nobody may change it."""
    from fedge.federated.prepare import prepare
    from fedge.observe import silent

    world, data = small_world, small_world.dataset
    return prepare(world.config, world.task, world.server_data(), len(data.classes), data.channels, silent)
