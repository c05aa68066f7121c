"""What ``fedge server`` finds out before it starts anything, and what this leaves in the supervisor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import live_federation as live
from fedge import plugins


def _python(script: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(live.ROOT)}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)


def test_the_supervisor_does_not_carry_torch_or_flower_after_its_checks(
    fleet_file: Path, tmp_path: Path
) -> None:
    """It lives for weeks beside the run, which needs the memory; the checks come as far as the port."""
    live.provisioned(tmp_path / "home", ["a"], live.free_port())
    options = ["server", "--federation", str(tmp_path / "home"), "--state", str(tmp_path / "state")]
    done = _python(
        "import sys; from fedge.cli import main; from fedge.deploy import server_command, server_checks\n"
        "done = []; before = server_checks.check\n"
        "server_checks.check = lambda config: done.append(before(config))\n"
        "server_command.run = lambda *given: 0\n"
        f"assert main({[*options, '--data', str(fleet_file)]}) == 0\n"
        "assert done == [None]\n"
        "print(sorted({'torch', 'flwr', 'onnx', 'onnxruntime', 'fedge.tasks'} & sys.modules.keys()))"
    )
    assert (done.stdout, done.stderr) == ("['fedge.tasks']\n", "")


@pytest.mark.parametrize("task", plugins.names("task"))
def test_a_task_can_be_looked_at_without_torch(task: str) -> None:
    done = _python(
        "import sys; sys.modules['torch'] = None; from fedge import plugins; "
        f"print(plugins.load('task', {task!r}).TASK.name)"
    )
    assert (done.stdout, done.stderr) == (f"{task}\n", "")


@pytest.mark.parametrize(("package", "extra"), [("torch", "simulation"), ("onnx", "simulation")])
def test_a_package_that_only_a_run_needs_is_missed_before_anything_is_started(
    tmp_path: Path, package: str, extra: str
) -> None:
    """A run without it would die again and again."""
    done = _python(
        f"import sys; sys.modules[{package!r}] = None; from fedge.cli import main; "
        f"sys.exit(main(['server', '--state', {str(tmp_path / 'state')!r}]))"
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"fedge: error: this command needs {package}, which is not installed: pip install 'fedge[{extra}]'\n"
    )
    assert not (tmp_path / "state").exists()
