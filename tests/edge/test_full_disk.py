"""No room on the disk at any operation of an update: the old model goes on, the new one is taken later."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedge.edge.home import Home, Seen
from fedge.errors import SetupError

from .lab import Device, Federation, answers
from .powercut import recorded, snapshot


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation(tmp_path / "releases")
    for version in (1, 2):
        made.good(version)
        Device(made, tmp_path / "start").update()
    made.good(3)
    return made


def copied(tmp_path: Path, name: str) -> Path:
    place = tmp_path / name
    place.mkdir()
    for file, content in snapshot(tmp_path / "start").items():
        (place / file).write_bytes(content)
    return place


@pytest.mark.parametrize("restarted", [False, True])
def test_disk_that_is_full_at_any_operation_of_an_update(
    federation: Federation, tmp_path: Path, restarted: bool
) -> None:
    failed = 0
    while True:
        place = copied(tmp_path, f"full{failed}")
        device = Device(federation, place)
        with recorded(place) as recorder:
            recorder.fail_at = failed
            if not no_room(device, "No space left"):
                break
        assert device.version in (2, 3)
        assert device.home.slots().highest >= device.version
        assert answers(device.home)
        assert not [p.name for p in place.iterdir() if "unfinished" in p.name], "what was taken is given back"
        goes_on(Device(federation, place) if restarted else device, restarted=restarted)
        failed += 1
    assert failed > 20


def no_room(device: Device, reason: str) -> bool:
    """Whether an update fails, for ``reason``."""
    try:
        device.update()
    except SetupError as error:
        if reason not in str(error):
            raise
        return True
    return False


def goes_on(device: Device, *, restarted: bool) -> None:
    """There is room again. A process that was started anew may have to leave the release out."""
    outcome = device.update()
    assert device.home.slots().highest == 3
    if device.version != 3:
        assert restarted
        assert outcome.code == "tried_before"


def test_disk_that_stays_full_stays_out_of_the_way(federation: Federation, tmp_path: Path) -> None:
    """Every operation fails from one on, those that clear up too."""
    for first in range(40):
        place = copied(tmp_path, f"stays{first}")
        device = Device(federation, place)
        with recorded(place) as recorder:
            recorder.fail_at = first
            for _ in range(3):
                try:
                    device.update()
                except SetupError:
                    continue
                assert device.version in (2, 3)
        assert answers(device.home)
        device.update()
        assert device.version == 3, "the same process takes it once there is room"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes: python-tuf's own are under it, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 500, 800, 900, 1000, 1500, 2000, 3000, 5000, 6000, 8000])
def test_no_room_for_files_of_some_size(federation: Federation, tmp_path: Path, size: int) -> None:
    device = Device(federation, copied(tmp_path, "small"))
    with files_of_at_most(size):
        no_room(device, "too large")
        assert device.version in (2, 3)
    assert answers(device.home)
    device.update()
    assert device.version == 3


@pytest.mark.parametrize(
    "act",
    [
        lambda home: home.rollback(),
        lambda home: home.pin(1),
        lambda home: home.observe(Seen(2, errors=50)),
        lambda home: home.started(2),
    ],
)
@pytest.mark.usefixtures("federation")
def test_home_on_a_full_disk_says_so_and_stays_as_it_is(
    tmp_path: Path, act: Callable[[Home], object]
) -> None:
    place = copied(tmp_path, "home")
    before = snapshot(place)
    for at in range(3):
        with recorded(place) as recorder:
            recorder.fail_at = at
            with pytest.raises(SetupError, match="No space left"):
                act(Home(Device.disk_of(place)))
        assert snapshot(place) == before
