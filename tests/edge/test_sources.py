"""A folder, a web server and a package hand over the same files, and never more than was asked for."""

import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from deploy.provisioned import make_federation

from fedge.edge.sources import FetchError, FolderSource, HttpSource, PackageSource, Source
from fedge.errors import PayloadError, SetupError

FILES = {"metadata/timestamp.json": b"{}", "v0001/model.onnx": bytes(range(256)) * 40, "latest.json": b""}
OUTSIDE = [
    "../outside",
    "/etc/passwd",
    "v0001/../../outside",
    "",
    ".",
    "..",
    "a//b",
    "a/",
    "a\0b",
    "a?b",
    "a#b",
]


class _Handler(BaseHTTPRequestHandler):
    """A static server, and some that are not as they should be."""

    files = FILES

    def do_GET(self) -> None:
        path = self.path.lstrip("/").removeprefix("base/")
        if path in self.files:
            self._send(200, self.files[path])
        elif path == "away":
            self._moved("/latest.json")
        elif path == "round":
            self._moved("/round")
        elif path == "endless":
            self._endless(pause=0.0)
        elif path == "dripping":
            self._endless(pause=0.05)
        elif path == "short":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"only this")
        elif path == "zipped":
            self._send(200, b"\x1f\x8b not really", ("Content-Encoding", "gzip"))
        elif path == "hangs":
            time.sleep(2)
        else:
            self._send(500 if path == "broken" else 404, b"no")

    def _send(self, status: int, content: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for header in (("Content-Length", str(len(content))), *headers):
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content)

    def _moved(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _endless(self, pause: float) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * (1 << 16 if not pause else 1))
                time.sleep(pause)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def served(context: ssl.SSLContext | None = None) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if context else 'http'}://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, content in FILES.items():
        place = tmp_path / "releases" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (tmp_path / "outside").write_bytes(b"secret")
    return tmp_path / "releases"


@pytest.fixture(params=["folder", "above", "package", "http"])
def source(request: pytest.FixtureRequest, folder: Path) -> Iterator[Source]:
    if request.param == "http":
        with served() as url:
            yield HttpSource(f"{url}/base/")
    elif request.param == "package":
        yield PackageSource(FILES)
    else:
        yield FolderSource(folder if request.param == "folder" else folder.parent)


def test_files_come_as_they_are(source: Source) -> None:
    assert {path: source.fetch(path, 1 << 20) for path in FILES} == FILES


def test_nothing_beyond_the_limit_is_handed_over(source: Source) -> None:
    size = len(FILES["v0001/model.onnx"])
    assert len(source.fetch("v0001/model.onnx", size)) == size
    with pytest.raises(PayloadError, match=str(size - 1)):
        source.fetch("v0001/model.onnx", size - 1)


def test_file_that_is_not_there_is_told_from_a_place_that_is_not(source: Source) -> None:
    with pytest.raises(FetchError) as told:
        source.fetch("v0002/model.onnx", 10)
    assert told.value.missing


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leads_out_of_a_repository(source: Source, path: str) -> None:
    with pytest.raises((PayloadError, FetchError)):
        source.fetch(path, 100)


def test_stick_that_was_pulled_out_is_not_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FetchError) as told:
        FolderSource(tmp_path / "stick").fetch("latest.json", 10)
    assert not told.value.missing


def test_endless_file_is_read_up_to_the_limit_only(folder: Path) -> None:
    with (folder / "latest.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(PayloadError):
        FolderSource(folder).fetch("latest.json", 1000)


def test_what_is_no_file_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for path in ("pipe", "metadata"):
        with pytest.raises(FetchError):
            FolderSource(folder).fetch(path, 100)


def test_web_server_that_moved_a_file_is_followed_and_one_that_goes_in_circles_is_not() -> None:
    with served() as url:
        assert HttpSource(url).fetch("away", 10) == b""
        with pytest.raises(FetchError):
            HttpSource(url).fetch("round", 10)


@pytest.mark.parametrize("path", ["broken", "short", "hangs"])
def test_web_server_in_trouble_is_no_missing_file(path: str) -> None:
    with served() as url, pytest.raises(FetchError) as told:
        HttpSource(url, timeout=0.3).fetch(path, 200)
    assert not told.value.missing


def test_endless_data_from_a_web_server_end_at_the_limit() -> None:
    with served() as url, pytest.raises(PayloadError):
        HttpSource(url).fetch("endless", 1 << 20)


def test_data_that_drip_are_given_up() -> None:
    with served() as url, pytest.raises(FetchError, match="slow"):
        HttpSource(url, timeout=0.2).fetch("dripping", 100)


def test_nothing_is_inflated() -> None:
    with served() as url:
        assert HttpSource(url).fetch("zipped", 100).startswith(b"\x1f\x8b")


def test_nobody_listens() -> None:
    with served() as url:
        pass
    with pytest.raises(FetchError, match="cannot fetch"):
        HttpSource(url, timeout=0.5).fetch("latest.json", 10)


def test_address_of_something_else_is_refused() -> None:
    with pytest.raises(SetupError, match="https://"):
        HttpSource("ftp://example.org")


def test_federations_server_knows_its_devices_and_they_know_it(tmp_path: Path) -> None:
    own, other = (make_federation(tmp_path / name, "a", now=time.time()) and tmp_path / name for name in "xy")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own / "server" / "server.pem", own / "server" / "server.key")
    context.load_verify_locations(own / "server" / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with served(context) as url:
        assert HttpSource(url, own / "devices" / "a").fetch("metadata/timestamp.json", 10) == b"{}"
        for bundle in (other / "devices" / "a", None):
            with pytest.raises(FetchError, match="cannot fetch"):
                HttpSource(url, bundle, timeout=2).fetch("metadata/timestamp.json", 10)


def test_bundle_without_certificates_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="certificates"):
        HttpSource("https://localhost:1", tmp_path).fetch("latest.json", 10)
