"""What the folders, the imports and the files promise to those who install or read them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "fedge").rglob("*.py"))
HEAVY = {"torch", "flwr", "onnx", "pyarrow", "ray", "rich"}


def _tracked() -> list[Path]:
    """Every file that is in the repository; outside a checkout, what stands beside the package."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        beside = [
            p for folder in ("fedge", "tests", "docs", "simulations") for p in (ROOT / folder).rglob("*")
        ]
        return [p for p in beside if p.is_file() and p.suffix != ".pyc"]
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc is not None
    assert len(doc.splitlines()[0]) > 10


def test_there_are_modules_and_tracked_files() -> None:
    assert len(FILES) > 80
    assert len(_tracked()) > 100


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    places = re.compile(rb"(?<![\w.])/(work|root|home|Users)/\w|\.\./shared")
    named = []
    for path in _tracked():
        if path != Path(__file__):
            named += [f"{path.relative_to(ROOT)}: {m.group()!r}" for m in places.finditer(path.read_bytes())]
    assert not named


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True
    )


def _loaded(*arguments: str) -> set[str]:
    """The top-level packages that a fresh process imports, as Python itself logs them."""
    log = _run(*arguments).stderr
    modules = {
        line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")
    }
    assert len(modules) > 20
    return {m.partition(".")[0] for m in modules}


@pytest.mark.parametrize(
    "module",
    [
        "fedge.edge.runtime",
        "fedge.edge.gate",
        "fedge.release.repository",
        "fedge.serving.command",
        "fedge.codec.ternary",
        "fedge.data",
        "fedge.report",
    ],
)
def test_a_device_that_only_infers_loads_neither_torch_nor_flower(module: str) -> None:
    loaded = _loaded("-c", f"import {module}")
    assert "fedge" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["simulate", "--help"]], ids=" ".join)
def test_help_comes_without_waiting_for_torch(arguments: list[str]) -> None:
    command = f"import sys; from fedge.cli import main; sys.exit(main({arguments!r}))"
    loaded = _loaded("-c", command)
    assert "fedge" in loaded
    assert not loaded & (HEAVY | {"numpy", "onnxruntime"})


def test_help_names_every_command() -> None:
    shown = _run("-c", "from fedge.cli import main; main(['--help'])").stdout
    assert all(command in shown for command in ("simulate", "report", "data"))


def test_the_layers_import_only_what_is_below_them() -> None:
    pytest.importorskip("importlinter")
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
