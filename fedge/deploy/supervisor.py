"""``fedge server``: everything that a server consists of, started in order, watched, and started again.

    gateway     the only one that listens outside; it stays when the others die, and so do the devices' links
    SuperLink   Flower's, on loopback, its state in memory
    SuperExec   Flower's; starts the process of a run
    the run     a ServerApp that goes on from the journal; disposable like the two above

SuperLink dead: SuperExec and the run go with it, all three come back. SuperExec dead: the run goes with it.
The run dead: a new run. All children die with this process, however it dies.
"""

import asyncio
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedge.deploy.children import Child, Log, Restarts, voice
from fedge.deploy.deployment import CONFIG, OUTCOME, RUN, VOICE, Deployment, write_app
from fedge.deploy.run_process import Ended, Run
from fedge.deploy.state_directory import locked
from fedge.durable import replace_file
from fedge.errors import FedgeError, SetupError

if TYPE_CHECKING:
    from fedge.deploy.flower_internals.runs import Runs

_T = TypeVar("_T")

_STARTS = 120.0  # seconds that a SuperLink or a run may take to start on a slow machine
_LOOK = 2.0  # seconds between two questions to Flower whether a run that has not begun is over
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_LOG_LEVEL": "WARNING",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "PYTHONUNBUFFERED": "1",
}
_EXPECTED = ("Option `--insecure` was set", "EXPERIMENTAL: SuperExec", "SuperNode authentication is disabled")
# What Flower warns of at every start: it listens on loopback only, and the door checks the nodes' keys.


@dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
        deployment: what the run is told; its state directory holds everything.
        gateway: the gateway's command line, given the SuperLink's ``host:port``.
        listening: returns when devices can connect to the gateway.
        log: where everything is said.
        ready: is called when devices can connect, once.
    """

    deployment: Deployment
    gateway: Callable[[str], Sequence[str]]
    listening: Callable[[], Awaitable[None]]
    log: Log = field(default_factory=Log)
    ready: Callable[[], None] = lambda: None


async def supervise(plan: Plan) -> int:
    """Run the server until its work is done or SIGTERM comes; returns the exit code.

    Raises:
        SetupError: the state directory cannot be used, or another server uses it.
        FedgeError: something dies again and again.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    state = plan.deployment.state
    with locked(state), voice(state / VOICE, lambda line: plan.log.say("run", line)):
        server = _Server(plan)
        try:
            return await _first(server.keep_gateway(), server.keep_flower(), _stopped(stop))
        finally:
            notify("STOPPING=1")
            await server.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


async def _stopped(stop: asyncio.Event) -> int:
    await stop.wait()
    return 0


class _Server:
    def __init__(self, plan: Plan) -> None:
        self._plan, state = plan, plan.deployment.state
        (state / OUTCOME).unlink(missing_ok=True)
        (state / RUN).unlink(missing_ok=True)
        self._app = write_app(state)
        self._config = state / "deployment.json"
        plan.deployment.save(self._config)
        secret = state / "superexec.secret"
        replace_file(secret, secrets.token_hex(32).encode())
        self._address = f"127.0.0.1:{_free_port()}"
        env = {**os.environ, **_QUIET, "FLWR_HOME": str(state / "flower")}
        env["PATH"] = f"{Path(sys.executable).parent}:{env.get('PATH', os.defpath)}"
        host, port = self._address.split(":")
        alone = ["--insecure", "--superexec-auth-secret-file", str(secret)]
        superlink = [_program("flower-superlink"), *alone, "--host", host, "--port", port]
        superlink += ["--isolation", "process", "--disable-runtime-dependency-installation"]
        superexec = [_program("flower-superexec"), *alone, "--runtime-api-address", self._address]
        self.gateway = Child("gateway", plan.gateway(self._address), env, plan.log)
        self.superlink = Child("superlink", superlink, env, plan.log, _EXPECTED)
        self.superexec = Child("superexec", superexec, env, plan.log, _EXPECTED)
        self._run: Run | None = None

    async def keep_gateway(self) -> int:
        """Start the gateway again whenever it dies."""
        budget, announced = Restarts("the gateway"), False
        while True:
            await self.gateway.start()
            dead = asyncio.ensure_future(self.gateway.ended())
            if await _before(dead, self._plan.listening()):
                self.gateway.is_ready()
                if not announced:
                    announced = True
                    self._say("ready: devices can connect")
                    notify("READY=1")
                    self._plan.ready()
            await self._again(budget, self.gateway, await dead)

    async def keep_flower(self) -> int:
        """SuperLink, SuperExec and a run, until a run says that it is done."""
        budget = Restarts("Flower's SuperLink")
        while True:
            await asyncio.gather(self.superlink.start(), self.superexec.start())
            dead = asyncio.ensure_future(self.superlink.ended())
            with _cancelled(dead):
                if await _before(dead, _answers(self._address)):
                    self.superlink.is_ready()
                    work = asyncio.ensure_future(self._keep_runs())
                    with _cancelled(work):
                        await asyncio.wait([dead, work], return_when=asyncio.FIRST_COMPLETED)
                        if work.done():
                            return self._end(work.result())
                why = await dead
            await self._end_run()
            await asyncio.gather(self.superexec.stop(grace=0), self.superlink.stop(grace=0))
            await self._again(budget, self.superlink, why)

    async def close(self) -> None:
        """Stop everything: what listens outside first, then the work, then what it stands on."""
        await self.gateway.stop()
        await self._end_run()
        await self.superexec.stop()
        await self.superlink.stop()

    async def _keep_runs(self) -> Ended:
        """Runs, one after the other, on a SuperExec that is started again when it dies."""
        runs, execs = Restarts("the run"), Restarts("Flower's SuperExec")
        while True:
            self.superexec.is_ready()
            over = asyncio.ensure_future(self._one_run())
            dead = asyncio.ensure_future(self.superexec.ended())
            with _cancelled(over), _cancelled(dead):
                await asyncio.wait([over, dead], return_when=asyncio.FIRST_COMPLETED)
                if dead.done():
                    over.cancel()
                    await self._end_run()
                    await self.superexec.stop(grace=0)
                    await self._again(execs, self.superexec, dead.result())
                    await self.superexec.start()
                    continue
            ended = over.result()
            if isinstance(ended, Ended):
                return ended
            lived = 0.0 if self._run is None else self._run.lived
            await self._end_run()
            self._say(f"the run died ({ended}); it is started again")
            await asyncio.sleep(runs.died(time.monotonic(), lived, ended))

    async def _one_run(self) -> Ended | str:
        """Start a run and wait for its end; returns why it died, if it did not end by itself."""
        from fedge.deploy.flower_internals.runs import Runs  # takes seconds, while children start

        flower = Runs(self._address)
        try:
            number = await _thread(flower.start, self._app, {CONFIG: str(self._config)})
            self._run = Run(number, self._plan.deployment.state)
            try:
                if not await self._begun(flower, self._run):
                    return f"it did not begin: {await _thread(flower.ended, number) or 'no sign of it'}"
                self._run.ready = time.monotonic()
                await self._run.gone()
                return self._run.outcome() or "its process was killed or failed"
            finally:
                with suppress(ConnectionError, FedgeError):
                    await asyncio.wait_for(_thread(flower.stop, number), 5.0)
        except ConnectionError as error:
            return str(error)
        finally:
            flower.close()

    async def _begun(self, flower: "Runs", run: Run) -> bool:
        """Wait until the process of a run says its id; false if it will not."""
        end, look = time.monotonic() + _STARTS, time.monotonic() + _LOOK
        while run.pid() is None and time.monotonic() < end:
            await asyncio.sleep(0.05)
            if time.monotonic() > look:
                look = time.monotonic() + _LOOK
                if await _thread(flower.ended, run.number):
                    break
        return run.pid() is not None

    async def _end_run(self) -> None:
        """Make sure that no process of the last run is left: the journal is for one at a time."""
        if self._run is not None:
            await self._run.kill()
        self._run = None

    async def _again(self, budget: Restarts, child: Child, why: str) -> None:
        self._say(f"{child.name} died ({why}); it is started again")
        await asyncio.sleep(budget.died(time.monotonic(), child.lived, why))

    def _end(self, ended: Ended) -> int:
        if ended.code:
            raise SetupError(ended.why)
        self._say(ended.why)
        return 0

    def _say(self, text: str) -> None:
        self._plan.log.say("server", text)


def notify(what: str) -> None:
    """Tell systemd, if it asked to be told (``sd_notify(3)``)."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.connect("\0" + path[1:] if path.startswith("@") else path)
            end.send(what.encode())


async def _answers(address: str) -> None:
    host, port = address.split(":")
    end = time.monotonic() + _STARTS
    while time.monotonic() < end:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise FedgeError(f"Flower's SuperLink did not answer within {_STARTS:g} s")


async def _first(*all_of_them: Awaitable[int]) -> int:
    """What the first of these gives; the others are cancelled."""
    tasks = [asyncio.ensure_future(a) for a in all_of_them]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _before(dead: "asyncio.Future[str]", event: Awaitable[None]) -> bool:
    """Whether ``event`` came before the end of a process."""
    waiting = asyncio.ensure_future(event)
    either: list[asyncio.Future[str] | asyncio.Future[None]] = [dead, waiting]
    with _cancelled(waiting):
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
            return True
        return False


@contextmanager
def _cancelled(task: "asyncio.Future[_T]") -> Iterator[None]:
    try:
        yield
    finally:
        if not task.done():
            task.cancel()


async def _thread(what: Callable[..., _T], *given: object) -> _T:
    return await asyncio.get_running_loop().run_in_executor(None, what, *given)


def _free_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return int(end.getsockname()[1])


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    if (found := shutil.which(name)) is None:
        raise SetupError(f"{name} is missing; install it: pip install 'fedge[server]'")
    return found
