"""Where a device's releases come from: a folder, a web server, or a package that came another way.

All of them are the same files (``fedge.release.pointer``), and none of them is trusted: what they hand over
is verified afterwards. Here it is only made sure that no more is read than was asked for.
"""

import os
import re
import ssl
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedge.errors import PayloadError, SetupError

if TYPE_CHECKING:
    import urllib3

_PATH = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}/){0,3}[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_CHUNK = 1 << 16
_SLOWEST = 1 << 10  # bytes a second, below which a download is given up
_ABSENT = frozenset({403, 404, 410})


class FetchError(SetupError):
    """A file of a repository of releases cannot be had from where it should come.

    Attributes:
        missing: whether the place answers, and says that there is no such file.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class Source(Protocol):
    """Where the files of a repository of releases can be had."""

    def fetch(self, path: str, limit: int) -> bytes:
        """The file ``path``, such as ``v0007/model.onnx``.

        Raises:
            FetchError: it cannot be had.
            PayloadError: it has more than ``limit`` bytes; no more than one further byte was read.
        """


@dataclass(frozen=True)
class PackageSource:
    """The files of a package (``fedge.release.package.parse_package``), or any others in memory."""

    files: Mapping[str, bytes]

    def fetch(self, path: str, limit: int) -> bytes:
        """See :class:`Source`."""
        if path not in self.files:
            raise FetchError(f"the package holds no {path}", missing=True)
        return _limited(self.files[path], path, limit)


@dataclass(frozen=True)
class FolderSource:
    """A folder, such as a USB stick's: the repository itself, or the folder that its ``releases`` lies in."""

    folder: Path

    def fetch(self, path: str, limit: int) -> bytes:
        """See :class:`Source`. Only regular files are read."""
        place = self._root() / _checked(path)
        try:
            handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise FetchError(f"{place} is no file")
                return _limited(file.read(limit + 1), path, limit)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FetchError(f"{place} is not there", missing=self.folder.is_dir()) from error
        except OSError as error:
            raise FetchError(f"cannot read {place}: {error.strerror}") from error

    def _root(self) -> Path:
        inner = self.folder / "releases"
        return inner if inner.is_dir() and not (self.folder / "metadata").is_dir() else self.folder


class HttpSource:
    """A web server, static or the federation's own."""

    def __init__(self, url: str, tls: Path | None = None, timeout: float = 30.0) -> None:
        """Nothing is opened yet.

        Args:
            url: of the repository, ``https://`` or ``http://`` (what comes is verified either way).
            tls: a folder with ``ca.pem``, ``client.pem`` and ``client.key``, such as a device's enrolment
                bundle: then the server must be the federation's, and this device shows its certificate.
                Without it the system's authorities are asked.
            timeout: seconds to connect, and between two bytes. A whole file may take twice that, and a second
                for each 1024 bytes that it may have.

        Raises:
            SetupError: the address is none of a web server.
        """
        if not url.startswith(("https://", "http://")):
            raise SetupError(f"{url!r:.80} is no address of a web server: it starts with https://")
        self.url, self.tls, self.timeout = url.rstrip("/"), tls, timeout
        self._opened: urllib3.PoolManager | None = None

    def fetch(self, path: str, limit: int) -> bytes:
        """See :class:`Source`."""
        import urllib3

        where = f"{self.url}/{_checked(path)}"
        try:
            answer = self._pool().request(
                "GET",
                where,
                headers={"Accept-Encoding": "identity"},
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=self.timeout, read=self.timeout),
                retries=urllib3.Retry(total=3, connect=2, read=1, redirect=3, other=0, backoff_factor=0.2),
            )
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise FetchError(f"cannot fetch {where}: {_cause(error)}") from error
        try:
            if answer.status != 200:
                said = f"the server answers {answer.status} to {where}"
                raise FetchError(said, missing=answer.status in _ABSENT)
            return self._body(answer, where, limit)
        finally:
            answer.close()

    def _body(self, answer: "urllib3.BaseHTTPResponse", where: str, limit: int) -> bytes:
        """The content, which may not be longer than ``limit``, nor take for ever."""
        import urllib3

        parts, size = list[bytes](), 0
        end = time.monotonic() + 2 * self.timeout + limit / _SLOWEST
        try:
            while size <= limit and (part := answer.read1(min(_CHUNK, limit + 1 - size))):
                parts.append(part)
                size += len(part)
                if time.monotonic() > end:
                    raise FetchError(f"{where} comes too slowly")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise FetchError(f"cannot fetch {where}: {_cause(error)}") from error
        return _limited(b"".join(parts), where, limit)

    def _pool(self) -> "urllib3.PoolManager":
        import urllib3

        if self._opened is None:
            context = None if self.tls is None else _context(self.tls)
            self._opened = urllib3.PoolManager(num_pools=4, maxsize=1, ssl_context=context)
        return self._opened


def _context(bundle: Path) -> ssl.SSLContext:
    """TLS with the federation's own authority, and this device's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(bundle / "ca.pem")
        context.load_cert_chain(bundle / "client.pem", bundle / "client.key")
    except (ssl.SSLError, OSError) as error:
        raise SetupError(f"{bundle}: its certificates cannot be used: {error}") from error
    return context


def _checked(path: str) -> str:
    """A path within a repository: no other place can be named."""
    if not _PATH.fullmatch(path):
        raise PayloadError(f"{path!r:.80} is no path of a repository of releases")
    return path


def _limited(content: bytes, path: str, limit: int) -> bytes:
    if len(content) > limit:
        raise PayloadError(f"{path} has more than {limit} bytes, the limit")
    return content


def _cause(error: Exception) -> str:
    """The innermost reason, in one line."""
    reason = getattr(error, "reason", None)
    return " ".join(str(reason or error).split())[:200]
