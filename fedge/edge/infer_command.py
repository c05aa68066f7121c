"""``fedge infer``: windows from a file, a folder or a live stream; one JSON line for each answer."""

import argparse
import json
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedge.edge.inputs import Stop, files, holds_windows, lines, stop_signals, windows
from fedge.edge.lines import HeaderError, Lines
from fedge.edge.live import Answering, LiveModel
from fedge.edge.places import NoReleaseYetError, named_by_user
from fedge.edge.session import Session
from fedge.edge.stream import Cutter
from fedge.errors import ConfigError, DataError
from fedge.release.manifest import Manifest

if TYPE_CHECKING:
    from fedge.edge.keep import Keep

_STREAM = "-"
_FILE_BATCH = 256
_WAIT_SECONDS = 1.0  # between two looks for a first release


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL",
        help="a device's home, the folder of a release, or an .onnx file with manifest.json beside it",
    )  # fmt: skip
    parser.add_argument(
        "input", nargs="?", default=_STREAM, metavar="INPUT",
        help="an .npz, .csv or .jsonl file, a folder of them, or - for a live stream (default)",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=0, metavar="N", help="name the N likeliest classes")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="windows answered in one call (stream 1, file 256)"
    )
    parser.add_argument(
        "--wait", action="store_true", help="if a home has no release yet, wait for the first one"
    )
    samples = parser.add_argument_group("samples (CSV with a header, or JSON lines)")
    samples.add_argument(
        "--step", type=int, metavar="N", help="samples from one window to the next (default: half a window)"
    )
    samples.add_argument(
        "--columns", metavar="A,B,...", help="what the model's channels are called here, in its order"
    )
    samples.add_argument(
        "--gap", type=float, metavar="S", help="seconds between samples that end a stretch (twice the median)"
    )
    samples.add_argument(
        "--label", metavar="NAME", help="the label of all windows that have none of their own"
    )
    kept = parser.add_argument_group("what is kept on this device, to learn from")
    kept.add_argument("--keep", type=Path, metavar="DIR", help="keep the windows in a private folder")
    kept.add_argument("--keep-mb", type=float, default=64.0, metavar="MB", help="most megabytes of it (64)")
    kept.add_argument(
        "--keep-days", type=float, default=30.0, metavar="N", help="days that a window is kept (30)"
    )


def run(options: argparse.Namespace, live: Answering | None = None) -> None:
    """Answer until the input ends, or SIGTERM or SIGINT ends it.

    Args:
        options: what ``add_arguments`` asked for.
        live: what answers; by default the model at ``options.model``.

    Raises:
        SetupError: the model or the folder to keep windows in cannot be used.
        ReleaseError: the model fails on every window.
        InputError: an option makes no sense, or nothing of the input can be used.
    """
    sources = None if options.input == _STREAM else files(Path(options.input))
    unusable: list[str] = []
    if sources is None and (sys.stdin is None or sys.stdin.isatty()):
        raise DataError("give INPUT: a file, a folder, or pipe a stream of samples into standard input")
    with stop_signals() as stop:
        live = live or _open(options, stop)
        if live is None:
            return
        session = _session(options, live, stream=sources is None)
        try:
            if sources is None:
                _read_lines(session, options, sys.stdin.fileno(), stop)
            elif Path(options.input).is_dir():
                unusable = _read_folder(session, options, sources, stop)
            else:
                _read_file(session, options, sources[0], stop)
        finally:
            session.close()
            sys.stdout.flush()
    if not stop.asked:
        session.check_used()
    _say(session.summary())
    if unusable:
        raise DataError(f"{len(unusable)} of {len(sources or ())} files left out: {', '.join(unusable)}")


def _open(options: argparse.Namespace, stop: Stop) -> LiveModel | None:
    """The model; with ``--wait`` once there is one. None where a signal comes before."""
    place, told = options.model, False
    while not stop.asked:
        try:
            with named_by_user(place):
                live = LiveModel.open(place)
            if said := live.follow():
                _say(said)
            return live
        except NoReleaseYetError as error:
            if not options.wait:
                raise
            if not told:
                _say(f"waiting for the first release: {error}")
        told = True
        select.select([stop.handle] if stop.handle >= 0 else [], [], [], _WAIT_SECONDS)
    return None


def _session(options: argparse.Namespace, live: Answering, *, stream: bool) -> Session:
    batch = options.batch if options.batch is not None else 1 if stream else _FILE_BATCH
    if not 1 <= batch <= 65_536:
        raise ConfigError(f"--batch {batch}: give 1 to 65536 windows")
    out = sys.stdout.buffer

    def put(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        if stream:
            out.flush()

    return Session(
        live, put, _say, keep=_keep(options, live.current.manifest), batch=batch, top=options.top,
        label=options.label,
    )  # fmt: skip


def _keep(options: argparse.Namespace, manifest: Manifest) -> "Keep | None":
    if options.keep is None:
        return None
    if not (0 < options.keep_mb <= 1e6 and 0 < options.keep_days <= 36_500):
        raise ConfigError("--keep-mb takes 0 to 1000000 megabytes, --keep-days 0 to 36500 days, both above 0")
    from fedge.data.kept import Meta
    from fedge.edge.keep import open_keep

    meta = Meta(
        manifest.input.shape, manifest.input.names, manifest.classes, manifest.target, options.keep_days
    )
    return open_keep(options.keep, meta, int(options.keep_mb * 1e6))


def _read_folder(
    session: Session, options: argparse.Namespace, found: Sequence[Path], stop: Stop
) -> list[str]:
    """Answer file by file. One that cannot be used is said, and the others answered; gives their names."""
    unusable = []
    for file in found:
        try:
            _read_file(session, options, file, stop, file.name)
            session.flush()  # what is wrong with this file's windows is not the next one's fault
        except (DataError, OSError) as error:
            _say(f"{file.name} is left out: {error}")
            unusable.append(file.name)
    return unusable


def _read_file(
    session: Session, options: argparse.Namespace, file: Path, stop: Stop, name: str | None = None
) -> None:
    session.new_input()
    if not holds_windows(file):
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _read_lines(session, options, handle, stop, name)
        except HeaderError as error:
            raise HeaderError(f"{file}: {error}") from None
        finally:
            os.close(handle)
        return
    for window in windows(file, session.manifest, session.complaints.add):
        if stop.asked:
            return
        session.take(window, name)


def _read_lines(
    session: Session, options: argparse.Namespace, handle: int, stop: Stop, name: str | None = None
) -> None:
    shape, names = session.manifest.input.shape, session.manifest.input.names
    if len(shape) != 2:
        raise DataError("the model takes images, which do not come sample by sample; give an .npz file")
    columns = options.columns.split(",") if options.columns else None
    step = max(1, shape[0] // 2) if options.step is None else options.step
    cutter = Cutter(shape[0], shape[1], step, options.gap)
    session.read(lines(handle, stop), Lines(names, columns), cutter, name)


def _say(text: str) -> None:
    print(f"fedge: {text}", file=sys.stderr)  # noqa: T201
