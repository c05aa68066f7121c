"""What an inferring device needs has wheels for the processors of devices: nothing is compiled there."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
PYTHONS = ("3.11", "3.12")


def _needed() -> list[str]:
    """The requirements of the base install."""
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return found


def _resolved(processor: str, python: str, target: Path) -> subprocess.CompletedProcess[str]:
    """What pip would install there, without installing it, and without building anything."""
    platforms = [f"--platform={libc}_{processor}" for libc in LIBC]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--ignore-installed", f"--target={target}", "--report=-"]
    command += [f"--python-version={python}", f"--constraint={ROOT / 'constraints.txt'}", *platforms]
    return subprocess.run([*command, *_needed()], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_every_dependency_of_the_base_install_has_a_wheel(
    processor: str, python: str, tmp_path: Path
) -> None:
    done = _resolved(processor, python, tmp_path)
    unreachable = ("Connection", "Temporary failure", "Max retries", "Could not fetch URL")
    if done.returncode and any(word in done.stderr for word in unreachable):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    wheels = [i["download_info"]["url"].rsplit("/", 1)[1] for i in json.loads(done.stdout)["install"]]
    assert {"numpy", "onnxruntime", "cryptography", "tuf", "uvloop"} <= {w.partition("-")[0] for w in wheels}
    assert all(w.endswith(".whl") and (processor in w or w.endswith("-any.whl")) for w in wheels)
