"""What comes out of the cache is what training gave, or training happens."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fedge.models import teacher_cache
from fedge.models.teacher import build_teacher
from fedge.models.teacher_cache import cache_folder, cached_teacher, teacher_key

KEY, OTHER = bytes(range(32)), bytes(32)


def fresh(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_teacher("residual", "small", (16, 2), 3)


def training(module: nn.Module) -> Callable[[], int]:
    """Two steps, with batch statistics and dropout."""

    def train() -> int:
        torch.manual_seed(7)
        optimizer = torch.optim.AdamW(module.parameters(), 0.01)
        for _ in range(2):
            optimizer.zero_grad()
            module(torch.randn(8, 2, 16)).square().mean().backward()
            optimizer.step()
        return 1

    return train


def never() -> None:
    raise AssertionError("trained, though it was kept")


def bits(module: nn.Module) -> dict[str, bytes]:
    return {n: v.numpy().tobytes() for n, v in module.state_dict().items()}


def kept(folder: Path) -> nn.Module:
    module = fresh()
    assert not cached_teacher(KEY, module, training(module), pytest.fail, folder)
    return module


def test_the_second_time_gives_the_same_bits_without_training(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    first, second = kept(folder), fresh(1)
    assert cached_teacher(KEY, second, never, pytest.fail, folder)
    assert bits(second) == bits(first) != bits(fresh())
    assert int(second.state_dict()["norm.num_batches_tracked"]) == 2
    assert [p.name for p in folder.iterdir()] == [f"{KEY.hex()}.safetensors"]


def test_weights_that_look_like_nothing_come_back_too(tmp_path: Path) -> None:
    one, two = nn.Linear(3, 1), nn.Linear(3, 1)
    odd = torch.tensor([[-0.0, torch.nan, 1e-45]])

    def train() -> None:
        with torch.no_grad():
            one.weight.copy_(odd)

    cached_teacher(KEY, one, train, pytest.fail, tmp_path)
    assert cached_teacher(KEY, two, never, pytest.fail, tmp_path)
    assert bits(two) == bits(one)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        module[1].weight = module[0].weight
        return module

    one, two = tied(), tied()
    cached_teacher(KEY, one, lambda: None, pytest.fail, tmp_path)
    assert cached_teacher(KEY, two, never, pytest.fail, tmp_path)
    assert bits(two) == bits(one)
    assert two[1].weight is two[0].weight  # type: ignore[index]


def test_another_key_trains(tmp_path: Path) -> None:
    kept(tmp_path)
    module = fresh()
    assert not cached_teacher(OTHER, module, training(module), pytest.fail, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit of a weight": lambda c: c[:-3] + bytes([c[-3] ^ 1]) + c[-2:],
    "a bit of the header": lambda c: c[:20] + bytes([c[20] ^ 4]) + c[21:],
    "torn": lambda c: c[: len(c) // 2],
    "empty": lambda _: b"",
    "longer": lambda c: c + b"\0",
    "huge header": lambda c: b"\xff" * 8 + c[8:],
    "no checksum": lambda c: safetensors.torch.save(safetensors.torch.load(c)),
    "another module's": lambda _: safetensors.torch.save({"w": torch.zeros(3)}, {"blake2b": "00"}),
    "no safetensors": lambda _: b"x" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_trained_anew_and_replaced(tmp_path: Path, damage: str) -> None:
    whole = bits(kept(tmp_path))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(DAMAGE[damage](content))
    module = fresh()
    assert not cached_teacher(KEY, module, training(module), pytest.fail, tmp_path)
    assert bits(module) == whole
    assert path.read_bytes() == content


def test_a_damaged_file_leaves_the_module_as_it_was_before_training(tmp_path: Path) -> None:
    kept(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGE["a bit of a weight"](path.read_bytes()))
    module, seen = fresh(), []
    cached_teacher(KEY, module, lambda: seen.append(bits(module)), pytest.fail, tmp_path)
    assert seen == [bits(fresh())]


def test_a_file_under_the_wrong_name_is_not_taken(tmp_path: Path) -> None:
    kept(tmp_path)
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / f"{OTHER.hex()}.safetensors")
    module = fresh()
    assert not cached_teacher(OTHER, module, training(module), pytest.fail, tmp_path)


def test_a_file_of_another_shape_under_the_same_key_is_not_taken(tmp_path: Path) -> None:
    cached_teacher(KEY, nn.Linear(3, 2), lambda: None, pytest.fail, tmp_path)
    assert not cached_teacher(KEY, nn.Linear(2, 3), lambda: None, pytest.fail, tmp_path)
    assert cached_teacher(KEY, nn.Linear(2, 3), never, pytest.fail, tmp_path)


@pytest.mark.parametrize("where", ["/dev/null/teachers", "/proc/fedge", "file/teachers"])
def test_a_folder_that_cannot_be_written_only_loses_the_cache(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    module, notes = fresh(), []
    assert not cached_teacher(KEY, module, training(module), notes.append, tmp_path / where)
    assert len(notes) == 1
    assert "cannot be kept" in notes[0]
    assert bits(module) != bits(fresh())


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    module, notes = fresh(), []
    assert not cached_teacher(KEY, module, training(module), notes.append, tmp_path)
    assert notes == [
        "the trained teacher cannot be kept (No space left on device); it will be trained again next time"
    ]
    assert not list(tmp_path.iterdir())


def test_training_that_fails_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        cached_teacher(KEY, fresh(), never, pytest.fail, tmp_path)
    assert not list(tmp_path.iterdir())


class WithMore(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"epoch": 3}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError(state)


def test_state_that_is_no_tensor_only_loses_the_cache(tmp_path: Path) -> None:
    module, notes = WithMore(2, 2), []
    assert len(teacher_key(module, torch.zeros(1), torch.zeros(1), {})) == 32
    for _ in range(2):
        assert not cached_teacher(KEY, module, lambda: None, notes.append, tmp_path)
    assert len(notes) == 2
    assert "'_extra_state' is no tensor" in notes[0]


def test_the_folder_is_the_users_choice_or_where_caches_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder({"FEDGE_CACHE": "mine", "XDG_CACHE_HOME": "/xdg"}) == Path("mine")
    assert cache_folder({"FEDGE_CACHE": "", "XDG_CACHE_HOME": "/xdg"}) == Path("/xdg/fedge")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == tmp_path / ".cache" / "fedge"
    assert cache_folder({}) == tmp_path / ".cache" / "fedge"
    monkeypatch.setenv("FEDGE_CACHE", str(tmp_path / "set"))
    cached_teacher(KEY, fresh(), lambda: None, pytest.fail)
    assert (tmp_path / "set" / "teachers" / f"{KEY.hex()}.safetensors").is_file()


def test_without_a_home_only_the_cache_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("FEDGE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    notes: list[str] = []
    assert not cached_teacher(KEY, fresh(), lambda: None, notes.append)
    assert "set FEDGE_CACHE" in notes[0]


X, Y = torch.arange(24.0).reshape(2, 3, 4), torch.tensor([0, 1])
SETTINGS = {"epochs": 30, "seed": 1}


def test_the_same_training_has_the_same_key() -> None:
    turned = X.transpose(1, 2).contiguous().transpose(1, 2)  # the same numbers, laid out otherwise
    key = teacher_key(fresh(), X, Y, SETTINGS)
    assert key == teacher_key(fresh(), turned, Y.clone(), dict(reversed(SETTINGS.items())))
    assert len(key) == teacher_cache.KEY_BYTES


def one_bit(x: Tensor) -> Tensor:
    return torch.cat([x.flatten()[:-1], x.flatten()[-1:].nextafter(torch.tensor(99.0))]).reshape(x.shape)


@pytest.mark.parametrize(
    "other",
    [
        (fresh(), one_bit(X), Y, SETTINGS),
        (fresh(), X.reshape(2, 4, 3), Y, SETTINGS),
        (fresh(), X.view(torch.int32), Y, SETTINGS),
        (fresh(), X.flip(0), Y, SETTINGS),
        (fresh(), X, Y.flip(0), SETTINGS),
        (fresh(), X, Y.float(), SETTINGS),
        (fresh(), X, Y, {**SETTINGS, "epochs": 31}),
        (fresh(), X, Y, {}),
        (fresh(1), X, Y, SETTINGS),
        (build_teacher("residual", "base", (16, 2), 3), X, Y, SETTINGS),
    ],
)
def test_other_training_has_another_key(other: tuple[nn.Module, Tensor, Tensor, dict[str, int]]) -> None:
    assert teacher_key(*other) != teacher_key(fresh(), X, Y, SETTINGS)


def test_code_that_changes_has_another_key(tmp_path: Path) -> None:
    source = tmp_path / "task.py"
    keys = []
    for text in ("one", "two"):
        source.write_text(text)
        keys.append(teacher_key(fresh(), X, Y, SETTINGS, [source]))
    assert len({*keys, teacher_key(fresh(), X, Y, SETTINGS)}) == 3


def test_parts_of_a_key_do_not_run_into_each_other(tmp_path: Path) -> None:
    one, two = tmp_path / "task", tmp_path / "tas"
    one.write_text("code")
    two.write_text("kcode")
    assert teacher_key(fresh(), X, Y, SETTINGS, [one]) != teacher_key(fresh(), X, Y, SETTINGS, [two])


def test_the_code_of_fedge_and_of_the_users_module_is_part_of_the_key() -> None:
    names = {p.name for p in teacher_cache._own_code()}
    assert {"teacher.py", "teacher_residual.py", "teacher_inception.py", "_fit.py"} <= names
    assert teacher_cache._files_of(WithMore(1, 1)) == [Path(__file__)]
    assert teacher_cache._files_of(nn.Sequential(nn.Linear(1, 1))) == []


def test_another_torch_or_number_of_threads_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {teacher_key(fresh(), X, Y, SETTINGS)}
    monkeypatch.setattr(torch, "__version__", "0.0")
    keys.add(teacher_key(fresh(), X, Y, SETTINGS))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    keys.add(teacher_key(fresh(), X, Y, SETTINGS))
    assert len(keys) == 3
