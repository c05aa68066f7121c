"""Who may ask, and who may answer."""

import shutil
import ssl
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedge.deploy import enrol, federation
from fedge.errors import SetupError
from fedge.serving.about import PATH
from fedge.serving.across import Devices
from fedge.serving.peer import Address, Peer, PeerError
from fedge.serving.server import Settings
from fedge.serving.tls import Peer as Tls
from fedge.serving.tls import bundle_server, server_context

from .build import Fake, running, windows


@dataclass(frozen=True)
class Home:
    """A federation, its devices' bundles and its server's folder."""

    ca: Path
    kitchen: Path
    hall: Path
    server: Path


def provisioned(folder: Path) -> Home:
    devices = [enrol.Device(name, (), False, 30) for name in ("kitchen", "hall")]
    enrol.create(folder, "home", ["localhost", "127.0.0.1"], 8443, devices, time.time(), 30)
    return Home(folder / "ca.pem", folder / "devices/kitchen", folder / "devices/hall", folder / "server")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return provisioned(tmp_path_factory.mktemp("tls") / "home")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return provisioned(tmp_path_factory.mktemp("tls") / "other")


@pytest.fixture(scope="module")
def port(home: Home) -> Iterator[int]:
    with running(Fake(), Settings(grace=2, tls=bundle_server(home.kitchen))) as taken:
        yield taken


def get(port: int, tls: Tls | None, host: str = "127.0.0.1") -> bytes:
    with Peer(Address(host, port), tls, 5) as peer:
        return peer.get(PATH).body


def test_members_of_one_federation_answer_each_other(home: Home, port: int) -> None:
    for bundle in (home.hall, home.kitchen):
        assert get(port, Tls(bundle, None))
    with running(Fake(), Settings(grace=2, tls=bundle_server(home.server))) as server:
        assert get(server, Tls(home.hall, None))
    devices = Devices([Address("127.0.0.1", port)], Tls(home.hall, None))
    assert len(devices.predict(windows(100))[1]) == 100
    devices.close()


def test_who_shows_no_certificate_or_anothers_gets_nothing(home: Home, other: Home, port: int) -> None:
    for tls in (None, Tls(None, home.ca), Tls(other.hall, None)):
        with pytest.raises(PeerError):
            get(port, tls)


def test_a_server_of_another_federation_is_not_asked(home: Home, other: Home) -> None:
    """It asks for no certificate of its clients, so only they can tell."""
    context = server_context(other.kitchen / "client.pem", other.kitchen / "client.key", None)
    with running(Fake(), Settings(grace=2, tls=context)) as port:
        assert get(port, Tls(other.hall, None))
        with pytest.raises(PeerError, match="no member of this federation"):
            get(port, Tls(home.hall, None))


def test_the_authority_itself_is_no_server(home: Home, tmp_path: Path) -> None:
    key = tmp_path / "ca.key"
    shutil.copy(home.ca.with_name("ca.key"), key)
    key.chmod(0o600)
    settings = Settings(grace=2, tls=server_context(home.ca, key, None))
    with running(Fake(), settings) as port, pytest.raises(PeerError, match="an authority's"):
        get(port, Tls(home.hall, None))


def test_clients_from_elsewhere_check_the_name_of_the_host(home: Home) -> None:
    context = server_context(home.server / "server.pem", home.server / "server.key", None)
    with running(Fake(), Settings(grace=2, tls=context)) as port:
        assert get(port, Tls(None, home.ca), "localhost")
        with pytest.raises(PeerError, match="certificate"):
            get(port, Tls(None, None), "localhost")  # the system knows no such authority
    context = server_context(home.kitchen / "client.pem", home.kitchen / "client.key", None)
    with running(Fake(), Settings(grace=2, tls=context)) as port, pytest.raises(PeerError):
        get(port, Tls(None, home.ca), "localhost")  # a device's certificate names no host


def test_clients_without_a_certificate_are_refused_where_one_is_asked_for(home: Home) -> None:
    context = server_context(home.server / "server.pem", home.server / "server.key", home.ca)
    with running(Fake(), Settings(grace=2, tls=context)) as port:
        with pytest.raises(PeerError):
            get(port, Tls(None, home.ca), "localhost")
        assert get(port, Tls(home.hall, None), "localhost")


def test_files_that_cannot_be_used_are_said(home: Home, other: Home, tmp_path: Path) -> None:
    open_ = tmp_path / "client.key"
    shutil.copy(home.hall / "client.key", open_)
    open_.chmod(0o644)
    certificate = home.hall / "client.pem"
    for pair, says in (
        ((certificate, open_), "open to others"),
        ((certificate, tmp_path / "none.key"), "cannot be used"),
        ((certificate, other.hall / "client.key"), "cannot be used"),
        ((home.hall / "device.json", home.hall / "client.key"), "cannot be used"),
    ):
        with pytest.raises(SetupError, match=says):
            server_context(*pair, None)
    with pytest.raises(SetupError, match="no enrolment bundle"):
        bundle_server(tmp_path)
    with pytest.raises(SetupError, match="certificates in PEM"):
        server_context(certificate, home.hall / "client.key", home.hall / "device.json")
    with pytest.raises(SetupError, match="cannot read"):
        Tls(None, tmp_path / "none.pem")


def test_old_tls_is_refused(home: Home, port: int) -> None:
    tls = Tls(home.hall, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tls.context.minimum_version = ssl.TLSVersion.TLSv1
        tls.context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(PeerError):
        get(port, tls)


def test_federations_files_have_the_names_that_are_looked_for() -> None:
    """``fedge.serving`` stands below ``fedge.deploy`` and cannot ask it."""
    from fedge.deploy import bundle_file
    from fedge.serving import tls

    assert tls._AUTHORITY == bundle_file.AUTHORITY == federation.AUTHORITY
    assert tls._PAIRS == (
        (federation.SERVER_CERTIFICATE, federation.SERVER_KEY),
        (bundle_file.CERTIFICATE, bundle_file.KEY),
    )
