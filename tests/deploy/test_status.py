"""What a server says of itself: true after any death, readable while it is written, harmless to look at."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.deploy import status_file, status_writer
from fedge.deploy.deployment import OUTCOME, RUN, say, started
from fedge.deploy.open_run import ToldJournal
from fedge.deploy.rounds import standing
from fedge.deploy.status import client_lines, round_lines, status_lines
from fedge.deploy.status_file import About, ClientRow, Snapshot, load
from fedge.deploy.status_http import MAX_CONNECTIONS, MAX_HEAD, serve_status
from fedge.deploy.status_metrics import metrics_text
from fedge.deploy.status_page import empty_page, page, policy
from fedge.deploy.status_writer import Status
from fedge.errors import InputError, PayloadError, SetupError
from fedge.federated.journal import Journal
from fedge.federated.state import ClientRecord, FederationState

ABOUT = About("ab" * 16, "home", "watch", "activity", "accuracy", 10)
HOSTILE = "<script>alert(1)</script>\"'&\x1b[2J\u202e\n# EOF"
CLIENTS = ("attic", "cellar")
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def _record(number: int, **more: Any) -> dict[str, Any]:
    """As ``Outcome.record`` makes it."""
    plain = {
        "round": number,
        "participants": 3,
        "counted": list(CLIENTS),
        "refused": ["hall"],
        "loss": 1 / number,
        "down": {"attic": 100, "cellar": 200, "hall": 50},
        "up": {"attic": 10 * number, "cellar": 7},
        "own_scores": {"attic": 0.5, "cellar": 0.7},
        "scores": {},
        "redistillation": None,
        "release": None,
        "seconds": 0.25,
    }
    return plain | more


def _released(version: int, taken: int, refused: int) -> dict[str, Any]:
    decisions = [{"taken": True}] * taken + [{"taken": False}] * refused
    return {
        "version": version,
        "path": "releases/x",
        "sha256": "0f" * 32,
        "bytes": 31,
        "decisions": decisions,
    }


def _standing(number: int) -> dict[str, ClientRecord]:
    barred = ClientRecord(None, b"", 0, 0, number + 5, 1)
    return {c: ClientRecord(number, b"", number) for c in CLIENTS} | {"hall": barred}


def _status(state: Path, rounds: int, about: About = ABOUT) -> Status:
    status = Status(state, about, clock=lambda: 1_700_000_000.0)
    for number in range(status.now.rounds + 1, rounds + 1):
        status.committed(_record(number), _standing(number))
    return status


def _samples(text: str) -> dict[str, float]:
    """A naive reader of the text format: every line is a comment or ``name{labels} number``."""
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            labels = r'(\{[a-z]+="(?:[^"\\\n]|\\["\\n])*"\})?'
            match = re.fullmatch(rf"([a-z_]+){labels} (-?[0-9.e+-]+)", line)
            assert match is not None, line
            assert match[1] in kinds, "a sample before its type"
            assert (kinds[match[1]] == "counter") == match[1].endswith("_total")
            key = match[1] + (match[2] or "")
            assert key not in found, "a series twice"
            found[key] = float(match[3])
    return found


# --- status.json


def test_sums_are_those_of_a_naive_loop_over_the_records(tmp_path: Path) -> None:
    records = [_record(n, up={"attic": n, "cellar": n * n}) for n in range(1, 8)]
    records[4]["release"] = _released(1, taken=2, refused=1)
    records[5]["redistillation"] = {"accepted": True}
    records[6]["redistillation"] = {"accepted": False}
    status = Status(tmp_path, ABOUT)
    for record in records:
        status.committed(record, _standing(record["round"]))
    now = load(tmp_path)
    assert now == status.now
    assert now.totals.up == sum(n + n * n for n in range(1, 8))
    assert now.totals.down == 7 * 350
    assert now.totals.counted == 14
    assert (now.totals.releases, now.totals.taken, now.totals.not_taken) == (1, 2, 1)
    assert (now.totals.accepted, now.totals.rejected) == (1, 1)
    assert now.clients["cellar"].up == sum(n * n for n in range(1, 8))
    assert now.clients["attic"] == ClientRow(7, 7, 0, 0, 0, 28, 700, 0.5)
    assert now.clients["hall"] == ClientRow(barred=12, down=350)
    assert [r.number for r in now.log] == list(range(1, 8))
    assert now.log[0].score == pytest.approx(0.6)


def test_a_round_that_nobody_scored_has_no_score(tmp_path: Path) -> None:
    status = Status(tmp_path, ABOUT)
    status.committed(_record(1, own_scores={"attic": None}, loss=None), {})
    assert load(tmp_path).log[0].score is None
    assert "none yet" in "\n".join(status_lines(tmp_path))


def test_a_server_that_starts_again_goes_on_counting(tmp_path: Path) -> None:
    first = _status(tmp_path, 3)
    first.event("refused", client="hall", round=3, kind="UpdateError", reason="late")
    first.event("given_up", round=4, counted=0, needed=2)
    again = _status(tmp_path, 3)
    again.resume(3, lambda: pytest.fail("the records are not needed"))
    again.committed(_record(4), _standing(4))
    now = load(tmp_path)
    assert (now.rounds, now.totals.counted, now.totals.given_up, now.refused) == (4, 8, 1, {"UpdateError": 1})
    assert now.clients["hall"].refused == 1


@pytest.mark.parametrize("fate", ["lost", "behind", "ahead", "torn", "another federation's"])
def test_the_journal_is_the_truth_whatever_became_of_status_json(tmp_path: Path, fate: str) -> None:
    whole = _status(tmp_path / ".", 4).now
    if fate == "lost":
        (tmp_path / "status.json").unlink()
    elif fate in ("behind", "ahead"):
        (tmp_path / "status.json").unlink()
        _status(tmp_path, {"behind": 2, "ahead": 6}[fate])
    elif fate == "torn":
        (tmp_path / "status.json").write_bytes(whole.encode()[:-100])
    else:
        (tmp_path / "status.json").unlink()
        other = _status(tmp_path, 4, About("cd" * 16, "other", "watch", "activity", "accuracy", 10))
        other.event("refused", client="hall", round=4, kind="UpdateError", reason="late")
    status = Status(tmp_path, ABOUT)
    status.resume(4, lambda: [_record(n) for n in range(1, 5)])
    now = load(tmp_path)
    assert (now.rounds, now.totals, now.refused) == (whole.rounds, whole.totals, {})
    assert [r.number for r in now.log] == [1, 2, 3, 4]
    assert {n: r.up for n, r in now.clients.items()} == {n: r.up for n, r in whole.clients.items()}


def test_a_round_is_shown_once_the_journal_has_it_and_not_before(tmp_path: Path) -> None:
    weights = {"w": np.zeros(3, np.float32)}
    with ToldJournal(tmp_path / "journal.sqlite", standing) as journal:
        status = Status(tmp_path, ABOUT)
        journal.show(status)
        state = FederationState(1, weights, {}, clients=_standing(1))
        journal.commit_round(1, _record(1), state.to_bytes())
        assert load(tmp_path).rounds == 1
        with pytest.raises(SetupError):
            journal.commit_round(1, _record(1), state.to_bytes())  # it is there already
        assert load(tmp_path).totals.counted == 2
    with Journal(tmp_path / "journal.sqlite") as plain:  # a round that was committed just before a kill
        plain.commit_round(2, _record(2), FederationState(2, weights, {}).to_bytes())
    with ToldJournal(tmp_path / "journal.sqlite", standing) as journal:
        journal.show(Status(tmp_path, ABOUT))
    assert load(tmp_path).rounds == 2


def test_a_journal_with_a_damaged_state_is_named(tmp_path: Path) -> None:
    with ToldJournal(tmp_path / "journal.sqlite", standing) as journal:
        journal.commit_round(1, _record(1), b"nonsense")
        with pytest.raises(SetupError, match="damaged"):
            journal.show(Status(tmp_path, ABOUT))


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    status, seen, stop = _status(tmp_path, 1), set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(load(tmp_path).rounds)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(2, 200):
        status.committed(_record(number), _standing(number))
    stop.set()
    reader.join()
    assert seen <= set(range(1, 200))
    assert not [p for p in tmp_path.iterdir() if p.name != "status.json"]


def test_it_does_not_grow_with_rounds_or_with_refusals(tmp_path: Path) -> None:
    status = Status(tmp_path, ABOUT)
    for number in range(1, status_file.ROUNDS + 100):
        status._add(_record(number, release=_released(number, 1, 0)), 0.0)
        status.event("refused", client="hall", round=number, kind="UpdateError", reason="x" * 100_000)
    now = Snapshot.parse(status.now.encode())
    assert len(now.log) == status_file.ROUNDS
    assert now.log[-1].number == now.rounds == status_file.ROUNDS + 99
    assert len(now.releases) == len(now.refusals) == status_file.LAST
    assert now.refused == {"UpdateError": now.rounds}
    assert len(status.now.encode()) < 400_000


def test_many_refusals_cost_few_writes_and_none_is_lost(tmp_path: Path, monkeypatch: Any) -> None:
    now, writes, real = [0.0], [], os.replace

    def slow(*paths: Any) -> None:
        now[0] += 0.1
        writes.append(now[0])
        real(*paths)

    monkeypatch.setattr(status_writer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(status_writer.os, "replace", slow)
    status = Status(tmp_path, ABOUT)
    for _ in range(1000):
        now[0] += 0.1
        status.event("refused", client="hall", round=1, kind="UpdateError", reason="x")
    assert 0.03 * now[0] < 0.1 * len(writes) < 0.05 * now[0] + 0.7
    status.committed(_record(1), {})
    assert load(tmp_path).refused == {"UpdateError": 1000}


def test_who_is_there_is_shown_at_once_and_after_a_flood_at_the_next_look(
    tmp_path: Path, monkeypatch: Any
) -> None:
    status = _status(tmp_path, 1)
    status.event("stage_start", name="rounds")
    status.there(["attic"], 3)
    assert load(tmp_path).present == ["attic"]
    now = [0.0]
    monkeypatch.setattr(status_writer.time, "monotonic", lambda: now[0])
    status._credit, status._counted = 0.0, 0.0
    status.there(["attic", "hall"], 3)
    assert load(tmp_path).present == ["attic"]
    now[0] = 1.0
    status.there(["attic", "hall"], 3)
    assert load(tmp_path).present == ["attic", "hall"]


def test_waiting_ends_when_enough_are_there(tmp_path: Path) -> None:
    status = _status(tmp_path, 1)
    status.there([], 3)
    status.event("waiting", round=2, there=0, needed=2)
    status.there(["attic"], 3)
    assert "waits for clients: 0 there, 2 needed" in "\n".join(status_lines(tmp_path))
    status.there(["attic", "hall"], 3)
    assert "waits" not in "\n".join(status_lines(tmp_path))


def test_a_disk_that_takes_nothing_does_not_stop_the_rounds(tmp_path: Path) -> None:
    status = Status(tmp_path / "not-there", ABOUT)
    status.committed(_record(1), _standing(1))
    assert status.now.rounds == 1


def _damage(raw: dict[str, Any], kind: str) -> Any:
    match kind:
        case "newer":
            raw["schema"] = 2
        case "text for a number":
            raw["rounds"] = "7"
        case "truth for a number":
            raw["totals"]["up"] = True
        case "missing key":
            del raw["log"][0]["loss"]
        case "unknown key":
            raw["clients"]["attic"]["x"] = 1
        case "list for an object":
            raw["clients"] = [1]
        case "number for a pair":
            raw["waiting"] = 3
        case "too many":
            raw["refusals"] = [None] * 51
    return raw


@pytest.mark.parametrize(
    "kind",
    [
        "newer", "text for a number", "truth for a number", "missing key", "unknown key",
        "list for an object", "number for a pair", "too many",
    ],
)  # fmt: skip
def test_a_damaged_status_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    raw = json.loads(_status(tmp_path, 2).now.encode())
    content = json.dumps(_damage(raw, kind)).encode()
    with pytest.raises(PayloadError):
        Snapshot.parse(content)
    (tmp_path / "status.json").write_bytes(content)
    for show in (status_lines, round_lines, client_lines):
        with pytest.raises(InputError, match=r"status\.json is damaged") as told:
            show(tmp_path)
        assert "\n" not in str(told.value)


def test_every_cut_of_a_status_is_refused() -> None:
    content = Snapshot(ABOUT, log=[], clients={"a": ClientRow()}).encode()
    for end in range(len(content)):
        with pytest.raises(PayloadError):
            Snapshot.parse(content[:end])


def test_a_missing_status_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--state"):
        status_lines(tmp_path)


# --- in a terminal


def test_columns_stand_below_each_other(tmp_path: Path) -> None:
    _status(tmp_path, 12)
    head, *rows = round_lines(tmp_path)
    end = head.index("counted") + len("counted")
    assert len(rows) == 12
    assert [row.split()[0] for row in rows] == [str(n) for n in range(1, 13)]
    assert all(row[:end].endswith(" 2/3") and row[end] == " " for row in rows)
    head, *rows = client_lines(tmp_path)
    end = head.index("here") + len("here")
    assert len(rows) == 3
    assert all(row[:end].endswith(" no") for row in rows)


def test_a_hostile_name_cannot_steer_a_terminal(tmp_path: Path) -> None:
    status = _status(tmp_path, 1)
    status.there([HOSTILE], 3)
    status.event("refused", client=HOSTILE, round=1, kind="UpdateError", reason=HOSTILE * 100)
    status.committed(_record(2), {})
    for show in (status_lines, round_lines, client_lines):
        lines = show(tmp_path)
        assert all(line.isprintable() for line in lines)
        assert max(map(len, lines)) < 400


def test_barred_clients_and_those_who_never_answered_are_shown(tmp_path: Path) -> None:
    status = _status(tmp_path, 2)
    status.there(["attic", "porch"], 4)
    status.committed(_record(3), _standing(3))
    lines = {line.split()[0]: line for line in client_lines(tmp_path)}
    assert "barred until round 8" in lines["hall"]
    assert lines["porch"].split()[1:3] == ["yes", "-"]
    assert lines["cellar"].split()[1] == "no"
    assert "2 here at the last look, 4 enrolled, 1 barred" in "\n".join(status_lines(tmp_path))


def test_a_process_with_a_dead_runs_number_is_not_taken_for_it(tmp_path: Path) -> None:
    _status(tmp_path, 1)
    mine = started(os.getpid())
    assert mine is not None
    say(tmp_path / RUN, {"run": 1, "pid": os.getpid(), "started": mine - 1})
    assert "not at work" in "\n".join(status_lines(tmp_path))
    say(tmp_path / RUN, {"run": 1, "pid": os.getpid(), "started": mine})
    assert f"at work (process {os.getpid()})" in "\n".join(status_lines(tmp_path))
    for nonsense in ({"pid": -1}, {"pid": "1"}, {"pid": True}, {}):
        say(tmp_path / RUN, nonsense)
        assert "not at work" in "\n".join(status_lines(tmp_path))


def test_the_end_of_a_run_is_told(tmp_path: Path) -> None:
    _status(tmp_path, 10)
    say(tmp_path / OUTCOME, {"run": 1, "exit": 0, "why": "all rounds are done"})
    told = "\n".join(status_lines(tmp_path))
    assert "not at work: all rounds are done" in told
    assert "nothing is left to do" in told


# --- /metrics


def test_metrics_can_be_read_and_say_what_the_status_says(tmp_path: Path) -> None:
    status = _status(tmp_path, 4)
    status.there(["attic"], 9)
    status.event("refused", client="hall", round=4, kind="UpdateError", reason="x")
    found = _samples(metrics_text(status.now, at_work=True))
    assert found["fedge_rounds_total"] == 4
    assert found["fedge_run_at_work"] == 1
    assert found['fedge_payload_bytes_total{direction="up"}'] == status.now.totals.up
    assert found['fedge_answers_refused_total{kind="UpdateError"}'] == 1
    assert found['fedge_score{metric="accuracy"}'] == pytest.approx(0.6)
    assert found["fedge_clients_present"] == 1
    assert found["fedge_clients_enrolled"] == 9
    assert found["fedge_clients_barred"] == 1


def test_metrics_never_fall_while_rounds_go_on(tmp_path: Path) -> None:
    before: dict[str, float] = {}
    for number in range(1, 6):
        status = _status(tmp_path, number)  # a new process each time
        status.event("refused", client="hall", round=number, kind="failed", reason="x")
        status.committed(_record(number + 1), {}) if number == 5 else None
        now = _samples(metrics_text(status.now, at_work=False))
        counters = {k: v for k, v in now.items() if "_total" in k}
        assert all(counters[k] >= v for k, v in before.items())
        before = counters


def test_metrics_without_a_status_still_say_that() -> None:
    found = _samples(metrics_text(None, at_work=False))
    assert found["fedge_status_readable"] == found["fedge_run_at_work"] == 0


def test_a_label_cannot_end_its_line() -> None:
    now = Snapshot(ABOUT, refused={'x"} 1\nfedge_rounds_total 9\\': 3})
    found = _samples(metrics_text(now, at_work=True))
    assert found["fedge_rounds_total"] == 0
    assert found[r'fedge_answers_refused_total{kind="x\"} 1\nfedge_rounds_total 9\\"}'] == 3


def test_every_metric_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    now = Snapshot(ABOUT, refused={"x": 1}, log=[status_writer._row(_record(1), 1.0)])
    for key in _samples(metrics_text(now, at_work=True)):
        assert f"`{key.partition('{')[0]}`" in text, key


# --- the page


class _Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def _seen(text: str) -> _Seen:
    seen = _Seen()
    seen.feed(text)
    return seen


def _hostile() -> Snapshot:
    now = Snapshot(About(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, 5), rounds=2)
    now.log = [status_writer._row(_record(n), None) for n in (1, 2)]
    now.clients = {HOSTILE: ClientRow(offences=1), "hall": ClientRow(barred=9)}
    now.present, now.refused = [HOSTILE], {HOSTILE: 1}
    now.refusals = [status_file.Refusal(1e300, 1, HOSTILE, HOSTILE, HOSTILE)]
    now.releases = [status_file.ReleaseRow(1, 1, 1, 1, 1, HOSTILE, HOSTILE)]
    now.stages = [(HOSTILE, 0.0)]
    return now


def test_what_a_client_writes_is_text_and_nothing_else() -> None:
    for text in (page(_hostile(), HOSTILE, working=True), empty_page(HOSTILE)):
        seen = _seen(text)
        assert "script" not in seen.tags
        assert not [a for a in seen.attributes if a[0].startswith("on") or a[0] in ("src", "href")]
        assert "<script>alert(1)</script>" in seen.text
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_the_page_loads_nothing() -> None:
    text = page(_hostile(), "at work", working=True)
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in policy()
    assert "unsafe" not in policy()


def test_the_page_shows_what_the_status_says(tmp_path: Path) -> None:
    status = _status(tmp_path, 4)
    status.event("refused", client="hall", round=4, kind="UpdateError", reason="base 3 is not 4")
    seen = _seen(page(status.now, "at work (process 7)", working=True, clock=1_700_000_060.0))
    for words in ("home", "at work (process 7)", "of 10", "0.600", "base 3 is not 4", "barred until round 9"):
        assert words in seen.text
    assert seen.tags.count("polyline") == 1


@pytest.mark.skipif(_CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_it_within_400_pixels_and_runs_nothing(tmp_path: Path) -> None:
    frame = '<body style="margin:0"><iframe id="f" style="border:0;width:400px;height:900px" src="page.html">'
    probe = (
        "onload=()=>{const d=f.contentDocument,r=d.documentElement;"
        "document.title=[r.scrollWidth<=r.clientWidth,d.querySelectorAll('h2').length,d.scripts.length]"
        ".join(' ')}"
    )
    (tmp_path / "page.html").write_text(page(_hostile(), "at work", working=True))
    (tmp_path / "frame.html").write_text(f"{frame}</iframe><script>{probe}</script>")
    line = [str(_CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    line += [
        "--disable-background-networking",
        "--allow-file-access-from-files",
        "--virtual-time-budget=2000",
    ]
    line += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'frame.html'}"]
    told = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>true 4 0</title>" in told


# --- over HTTP


def _port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return int(end.getsockname()[1])


async def _ask(port: int, raw: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        head, _, body = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if not head:
        return 0, {}, b""
    first, *lines = head.decode().split("\r\n")
    fields = [line.partition(": ") for line in lines]
    return int(first.split()[1]), {k.lower(): v for k, _, v in fields}, body


def _get(path: str, host: str = "localhost", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


@contextmanager
def _alive(state: Path) -> Iterator[None]:
    say(state / RUN, {"run": 1, "pid": os.getpid(), "started": started(os.getpid())})
    yield
    (state / RUN).unlink()


def test_the_three_paths_and_no_other(tmp_path: Path) -> None:
    _status(tmp_path, 2)

    async def run() -> None:
        port = _port()
        async with serve_status(tmp_path, port):
            code, headers, body = await _ask(port, _get("/"))
            assert (code, headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert headers["content-security-policy"] == policy()
            assert int(headers["content-length"]) == len(body)
            assert b"home" in body
            code, _, body = await _ask(port, _get("/metrics?x=1", host=f"127.0.0.1:{port}"))
            assert code == 200
            assert _samples(body.decode())["fedge_rounds_total"] == 2
            assert (await _ask(port, _get("/healthz")))[0] == 503
            with _alive(tmp_path):
                assert (await _ask(port, _get("/healthz", host="[::1]:9")))[2] == b"ok\n"
            for path in ("/../status.json", "/status.json", "//", "/metrics/", "http://localhost/", "*"):
                assert (await _ask(port, _get(path)))[0] == 404

    asyncio.run(run())


def test_a_page_from_elsewhere_gets_nothing(tmp_path: Path) -> None:
    _status(tmp_path, 2)
    hosts = (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:80",
        "",
        "localhost:80:80",
        "::1",
    )

    async def run() -> None:
        port = _port()
        async with serve_status(tmp_path, port):
            for host in hosts:
                code, _, body = await _ask(port, _get("/metrics", host=host))
                assert code == 403, host
                assert b"fedge_" not in body

    asyncio.run(run())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (_get("/", method="POST"), 405),
        (_get("/", method="HEAD"), 405),
        (_get("/", method="get"), 405),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2\r\nHost: localhost\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
        (b"GET / x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2 * MAX_HEAD + b"\r\n\r\n", 0),
    ],
)
def test_what_is_no_plain_request_is_refused(tmp_path: Path, raw: bytes, code: int) -> None:
    async def run() -> None:
        port = _port()
        async with serve_status(tmp_path, port):
            with_reset = (0, {}, b"")
            try:
                got = await _ask(port, raw)
            except ConnectionError:
                got = with_reset
            assert got[0] == code
            assert (await _ask(port, _get("/")))[0] == 503  # it still answers

    asyncio.run(run())


def test_those_who_only_hold_connections_are_turned_away(tmp_path: Path) -> None:
    async def run() -> None:
        port = _port()
        async with serve_status(tmp_path, port):
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
            for _, writer in idle:
                writer.write(b"GET / HT")
            await asyncio.sleep(0.2)
            late, end = await asyncio.open_connection("127.0.0.1", port)
            end.write(_get("/"))
            with suppress(ConnectionError):
                assert await late.read() == b""
            for writer in [end, *(w for _, w in idle)]:
                writer.close()
            for _ in range(100):
                await asyncio.sleep(0.05)
                try:
                    if (await _ask(port, _get("/")))[0] == 503:
                        break
                except ConnectionError:
                    continue
            else:
                pytest.fail("places are not given back")

    asyncio.run(run())


def test_a_closed_server_leaves_nothing_behind(tmp_path: Path) -> None:
    async def run() -> None:
        port = _port()
        async with serve_status(tmp_path, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.05)
        writer.close()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_a_port_that_is_taken_is_named_and_none_is_none(tmp_path: Path) -> None:
    async def run() -> None:
        with socket.socket() as end:
            end.bind(("127.0.0.1", 0))
            end.listen()
            with pytest.raises(SetupError, match="--status-port"):
                async with serve_status(tmp_path, end.getsockname()[1]):
                    pass
        with pytest.raises(SetupError):
            async with serve_status(tmp_path, 70_000):
                pass
        async with serve_status(tmp_path, 0):
            pass

    asyncio.run(run())


def test_a_damaged_status_does_not_end_the_server(tmp_path: Path) -> None:
    async def run() -> None:
        port = _port()
        async with serve_status(tmp_path, port):
            for content in (b"", b"{", b"[" * 100_000, b'{"schema": 1}', b"\xff"):
                (tmp_path / "status.json").write_bytes(content)
                code, _, body = await _ask(port, _get("/"))
                assert code == 503
                assert b"damaged" in body
                assert (
                    _samples((await _ask(port, _get("/metrics")))[2].decode())["fedge_status_readable"] == 0
                )

    asyncio.run(run())


# --- what stands beside it


@pytest.mark.parametrize("unit", ["server/fedge-server.service", "clients/fedge-client.service"])
def test_a_unit_does_not_restart_what_is_configured_wrong(unit: str) -> None:
    lines = (Path(__file__).parents[2] / unit).read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert given["Type"] == "notify"
    assert given["RestartPreventExitStatus"] == str(InputError.exit_code)
    assert given["KillSignal"] == signal.SIGTERM.name
    sample = Path(__file__).parents[2] / unit.replace(".service", ".env")
    named = {line.partition("=")[0] for line in sample.read_text().splitlines() if re.match(r"[A-Z]", line)}
    assert set(re.findall(r"\$\{?(FEDGE_[A-Z]+)", given["ExecStart"])) <= named


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", ["server/fedge-server.service", "clients/fedge-client.service"])
def test_systemd_understands_every_line_of_a_unit(tmp_path: Path, unit: str) -> None:
    text = (Path(__file__).parents[2] / unit).read_text()
    path = tmp_path / Path(unit).name
    path.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text))
    told = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True)
    assert [line for line in told.stderr.splitlines() if path.name in line] == []
