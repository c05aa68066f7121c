"""A user's own teacher: a PyTorch module by its import path, or an ONNX model.

Importing a module runs its code: a scenario that names one must be trusted as a program is. Weights are read
from safetensors files only, which hold numbers and nothing else.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import safetensors
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedge.errors import ConfigError
from fedge.models.teacher import first_line
from fedge.plugins import nearest

MAX_FILE_BYTES = 1 << 30
"""Largest file of weights, and largest ONNX model, that is read."""

_BATCH = 256  # windows in one call of ONNX Runtime: bounds its memory
_SHOWN = 3  # differences between a file and a module that are named
_FATAL = 4  # ONNX Runtime's severity above which it writes to standard error; its errors are raised
_FLOATS = {"F16", "BF16", "F32", "F64"}


def load_module(path: str, weights: Path | None, settings: Mapping[str, Any]) -> nn.Module:
    """The module that a user names, made with ``settings``, with ``weights`` in it where they are given.

    Args:
        path: ``package.module:Name``, looked for where Python looks, then in the current folder. ``Name`` is
            a subclass of ``nn.Module``, or a function that returns one.
        weights: a ``.safetensors`` file with exactly the entries of the module's ``state_dict``.
        settings: keyword arguments.

    Raises:
        ConfigError: it cannot be imported or made, it is no module, or the weights are not its weights.
    """
    where = f"teacher.module {path}"
    make = _named(path, where)
    try:
        module = make(**settings)
    except Exception as error:  # the user's own code
        raise ConfigError(f"{where}: {first_line(error)}; {_wanted(make)}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{where} returns a {type(module).__name__}, not a torch.nn.Module")
    if any(is_lazy(p) for p in (*module.parameters(), *module.buffers())):
        raise ConfigError(f"{where} has lazy layers; state their sizes, so that its weights exist")
    if weights is not None:
        _load_weights(module, weights, where)
    return module


def _named(path: str, where: str) -> Callable[..., object]:
    """What ``path`` names, if it can be called to make a module."""
    module_name, _, name = path.partition(":")
    parts = module_name.split(".")
    if not all(part.isidentifier() for part in (name, *parts)) or parts[1:] == ["py"]:
        raise ConfigError(f"{where}: write package.module:Name (an import path, not a file)")
    found = _imported(module_name, where)
    if not hasattr(found, name):
        known = [n for n, v in vars(found).items() if inspect.isclass(v) and issubclass(v, nn.Module)]
        hint = nearest(name, known) if known else "it has no torch.nn.Module at all"
        raise ConfigError(f"{where}: {module_name} has no {name}; {hint}")
    made = getattr(found, name)
    if inspect.isclass(made) and not issubclass(made, nn.Module):
        raise ConfigError(f"{where} is a class, but no torch.nn.Module")
    if isinstance(made, nn.Module) or not callable(made):
        kind = type(made).__name__
        raise ConfigError(
            f"{where} is a {kind}; name a subclass of torch.nn.Module, or a function that makes one"
        )
    return made  # type: ignore[no-any-return]


def _imported(name: str, where: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that nothing there hides an installed package
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f"{where}: there is no module {missing!r}; it must be installed, on PYTHONPATH, or in the "
                "current folder"
            ) from error
        raise ConfigError(f"{where}: {name} needs {missing!r}, which is not installed") from error
    except (Exception, SystemExit) as error:  # the user's own code
        raise ConfigError(f"{where}: importing {name} failed: {first_line(error)}") from error


def _wanted(make: Callable[..., object]) -> str:
    """Which settings there could be."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return "its arguments are given as teacher.settings"
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    optional = [p.name for p in parameters if p.default is not p.empty]
    required_names, optional_names = ", ".join(required) or "none", ", ".join(optional) or "none"
    return f"teacher.settings: required {required_names}; optional {optional_names}"


def _load_weights(module: nn.Module, path: Path, where: str) -> None:
    """Names and shapes are compared before any weight is read."""
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"teacher.weights {path}: only .safetensors files are read, since a pickled checkpoint can run "
            "any code; convert it: safetensors.torch.save_model(module, 'teacher.safetensors')"
        )
    _check_size(path, "teacher.weights")
    own = module.state_dict()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            _check_entries(own, {n: file.get_slice(n) for n in file.keys()}, path, where)  # noqa: SIM118
            loaded = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ConfigError(f"teacher.weights {path}: no safetensors file: {first_line(error)}") from error
    bad = next((n for n, v in loaded.items() if v.is_floating_point() and not v.isfinite().all()), None)
    if bad is not None:
        raise ConfigError(f"teacher.weights {path}: {bad!r} has values that are not finite")
    module.load_state_dict(loaded, strict=False)


def _check_entries(own: Mapping[str, Any], given: Mapping[str, Any], path: Path, where: str) -> None:
    """The same names and shapes, and floats for floats; a weight under two names need be there once."""
    there = {(own[n].data_ptr(), own[n].shape) for n in given if n in own}
    wrong = [
        f"missing {n!r}" for n, v in own.items() if n not in given and (v.data_ptr(), v.shape) not in there
    ]
    wrong += [f"unknown {n!r}" for n in given if n not in own]
    for name in own.keys() & given.keys():
        shape, wanted = list(given[name].get_shape()), list(own[name].shape)
        if shape != wanted:
            wrong.append(f"{name!r} is {shape} in the file, {wanted} in the module")
        elif (given[name].get_dtype() in _FLOATS) != own[name].is_floating_point():
            wrong.append(
                f"{name!r} is {given[name].get_dtype()} in the file, {own[name].dtype} in the module"
            )
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ConfigError(f"teacher.weights {path} does not fit {where}: {'; '.join(wrong[:_SHOWN])}{more}")


def _check_size(path: Path, setting: str) -> None:
    """A file that is there, and not larger than what is read."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{setting} {path}: {error.strerror}") from None
    if not path.is_file():
        raise ConfigError(f"{setting} {path}: this is no file")
    if size > MAX_FILE_BYTES:
        raise ConfigError(f"{setting} {path}: {size} bytes; at most {MAX_FILE_BYTES} are read")


class OnnxTeacher(nn.Module):
    """An ONNX model as a teacher: it answers, in ONNX Runtime on one thread; no gradient flows through it.

    It has no parameters of PyTorch's, so it cannot be trained, and no ``features``.

    Attributes:
        weights: number of values in the model's initializers.
        size_bytes: size of the file.
    """

    def __init__(self, session: onnxruntime.InferenceSession, weights: int, size_bytes: int) -> None:
        super().__init__()
        self._session = session
        self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name
        self.weights, self.size_bytes = weights, size_bytes

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[n, outputs]`` of ``x [n, channels, ...]``, in batches of at most 256."""
        parts = []
        for batch in torch.split(x.detach().contiguous(), _BATCH):
            parts += self._session.run([self._output], {self._input: batch.numpy()})
        return torch.from_numpy(np.concatenate(parts))


def load_onnx(path: Path) -> OnnxTeacher:
    """A model of exactly one input, whatever its name; where it has several outputs, the first is taken.

    Raises:
        ConfigError: no such file, larger than 1 GiB, no ONNX model, not in one file, it does not open, or it
            does not map float32 with a free batch size to float32.
    """
    where = f"teacher.onnx {path}"
    _check_size(path, "teacher.onnx")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from None
    weights = _count_weights(content, where)
    session = _opened(content, where)
    _check_ports(session, where)
    return OnnxTeacher(session, weights, len(content))


def _count_weights(content: bytes, where: str) -> int:
    """How many, unless some are kept in another file."""
    import onnx  # with its own compiled parser, which only this needs

    try:
        graph = onnx.ModelProto.FromString(content).graph
    except Exception as error:  # protobuf's, which has no types
        raise ConfigError(f"{where}: this is no ONNX model") from error
    outside = onnx.TensorProto.EXTERNAL
    if any(t.data_location == outside for t in graph.initializer):
        raise ConfigError(
            f"{where}: its weights are in another file; keep them in one: "
            "torch.onnx.export(..., external_data=False)"
        )
    return sum(int(np.prod(t.dims)) for t in graph.initializer)


def _opened(content: bytes, where: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise ConfigError(f"{where} does not open in ONNX Runtime: {first_line(error)}") from error


def _check_ports(session: onnxruntime.InferenceSession, where: str) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or not outputs:
        names = ", ".join(p.name for p in inputs) or "none"
        raise ConfigError(f"{where}: it must have exactly one input and an output; its inputs: {names}")
    for port, role in ((inputs[0], "input"), (outputs[0], "first output")):
        if port.type != "tensor(float)":
            raise ConfigError(f"{where}: its {role} {port.name!r} is {port.type}; it must be float32")
    shape = inputs[0].shape
    if shape and isinstance(shape[0], int):
        raise ConfigError(
            f"{where}: its input {inputs[0].name!r} is {shape}, with a fixed batch size; export it "
            "with a free (dynamic) first dimension"
        )
