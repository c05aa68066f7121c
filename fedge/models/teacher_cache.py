"""Trained teachers on disk, so that the same training is done once.

A file is a safetensors file with a checksum over its content, so a file that was damaged, or that belongs to
another key, is trained anew. What it holds is the very state that training would have given, bit for bit.
Nothing is ever cleared away; the folder may be removed at any time.
"""

import hashlib
import json
import os
import platform
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fedge.durable import replace_file

KEY_BYTES = 32

_CODE = ("models/teacher*.py", "distill/_fit.py", "augment.py")
_LARGEST_HEADER = 1 << 26
_CHECKSUM = "blake2b"


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$FEDGE_CACHE``, or ``$XDG_CACHE_HOME/fedge``, or ``~/.cache/fedge``.

    Raises:
        OSError: nobody knows where this user's home is.
    """
    if environment.get("FEDGE_CACHE"):
        return Path(environment["FEDGE_CACHE"])
    base = Path(environment.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # as the XDG base directory specification has it, a relative one is ignored
        return base / "fedge"
    try:
        return Path.home() / ".cache" / "fedge"
    except RuntimeError as error:
        raise OSError(0, "there is no home folder; set FEDGE_CACHE") from error


def teacher_key(
    module: nn.Module, x: Tensor, y: Tensor, settings: Mapping[str, Any], sources: Iterable[Path] = ()
) -> bytes:
    """A name for what training will give: the same only if everything is that training depends on.

    That is the data, the settings, the module's weights before training (so its seed and its checkpoint too),
    fedge's code that training runs through, the files that the module's classes are written in, torch, and
    what of the machine changes how floats are summed up.

    Args:
        module: as it is before training.
        x: windows ``[n, channels, ...]``.
        y: targets ``[n]``.
        settings: whatever else matters, such as epochs and seeds; what JSON can hold.
        sources: further files that training runs through, such as the task's.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    machine = [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    known = {"settings": settings, "torch": torch.__version__, "machine": machine}
    _add(digest, json.dumps(known, sort_keys=True, allow_nan=False).encode())
    for path in [*_own_code(), *sources, *_files_of(module)]:
        _add(digest, path.name.encode(), path.read_bytes())
    _add_tensors(digest, {"x": x, "y": y})
    _add_tensors(digest, module.state_dict())
    return digest.digest()


def cached_teacher(
    key: bytes,
    module: nn.Module,
    train: Callable[[], object],
    note: Callable[[str], object] = lambda _text: None,
    folder: Path | None = None,
) -> bool:
    """Give ``module`` the state that an earlier training led to, and say True; or train it and keep that.

    Args:
        key: from ``teacher_key``.
        module: its state is replaced; whether it is in training mode is up to the caller.
        train: trains ``module`` in place, and changes nothing else that matters.
        note: told in one sentence if the trained state cannot be kept; that is no error.
        folder: where; by default ``teachers`` in ``cache_folder()``.
    """
    if _restored(module, key, folder):
        return True
    train()
    try:
        _write(_path(key, folder), _packed(module, key))
    except (OSError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        note(f"the trained teacher cannot be kept ({reason}); it will be trained again next time")
    return False


def _path(key: bytes, folder: Path | None) -> Path:
    return (cache_folder() / "teachers" if folder is None else folder) / f"{key.hex()}.safetensors"


def _restored(module: nn.Module, key: bytes, folder: Path | None) -> bool:
    """Copy a kept state into ``module``, if there is one and it is whole; otherwise change nothing."""
    own = module.state_dict()
    limit = _LARGEST_HEADER + sum(v.nbytes for v in own.values() if isinstance(v, Tensor))
    try:
        with _path(key, folder).open("rb") as file:
            content = file.read(limit + 1)
        kept = safetensors.torch.load(content) if len(content) <= limit else {}
    except (OSError, ValueError, safetensors.SafetensorError):
        return False
    if not kept or _checksum(content) != _content_digest(key, kept):
        return False
    if {n: (v.dtype, v.shape) for n, v in kept.items()} != {n: (v.dtype, v.shape) for n, v in own.items()}:
        return False
    module.load_state_dict(kept)
    return True


def _packed(module: nn.Module, key: bytes) -> bytes:
    """The state as a safetensors file.

    Raises:
        TypeError: the module has state that is no tensor.
    """
    state = module.state_dict()
    other = next((n for n, v in state.items() if not isinstance(v, Tensor)), None)
    if other is not None:
        raise TypeError(f"its state {other!r} is no tensor")
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}
    return safetensors.torch.save(tensors, {_CHECKSUM: _content_digest(key, tensors)})


def _checksum(content: bytes) -> object:
    """What the file itself says; its header is known to be well formed."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__", {}).get(_CHECKSUM)


def _content_digest(key: bytes, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(key, digest_size=KEY_BYTES)
    _add_tensors(digest, tensors)
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes the same file at the same time.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content, path.with_name(f".{secrets.token_hex(8)}.unfinished"))


def _own_code() -> list[Path]:
    package = Path(__file__).parent.parent
    return sorted(path for pattern in _CODE for path in package.glob(pattern))


def _files_of(module: nn.Module) -> list[Path]:
    """The files in which the classes of ``module`` and of what it is made of are written, without torch's."""
    kinds = {type(m) for m in module.modules() if not type(m).__module__.startswith("torch.")}
    names = (getattr(sys.modules.get(k.__module__), "__file__", None) for k in kinds)
    return sorted({Path(name) for name in names if name})


def _add_tensors(digest: "hashlib.blake2b", tensors: Mapping[str, object]) -> None:
    """Names, types, shapes and bytes, in the order of the names."""
    for name, value in sorted(tensors.items()):
        if not isinstance(value, Tensor):
            _add(digest, name.encode(), repr(value).encode())
            continue
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        _add(digest, f"{name} {value.dtype} {list(value.shape)}".encode(), flat.numpy())


def _add(digest: "hashlib.blake2b", *parts: Any) -> None:
    """Bytes, each after its length, so that no two lists of parts look alike."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
