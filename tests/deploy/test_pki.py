import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from fedge.deploy import pki, stock_node
from fedge.deploy.tls import device_context, server_context
from fedge.errors import PayloadError, SetupError

from .provisioned import NOW, admitted, make_federation, shake_hands

DAY = 86_400.0
ID = "ab" * 16


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki") / "home"
    make_federation(folder, "one", "two", now=datetime.now(UTC).timestamp())
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki") / "foreign"
    make_federation(folder, "one", now=datetime.now(UTC).timestamp())
    return folder


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_device_reaches_its_server_and_is_known_by_name(
    home: Path, host: str, version: ssl.TLSVersion
) -> None:
    context = device_context(home / "devices" / "one")
    context.maximum_version = version
    der = shake_hands(server_context(home / "server"), context, host)
    assert pki.identity(der).name == "one"


def test_a_device_of_another_federation_is_refused_in_the_handshake(home: Path, foreign: Path) -> None:
    context = device_context(foreign / "devices" / "one")
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it does all it can to get in
    for clients in ("required", "optional"):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            shake_hands(server_context(home / "server", clients), context)


def test_a_device_refuses_the_server_of_another_federation(home: Path, foreign: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(foreign / "server", "none"), device_context(home / "devices" / "one"))


def test_a_device_refuses_a_server_of_another_name(home: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname"):
        shake_hands(server_context(home / "server"), device_context(home / "devices" / "one"), "example.org")


def test_a_device_cannot_pose_as_the_server(home: Path) -> None:
    thief = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    thief.load_cert_chain(home / "devices" / "two" / "client.pem", home / "devices" / "two" / "client.key")
    context = device_context(home / "devices" / "one")
    context.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        shake_hands(thief, context)


def test_no_certificate_is_refused_where_one_is_required(home: Path) -> None:
    context = ssl.create_default_context(cafile=str(home / "ca.pem"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake_hands(server_context(home / "server"), context)
    assert shake_hands(server_context(home / "server", "optional"), context) == b""


def test_an_expired_certificate_is_refused_in_the_handshake(tmp_path: Path) -> None:
    clock = datetime.now(UTC).timestamp()
    make_federation(tmp_path / "old", "one", now=clock - 40 * DAY, days=30)
    context = device_context(tmp_path / "old" / "devices" / "one", now=clock - 20 * DAY)
    context.verify_mode = ssl.CERT_REQUIRED
    server = server_context(tmp_path / "old" / "server", now=clock - 20 * DAY)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(server, context)


def test_a_session_is_resumed_by_its_ticket(home: Path) -> None:
    server, device = server_context(home / "server"), device_context(home / "devices" / "one")
    import threading

    reused = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                plain, _address = listener.accept()
                with plain, server.wrap_socket(plain, server_side=True) as link:
                    link.sendall(b"!")
                    link.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        session = None
        for _ in range(2):
            plain = socket.create_connection(listener.getsockname(), 10)
            with plain, device.wrap_socket(plain, server_hostname="localhost", session=session) as link:
                link.recv(1)
                reused.append(link.session_reused)
                session = link.session
                link.sendall(b"?")
        thread.join(10)
    assert reused == [False, True]


def _certificates(days: int = 730) -> tuple[pki.Authority, x509.Certificate, x509.Certificate]:
    authority, key = pki.new_authority(ID, NOW), pki.new_key().public_key()
    server = pki.issue_server(authority, key, ["host.example", "10.0.0.1", "fe80::1"], NOW, days)
    return authority, server, pki.issue_device(authority, key, ID, "dev-1", NOW, days)


def test_extensions_are_those_of_rfc_5280() -> None:
    authority, server, device = _certificates()
    above = authority.certificate.extensions
    assert above.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert above.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    for leaf, purpose in ((server, "1.3.6.1.5.5.7.3.1"), (device, "1.3.6.1.5.5.7.3.2")):
        extensions = leaf.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert not constraints.value.ca
        assert usage.critical
        assert (usage.value.digital_signature, usage.value.key_cert_sign) == (True, False)
        uses = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [use.dotted_string for use in uses] == [purpose]
        assert leaf.version == x509.Version.v3
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["host.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "fe80::1"]


def test_dates_begin_a_day_early_and_end_when_asked() -> None:
    authority, _, device = _certificates(days=30)
    assert device.not_valid_before_utc.timestamp() == NOW - DAY
    assert device.not_valid_after_utc.timestamp() == NOW + 30 * DAY
    assert pki.days_left(authority.certificate, NOW) == 20 * 365


@pytest.mark.parametrize(
    ("offset", "words"), [(-1.1 * DAY, "valid only from.*clock"), (30.1 * DAY, "expired on.*clock")]
)
def test_a_wrong_clock_is_named(offset: float, words: str) -> None:
    authority, _, device = _certificates(days=30)
    pki.check_certificate(device, authority.certificate, NOW, "it")
    with pytest.raises(SetupError, match=words):
        pki.check_certificate(device, authority.certificate, NOW + offset, "it")


def test_a_certificate_may_not_outlive_its_authority() -> None:
    with pytest.raises(SetupError, match="authority has left"):
        _certificates(days=pki.AUTHORITY_DAYS + 1)


def test_the_server_s_certificate_is_no_device_s() -> None:
    _, server, device = _certificates()
    assert pki.identity(pki.certificate_der(device)).federation == ID
    with pytest.raises(PayloadError):
        pki.identity(pki.certificate_der(server))


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 64, "-", "fedge"])
def test_names_of_devices(name: str) -> None:
    assert pki.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "a/b", "a b", "x" * 65, "ä", "a\n", "a\0", "x.fedge", "x.FEDGE", "a,b"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(PayloadError, match="no name"):
        pki.check_name(name)


@pytest.mark.parametrize("host", ["a", "a.b-c.de", "10.0.0.1", "::1", "xn--bcher-kva.example"])
def test_hosts(host: str) -> None:
    assert pki.check_host(host) == host


@pytest.mark.parametrize(
    "host", ["", "a..b", "-a", "a-", "a_b", "999.1.1.1", "1.2.3", "fe80::1%eth0", "a b", "*.x", "a" * 64]
)
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(PayloadError, match="neither"):
        pki.check_host(host)


@given(st.binary(max_size=400))
def test_no_bytes_make_a_parser_raise_anything_else(content: bytes) -> None:
    for parse in (pki.identity, stock_node.point_of, stock_node.flower_pem):
        with pytest.raises(PayloadError):
            parse(content)
    for parse_named in (pki.parse_key, pki.parse_certificate):
        with pytest.raises(PayloadError):
            parse_named(content, "it")


def test_a_certificate_with_any_bit_flipped_is_never_another_s() -> None:
    authority, _, device = _certificates()
    der = bytearray(pki.certificate_der(device))
    accepted = 0
    for place in range(0, len(der) * 8, 7):
        der[place // 8] ^= 1 << place % 8
        try:
            pki.identity(bytes(der))
            flipped = x509.load_der_x509_certificate(bytes(der))
            pki.check_certificate(flipped, authority.certificate, NOW, "it")
            accepted += 1
        except (PayloadError, SetupError):
            pass
        der[place // 8] ^= 1 << place % 8
    assert accepted == 0


def test_stock_keys_are_what_flower_reads(tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    from argparse import Namespace

    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    private, public = stock_node.new_node_key()
    (tmp_path / "node.key").write_bytes(private)
    (tmp_path / "node.pub").write_bytes(public)
    asked = Namespace(auth_supernode_private_key=str(tmp_path / "node.key"), auth_supernode_public_key=None)
    keys = _try_setup_client_authentication(asked)
    assert keys is not None
    registered = try_load_public_key(tmp_path / "node.pub")
    assert registered == public_key_to_bytes(keys[1]) == stock_node.flower_pem(stock_node.point_of(public))
    assert stock_node.point_of(registered) == stock_node.point_of(public)


def test_a_revoked_device_shakes_hands_but_is_not_admitted(tmp_path: Path) -> None:
    from fedge.deploy import enrol
    from fedge.errors import RefusedError

    own = make_federation(tmp_path / "f", "one", "two", now=datetime.now(UTC).timestamp())
    enrol.revoke(tmp_path / "f", ["one"])
    server = server_context(tmp_path / "f" / "server")
    assert (
        admitted(tmp_path / "f", shake_hands(server, device_context(tmp_path / "f/devices/two")), own)
        == "two"
    )
    der = shake_hands(server, device_context(tmp_path / "f/devices/one"))
    with pytest.raises(RefusedError, match="revoked"):
        admitted(tmp_path / "f", der, own)
