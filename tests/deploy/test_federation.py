import io
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.deploy import _files, bundle_file, pki
from fedge.deploy.federation import Enrolment, Federation, Member, Registry, join_address, split_address
from fedge.deploy.tls import device_context, server_context
from fedge.errors import PayloadError, RefusedError, SetupError

from .provisioned import NOW, make_federation

ID = "0f" * 16
FEDERATION = Federation(ID, "home", ("host.example", "::1"), 8443, 1)
ENROLMENT = Enrolment(Path(), ID, "dev", "::1", 8443)
NODE = bytes.fromhex(  # the base point of P-384 (SEC 2, 2.5.1), compressed
    "03aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7"
)
ONE = Member("one", b"s" * 32, b"c" * 32, None, ("a", "b"), False, NODE)
TWO = Member("two", b"t" * 32, b"d" * 32, b"e" * 32, (), True)
REGISTRY = Registry.of([ONE, TWO])


def test_what_is_written_is_read_again() -> None:
    assert Federation.parse(FEDERATION.encode()) == FEDERATION
    assert Enrolment.parse(ENROLMENT.encode()) == ENROLMENT
    assert dict(Registry.parse(REGISTRY.encode()).members) == {"one": ONE, "two": TWO}


PARSERS = [
    (Federation.parse, FEDERATION.encode()),
    (Enrolment.parse, ENROLMENT.encode()),
    (Registry.parse, REGISTRY.encode()),
    (bundle_file.unpack, bundle_file.pack(dict.fromkeys(bundle_file.NAMES, b"content"))),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_no_bytes_make_a_parser_raise_anything_but_its_own_error(data: st.DataObject) -> None:
    parse, whole = data.draw(st.sampled_from(PARSERS))
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 40, len(content))))
        content[start:end] = data.draw(st.binary(max_size=8))
    with suppress(PayloadError):
        parse(bytes(content))


@given(st.data(), json_values)
def test_no_value_of_another_kind_is_taken(data: st.DataObject, value: object) -> None:
    parse, whole = data.draw(st.sampled_from(PARSERS[:3]))
    raw = json.loads(whole)
    place = raw
    if "members" in raw and data.draw(st.booleans()):
        place = raw["members"]["one"]
    key = data.draw(st.sampled_from(sorted(place)))
    was, place[key] = place[key], value
    if value == was or (key in ("previous", "tags", "revoked", "node") and value in (None, [], True, False)):
        return
    if key in ("name", "port", "created", "members", "server") and isinstance(value, str | int | dict):
        return  # may be another good value
    with pytest.raises(PayloadError):
        parse(json.dumps(raw).encode())


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 100_000, b"{" * 9, b"NaN", b"\xff", b'{"schema": true}']
)
def test_what_is_no_object_is_refused(content: bytes) -> None:
    for parse, _ in PARSERS[:3]:
        with pytest.raises(PayloadError):
            parse(content)


def test_a_key_that_stands_twice_is_refused() -> None:
    content = REGISTRY.encode().replace(b'"revoked": true', b'"revoked": true, "revoked": false')
    assert content != REGISTRY.encode()
    with pytest.raises(PayloadError, match="twice"):
        Registry.parse(content)


def test_a_newer_format_says_to_update() -> None:
    with pytest.raises(PayloadError, match="update fedge"):
        Federation.parse(FEDERATION.encode().replace(b'"schema": 1', b'"schema": 2'))


@pytest.mark.parametrize(
    "other",
    [
        Member("ONE", b"x" * 32, b"x" * 32),
        Member("x", ONE.signing, b"x" * 32),
        Member("x", b"x" * 32, ONE.certificate),
        Member("x", b"x" * 32, b"x" * 32, ONE.certificate),
        Member("x", b"x" * 32, b"x" * 32, node=NODE),
    ],
)
def test_two_devices_never_share_an_identity(other: Member) -> None:
    with pytest.raises(PayloadError, match="each device has its own"):
        REGISTRY.with_member(other)


def test_who_is_admitted() -> None:
    assert REGISTRY.admit(pki.Identity(ID, "one", ONE.certificate), ID) is ONE
    assert REGISTRY.stock_node(NODE) is ONE
    renewed = REGISTRY.with_member(Member("one", ONE.signing, b"n" * 32, ONE.certificate))
    for certificate in (b"n" * 32, ONE.certificate):
        assert renewed.admit(pki.Identity(ID, "one", certificate), ID).name == "one"


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (pki.Identity("ff" * 16, "one", b"c" * 32), "another federation"),
        (pki.Identity(ID, "one", b"x" * 32), "not the one that is enrolled"),
        (pki.Identity(ID, "two", b"d" * 32), "revoked"),
        (pki.Identity(ID, "two", b"e" * 32), "revoked"),
        (pki.Identity(ID, "three", b"c" * 32), "not enrolled"),
    ],
)
def test_who_is_not(identity: pki.Identity, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        REGISTRY.admit(identity, ID)


def test_an_unchanged_registry_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(REGISTRY.encode())
    os.utime(path, (1, 1))
    first = Registry.load(path)
    assert Registry.load(path, first) is first
    path.write_bytes(REGISTRY.encode() + b"\n")
    os.utime(path, (2, 2))
    assert Registry.load(path, first) is not first


def test_a_revocation_is_seen_even_with_the_same_time_and_size(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(REGISTRY.encode())
    now = path.stat().st_mtime_ns
    first = Registry.load(path)
    changed = REGISTRY.encode().replace(b'"one"', b'"own"')
    path.write_bytes(changed)
    os.utime(path, ns=(now, now))
    assert "own" in Registry.load(path, first).members


def test_the_time_of_a_young_file_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(REGISTRY.encode())
    ahead = path.stat().st_mtime + 3600
    os.utime(path, (ahead, ahead))
    first = Registry.load(path)
    again = Registry.load(path, first)
    assert again is not first
    assert again.members is first.members  # read, but not parsed


def test_a_damaged_registry_is_refused_whole(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(REGISTRY.encode()[:-9])
    with pytest.raises(SetupError, match=r"registry\.json"):
        Registry.load(path)


@pytest.mark.parametrize("address", ["a:1", "[::1]:8443", "10.0.0.1:65535"])
def test_addresses(address: str) -> None:
    assert join_address(*split_address(address)) == address


@pytest.mark.parametrize(
    "address", ["a", "a:", "a:0", "a:65536", "::1:8443", "[::1]", "[a]:1", ":1", "a:+1", "a:\u0661"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(PayloadError):
        split_address(address)


def _home(tmp_path: Path) -> Path:
    make_federation(tmp_path / "f", "one", "two")
    return tmp_path / "f"


@pytest.mark.parametrize("role", ["server", "devices/one"])
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path: Path, role: str) -> None:
    home = _home(tmp_path)
    folder = home / role
    own = "server" if role == "server" else "client"
    load = server_context if role == "server" else device_context

    def complaint(**clock: float) -> str:
        with pytest.raises(SetupError) as caught:
            load(folder, **{"now": NOW, **clock})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    load(folder, now=NOW)
    assert "expired" in complaint(now=NOW + 800 * 86_400)
    assert "clock" in complaint(now=NOW - 2 * 86_400)
    key, certificate = folder / f"{own}.key", folder / f"{own}.pem"
    key.chmod(0o640)
    assert "chmod 600" in complaint()
    key.chmod(0o600)
    good = key.read_bytes()
    key.write_bytes(good[:90])
    assert "private key in PEM" in complaint()
    key.write_bytes((home / "ca.key").read_bytes())
    assert "does not belong" in complaint()
    key.write_bytes(good)
    good = certificate.read_bytes()
    certificate.write_bytes(b"x" * 20_000)
    assert "limit" in complaint()
    certificate.unlink()
    assert f"{own}.pem is missing" in complaint()
    os.mkfifo(certificate)
    assert "no regular file" in complaint()
    certificate.unlink()
    certificate.write_bytes(good)
    make_federation(tmp_path / "other")
    (folder / "ca.pem").write_bytes((tmp_path / "other" / "ca.pem").read_bytes())
    assert "another federation" in complaint()


def test_a_bundle_mixed_from_two_devices_is_refused(tmp_path: Path) -> None:
    home = _home(tmp_path)
    one, two = home / "devices" / "one", home / "devices" / "two"
    assert Enrolment.load(one).name == "one"
    (one / "device.json").write_bytes((two / "device.json").read_bytes())
    with pytest.raises(SetupError, match=r"of two in federation .* its certificate of one"):
        Enrolment.load(one)


@pytest.mark.parametrize("size", [bundle_file.MAX_FILE_BYTES, bundle_file.MAX_FILE_BYTES + 1])
def test_a_file_in_a_bundle_has_a_limit(size: int) -> None:
    files = {**dict.fromkeys(bundle_file.REQUIRED, b"x"), "ca.pem": b"y" * size}
    if size <= bundle_file.MAX_FILE_BYTES:
        assert bundle_file.unpack(bundle_file.pack(files)) == files
    else:
        with pytest.raises(PayloadError, match="limit"):
            bundle_file.unpack(bundle_file.pack(files))


@pytest.mark.parametrize(
    ("names", "how"),
    [
        ([*bundle_file.REQUIRED], zipfile.ZIP_DEFLATED),
        ([*bundle_file.REQUIRED, "../evil"], zipfile.ZIP_STORED),
        ([*bundle_file.REQUIRED, "other"], zipfile.ZIP_STORED),
        (["ca.pem", "client.pem"], zipfile.ZIP_STORED),
    ],
)
def test_a_bundle_holds_known_files_as_they_are(names: list[str], how: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name in names:
            archive.writestr(name, b"0" * 5000)
    with pytest.raises(PayloadError):
        bundle_file.unpack(out.getvalue())


def test_every_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    home = _home(tmp_path)
    paths = [home, *home.rglob("*")]
    assert len(paths) == 1 + 3 + 1 + 5 + 1 + 2 * 8 + 3 + 6  # offline/ and server/releases/ too
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_file_above_its_limit_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it whole would end the machine
    with pytest.raises(SetupError, match="limit"):
        _files.read(path, 100)
