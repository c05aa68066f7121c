from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fedge.edge import _processor, runtime
from fedge.edge._processor import adds_exactly
from fedge.edge.runtime import Runtime

from .build import model, windows

SKYLAKE = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse4_2 avx2 avx512f avx512bw avx512vl\n"
ICE_LAKE = SKYLAKE.replace("avx512vl", "avx512vl avx512_vnni")
ALDER_LAKE = SKYLAKE.replace("avx512f avx512bw avx512vl", "avx_vnni")


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(_processor, "_CPUINFO", path)
    monkeypatch.setattr(runtime, "adds_exactly", adds_exactly.__wrapped__)
    return path


@pytest.mark.parametrize(
    ("machine", "content", "exact"),
    [
        ("x86_64", SKYLAKE, False),
        ("x86_64", ICE_LAKE, True),
        ("x86_64", ALDER_LAKE, True),
        ("x86_64", "", False),
        ("AMD64", SKYLAKE, False),
        ("aarch64", "", True),
        ("aarch64", SKYLAKE, True),
    ],
)
def test_only_x86_without_vnni_is_taken_for_clipping(
    cpuinfo: Path, machine: str, content: str, exact: bool
) -> None:
    cpuinfo.write_text(content)
    assert adds_exactly.__wrapped__(machine) is exact


def test_processor_that_cannot_be_told_is_taken_for_clipping(cpuinfo: Path) -> None:
    assert not cpuinfo.exists()
    assert not adds_exactly.__wrapped__("x86_64")


def test_no_more_than_the_first_lines_are_read(cpuinfo: Path) -> None:
    cpuinfo.write_text(SKYLAKE + "x" * _processor._FIRST + " avx512_vnni")
    assert not adds_exactly.__wrapped__("x86_64")


@pytest.mark.parametrize("content", [SKYLAKE, ICE_LAKE])
def test_a_clipping_processor_gets_the_exact_kernels(
    cpuinfo: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two products of 255 * 127 are more than 16 bits hold; a model that meets them must not answer less."""
    cpuinfo.write_text(content)
    monkeypatch.setattr(runtime, "adds_exactly", lambda: adds_exactly.__wrapped__("x86_64"))
    opened: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(model: bytes, options: Any, providers: list[str]) -> Any:
        opened.append(options)
        return real(model, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    made = Runtime(model().SerializeToString())
    assert np.isfinite(made.predict(windows(1))).all()
    (options,) = opened
    if content == SKYLAKE:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")
