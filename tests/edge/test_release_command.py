"""``fedge release`` as a user types it: a repository, and a device's home."""

import json
import subprocess
import sys
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from release.build import FEDERATION
from release.simulator import flip, seeded_keys

from fedge.cli import main
from fedge.release.chain import read_chain
from fedge.release.pointer import Pointer
from fedge.signing import save_key

from .lab import Device, Federation, labelled

Said = pytest.CaptureFixture[str]


class Place:
    """A federation's folder, a device's home, and the operator's keys as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation = Federation(folder / "run" / "releases")
        self.repository, self.home = self.federation.folder, folder / "home"
        self.root, self.keys, self.online = folder / "root.json", folder / "offline", folder / "online"
        self.root.write_bytes(self.federation.root)
        for path in (self.keys, self.online):
            path.mkdir()
        self.federation.keys.save(self.keys, self.online)

    def fetch(self, *more: object) -> int:
        """Fetch from the repository's folder."""
        trust = ("--root", self.root, "--federation", FEDERATION)
        return release("fetch", self.home, "--from", self.repository, *trust, *more)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def release(*arguments: object) -> int:
    return main(["release", *map(str, arguments)])


def test_list_shows_releases_and_which_of_them_counts(place: Place, capsys: Said) -> None:
    assert release("list", place.folder / "run") == 0
    assert capsys.readouterr().out.startswith("no releases")
    for version in (1, 2, 3):
        place.federation.good(version)
    place.federation.promote(2)
    assert release("list", place.repository) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("<- ")[1:] for line in lines] == [[], ["promoted"], ["latest"], []]
    assert lines[-1].startswith("signed until 20")


def test_list_as_json_names_every_release(place: Place, capsys: Said) -> None:
    place.federation.good(1)
    place.federation.good(2)
    (place.repository / "v0001" / "manifest.json").write_bytes(b"{}")
    assert release("list", place.repository, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["latest"], found["promoted"]) == (2, None)
    damaged, whole = found["releases"]
    assert "damaged" in damaged
    assert (whole["version"], whole["bytes"]) == (2, (place.repository / "v0002/model.onnx").stat().st_size)
    assert release("list", place.repository) == 0
    assert "1  damaged:" in capsys.readouterr().out


def test_list_of_a_home_tells_what_was_refused(place: Place, capsys: Said) -> None:
    device = Device(place.federation, place.home)
    place.federation.good(1)
    device.update()
    place.federation.bad(2)
    device.update()
    assert release("list", place.home) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip().startswith("1  <- in use")
    assert lines[1] == "tried up to 2"
    assert lines[2].startswith("release 2 ")
    assert lines[2].endswith("(worse)")
    assert release("list", place.home, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["active"], found["highest"]) == ("home", 1, 2)
    assert [f["code"] for f in found["findings"]] == ["worse"]


def test_verify_names_what_a_device_would_find(place: Place, capsys: Said) -> None:
    for version in (1, 2):
        place.federation.good(version)
    place.federation.promote(1)
    assert release("verify", place.repository, "--root", place.root) == 0
    newest, promoted = capsys.readouterr().out.splitlines()
    assert newest.startswith("newest: release 2, sha256 ")
    assert newest.endswith("deltas from 1")
    assert promoted.startswith("promoted: release 1, sha256 ")


CHECKED = ["v0002/model.onnx", "v0002/manifest.json", "v0002/from-0001.delta", "v0001/model.onnx"]


@pytest.mark.parametrize("path", [*CHECKED, "metadata/timestamp.json"])
def test_verify_finds_a_changed_byte(place: Place, path: str, capsys: Said) -> None:
    for version in (1, 2):
        place.federation.good(version)
    flip(place.repository / path)
    assert release("verify", place.repository, "--root", place.root) == 1
    assert capsys.readouterr().err.startswith("fedge: error: ")


def test_verify_believes_only_the_given_root(place: Place, capsys: Said) -> None:
    place.federation.good(1)
    other = Federation(place.folder / "other")
    other.keys = seeded_keys(100)
    place.root.write_bytes(other.first["1.root.json"].replace(b'"version":1', b'"version":2'))
    assert release("verify", place.repository, "--root", place.root) == 1
    assert "fedge: error" in capsys.readouterr().err
    assert release("verify", place.repository, "--root", place.folder / "nothing") == 2


def test_publish_promotes_and_signs_where_the_online_keys_are(place: Place, capsys: Said) -> None:
    for version in (1, 2):
        place.federation.good(version)
    key = place.keys / "targets.key"
    assert release("publish", place.repository, 1, "--key", key) == 0
    assert "once the server has signed it" in capsys.readouterr().out
    assert read_chain(place.repository).promoted is None
    assert release("refresh", place.repository, "--online", place.online) == 0
    assert read_chain(place.repository).promoted == Pointer(1)
    assert release("publish", place.repository, 2, "--key", key, "--online", place.online) == 0
    assert "promoted release 2" in capsys.readouterr().out
    assert read_chain(place.repository).promoted == Pointer(2, (1,))


def test_publish_with_another_key_is_refused(place: Place, capsys: Said) -> None:
    place.federation.good(1)
    assert release("publish", place.repository, 1, "--key", place.keys / "root.key") == 2
    assert "not the key that the repository trusts for targets" in capsys.readouterr().err


def test_publish_of_an_unknown_release_names_the_known_ones(place: Place, capsys: Said) -> None:
    place.federation.good(1)
    assert release("publish", place.repository, 7, "--key", place.keys / "targets.key") == 1
    assert "there are: 1" in capsys.readouterr().err


def test_renew_lets_devices_follow_to_new_keys(place: Place, capsys: Said) -> None:
    place.federation.good(1)
    assert place.fetch() == 0
    new = place.folder / "new"
    new.mkdir()
    seeded_keys(50).online.save(new)
    save_key(seeded_keys(50).root, new / "root.key")
    offline = ("--root-key", place.keys / "root.key", "--targets-key", place.keys / "targets.key")
    more = ("--new-root-key", new / "root.key", "--online", new)
    assert release("renew", place.repository, *offline, *more) == 0
    assert "root 2, valid until" in capsys.readouterr().out
    assert release("refresh", place.repository, "--online", place.online) == 2
    assert release("verify", place.repository, "--root", place.root) == 0
    assert "newest: none" in capsys.readouterr().out
    assert place.fetch() == 0
    again = ("--root-key", place.keys / "root.key", "--targets-key", place.keys / "targets.key")
    assert release("renew", place.repository, *again) == 2


def test_fetch_takes_the_newest_and_says_when_there_is_nothing_newer(place: Place, capsys: Said) -> None:
    assert place.fetch() == 0
    assert "nothing taken (nothing)" in capsys.readouterr().out
    place.federation.good(1)
    assert place.fetch() == 0
    assert "release 1 runs here now" in capsys.readouterr().out
    assert place.fetch() == 0
    assert "(up_to_date)" in capsys.readouterr().out
    place.federation.good(2)
    assert place.fetch("--margin", 0.1) == 0
    assert Device(place.federation, place.home).version == 2


def test_fetch_tests_a_release_on_the_devices_own_data(place: Place, capsys: Said) -> None:
    own = labelled(200)
    data = place.folder / "own.npz"
    np.savez(data, X=own.x, y=own.y, client=np.zeros(len(own), np.int64), classes=list("xyz"))
    place.federation.good(1)
    assert place.fetch("--data", data) == 0
    place.federation.bad(2)
    assert place.fetch("--data", data) == 1
    assert "release 2 not taken (worse)" in capsys.readouterr().out
    assert Device(place.federation, place.home).version == 1


def test_mistyped_limit_costs_no_release(place: Place, capsys: Said) -> None:
    place.federation.good(1)
    assert place.fetch() == 0
    place.federation.good(2)
    assert place.fetch("--budget-us", "0.001") == 1
    assert place.fetch() == 1
    said = capsys.readouterr().out
    assert "(tried_before)" in said
    assert "--again tests it once more" in said
    assert place.fetch("--again") == 0
    assert "release 2 runs here now" in capsys.readouterr().out
    assert place.fetch("--again") == 0
    assert "(up_to_date)" in capsys.readouterr().out


def test_list_of_a_home_with_a_damaged_slot_tells_what_runs(place: Place, capsys: Said) -> None:
    for version in (1, 2):
        place.federation.good(version)
        assert place.fetch() == 0
    (place.home / "b.onnx").write_bytes(b"cut")
    capsys.readouterr()
    assert release("list", place.home) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["1  <- in use", "2  damaged on this device's disk"]
    assert place.fetch() == 0  # and it comes again
    assert Device(place.federation, place.home).version == 2


def test_fetch_of_promoted_releases_only(place: Place, capsys: Said) -> None:
    for version in (1, 2):
        place.federation.good(version)
    assert place.fetch("--promoted-only") == 0
    assert "(nothing)" in capsys.readouterr().out
    place.federation.promote(1)
    assert place.fetch("--promoted-only") == 0
    assert Device(place.federation, place.home).version == 1


def test_fetch_with_a_bundle(place: Place) -> None:
    bundle = place.folder / "bundle"
    bundle.mkdir()
    (bundle / "root.json").write_bytes(place.federation.root)
    (bundle / "device.json").write_text(json.dumps({"schema": 1, "federation": FEDERATION}))
    place.federation.good(1)
    usb = ("fetch", place.home, "--from", place.folder / "run")
    assert release(*usb, "--bundle", bundle) == 0
    assert Device(place.federation, place.home).version == 1
    assert release(*usb, "--bundle", bundle, "--root", place.root) == 2
    (bundle / "device.json").write_text("[]")
    assert release(*usb, "--bundle", bundle) == 2


def test_fetch_needs_to_know_whom_to_trust(place: Place, capsys: Said) -> None:
    where = ("fetch", place.home, "--from", place.repository)
    assert release(*where) == 2
    assert "--bundle DIR, or --root FILE" in capsys.readouterr().err
    assert release(*where, "--root", place.root) == 2
    assert "--federation" in capsys.readouterr().err
    assert release("fetch", place.home, "--from", place.folder / "nothing", "--root", place.root) == 2


def test_fetch_from_a_static_web_server(place: Place) -> None:
    place.federation.good(1)
    place.federation.good(2)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place.repository)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        trust = ("--root", place.root, "--federation", FEDERATION)
        assert release("fetch", place.home, "--from", url, *trust) == 0
        assert release("verify", url, "--root", place.root) == 0
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert Device(place.federation, place.home).version == 2


def test_rollback_and_pin(place: Place, capsys: Said) -> None:
    for version in (1, 2):
        place.federation.good(version)
        assert place.fetch() == 0
    assert release("rollback", place.home) == 0
    assert "release 1 runs here now" in capsys.readouterr().out
    assert release("rollback", place.home, "--to", 2) == 0
    assert release("pin", place.home, 1) == 0
    place.federation.good(3)
    assert place.fetch() == 0
    assert "(pinned)" in capsys.readouterr().out
    assert release("pin", place.home, "--unpin") == 0
    assert place.fetch() == 0
    assert Device(place.federation, place.home).version == 3
    assert release("pin", place.home, 9) == 2
    assert release("pin", place.home) == 2
    assert release("pin", place.home, 3, "--unpin") == 2


def test_version_that_is_not_here_is_the_users_error_in_one_line(place: Place, capsys: Said) -> None:
    place.federation.good(1)
    assert place.fetch() == 0
    capsys.readouterr()
    for arguments in (("rollback", place.home), ("rollback", place.home, "--to", 9), ("pin", place.home, 9)):
        assert release(*arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--federation", "zz"),
        ("--federation", "79B312B4C47DC8AF"),
        ("--budget-us", "nan"),
        ("--budget-us", "0"),
        ("--margin", "nan"),
    ],
)
def test_fetch_with_an_option_that_makes_no_sense_tries_nothing(
    place: Place, capsys: Said, options: tuple[str, str]
) -> None:
    place.federation.good(1)
    assert place.fetch(*options) == 2
    assert f"fedge: error: {options[0]}" in capsys.readouterr().err
    assert not (place.home / "state.json").exists()


@pytest.mark.parametrize("action", ["fetch", "verify"])
@pytest.mark.parametrize("content", [b"<html>", b"{}", b"targets"])
def test_root_that_is_something_else_is_the_users_error(
    place: Place, capsys: Said, action: str, content: bytes
) -> None:
    place.federation.good(1)
    targets = (place.repository / "metadata" / "1.targets.json").read_bytes()
    place.root.write_bytes(targets if content == b"targets" else content)
    code = place.fetch() if action == "fetch" else release(action, place.repository, "--root", place.root)
    assert code == 2
    assert "root.json" in capsys.readouterr().err


def test_list_of_a_web_server_says_what_reads_from_one(capsys: Said) -> None:
    assert release("list", "http://127.0.0.1:1/releases") == 2
    assert "fedge release verify" in capsys.readouterr().err


def test_home_is_found_in_the_state_folder_of_a_client(place: Place) -> None:
    place.federation.good(1)
    Device(place.federation, place.folder / "state" / "model").update()
    assert release("list", place.folder / "state") == 0
    assert release("pin", place.folder / "state", 1) == 0


@pytest.mark.parametrize("action", ["list", "rollback", "verify", "publish", "refresh"])
def test_folder_that_holds_nothing_is_the_users_error(place: Place, action: str) -> None:
    more = {
        "verify": ["--root", place.root],
        "publish": [1, "--key", place.keys / "targets.key"],
        "refresh": ["--online", place.online],
    }.get(action, [])
    assert release(action, place.folder / "offline", *more) == 2


def test_actions_on_a_device_load_neither_torch_nor_flwr_nor_onnx(place: Place) -> None:
    place.federation.good(1)
    assert place.fetch() == 0
    script = (
        "import sys; from fedge.cli import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'flwr', 'onnx', 'tuf', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "release", "list", str(place.home)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 []"


def test_clock_of_the_commands_is_the_real_one(place: Place) -> None:
    """The simulator's clock starts at the real time, so all of the above was within a day of it."""
    assert abs(place.federation.now - time.time()) < 86_400
