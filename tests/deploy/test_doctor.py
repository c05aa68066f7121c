import argparse
import importlib.metadata
import json
import socket
import ssl
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.deploy import doctor, doctor_checks
from fedge.deploy.doctor_checks import Finding, fits, needs_of
from fedge.deploy.tls import device_context, server_context
from fedge.errors import ConfigError, SetupError

from .provisioned import make_federation

REQUIREMENTS = [
    "numpy<3,>=1.26",
    "torch>=2.4; extra == 'client'",
    "flwr<1.43,>=1.40; extra == 'server'",
    'flwr[simulation]<1.43,>=1.40; extra == "ray"',
    "fedge[client,server]; extra == 'simulation'",
    "pyarrow>=17; extra == 'simulation'",
    "constriction>=0.4; (platform_machine != 'aarch64') and extra == 'dev'",
]
version_numbers = st.lists(st.integers(0, 30), min_size=1, max_size=4).map(lambda n: ".".join(map(str, n)))


def run(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    doctor.run(parser.parse_args([str(a) for a in arguments]))


def test_each_role_needs_what_its_extras_ask_for() -> None:
    assert needs_of(REQUIREMENTS) == {
        ("numpy", "<3,>=1.26"): ("device", "client", "server", "simulation"),
        ("torch", ">=2.4"): ("client", "simulation"),
        ("flwr", "<1.43,>=1.40"): ("server", "simulation"),
        ("pyarrow", ">=17"): ("simulation",),
    }


@given(version_numbers, st.sampled_from([">=", "<=", "==", "!=", "<", ">"]), version_numbers)
def test_versions_compare_as_the_packaging_library_does(version: str, operator: str, bound: str) -> None:
    from packaging.specifiers import SpecifierSet

    assert fits(version, operator + bound) == SpecifierSet(operator + bound).contains(version)


@pytest.mark.parametrize(("version", "state"), [("3.1", True), ("3.0.9", True), ("4.0", False)])
def test_a_wildcard_compares_what_it_names(version: str, state: bool) -> None:
    assert fits(version, "==3.*") == state


def test_every_requirement_of_this_package_is_understood() -> None:
    try:
        asked = importlib.metadata.requires("fedge") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fedge is not installed here")
    names = {name for name, _ in needs_of(asked)}
    assert {"numpy", "onnxruntime", "cryptography", "torch", "flwr"} <= names


def test_what_is_missing_comes_with_its_role_and_the_command() -> None:
    found = doctor_checks.packages(
        ["numpy>=1", "nosuchpackage>=1; extra == 'server'", "numpy>=99; extra == 'client'"]
    )
    lacking = {f.what: (f.roles, f.remedy) for f in found if f.state == "missing"}
    assert lacking == {
        "nosuchpackage>=1": (("server",), "pip install 'fedge[server]'"),
        "numpy>=99": (("client",), "pip install 'numpy>=99'"),
    }


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("flags\t\t: fpu avx2 avx_vnni", "VNNI"),
        ("Features\t: fp asimd asimddp i8mm", "dot product, int8 matrix product"),
        ("flags\t\t: fpu avx2", "no VNNI or dot product"),
        ("", "no VNNI or dot product"),
    ],
)
def test_int8_instructions(tmp_path: Path, line: str, found: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    assert doctor_checks.cpu(tmp_path / "cpuinfo").found == found


@pytest.mark.parametrize(
    ("limit", "total", "state"), [("max\n", 4096, "ok"), (f"{300 << 20}\n", 300, "missing")]
)
def test_a_control_group_s_limit_counts_as_memory(tmp_path: Path, limit: str, total: int, state: str) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {4096 << 10} kB\nMemAvailable: {4000 << 10} kB\n")
    (tmp_path / "max").write_text(limit)
    found = doctor_checks.memory(tmp_path / "meminfo", tmp_path / "max")
    assert found.found.startswith(f"{total} MB")
    assert found.state == state
    assert ("device" in found.roles) == (state == "ok")


@pytest.mark.parametrize(("now", "state"), [(0.0, "missing"), (1.79e9, "ok"), (5e9, "missing")])
def test_a_clock_that_cannot_be_right(now: float, state: str) -> None:
    assert doctor_checks.clock(now).state == state


def test_a_port_is_free_or_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        found = doctor_checks.port(number)
        assert (found.state, found.roles) == ("missing", ("server",))
    assert doctor_checks.port(number).state == "ok"


def _answering(folder: Path, answer: bytes, clients: int = 1) -> tuple[socket.socket, threading.Thread]:
    context = server_context(folder)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(clients):
            plain, _address = listener.accept()
            plain.settimeout(10)
            try:
                with plain, context.wrap_socket(plain, server_side=True) as link:
                    link.recv(4096)
                    link.sendall(answer)
            except (OSError, ssl.SSLError):
                plain.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return listener, thread


@pytest.mark.parametrize(("offset", "states"), [(0, ["ok", "ok"]), (7200, ["ok", "warning"]), (None, ["ok"])])
def test_the_server_is_asked_for_its_time(tmp_path: Path, offset: int | None, states: list[str]) -> None:
    make_federation(tmp_path / "f", "one", now=time.time())
    date = "" if offset is None else f"Date: {formatdate(time.time() + offset, usegmt=True)}\r\n"
    listener, thread = _answering(tmp_path / "f" / "server", f"HTTP/1.1 404 no\r\n{date}\r\n".encode())
    with listener:
        context = device_context(tmp_path / "f" / "devices" / "one")
        found = doctor.ask_server("127.0.0.1", listener.getsockname()[1], context, time.time())
        thread.join(10)
    assert [f.state for f in found] == states
    assert offset is None or ("behind" in found[1].found) == (offset > 0)


@pytest.mark.parametrize("date", [b"", b"x", b"Mon, 99 Foo 2026 00:00:00 GMT", b"\xff" * 20, b"1" * 64])
def test_a_strange_date_is_no_reason_to_fail(date: bytes) -> None:
    assert doctor._compare_clocks(b"HTTP/1.1 200 OK\r\nDate: " + date + b"\r\n\r\n", 1.79e9) == []


def test_a_server_that_is_away_is_a_warning_and_a_foreign_one_an_error(tmp_path: Path) -> None:
    for name in ("f", "g"):
        make_federation(tmp_path / name, "one", now=time.time())
    context = device_context(tmp_path / "f" / "devices" / "one")
    listener, thread = _answering(tmp_path / "g" / "server", b"")
    number = listener.getsockname()[1]
    with listener:
        found = doctor.ask_server("127.0.0.1", number, context, time.time())
        thread.join(10)
    assert [f.state for f in found] == ["missing"]
    assert "certificate" in found[0].found
    assert [f.state for f in doctor.ask_server("127.0.0.1", number, context, time.time())] == ["warning"]


def test_a_folder_is_examined(tmp_path: Path) -> None:
    make_federation(tmp_path / "f", "one", now=time.time(), days=10)
    for bundle, server in (
        (tmp_path / "f/devices/one", None),
        (None, tmp_path / "f"),
        (None, tmp_path / "f/server"),
    ):
        found = {f.what: f for f in doctor.examine(bundle, server, time.time())}
        assert found["certificate"].state == "warning"
        assert found["certificate"].found == "10 days left"
        late = {f.what: f for f in doctor.examine(bundle, server, time.time() + 40 * 86_400)}
        assert late["certificate"].state == "missing"
        assert "expired" in late["certificate"].found


def test_a_bundle_open_to_others_is_said(tmp_path: Path) -> None:
    make_federation(tmp_path / "f", "one", now=time.time())
    (tmp_path / "f/devices/one/signing.key").chmod(0o644)
    found = {f.what: f for f in doctor.examine(tmp_path / "f/devices/one", None, time.time())}
    assert found["bundle"].state == "missing"
    assert "chmod 600" in found["bundle"].found


def test_it_ends_with_an_error_only_for_what_was_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lacking = Finding("torch>=2.4", "not installed", "missing", ("client",), "pip install 'fedge[client]'")
    monkeypatch.setattr(doctor, "examine", lambda *_: [Finding("Python", "3"), lacking])
    run()
    run("--role", "device")
    assert "client: missing: torch>=2.4" in capsys.readouterr().out
    with pytest.raises(SetupError, match=r"pip install 'fedge\[client\]'"):
        run("--role", "client", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["can_run"] == {"device": True, "client": False, "server": True, "simulation": True}
    with pytest.raises(ConfigError):
        run("--role", "server", "--bundle", tmp_path)


def test_the_whole_of_it_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor.examine(None, None, time.time())
    assert {"Python", "CPU int8", "cores", "memory", "disk", "clock"} <= {f.what for f in found}
    lines = doctor.table(found)
    assert len(lines) == len(found) + 1
    print("\n".join(lines))  # noqa: T201
    assert capsys.readouterr().out
