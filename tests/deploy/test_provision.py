import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedge.deploy import bundle_file, enrol, own_keys, pki, provision
from fedge.deploy.federation import Enrolment, Federation, Registry, load_certificate
from fedge.deploy.issue import Device
from fedge.deploy.signing_request import parse_request
from fedge.deploy.tls import device_context, server_context
from fedge.errors import ConfigError, FedgeError, PayloadError, RefusedError, SetupError, SignatureError
from fedge.signing import SigningKey

from .provisioned import NOW, admitted, make_federation, shake_hands


def command(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    provision.add_arguments(parser)
    provision.run(parser.parse_args([str(a) for a in arguments]))


def registry(home: Path) -> Registry:
    return Registry.load(home / "server" / "registry.json")


def contents(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check_whole(home: Path) -> None:
    """Every enrolled device has a bundle that works, the same as its file; nothing unfinished is there."""
    own = Federation.load(home)
    server_context(home / "server", now=NOW)
    assert not list(home.rglob(".*"))
    names = sorted(registry(home).members)
    assert sorted(p.name for p in (home / "devices").glob("*") if p.is_dir()) == names
    for name in names:
        folder, member = home / "devices" / name, registry(home).members[name]
        device_context(folder, now=NOW)
        enrolment = Enrolment.load(folder)
        assert enrolment.federation == own.id
        assert enrolment.signing_key().public == member.signing
        assert pki.fingerprint(load_certificate(folder / "client.pem")) == member.certificate
        packed = bundle_file.unpack((home / "devices" / f"{name}.fedge").read_bytes())
        assert packed == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_one_command_makes_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "deep" / "home"
    command(home, "--server-name", "localhost,10.0.0.1,::1", "--devices", "a,b", "--tags", "x", "--stock")
    assert (registry(home).members["a"].tags, registry(home).members["a"].node is None) == (("x",), False)
    assert (home / "devices" / "a" / "node.pub").read_bytes().startswith(b"ecdsa-sha2-nistp384 ")
    der = shake_hands(server_context(home / "server"), device_context(home / "devices" / "b"))
    assert admitted(home, der, Federation.load(home)) == "b"
    command(home, "--add", "c,d")
    command(home, "--revoke", "a")
    capsys.readouterr()
    command(home, "--list", "--json")
    listed = json.loads(capsys.readouterr().out)
    assert [(d["name"], d["state"]) for d in listed["devices"]] == [
        ("a", "revoked"), ("b", "enrolled"), ("c", "enrolled"), ("d", "enrolled")
    ]  # fmt: skip
    assert listed["devices"][1]["days_left"] in (729, 730)
    command(home, "--list")
    assert "c" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["F"],
        ["F", "--server-name", "a,a"],
        ["F", "--server-name", "a", "--days", "0"],
        ["F", "--server-name", "a", "--add", "x"],
        ["F", "--list", "--stock"],
        ["F", "--make-request", "x", "--out", "D"],
        ["--make-request", "x"],
        ["--accept", "x"],
        ["F", "--revoke", "x", "--tags", "a"],
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        command(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("servers", "devices"),
    [("a b", "x"), ("a", "x,x"), ("a", "x,X"), ("a", ".x"), ("a", "../x"), ("a", "x.fedge"), ("1.2.3", "x")],
)
def test_malformed_names_make_nothing(tmp_path: Path, servers: str, devices: str) -> None:
    with pytest.raises(FedgeError):
        command(tmp_path / "home", "--server-name", servers, "--devices", devices)
    assert not list(tmp_path.iterdir())


def test_nothing_that_exists_is_overwritten(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_federation(home, "one")
    before = contents(home)
    for again in (
        lambda: make_federation(home),
        lambda: enrol.add(home, [Device("one")], NOW),
        lambda: enrol.add(home, [Device("fine"), Device("ONE")], NOW),
        lambda: enrol.add(home, [Device("fine"), Device("fine")], NOW),
        lambda: enrol.revoke(home, ["one", "nobody"]),
    ):
        with pytest.raises(SetupError):
            again()
        assert contents(home) == before


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine").write_text("precious")
    with pytest.raises(SetupError, match="nothing is overwritten"):
        make_federation(home)
    assert contents(tmp_path).keys() == {"home/mine"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    make_federation(tmp_path / "home", "one")
    check_whole(tmp_path / "home")


def test_a_revoked_name_is_never_given_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_federation(home, "one")
    enrol.revoke(home, ["one"])
    with pytest.raises(SetupError, match="revoked"):
        enrol.add(home, [Device("one")], NOW)


def test_a_device_is_revoked_where_the_authority_s_key_is_not(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_federation(home, "one")
    (home / "ca.key").unlink()
    enrol.revoke(home, ["one"])
    assert registry(home).members["one"].revoked
    with pytest.raises(SetupError, match=r"ca\.key is missing"):
        enrol.add(home, [Device("two")], NOW)


def test_an_older_registry_does_not_cost_a_device_its_keys(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_federation(home)
    old = (home / "server" / "registry.json").read_bytes()
    enrol.add(home, [Device("one")], NOW)
    (home / "server" / "registry.json").write_bytes(old)
    before = contents(home / "devices")
    with pytest.raises(SetupError, match="registry may be older"):
        enrol.add(home, [Device("one")], NOW)
    assert contents(home / "devices") == before


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    from fedge.deploy import _files

    home = tmp_path / "home"
    make_federation(home)
    with _files.locked(home), pytest.raises(SetupError, match="at work"):
        enrol.add(home, [Device("one")], NOW)


def test_keys_that_a_device_makes_never_leave_it(tmp_path: Path) -> None:
    home, device = tmp_path / "home", tmp_path / "device"
    own = make_federation(home, now=time.time())
    command("--make-request", "one", "--out", device, "--stock")
    secret = [(device / name).read_bytes() for name in ("client.key", "signing.key", "node.key")]
    command(home, "--request", device / "request.json", "--tags", "x")
    command("--accept", home / "devices" / "one.fedge", "--out", device)
    for path in home.rglob("*"):
        assert path.name not in ("client.key", "signing.key", "node.key")
        assert not (path.is_file() and any(key[60:100] in path.read_bytes() for key in secret))
    assert Enrolment.load(device).signing_key().public == registry(home).members["one"].signing
    assert registry(home).members["one"].node is not None
    assert admitted(home, shake_hands(server_context(home / "server"), device_context(device)), own) == "one"


def test_the_same_keys_get_a_new_certificate_and_the_old_one_stays_good(tmp_path: Path) -> None:
    home = tmp_path / "home"
    own = make_federation(home, "one", now=NOW)
    device = tmp_path / "device"
    own_keys.accept(home / "devices" / "one.fedge", device)
    old = load_certificate(device / "client.pem")
    own_keys.make_request("one", device)
    enrol.sign(home, (device / "request.json").read_bytes(), [], NOW + 86_400 * 700, 730)
    own_keys.accept(home / "devices" / "one.fedge", device)
    new = load_certificate(device / "client.pem")
    device_context(device, now=NOW + 86_400 * 1400)
    assert new.public_key() == old.public_key()
    for certificate in (old, new):
        assert admitted(home, pki.certificate_der(certificate), own) == "one"


def test_a_renewal_needs_the_same_signing_key(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_federation(home, "one", "gone")
    enrol.revoke(home, ["gone"])
    before = contents(home)
    for name, words in (("one", "another signing key"), ("gone", "revoked")):
        own_keys.make_request(name, tmp_path / name)
        with pytest.raises(RefusedError, match=words):
            enrol.sign(home, (tmp_path / name / "request.json").read_bytes(), [], NOW, 730)
    assert contents(home) == before


def test_a_request_with_anything_exchanged_is_refused(tmp_path: Path) -> None:
    raws = []
    for name in ("one", "two"):
        own_keys.make_request(name, tmp_path / name, stock=True)
        raws.append(json.loads((tmp_path / name / "request.json").read_bytes()))
    parse_request(json.dumps(raws[0]).encode())
    for key in ("name", "certificate_request", "signing", "node", "signature"):
        with pytest.raises(SignatureError):
            parse_request(json.dumps({**raws[0], key: raws[1][key]}).encode())
    with pytest.raises(SignatureError):
        parse_request(json.dumps({**raws[0], "node": None}).encode())


def test_a_request_around_the_certificate_request_of_another_is_refused(tmp_path: Path) -> None:
    own_keys.make_request("one", tmp_path / "one")
    raw = json.loads((tmp_path / "one" / "request.json").read_bytes())
    thief = SigningKey.from_seed(b"t" * 32)
    signature = thief.sign("signing request", b"one", raw["certificate_request"].encode(), b"")
    raw |= {"signing": thief.public.hex(), "signature": signature.hex()}
    with pytest.raises(SignatureError, match="another device or signing key"):
        parse_request(json.dumps(raw).encode())


def test_a_certificate_for_other_keys_is_not_taken(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_federation(home)
    for folder in ("mine", "other"):
        own_keys.make_request("one", tmp_path / folder)
    enrol.sign(home, (tmp_path / "other" / "request.json").read_bytes(), [], NOW, 730)
    before = contents(tmp_path / "mine")
    with pytest.raises(SetupError, match="does not belong"):
        own_keys.accept(home / "devices" / "one.fedge", tmp_path / "mine")
    assert contents(tmp_path / "mine") == before
    with pytest.raises(SetupError, match="holds no keys"):
        own_keys.accept(home / "devices" / "one.fedge", tmp_path / "empty")


def test_a_damaged_request_raises_nothing_else(tmp_path: Path) -> None:
    own_keys.make_request("one", tmp_path / "one")
    whole = (tmp_path / "one" / "request.json").read_bytes().rstrip()
    for place in range(len(whole)):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :]):
            with pytest.raises((PayloadError, SignatureError)):
                parse_request(content)


def test_a_bundle_of_another_device_is_not_unpacked_over_one(tmp_path: Path) -> None:
    home, device = tmp_path / "home", tmp_path / "device"
    make_federation(home, "one", "two")
    own_keys.accept(home / "devices" / "one.fedge", device)
    before = contents(device)
    with pytest.raises(SetupError, match="nothing is overwritten"):
        own_keys.accept(home / "devices" / "two.fedge", device)
    assert contents(device) == before == contents(home / "devices" / "one")


def test_the_server_s_certificate_is_renewed_for_the_same_key(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_federation(home, "one")
    later = NOW + 86_400 * 900
    with pytest.raises(SetupError, match="expired"):
        server_context(home / "server", now=later)
    enrol.renew_server(home, later, 730)
    server_context(home / "server", now=later)


def test_a_disk_that_is_full_leaves_nothing_half_made(tmp_path: Path) -> None:
    """Every write fails once, with the real call of the system: a limit on the size of files."""
    home = tmp_path / "home"

    def limited() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # certificates do not fit, folders do
        try:
            make_federation(home, "one")
        except SetupError:
            os._exit(3)

    assert _in_child(limited) == 3
    assert not list(tmp_path.iterdir())


def _in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a process of its own; gives its exit code."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killed_at(step: int, folder: Path, work: Callable[[], object]) -> bool:
    """Whether ``work`` was killed, at its ``step``-th change to a file below ``folder``."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal step
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if (changes or writes) and str(folder) in str(arguments[0]):
            step -= 1
            if step < 0:
                os.kill(os.getpid(), 9)

    def watched() -> None:
        sys.addaudithook(hook)
        work()

    code = _in_child(watched)
    assert code in (0, -9)
    return code == -9


def test_killed_anywhere_while_it_is_made_the_same_command_makes_it(tmp_path: Path, wide: bool) -> None:
    home, kills = tmp_path / "home", 0
    while True:
        dead = _killed_at(kills, tmp_path, lambda: make_federation(home, "one", "two"))
        if dead:
            assert not home.exists()
            make_federation(home, "one", "two")
        check_whole(home)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]
        shutil.rmtree(home)
        if not dead:
            break
        kills += 1 if wide else 5
    assert kills > 20


def test_killed_anywhere_while_devices_are_enrolled_all_or_none_are(tmp_path: Path, wide: bool) -> None:
    make_federation(tmp_path / "first", "one")
    home, kills, finished = tmp_path / "home", 0, 0
    while True:
        shutil.copytree(tmp_path / "first", home)
        dead = _killed_at(kills, home, lambda: enrol.add(home, [Device("two"), Device("three")], NOW))
        known = set(registry(home).members)
        assert known in ({"one"}, {"one", "two", "three"})
        if known == {"one"}:
            enrol.add(home, [Device("two"), Device("three")], NOW)
        else:
            finished += dead
            enrol.revoke(home, ["one"])  # any next command finishes it
        check_whole(home)
        shutil.rmtree(home)
        if not dead:
            break
        kills += 1 if wide else 3
    assert kills > 12
    assert finished > 1


def test_killed_anywhere_while_a_bundle_is_taken_it_can_be_taken_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_federation(home)
    own_keys.make_request("one", tmp_path / "keys")
    enrol.sign(home, (tmp_path / "keys" / "request.json").read_bytes(), [], NOW, 730)
    device, kills = tmp_path / "device", 0
    while True:
        shutil.copytree(tmp_path / "keys", device)
        dead = _killed_at(kills, device, lambda: own_keys.accept(home / "devices" / "one.fedge", device))
        own_keys.accept(home / "devices" / "one.fedge", device)
        device_context(device, now=NOW)
        shutil.rmtree(device)
        if not dead:
            break
        kills += 1
    assert kills > 4
