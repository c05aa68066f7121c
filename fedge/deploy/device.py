"""``fedge client``: one process on a device, for years. It waits on the link and does what it is asked to.

The main thread does the rounds, so that a signal stops them between two steps; a second thread keeps the
link. Everything that must survive a kill is on the disk before anyone hears of it. Nothing that the server
sends is ever run.
"""

import argparse
import logging
import os
import secrets
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from fedge import __version__
from fedge.config import Release
from fedge.deploy import bundle_file, pki, tls
from fedge.deploy.device_limits import ByteAccount, DeviceLimits, Hours, settle_in
from fedge.deploy.device_link import PING, DeviceLink, Server
from fedge.deploy.device_store import LinkStore
from fedge.deploy.device_words import log_to_stderr, notify
from fedge.deploy.device_work import HOME, DataSource, Round, StopWork, Worker, hold_now
from fedge.deploy.federation import Enrolment, load_certificate
from fedge.durable import replace_file
from fedge.errors import ConfigError, PayloadError, SetupError
from fedge.federated.file_store import FileStore
from fedge.link.device_end import Identity
from fedge.link.frames import INSTANCE_BYTES

_log = logging.getLogger("fedge.client")

LARGEST_TASK = 256 << 20
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="the enrolment bundle: a folder or NAME.fedge"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="this device's own windows")
    parser.add_argument(
        "--classes", metavar="A,B,...", help="names of the model's classes, for CSV and Parquet"
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where it remembers (default: beside the bundle)"
    )
    parser.add_argument("--log", choices=["human", "json"], default="human", help="form of the log lines")
    parser.add_argument(
        "--ping", type=float, default=PING, metavar="S", help=f"keep-alive of an idle link ({PING:g} s)"
    )
    parser.add_argument(
        "--judge-share", type=float, default=0.1, metavar="P", help="windows kept to judge candidates (0.1)"
    )
    parser.add_argument(
        "--release-margin",
        type=float,
        default=Release.margin,
        metavar="X",
        help=f"how much worse a release may score ({Release.margin:g})",
    )
    parser.add_argument(
        "--promoted-only", action="store_true", help="take only releases promoted with the offline key"
    )
    _add_limits(parser.add_argument_group("limits of this device"))


def _add_limits(group: Any) -> None:
    group.add_argument(
        "--cpu-share", type=float, default=1.0, metavar="P", help="of one core, while training"
    )
    group.add_argument("--nice", type=int, default=10, metavar="N", help="niceness of training (10)")
    group.add_argument("--memory", metavar="SIZE", help="most memory, such as 400M")
    group.add_argument(
        "--hours",
        action="append",
        default=[],
        metavar="HH:MM-HH:MM",
        help="when rounds may run; may be repeated",
    )
    group.add_argument("--mains-only", action="store_true", help="no rounds on battery")
    group.add_argument(
        "--metered-file", type=Path, metavar="FILE", help="no link while it exists and is not 0 or no"
    )
    group.add_argument("--metered-command", metavar="COMMAND", help="no link while it ends with 0")
    group.add_argument("--bytes-per-day", metavar="SIZE", help="most bytes of the link, such as 2M")
    group.add_argument("--uplink-budget", metavar="SIZE", help="most bytes of one round's answer")
    group.add_argument(
        "--patience", type=int, default=900, metavar="S", help="how long a task waits for its hour (900 s)"
    )


def run(options: argparse.Namespace) -> None:
    """Be a device until SIGTERM or SIGINT.

    Raises:
        InputError: the bundle, the state, the data or a limit cannot be used.
    """
    log_to_stderr(options.log)
    limits = limits_of(options)
    state = options.state or options.bundle.with_name(f"{options.bundle.stem}.state")
    bundle = bundle_folder(options.bundle, state)
    if not options.data.exists():
        raise SetupError(f"{options.data}: there are no data of this device")
    with FileStore(state / "client.state") as store:
        _serve(options, limits, bundle, state, store)


def _serve(
    options: argparse.Namespace, limits: DeviceLimits, bundle: Path, state: Path, store: FileStore
) -> None:
    enrolment, source = Enrolment.load(bundle), data_source(options)
    key, budget = enrolment.signing_key(), size_of(options.uplink_budget, "--uplink-budget")
    home, margin = state / HOME, options.release_margin
    round_ = Round(enrolment, key, source, store, home, margin, options.promoted_only, budget)
    files = LinkStore(state / "link", LARGEST_TASK)
    desk, held = files.load()
    worker = Worker(round_, files, limits, lambda: hold_now(limits))
    link = DeviceLink(
        Server(enrolment.host, enrolment.port),
        lambda: tls.device_context(bundle),
        identity_of(enrolment, bundle),
        files,
        desk,
        worker,
        limits,
        ByteAccount(state / "bytes.json"),
        LARGEST_TASK,
        options.ping,
    )
    worker.reports = link
    if held is not None:
        worker.begin(held.id, held.frame, None)
    run_both(worker, link, limits)


def run_both(worker: Worker, link: DeviceLink, limits: DeviceLimits) -> None:
    """The link in a thread of its own, rounds here, until a signal comes."""
    thread = link.start()
    settle_in(limits)  # after the thread: niceness is this thread's alone
    _on_signals()
    notify("READY=1\nSTATUS=waiting for the link")
    try:
        worker.run()
    except StopWork as stop:
        _log.info("stopped by %s", stop)
    finally:
        notify("STOPPING=1")
        link.stop()
        thread.join(5.0)


def _on_signals() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise StopWork(signal.Signals(number).name)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)


def identity_of(enrolment: Enrolment, bundle: Path) -> Identity:
    """Who this device is on the link, in this process."""
    return Identity(
        federation=enrolment.federation,
        name=enrolment.name,
        key=enrolment.signing_key(),
        certificate=pki.fingerprint(load_certificate(bundle / bundle_file.CERTIFICATE)),
        instance=secrets.token_bytes(INSTANCE_BYTES),
        software=__version__,
    )


def limits_of(options: argparse.Namespace) -> DeviceLimits:
    """The owner's limits.

    Raises:
        ConfigError: one makes no sense.
    """
    return DeviceLimits(
        cpu_share=options.cpu_share,
        nice=options.nice,
        memory=size_of(options.memory, "--memory"),
        hours=tuple(Hours.parse(text) for text in options.hours),
        mains_only=options.mains_only,
        metered_file=options.metered_file,
        metered_command=("/bin/sh", "-c", options.metered_command) if options.metered_command else (),
        bytes_per_day=size_of(options.bytes_per_day, "--bytes-per-day"),
        patience=options.patience,
    )


def data_source(options: argparse.Namespace) -> DataSource:
    """Where the data are and how they are read."""
    classes = tuple(options.classes.split(",")) if options.classes else None
    return DataSource(options.data, classes, options.judge_share)


def size_of(text: str | None, what: str) -> int | None:
    """``400M``, ``2k`` or a plain number, in bytes.

    Raises:
        ConfigError: it is something else.
    """
    if text is None:
        return None
    raw = text.strip().lower().removesuffix("b")
    unit = raw[-1:] if raw[-1:] in _UNITS else ""
    digits = raw.removesuffix(unit) if unit else raw
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 12):
        raise ConfigError(f"{what} takes a size such as 400M, not {text!r:.40}")
    return int(digits) * _UNITS[unit]


def bundle_folder(bundle: Path, state: Path) -> Path:
    """The bundle as a folder: itself, or what is in the one file, unpacked into the state (mode 0700).

    Raises:
        SetupError: there is none, or it cannot be read or unpacked.
    """
    if bundle.is_dir():
        return bundle
    try:
        with bundle.open("rb") as file:
            files = bundle_file.unpack(file.read(bundle_file.MAX_BUNDLE_BYTES + 1))
        folder = state / "bundle"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        for name, content in files.items():
            if not (folder / name).exists() or (folder / name).read_bytes() != content:
                replace_file(folder / name, content)
    except PayloadError as error:
        raise SetupError(f"{bundle}: {error}") from None
    except OSError as error:
        raise SetupError(f"cannot use the bundle {bundle}: {error.strerror}") from None
    return folder
