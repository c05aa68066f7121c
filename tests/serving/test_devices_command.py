"""``fedge infer --devices``: the same answers as with the model here."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedge.edge import infer_command
from fedge.errors import ConfigError
from fedge.serving import devices_command
from fedge.serving.peer import PeerError

from .build import Fake, running, whole, windows, write_release


def options(module: Any, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args([*map(str, words)])


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    first, second = (whole(tmp_path_factory.mktemp("device")) for _ in range(2))
    with running(first) as a, running(second) as b:
        yield [a, b]


def npz(path: Path, x: NDArray[Any]) -> Path:
    np.savez(path, X=x, y=np.arange(len(x)) % 3)
    return path


def csv(path: Path, x: NDArray[Any]) -> Path:
    rows = [f"{i * 0.1:.1f},{b!r},{a!r}" for i, (a, b) in enumerate(x.reshape(-1, 2).tolist())]
    path.write_text("timestamp,b,a\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("write", [npz, csv])
def test_devices_answer_as_the_model_does_here(
    ports: list[int], tmp_path: Path, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / f"x.{write.__name__}", windows(60))
    where = ",".join(f"127.0.0.1:{port}" for port in ports)
    infer_command.run(options(infer_command, str(write_release(tmp_path / "v1")), str(file), "--top", "2"))
    here = capsys.readouterr()
    devices_command.run(options(devices_command, str(file), "--devices", where, "--top", "2"))
    there = capsys.readouterr()
    assert len(here.out.splitlines()) >= 60
    assert [json.loads(line) for line in there.out.splitlines()] == [
        json.loads(line) for line in here.out.splitlines()
    ]
    assert there.err == here.err


def test_without_devices_the_model_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = npz(tmp_path / "x.npz", windows(3))
    devices_command.run(options(devices_command, str(write_release(tmp_path / "v1")), str(file)))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_what_makes_no_sense_is_said(ports: list[int], tmp_path: Path) -> None:
    file = str(npz(tmp_path / "x.npz", windows(3)))
    one = f"127.0.0.1:{ports[0]}"
    for words, says in (
        (("model", file, "--devices", one), "INPUT alone"),
        ((file, "--devices", ","), "each HOST:PORT once"),
        ((file, "--devices", f"{one},{one}"), "each HOST:PORT once"),
        ((file, "--devices", "here"), "HOST:PORT"),
        ((file, "--devices", one, "--deadline", "0"), "--deadline"),
        ((file, "--devices-ca", "x"), "--devices"),
    ):
        with pytest.raises(ConfigError, match=says):
            devices_command.run(options(devices_command, *words))


def test_no_device_is_one_clear_error(tmp_path: Path) -> None:
    with running(Fake()) as port:
        pass
    file = str(npz(tmp_path / "x.npz", windows(3)))
    with pytest.raises(PeerError, match="no device answers"):
        devices_command.run(options(devices_command, file, "--devices", f"127.0.0.1:{port}"))


def test_asking_what_there_is_loads_no_runtime() -> None:
    """``fedge infer`` starts as fast as it did."""
    code = (
        "import argparse, sys; from fedge.serving import devices_command as c\n"
        "c.add_arguments(argparse.ArgumentParser())\n"
        "print({'onnxruntime', 'httptools', 'uvloop', 'ssl', 'fedge.serving.across'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
