"""``fedge bench simulation``: what an engine adds to the clients' own work, per client and round.

The local engine, Flower's simulation runtime with Ray (where it is installed) and a plain torch loop; the
same student, data and rounds; clients without work, and clients that train. ``docs/bench-simulation.md``
says what is compared and how.
"""

import gc
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from fedge.bench import _simulation_cases as cases
from fedge.bench._simulation_app import Idle
from fedge.bench._simulation_cases import Direct, Trainers
from fedge.bench._timing import race
from fedge.bench.server import one_thread
from fedge.observe import Observer, Terminal
from fedge.signing import SigningKey, verify
from fedge.simulation.engines import cores

SHOWN = 300
"""Number of clients for which the time without signatures is measured, too."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        clients: numbers of clients without work.
        parameters: of their student.
        rounds: that count, of the local engine and the torch loop; one more comes before them.
        ray_rounds: that count on Ray.
        trainers: clients that train.
        windows: that each of these has.
        train_rounds: that count, of clients that train.
    """

    clients: tuple[int, ...] = (30, 300, 1000)
    parameters: int = 20_000
    rounds: int = 9
    ray_rounds: int = 3
    trainers: int = 30
    windows: int = 120
    train_rounds: int = 5


def run(clients: Sequence[int] = Sizes.clients) -> dict[str, Any]:
    """Measure; returns the JSON object. Progress goes to standard error.

    Raises:
        FedgeError: not every update counted, or an engine failed.
    """
    return measure(Sizes(clients=tuple(clients)), Terminal(sys.stderr), ray=find_spec("ray") is not None)


def measure(sizes: Sizes, observer: Observer, *, ray: bool) -> dict[str, Any]:
    """Measure that much, with Ray or without."""
    with one_thread(), _settled():
        idle = [_idle(sizes, n, observer, ray=ray) for n in sizes.clients]
        with observer.stage("clients that train") as stage, tempfile.TemporaryDirectory() as folder:
            real = _real(sizes, Path(folder), ray=ray)
            stage.result = f"{real['local_s']:.2f} s, {real['over_ideal']:.2f} times the ideal"
    found = {key: {str(n): row[key] for n, row in zip(sizes.clients, idle, strict=True)} for key in idle[0]}
    return {
        **found,
        "end_to_end_ratio": _ratio(real["ray_default_s"], real["local_s"]),
        "real": real,
        "cores": cores(),
        "verify_us": _verify_us(),
        "settings": asdict(sizes),
    }


@contextmanager
def _settled() -> Iterator[None]:
    """As ``fedge simulate`` does: a full collection over what was imported would find nothing."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _idle(sizes: Sizes, clients: int, observer: Observer, *, ray: bool) -> dict[str, float | None]:
    """Milliseconds per client and round, of clients without work. The local engine has its turn twice."""
    idle = Idle(clients, sizes.parameters)
    own, case = cases.idle_seconds(idle), cases.idle_case(idle)
    with observer.stage(f"{clients} clients without work") as stage:
        local = case.on_local(sizes.rounds, cores())
        unsigned = _unsigned(sizes, clients) if clients == SHOWN else None
        stage.result = f"{_overhead(local.rounds, clients, own):.3f} ms each"
    theirs = stock = None
    if ray:
        with observer.stage(f"{clients} clients without work, Flower + Ray") as stage:
            theirs = _overhead(case.on_ray(sizes.ray_rounds, cores_each=1).rounds, clients, own)
            stock = _stock(sizes, clients)
            stage.result = f"{stock:.1f} ms each; fedge's apps there {theirs:.1f} ms"
    both = [*local.rounds, *(case.on_local(sizes.rounds, cores()).rounds if ray else ())]
    ours = _overhead(both, clients, own)
    return {
        "overhead_ms": ours,
        "unsigned_ms": unsigned,
        "stock_ms": stock,
        "ratio_to_ray": _ratio(stock, ours),
        "ray_ms": theirs,
        "ratio_same_apps": _ratio(theirs, ours),
        "torch_loop_ms": median(cases.idle_torch(idle, sizes.rounds)) * 1000 / clients,
        "client_ms": own * 1000,
        "start_s": local.start,
    }


def _unsigned(sizes: Sizes, clients: int) -> float:
    idle = Idle(clients, sizes.parameters, signed=False)
    own = cases.idle_seconds(idle)
    with cases.unsigned():
        return _overhead(cases.idle_case(idle).on_local(sizes.rounds, cores()).rounds, clients, own)


def _stock(sizes: Sizes, clients: int) -> float:
    from fedge.bench._simulation_stock import stock_on_ray

    return _overhead(stock_on_ray(clients, sizes.parameters, sizes.ray_rounds).rounds, clients, 0.0)


def _overhead(rounds: Sequence[float], clients: int, own: float) -> float:
    """What a round takes beyond the clients' own work spread over the cores, in ms per client."""
    return (median(rounds) / clients - own / cores()) * 1000


def _real(sizes: Sizes, folder: Path, *, ray: bool) -> dict[str, Any]:
    """Seconds of the same rounds with training, start-up apart; median round times their number."""
    trainers, rounds = Trainers.of(sizes.trainers, sizes.windows, folder), sizes.train_rounds
    case = trainers.case()

    def direct() -> list[float]:
        clients = Direct(trainers.world)
        case.over(clients, 0.0, rounds)
        return clients.seconds[-rounds:]

    work, local = direct(), case.on_local(rounds, cores())
    both, theirs, default = local.rounds, None, None
    if ray:
        theirs, default = case.on_ray(rounds, cores_each=1), case.on_ray(rounds, cores_each=2)
        both = [*both, *case.on_local(rounds, cores()).rounds]
        work = [*work, *direct()]
    own, ours = median(work) * rounds, median(both) * rounds
    found = {
        "work_s": own,
        "local_s": ours,
        "ray_s": None if theirs is None else median(theirs.rounds) * rounds,
        "ray_default_s": None if default is None else median(default.rounds) * rounds,
        "torch_loop_s": median(trainers.torch_loop(rounds)) * rounds,
    }
    return {
        **found,
        "over_ideal": ours / (own / cores()),
        "ratio_same_cores": _ratio(found["ray_s"], ours),
        "local_start_s": local.start,
        "ray_start_s": None if theirs is None else theirs.start,
    }


def _verify_us() -> float:
    """How fast this machine is now: one Ed25519 verification, in microseconds of CPU time."""
    key = SigningKey.from_seed(bytes(32))
    public, signature = key.public, key.sign("bench", b"x")
    return race({"verify": lambda: verify(public, signature, "bench", b"x")}, 7)["verify"].cpu * 1e6


def _ratio(theirs: float | None, ours: float) -> float | None:
    return None if theirs is None else theirs / ours


def lines(result: Mapping[str, Any]) -> list[str]:
    """A table for the terminal."""
    names = ("local", "Flower + Ray", "ratio", "same apps on Ray", "ratio", "torch loop")
    keys = ("overhead_ms", "stock_ms", "ratio_to_ray", "ray_ms", "ratio_same_apps", "torch_loop_ms")
    forms = (".3f", ".1f", ".0f", ".1f", ".0f", ".3f")

    def cells(n: str) -> list[str]:
        return [_shown(result[key][n], form) for key, form in zip(keys, forms, strict=True)]

    rows = [
        _row("ms per client-round", names),
        *(_row(f"{n} clients", cells(n)) for n in result["overhead_ms"]),
    ]
    rows += [_row(f"{n}, unsigned", [_shown(u, ".3f")]) for n, u in result["unsigned_ms"].items() if u]
    real, sizes = result["real"], result["settings"]
    trained = f"{sizes['trainers']} clients that train, {sizes['train_rounds']} rounds: "
    trained += (
        f"local {real['local_s']:.2f} s ({real['over_ideal']:.2f} times work / {result['cores']} cores), "
    )
    trained += f"on Ray {_shown(real['ray_s'], '.2f')} s, with Flower's defaults "
    trained += f"{_shown(real['ray_default_s'], '.2f')} s; a torch loop {real['torch_loop_s']:.2f} s"
    started = f"start-up: local {real['local_start_s']:.1f} s, Ray {_shown(real['ray_start_s'], '.1f')} s; "
    started += f"a signature takes {result['verify_us']:.0f} us to verify here and now"
    missing = ["Ray is not installed: pip install 'fedge[ray]'"] if real["ray_s"] is None else []
    return [*rows, trained, started, *missing]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<20}" + "".join(f"{cell:>18}" for cell in cells)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
