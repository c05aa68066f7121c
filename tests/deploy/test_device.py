"""A device keeps its link, loses nothing, and does no more than its owner allows."""

import argparse
import json
import logging
import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.link_lab import LARGEST, Lab, Proxy, Running, answer_to, make_federation, until
from fedge.config import Config
from fedge.deploy import device, enrol
from fedge.deploy.device_limits import (
    ByteAccount,
    DeviceLimits,
    DutyCycle,
    Hold,
    Hours,
    hold_link,
    hold_rounds,
    metered,
    on_mains,
)
from fedge.deploy.device_link import back_off
from fedge.deploy.device_store import LinkStore
from fedge.deploy.device_words import Complaints, JsonLines, TroubleError, clock_words, notify, trouble
from fedge.deploy.device_work import Worker, reason_of, stamp_of
from fedge.edge import release_command
from fedge.edge.gate import GateInputs
from fedge.edge.watch import WatchRules
from fedge.errors import ConfigError, DataError, PayloadError, SetupError, SignatureError, UpdateError
from fedge.link.device_end import DeviceDesk
from fedge.link.frames import LinkError, Place, Reason, Refusal, Refused
from fedge.link.transfer import announce

if TYPE_CHECKING:
    from fedge.federated.prepare import Prepared

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation") / "home"
    make_federation(folder, ("a", "b", "gone"))
    enrol.revoke(folder, ["gone"])
    return folder


# The link.


def test_a_link_that_breaks_again_and_again_loses_nothing_and_repeats_little(
    home: Path, tmp_path: Path
) -> None:
    """Cut after a while of bytes, many times, in the middle of a task and of its answer."""
    chance = random.Random(5)
    size = 300_000
    lives: Iterator[int] = iter([chance.randrange(30_000, 120_000) for _ in range(12)])
    with Running(home) as server:
        proxy = Proxy(server.port, lives)
        with Lab(home / "devices" / "a", tmp_path / "a", proxy.port, work=lambda f: f[::-1]) as lab:
            frame = chance.randbytes(size)
            task = server.give("a", frame)
            until(lambda: server.upstream.answers, 60)
            assert server.upstream.answers == [("a", task, frame[::-1])]
            assert lab.rounds == [frame]
            assert proxy.connections > 5
        proxy.close()
    assert proxy.down < 2 * size + 100_000  # what was under way when a connection broke is lost
    assert proxy.up < 2 * size + 100_000


def test_a_device_goes_on_when_its_server_returns(home: Path, tmp_path: Path) -> None:
    with Running(home) as server, Lab(home / "devices" / "a", tmp_path / "a", server.port) as lab:
        until(lambda: lab.link.connections == 1)
        port = server.port
        server.__exit__(None, None, None)
        time.sleep(0.1)
        with Running(home, port=port) as again:
            task = again.give("a", b"task")
            until(lambda: again.upstream.answers)
            assert again.upstream.answers == [("a", task, answer_to(b"task"))]
        server.__enter__()


def test_a_session_is_resumed_and_costs_less(home: Path, tmp_path: Path) -> None:
    with Running(home) as server:
        proxy = Proxy(server.port)
        with Lab(home / "devices" / "a", tmp_path / "a", proxy.port) as lab:
            until(lambda: lab.link.connections == 1)
            until(lambda: proxy.down > 0)
            time.sleep(0.1)
            first = proxy.up + proxy.down
            server.call(
                lambda: [c.part(LinkError("again", Reason.LATER, 1)) for c in list(server.gateway._open)]
            )
            until(lambda: lab.link.connections == 2)
            time.sleep(0.1)
            assert lab.link.resumed == 1
            assert proxy.up + proxy.down - first < first
        proxy.close()


def test_a_round_costs_few_bytes_at_the_socket(home: Path, tmp_path: Path) -> None:
    """TLS, WebSocket and link together: at most 400 bytes beyond the payload, task down and answer up."""
    with Running(home) as server, Lab(home / "devices" / "a", tmp_path / "a", server.port) as lab:
        server.give("a", b"first")
        until(lambda: len(server.upstream.answers) == 1 and lab.desk == DeviceDesk())
        time.sleep(0.1)
        before = lab.link.received + lab.link.sent
        for number in range(10):
            server.give("a", b"x" * 500)
            until(lambda n=number: len(server.upstream.answers) == n + 2 and lab.desk == DeviceDesk())
        time.sleep(0.1)
        payload = 10 * (500 + len(answer_to(b"x" * 500)))
        assert (lab.link.received + lab.link.sent - before - payload) / 10 <= 400


def test_an_idle_link_costs_few_bytes(home: Path, tmp_path: Path) -> None:
    """Pings only: at the real interval a day of them is below 100 kB."""
    with (
        Running(home) as server,
        Lab(home / "devices" / "a", tmp_path / "a", server.port, ping=0.1) as lab,
    ):
        until(lambda: lab.link.connections == 1)
        time.sleep(0.05)
        before, received = lab.link.sent, lab.link.received
        until(lambda: lab.link.sent > before + 200)
        until(lambda: lab.link.received - received >= (lab.link.sent - before) // 28 * 24 - 24)
        each = 28 + 24
        assert (lab.link.sent - before) % 28 == 0
        assert each * 86_400 / 120 < 100_000


def test_a_dead_link_is_noticed() -> None:
    """The intervals: a silent gateway is given up before the gateway gives up a silent device."""
    from fedge.deploy.device_conversation import DEAD
    from fedge.deploy.device_link import PING
    from fedge.deploy.gateway_limits import Limits

    assert Limits().silence > PING + DEAD


def test_a_refused_device_says_why_once(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("fedge").propagate = True
    with (
        caplog.at_level(logging.INFO, "fedge.client"),
        Running(home) as server,
        Lab(home / "devices" / "gone", tmp_path / "gone", server.port),
    ):
        until(lambda: "revoked" in caplog.text)
    assert caplog.text.count("has been revoked by the operator: ") <= 1


def test_the_wrong_name_of_a_server_is_named(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("fedge").propagate = True
    with (
        caplog.at_level(logging.INFO, "fedge.client"),
        Running(home) as server,
        Lab(home / "devices" / "a", tmp_path / "a", server.port, host="127.0.0.2"),
    ):
        until(lambda: "127.0.0.2" in caplog.text)


def test_bytes_of_the_day_end_the_link_and_the_server_hears_why(home: Path, tmp_path: Path) -> None:
    limits = DeviceLimits(bytes_per_day=20_000)
    with Running(home) as server, Lab(home / "devices" / "a", tmp_path / "a", server.port, limits) as lab:
        server.give("a", bytes(40_000))
        until(lambda: server.gateway.clients and server.gateway.clients["a"].connection is None)
        until(lambda: lab.link._failures >= 1)
        assert lab.link._account.of(datetime.now(UTC)) >= 20_000
    account = ByteAccount(tmp_path / "a" / "bytes.json")
    assert account.of(datetime.now(UTC)) >= 20_000


# Kills.


def _process(home: Path, state: Path, port: int, *more: str) -> "subprocess.Popen[bytes]":
    code = (
        "import sys, time; from pathlib import Path; from deploy.link_lab import Lab\n"
        f"lab = Lab(Path({str(home / 'devices' / 'a')!r}), Path({str(state)!r}), {port}, "
        "work=lambda f: (time.sleep(0.05), f[::-1])[1])\n"
        "lab.start(); print('up', flush=True); time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.Popen([sys.executable, "-c", code, *more], env=environment, stdout=subprocess.PIPE)


def test_a_device_that_is_killed_at_any_moment_answers_every_task_once(
    home: Path, tmp_path: Path, wide: bool
) -> None:
    chance = random.Random(3)
    with Running(home) as server:
        frames = [chance.randbytes(200_000) for _ in range(12 if wide else 4)]
        tasks = [server.give("a", frame) for frame in frames]
        kills = 0
        while len(server.upstream.answers) < len(frames):
            process = _process(home, tmp_path / "a", server.port)
            assert process.stdout is not None
            with process:
                assert process.stdout.readline() == b"up\n"
                time.sleep(chance.uniform(0.0, 0.3) if kills < 30 else 5.0)
                process.kill()
            kills += 1
            assert kills < 60
        expected = [("a", i, f[::-1]) for i, f in zip(tasks, frames, strict=True)]
        assert server.upstream.answers == expected


def test_what_arrived_before_a_kill_is_not_sent_again(home: Path, tmp_path: Path) -> None:
    size = 4 << 20
    with Running(home) as server:
        proxy = Proxy(server.port)
        server.give("a", bytes(size))
        part = tmp_path / "a" / "link" / "part"
        process = _process(home, tmp_path / "a", proxy.port)
        with process:
            until(lambda: part.exists() and part.stat().st_size > 100_000)
            process.kill()
        have = part.stat().st_size if part.exists() else size
        already = proxy.down
        with Lab(home / "devices" / "a", tmp_path / "a", proxy.port, work=lambda _: b"done"):
            until(lambda: server.upstream.answers)
        assert proxy.down - already < size - have + 200_000
        proxy.close()


# What is on the disk.


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = LinkStore(tmp_path / "link", LARGEST)
    assert store.load() == (DeviceDesk(), None)
    told = announce(b"t" * 16, b"content")
    store.begin(told)
    store.append(b"cont")
    desk, held = LinkStore(tmp_path / "link", LARGEST).load()
    assert desk.arriving is not None
    assert (bytes(desk.arriving.content), desk.arriving.announced, held) == (b"cont", told, None)
    store.append(b"ent")
    desk, held = LinkStore(tmp_path / "link", LARGEST).load()  # killed before it was made a task
    assert desk.held == Place(b"t" * 16, 7)
    assert held is not None
    assert held.frame == b"content"
    store.keep_answer(b"t" * 16, b"answer")
    desk, held = store.load()
    assert desk.answer == (announce(b"t" * 16, b"answer"), b"answer")
    assert held is None
    store.forget(b"t" * 16)
    assert store.load() == (DeviceDesk(), None)


def test_a_refusal_survives(tmp_path: Path) -> None:
    store = LinkStore(tmp_path / "link", LARGEST)
    store.keep_task(b"t" * 16, b"task")
    refusal = Refusal(b"t" * 16, Refused.DATA, 60, "torn")
    store.keep_refusal(refusal)
    desk, held = store.load()
    assert (desk.refusal, held) == (refusal, None)


@given(st.binary(max_size=80), st.sampled_from(["part", "task", "answer"]))
def test_damaged_files_are_as_good_as_none(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("link")
    store = LinkStore(folder, LARGEST)
    (folder / name).write_bytes(noise)
    desk, held = store.load()
    assert held is None
    assert desk == DeviceDesk()


def test_a_task_above_the_limit_is_not_read(tmp_path: Path) -> None:
    store = LinkStore(tmp_path / "link", 100)
    LinkStore(tmp_path / "link", LARGEST).keep_task(b"t" * 16, bytes(1000))
    assert store.load() == (DeviceDesk(), None)


def test_an_answer_to_another_task_does_not_hide_the_task(tmp_path: Path) -> None:
    store = LinkStore(tmp_path / "link", LARGEST)
    store.keep_answer(b"o" * 16, b"old")
    store.keep_task(b"n" * 16, b"new")
    desk, held = store.load()
    assert held is not None
    assert held.id == b"n" * 16
    assert desk.answer is not None
    store.forget(b"o" * 16)
    assert store.load()[0].answer is None
    assert store.load()[1] == held


# Work and its limits.


class Told:
    """What a worker reports."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def answered(self, _: bytes, content: bytes) -> None:
        self.events.append(("answered", content))

    def refused(self, refusal: Refusal) -> None:
        self.events.append(("refused", refusal))

    def delayed(self, _: bytes, hold: Hold) -> None:
        self.events.append(("delayed", hold))


def _worker(tmp_path: Path, told: Told, holds: list[Hold | None], **more: Any) -> Worker:
    limits = DeviceLimits(**more)
    store = LinkStore(tmp_path / "link", LARGEST)
    return Worker(
        lambda f: f * 2, store, limits, lambda: holds.pop(0) if holds else None, told, lambda _: None
    )


HOLD = Hold(Refused.HOURS, 60, "outside the hours")


def test_a_task_outside_its_hours_waits_if_that_is_short(tmp_path: Path) -> None:
    told = Told()
    worker = _worker(tmp_path, told, [HOLD, HOLD, None])
    worker.begin(b"t" * 16, b"ab", None)
    worker.stop()
    worker.run()
    assert told.events == [("delayed", HOLD), ("answered", b"abab")]


def test_a_task_outside_its_hours_is_declined_if_that_is_long(tmp_path: Path) -> None:
    told, far = Told(), Hold(Refused.HOURS, 20_000, "outside the hours")
    for deadline in (None, time.monotonic() + 100):
        worker = _worker(tmp_path, told, [far])
        worker.begin(b"t" * 16, b"ab", deadline)
        worker.stop()
        worker.run()
    refusal = Refusal(b"t" * 16, Refused.HOURS, 20_000, "outside the hours")
    assert told.events == [("refused", refusal)] * 2
    assert worker.store.load()[0].refusal == refusal


def test_a_withdrawn_task_is_not_done(tmp_path: Path) -> None:
    told = Told()
    worker = _worker(tmp_path, told, [])
    worker.begin(b"t" * 16, b"ab", None)
    worker.forget(b"t" * 16)
    worker.stop()
    worker.run()
    assert told.events == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UpdateError("behind"), Refused.FOLLOW),
        (PayloadError("torn"), Refused.TASK),
        (SignatureError("forged"), Refused.TASK),
        (DataError("unreadable"), Refused.DATA),
        (SetupError("no disk"), Refused.SETUP),
        (ModuleNotFoundError("no torch", name="torch"), Refused.SETUP),
        (MemoryError(), Refused.MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Refused.MEMORY),
        (OSError(28, "No space left on device"), Refused.SETUP),
        (ZeroDivisionError("secret 42"), Refused.BROKEN),
    ],
)
def test_an_error_in_a_round_has_a_kind_and_tells_nothing_private(
    tmp_path: Path, error: Exception, kind: Refused
) -> None:
    def fail(_: bytes) -> bytes:
        raise error

    told = Told()
    worker = _worker(tmp_path, told, [])
    worker.round = fail
    worker.begin(b"t" * 16, b"ab", None)
    worker.begin(b"u" * 16, b"ab", None)
    worker.stop()
    worker.run()
    (event,) = told.events
    assert event[1].kind is kind
    assert "42" not in event[1].text
    assert reason_of(error)[0] is kind


def test_data_that_change_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    with pytest.raises(DataError):
        stamp_of(file)
    file.write_bytes(b"one")
    first = stamp_of(file)
    assert stamp_of(file) == first
    file.write_bytes(b"other")
    assert stamp_of(file) != first
    folder = stamp_of(tmp_path)
    (tmp_path / "more.csv").write_bytes(b"")
    assert stamp_of(tmp_path) != folder


@pytest.mark.parametrize(
    ("text", "minute", "left"),
    [
        ("22:00-06:00", 23 * 60, 0),
        ("22:00-06:00", 5 * 60 + 59, 0),
        ("22:00-06:00", 6 * 60, 16 * 60),
        ("22:00-06:00", 21 * 60 + 59, 1),
        ("9:30-17:00", 9 * 60 + 30, 0),
        ("9:30-17:00", 17 * 60, 16 * 60 + 30),
        ("00:00-24:00", 0, 0),
    ],
)
def test_hours_may_span_midnight(text: str, minute: int, left: int) -> None:
    if text.endswith("24:00"):
        with pytest.raises(ConfigError):
            Hours.parse(text)
        return
    assert Hours.parse(text).left(minute) == left


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
def test_hours_begin_when_they_say(start: int, end: int, minute: int) -> None:
    hours = Hours(start, end)
    left = hours.left(minute)
    if start != end:
        assert hours.left((minute + left) % 1440) == 0
        assert left == 0 or (minute + left) % 1440 == start


@pytest.mark.parametrize(
    "text", ["", "22-6", "25:00-26:00", "a:b-c:d", "10:00-10:00", "10:61-11:00", "²:00-3:00"]
)
def test_hours_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Hours.parse(text)


def _supply(power: Path, name: str, **files: str) -> None:
    (power / name).mkdir(parents=True)
    for file, content in files.items():
        (power / name / file).write_text(content + "\n")


def test_power_is_read_as_the_kernel_shows_it(tmp_path: Path) -> None:
    assert on_mains(tmp_path / "none")
    laptop = tmp_path / "laptop"
    _supply(laptop, "AC", type="Mains", online="0")
    _supply(laptop, "BAT0", type="Battery", status="Discharging")
    assert not on_mains(laptop)
    (laptop / "AC" / "online").write_text("1\n")
    assert on_mains(laptop)
    phone = tmp_path / "phone"
    _supply(phone, "battery", type="Battery", status="Charging")
    assert on_mains(phone)
    (phone / "battery" / "status").write_text("Discharging\n")
    assert not on_mains(phone)
    desk = tmp_path / "desk"
    _supply(desk, "mouse", type="Battery", status="Discharging", scope="Device")
    assert on_mains(desk)


def test_rounds_are_held_by_hours_and_power(tmp_path: Path) -> None:
    _supply(tmp_path / "p", "BAT0", type="Battery", status="Discharging")
    night = DeviceLimits(hours=(Hours.parse("22:00-06:00"), Hours.parse("12:00-13:00")))
    noon, evening = datetime(2030, 1, 1, 12, 30), datetime(2030, 1, 1, 20, 0, 30)
    assert hold_rounds(night, noon, tmp_path / "p") is None
    hold = hold_rounds(night, evening, tmp_path / "p")
    assert hold is not None
    assert (hold.kind, hold.seconds) == (Refused.HOURS, 2 * 3600 - 30)
    held = hold_rounds(DeviceLimits(mains_only=True), noon, tmp_path / "p")
    assert held is not None
    assert held.kind is Refused.POWER


def test_a_file_or_a_command_says_that_a_link_is_metered(tmp_path: Path) -> None:
    flag = tmp_path / "metered"
    by_file = DeviceLimits(metered_file=flag)
    assert not metered(by_file)
    flag.write_text("")
    assert metered(by_file)
    flag.write_text("no\n")
    assert not metered(by_file)
    assert metered(DeviceLimits(metered_command=("true",)))
    assert not metered(DeviceLimits(metered_command=("false",)))
    assert metered(DeviceLimits(metered_command=("/nowhere/at/all",)))
    hold = hold_link(DeviceLimits(metered_command=("true",)), ByteAccount(tmp_path / "b"), datetime.now(UTC))
    assert hold is not None
    assert hold.kind is Refused.METERED


def test_bytes_are_counted_by_the_day_and_survive_a_restart(tmp_path: Path) -> None:
    limits = DeviceLimits(bytes_per_day=100_000)
    today, tomorrow = datetime(2030, 5, 1, 22, tzinfo=UTC), datetime(2030, 5, 2, 1, tzinfo=UTC)
    account = ByteAccount(tmp_path / "bytes.json")
    account.add(99_999, today)
    assert hold_link(limits, account, today) is None
    account.add(1, today)
    account.save()
    again = ByteAccount(tmp_path / "bytes.json")
    hold = hold_link(limits, again, today)
    assert hold is not None
    assert (hold.kind, hold.seconds) == (Refused.BYTES, 7201)
    assert hold_link(limits, again, tomorrow) is None
    again.add(5, tomorrow)
    assert again.of(tomorrow) == 5


@pytest.mark.parametrize("content", ["", "{", "[]", '{"day": 3}', '{"day": "x", "bytes": "y"}'])
def test_a_damaged_count_begins_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "bytes.json").write_text(content)
    assert ByteAccount(tmp_path / "bytes.json").of(datetime.now(UTC)) == 0


def test_rests_are_in_proportion_to_the_work() -> None:
    used, slept = iter([0.0, 0.1, 0.1, 0.4, 0.4]), list[float]()
    duty = DutyCycle(0.25, lambda: next(used), slept.append)
    duty._then = duty.used()
    duty.rest()
    duty.rest()
    assert slept == pytest.approx([0.3, 0.9])


def test_the_timer_rests_in_the_midst_of_work_and_is_gone_after_it() -> None:
    rests: list[float] = []
    with DutyCycle(0.5, sleep=rests.append):
        start = time.process_time()
        while time.process_time() - start < 0.2:
            pass
    assert rests
    assert all(r >= 0 for r in rests)
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_a_limit_of_memory_stops_an_allocation_and_not_the_process() -> None:
    code = (
        "from fedge.deploy.device_limits import DeviceLimits, settle_in\n"
        "import os; before = os.getpriority(os.PRIO_PROCESS, 0)\n"
        "settle_in(DeviceLimits(memory=128 << 20, nice=3))\n"
        "assert os.getpriority(os.PRIO_PROCESS, 0) == min(19, before + 3)\n"
        "try:\n    bytearray(512 << 20)\nexcept MemoryError:\n    print('still here')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"still here\n"
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.getrlimit(resource.RLIMIT_DATA)[1]


@pytest.mark.parametrize(
    "wrong",
    [{"cpu_share": 0.0}, {"cpu_share": 1.5}, {"nice": 20}, {"memory": 1 << 20}, {"bytes_per_day": 100}],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DeviceLimits(**wrong)


# Words.


def test_waiting_grows_to_five_minutes_and_a_hint_rules() -> None:
    assert [back_off(n, 0, lambda: 1.0) for n in (1, 2, 3, 9, 10, 1000)] == [1, 2, 4, 256, 300, 300]
    assert back_off(1000, 0, lambda: 0.0) == 150
    assert back_off(1, 600, lambda: 0.0) == 600
    assert back_off(1, 600, lambda: 1.0) == 750
    assert back_off(1, 1 << 40, lambda: 0.0) == 86_400


def _verification(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError("x")
    error.verify_code, error.verify_message = code, "self-signed certificate in certificate chain"
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_verification(9), "clock"),
        (_verification(10), "expired"),
        (_verification(62), "another name"),
        (_verification(19), "not the server of this federation"),
        (ConnectionRefusedError(111, "Connection refused"), "refused"),
        (socket.gaierror(-2, "Name or service not known"), "resolved"),
        (TimeoutError(), "does not answer"),
        (OSError(28, "No space left on device"), "disk is full"),
        (LinkError("x", Reason.VERSION), "update the older one"),
        (LinkError("x", Reason.REVOKED), "revoked"),
        (LinkError("x", Reason.EXPIRED), "expired"),
        (LinkError("x", Reason.REPLACED), "another process"),
        (ValueError("odd"), "nobody expected"),
    ],
)
def test_troubles_are_named_in_plain_words(error: Exception, words: str) -> None:
    found = trouble(error, "server:8443")
    assert isinstance(found, TroubleError)
    assert words in str(found)
    assert trouble(found, "server:8443") is found


def test_alerts_of_tls_are_named() -> None:
    for reason in (
        "TLSV1_ALERT_UNKNOWN_CA",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    ):
        error = ssl.SSLError(1, "x")
        error.reason = reason
        assert "certificate" in str(trouble(error, "s"))


def test_a_trouble_is_named_once_and_again_after_an_hour() -> None:
    clock, said = [0.0], list[str]()
    complaints = Complaints(lambda _, text: said.append(text), lambda: clock[0])
    for moment in (0.0, 1.0, 3599.0, 3600.0, 3601.0):
        clock[0] = moment
        complaints.about("a", "text")
    assert said == ["text", "text"]
    complaints.about("b", "other")
    complaints.over("up again")
    complaints.over("up again")
    assert said == ["text", "text", "other", "up again"]


def test_a_clock_that_is_off_is_named() -> None:
    assert clock_words(5) is None
    assert "3600 s ahead" in (clock_words(3600) or "")
    assert "3600 s behind" in (clock_words(-3600) or "")


def test_json_lines_are_json() -> None:
    record = logging.LogRecord("fedge.client", logging.WARNING, "f", 1, "two\nlines %s", ("x",), None)
    line = json.loads(JsonLines().format(record))
    assert (line["message"], line["level"]) == ("two lines x", "warning")


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    notify("READY=1")  # nobody listens any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


# The command.


def _options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    device.add_arguments(parser)
    return parser.parse_args(given)


@pytest.mark.parametrize(("text", "size"), [("400M", 400_000_000), ("2k", 2000), ("17", 17), ("1GB", 10**9)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert device.size_of(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "M", "1.5M", "-1", "1T", "²"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        device.size_of(text, "--memory")


def test_options_become_limits() -> None:
    options = _options(
        "b", "--data", "d", "--cpu-share", "0.5", "--hours", "22:00-06:00", "--bytes-per-day", "2M"
    )
    limits = device.limits_of(options)
    assert (limits.cpu_share, limits.bytes_per_day, limits.hours[0].start) == (0.5, 2_000_000, 22 * 60)


def test_a_bundle_in_one_file_is_unpacked_for_its_owner_only(home: Path, tmp_path: Path) -> None:
    folder = device.bundle_folder(home / "devices" / "a.fedge", tmp_path / "state")
    assert {p.name for p in folder.iterdir()} == {p.name for p in (home / "devices" / "a").iterdir()}
    assert all(p.stat().st_mode & 0o077 == 0 for p in [folder, *folder.iterdir()])
    assert device.bundle_folder(home / "devices" / "a", tmp_path) == home / "devices" / "a"
    (tmp_path / "torn.fedge").write_bytes(b"PK")
    with pytest.raises(SetupError):
        device.bundle_folder(tmp_path / "torn.fedge", tmp_path)
    with pytest.raises(SetupError):
        device.bundle_folder(tmp_path / "none", tmp_path)


def _client(home: Path, tmp_path: Path, port: int) -> "subprocess.Popen[bytes]":
    """The real command, on a bundle that names this port."""
    bundle = tmp_path / "bundle"
    bundle.mkdir(mode=0o700)
    for file in (home / "devices" / "a").iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
        (bundle / file.name).chmod(0o600)
    told = json.loads((bundle / "device.json").read_text())
    (bundle / "device.json").write_text(json.dumps({**told, "server": f"127.0.0.1:{port}"}))
    (tmp_path / "data.npz").write_bytes(b"not read before the first task")
    code = (
        "import argparse; from fedge.deploy import device\n"
        "p = argparse.ArgumentParser(); device.add_arguments(p); device.run(p.parse_args())\n"
    )
    arguments = [str(bundle), "--data", str(tmp_path / "data.npz"), "--log", "json"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )


def test_the_command_waits_small_and_alone_and_stops_on_sigterm(home: Path, tmp_path: Path) -> None:
    with Running(home) as server:
        process = _client(home, tmp_path, server.port)
        with process:
            until(lambda: server.gateway.clients and server.gateway.clients["a"].connection is not None)
            time.sleep(0.2)
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS"))
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            lines = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert process.returncode == 0
        assert resident <= 60_000
        assert not any(name in maps for name in ("libtorch", "onnxruntime"))
        assert children == ""
        assert any("link" in line["message"] for line in lines)


def test_a_refused_task_is_told_to_the_server(home: Path, tmp_path: Path) -> None:
    """Bytes that are no task: the real round, torch included, refuses them and the process goes on."""
    with Running(home) as server:
        process = _client(home, tmp_path, server.port)
        with process:
            task = server.give("a", b"\xff no task")
            until(lambda: server.upstream.refusals, 60)
            second = server.give("a", b"\x02")
            until(lambda: len(server.upstream.refusals) == 2, 60)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            process.stderr.read()
        assert [r[1] for r in server.upstream.refusals] == [task, second]
        assert process.returncode == 0
        assert threading.active_count() < 50


def test_real_rounds_run_on_new_data_and_small_memory(
    home: Path, tmp_path: Path, fleet_file: Path, small_prepared: "Prepared"
) -> None:
    """Welcomed, trained, and trained again after the device's data have changed; the answers are signed."""
    from fedge.data.export import split_to_files
    from fedge.federated.client import UPDATE, signed_parts
    from fedge.federated.frames import Hello, Train, Trained, Welcome, decode_reply, encode_task
    from fedge.federated.lineage import begin
    from fedge.signing import verify

    prepared = small_prepared
    split_to_files(fleet_file, tmp_path / "files")
    files = sorted((tmp_path / "files").glob("*.npz"))
    lineage = begin(prepared.snapshot)
    welcome = encode_task(Welcome(b"challenge", prepared.plan.to_dict(), prepared.snapshot))
    train = [encode_task(Train(n, 0, 0, lineage, (), 0.01)) for n in (1, 2)]
    with Running(home) as server:
        process = _client(home, tmp_path, server.port)
        with process:
            data = tmp_path / "data.npz"
            data.write_bytes(files[0].read_bytes())
            server.give("a", welcome)
            server.give("a", train[0])
            until(lambda: len(server.upstream.answers) == 2, 60)
            data.write_bytes(files[1].read_bytes())
            server.give("a", train[1])
            until(lambda: len(server.upstream.answers) == 3, 60)
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            log = process.stderr.read().decode()
        assert process.returncode == 0, log
    assert not server.upstream.refusals
    hello, *trained = (decode_reply(frame) for _, _, frame in server.upstream.answers)
    assert isinstance(hello, Hello)
    for reply in trained:
        assert isinstance(reply, Trained)
        parts = signed_parts(prepared.plan.federation, "a", lineage, reply)
        verify(hello.public, reply.signature, UPDATE, *parts)
    assert log.count("windows to train on") == 2
    resident = next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS"))
    assert resident < 330_000


def test_a_release_is_tested_as_strictly_by_every_command_and_in_simulations() -> None:
    """One default of the margin: what a device refuses must not depend on how the release came."""
    client, release = argparse.ArgumentParser(), argparse.ArgumentParser()
    device.add_arguments(client)
    release_command.add_arguments(release)
    linked = client.parse_args(["bundle", "--data", "x.npz"]).release_margin
    fetched = release.parse_args(["fetch", "home", "--from", "here"]).margin
    assert {linked, fetched, GateInputs().margin, WatchRules().margin} == {Config().release.margin}
