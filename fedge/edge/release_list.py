"""``fedge release list``: what a repository of releases, or a device's home, holds."""

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedge.edge.home import STATE
from fedge.edge.release_command import home_at, repository_at, say
from fedge.errors import PayloadError, ReleaseError
from fedge.release import folder
from fedge.release.manifest import MAX_MANIFEST_BYTES, parse
from fedge.release.pointer import MANIFEST, folder_name

if TYPE_CHECKING:
    from fedge.edge.home import Home

_LAST_SECOND = 253_402_300_799  # of the year 9999
_NOTES = {"pinned": "pinned", "on trial": "on_trial"}


def do_list(options: argparse.Namespace) -> None:
    """Print what a repository or a device's home holds.

    Raises:
        SetupError: it is neither, or cannot be read.
        RefusedError: the repository's metadata are damaged.
    """
    path = options.path
    is_home = (path / STATE).is_file() or (path / "model" / STATE).is_file()
    found = _of_home(home_at(path)) if is_home else _of_repository(repository_at(path))
    if options.json:
        say(json.dumps(found, sort_keys=True))
    else:
        for line in _home_lines(found) if is_home else _repository_lines(found):
            say(line)


def _of_repository(place: Path) -> dict[str, Any]:
    from fedge.release.chain import read_chain

    chain = read_chain(place)
    return {
        "schema": 1,
        "kind": "repository",
        "latest": chain.latest.version if chain.latest else None,
        "promoted": chain.promoted.version if chain.promoted else None,
        "expires": {role: f"{end:%Y-%m-%dT%H:%M:%SZ}" for role, end in sorted(chain.expires.items())},
        "releases": [_of_release(place, version) for version in folder.versions(place)],
    }


def _of_release(place: Path, version: int) -> dict[str, Any]:
    try:
        manifest = parse(folder.read(place / folder_name(version) / MANIFEST, MAX_MANIFEST_BYTES))
    except (ReleaseError, PayloadError) as error:
        return {"version": version, "damaged": str(error)}
    return {
        "version": version,
        "round": manifest.round,
        "parent": manifest.parent,
        "created": manifest.created,
        "expires": manifest.expires,
        "sha256": manifest.model.sha256,
        "bytes": manifest.model.size,
        "metric": manifest.metric,
        "scores": dict(manifest.scores),
    }


def _repository_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for one in found["releases"]:
        version = one["version"]
        if "damaged" in one:
            lines.append(f"{version:>6}  damaged: {one['damaged']}")
            continue
        created = datetime.fromtimestamp(min(one["created"], _LAST_SECOND), UTC)
        scores = ", ".join(f"{name} {value:.4f}" for name, value in sorted(one["scores"].items()))
        said = f"{version:>6}  {created:%Y-%m-%d %H:%M}  round {one['round']:<5} {one['bytes']:>9} bytes"
        marks = [mark for mark in ("latest", "promoted") if found[mark] == version]
        lines.append(f"{said}  {one['metric']}: {scores or '-'}{'  <- ' if marks else ''}{', '.join(marks)}")
    soonest = min(found["expires"], key=found["expires"].__getitem__)
    return [*(lines or ["no releases"]), f"signed until {found['expires'][soonest]} ({soonest})"]


def _of_home(home: "Home") -> dict[str, Any]:
    state = home.slots()
    current = home.current()
    here = {one.version for one in home.held()}
    known = {held.version for held in (state.a, state.b) if held is not None}
    in_use = current is not None and state.current is not None and current.version == state.current.version
    return {
        "schema": 1,
        "kind": "home",
        "active": current.version if current else None,
        "held": sorted(here),
        "damaged": sorted(known - here),
        "pinned": state.pinned,
        "on_trial": state.trial and in_use,
        "highest": state.highest,
        "promoted": state.floor or None,
        "federation": state.federation or None,
        "findings": [{"version": f.version, "code": f.code, "reason": f.reason} for f in state.findings],
    }


def _home_lines(found: Mapping[str, Any]) -> list[str]:
    notes = ["in use", *(text for text, key in _NOTES.items() if found[key])]
    lines = [
        f"{version:>6}{'  <- ' + ', '.join(notes) if version == found['active'] else ''}"
        for version in found["held"]
    ]
    told = [f"{f['reason']} ({f['code']})" for f in found["findings"]]
    lines += [f"{version:>6}  damaged on this device's disk" for version in found["damaged"]]
    return [*(lines or ["no release"]), f"tried up to {found['highest']}", *told]
