"""The folder of a run: a new one, or that of an interrupted run."""

from pathlib import Path

from fedge.errors import SetupError

RUNS = Path("runs")
JOURNAL = "journal.sqlite"


def fresh_folder(wanted: Path | None, scenario: str) -> Path:
    """Make the folder of a new run: ``wanted``, or the next free ``runs/SCENARIO-001``.

    Raises:
        SetupError: ``wanted`` exists and is not empty, or cannot be made.
    """
    folder = wanted if wanted is not None else _next(scenario)
    check_fresh(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SetupError(f"cannot write to {folder}: {error.strerror}") from None
    return folder


def check_fresh(folder: Path | None) -> None:
    """Refuse a folder that holds something.

    Raises:
        SetupError: it does.
    """
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise SetupError(f"--out {folder} is a file; name a folder")
    if any(folder.iterdir()):
        hint = "add --resume to go on with it, or " if (folder / JOURNAL).is_file() else ""
        raise SetupError(f"--out {folder} is not empty; {hint}name another folder")


def interrupted_folder(wanted: Path | None, scenario: str) -> Path:
    """The folder to resume: ``wanted``, or the newest of ``runs/SCENARIO-*`` that has no report yet.

    Raises:
        SetupError: there is none.
    """
    if wanted is not None:
        if not (wanted / JOURNAL).is_file():
            raise SetupError(f"there is no run to resume in {wanted}")
        return wanted
    folders = [p for p in RUNS.glob(f"{scenario}-*") if (p / JOURNAL).is_file()]
    open_ones = [p for p in folders if not (p / "report.json").is_file()]
    if not open_ones:
        raise SetupError(f"no interrupted run of {scenario!r} in {RUNS}/; name its folder with --out")
    return max(open_ones, key=lambda p: (p / JOURNAL).stat().st_mtime)


def _next(scenario: str) -> Path:
    for number in range(1, 1_000_000):
        if not (path := RUNS / f"{scenario}-{number:03d}").exists():
            return path
    raise SetupError(f"{RUNS}/ is full of runs of {scenario!r}; name a folder with --out")
