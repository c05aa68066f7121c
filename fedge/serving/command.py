"""``fedge serve``: answer windows over HTTP, in the Open Inference Protocol."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from fedge.errors import ConfigError

if TYPE_CHECKING:
    import ssl

    from fedge.serving.batcher import Bounds
    from fedge.serving.model import Served

_PORT = 8000
_NAME = re.compile(r"[A-Za-z0-9._ -]{1,64}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`run` reads."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a device's home, the folder of a release, or an .onnx file"
    )
    parser.add_argument("--name", help="what the model is called in URLs (default: its task)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=_PORT, metavar="N", help="0: any (default: 8000)")
    load = parser.add_argument_group("load")
    load.add_argument(
        "--budget-ms", type=float, default=20.0, metavar="MS", help="latency to keep to (default: 20)"
    )
    load.add_argument(
        "--queue", type=int, default=1024, metavar="N", help="windows that may wait (default: 1024)"
    )
    load.add_argument("--threads", type=int, metavar="N", help="batches at a time (default: one per core)")
    load.add_argument(
        "--grace", type=float, default=10.0, metavar="S", help="seconds to finish when stopped (default: 10)"
    )
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls-cert", type=Path, metavar="FILE", help="this server's certificate (PEM)")
    tls.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    tls.add_argument(
        "--client-ca", type=Path, metavar="FILE", help="only clients with a certificate that this one signed"
    )
    tls.add_argument(
        "--bundle", type=Path, metavar="DIR", help="an enrolment bundle: only members of the same federation"
    )
    parts = parser.add_argument_group("one model on several devices")
    parts.add_argument("--stage", metavar="I/N", help="serve part I of the model cut into N")
    parts.add_argument("--next", metavar="HOST:PORT", help="where part I+1 is served")
    parts.add_argument(
        "--next-ca", type=Path, metavar="FILE", help="authority of its certificate (default: no TLS)"
    )
    parts.add_argument(
        "--deadline", type=float, default=10.0, metavar="S", help="seconds for its answer (default: 10)"
    )


def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: an option is out of range, or does not go with another.
        SetupError: the model is damaged or cannot be read, the port is taken, or a file for TLS is wrong.
    """
    _check(options)
    from fedge.edge.places import named_by_user
    from fedge.serving.server import Settings, is_loopback, listen, serve

    tls = _tls(options)
    with named_by_user(options.model):
        served = _open(options)
    listener = listen(options.host, options.port)
    face, port = served.face(), listener.getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    if tls is None and not is_loopback(options.host):
        _say(f"warning: {host} is open to the network, without TLS: see --tls-cert and --bundle")
    where = f"{'http' if tls is None else 'https'}://{host}:{port}/v2/models/{quote(face.name)}"
    settings = Settings(_bounds(options), grace=options.grace, tls=tls)

    def ready() -> None:
        print(f"serving {face.name}, release {face.version}, at {where}", flush=True)  # noqa: T201

    serve(served, listener, settings, _say, ready)


def _bounds(options: argparse.Namespace) -> "Bounds":
    from fedge.serving.batcher import Bounds

    threads = options.threads or len(os.sched_getaffinity(0))
    return Bounds(options.queue, options.budget_ms / 1000, threads, inline=options.next is None)


def _check(options: argparse.Namespace) -> None:
    for name, low, high in (
        ("port", 0, 65_535), ("budget_ms", 0.1, 60_000), ("queue", 1, 1_000_000), ("threads", 1, 256),
        ("grace", 0, 3600), ("deadline", 0.01, 3600),
    ):  # fmt: skip
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: give {low} to {high}")
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key go together")
    if options.bundle and (options.tls_cert or options.client_ca):
        raise ConfigError(
            "--bundle has its own certificate and authority: leave --tls-cert and --client-ca out"
        )
    if options.client_ca and not options.tls_cert:
        raise ConfigError("--client-ca needs --tls-cert and --tls-key")
    if options.next and not options.stage:
        raise ConfigError("--next is for --stage I/N")
    if options.name is not None and not _NAME.fullmatch(options.name):
        raise ConfigError(
            f"--name {options.name!r:.80}: give 1 to 64 letters, digits, '.', '_', '-' and spaces"
        )


def _tls(options: argparse.Namespace) -> "ssl.SSLContext | None":
    if options.bundle is None and options.tls_cert is None:
        return None
    from fedge.serving import tls

    if options.bundle is not None:
        return tls.bundle_server(options.bundle)
    return tls.server_context(options.tls_cert, options.tls_key, options.client_ca)


def _open(options: argparse.Namespace) -> "Served":
    if options.stage is None:
        from fedge.serving.model import Whole

        return Whole.open(options.model, options.name)
    from fedge.serving import stages
    from fedge.serving.peer import Address
    from fedge.serving.tls import Peer as Tls

    tls = Tls(options.bundle, options.next_ca) if options.bundle or options.next_ca else None
    ahead = stages.Ahead(Address.parse(options.next), tls, options.deadline) if options.next else None
    return stages.open_stage(options.model, stages.Place.parse(options.stage), options.name, ahead)


def _say(text: str) -> None:
    print(f"fedge: {text}", file=sys.stderr, flush=True)  # noqa: T201
