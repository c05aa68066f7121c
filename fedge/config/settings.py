"""Every setting of a run, with its unit, range and default; nothing about settings is said anywhere else.

A scenario is a TOML file with one table per section here. ``--set section.key=value`` overrides one value.
Settings of a device are not here: they belong to the device, and a server can never set them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


def _setting(
    default: Any, doc: str, low: float | None = None, high: float | None = None, among: tuple[str, ...] = ()
) -> Any:
    """A field with its range: numbers within ``low..high``, words ``among`` the known ones."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "among": among})


@dataclass(frozen=True)
class Data:
    """Whose data there is, and who plays which part."""

    source: str = _setting(
        "watch", "'watch', 'digits', an .npz file, or a folder with one CSV or Parquet per client"
    )
    target: str = _setting("y", "which array of an .npz file is to be learned")
    normal: str = _setting(
        "", "anomalies: which windows may be learned from, such as 'rul > 100'; default y == 0"
    )
    most: float = _setting(0.0, "numbers: a target above this counts as this; 0 for no bound", 0, 1e9)
    server_clients: tuple[str, ...] = _setting(
        (), "ids (or patterns) whose data is the server's; default a fifth"
    )
    unseen_clients: tuple[str, ...] = _setting((), "ids (or patterns) held out altogether; default a fifth")
    server_unlabelled: tuple[str, ...] = _setting(
        (), "ids (or patterns) whose windows the server has, but not their labels"
    )
    split: str = _setting(
        "natural",
        "skewed: each client trains on two classes only; missing: the server's data lack two classes",
        among=("natural", "skewed", "missing"),
    )
    clients: int = _setting(0, "take only the first so many participants; 0 for all", 0, 1_000_000)
    copies: int = _setting(
        0,
        "simulation: further clients made of each participant, its windows through another sensor",
        0,
        100_000,
    )
    later_share: float = _setting(
        0.25, "share of a client's windows, the last of each class, that it is scored on; 0: of none", 0, 0.9
    )
    judge_share: float = _setting(0.1, "share of a client's training part kept to judge candidates", 0, 0.5)
    window: int = _setting(128, "samples of a window, where a folder of recordings is cut", 4, 65_536)
    skip_small: bool = _setting(
        False, "leave out clients with fewer than two windows, instead of refusing them"
    )
    step: int = _setting(64, "samples between two windows, where a folder of recordings is cut", 1, 65_536)


@dataclass(frozen=True)
class Teacher:
    """The large model on the server."""

    family: str = _setting("", "residual, inception or autoencoder; default the task's")
    size: str = _setting(
        "small",
        "about 0.2, 0.7, 2.5 or 10 million parameters",
        among=("small", "base", "large", "huge"),
    )
    epochs: int = _setting(30, "passes over the server's data", 1, 10_000)
    learning_rate: float = _setting(3e-3, "peak of a one-cycle schedule (AdamW)", 1e-6, 1)
    batch: int = _setting(64, "windows per step", 2, 4096)
    module: str = _setting("", "your own instead: 'package.module:Name' of a torch module, not trained here")
    weights: str = _setting("", "its .safetensors file")
    onnx: str = _setting("", "or your own as an ONNX file")
    cache: bool = _setting(True, "keep trained teachers in the cache folder and use them again")


@dataclass(frozen=True)
class Student:
    """The small model that clients fine-tune, and how it is made from the teacher."""

    family: str = _setting("plain", "kind of convolutions", among=("plain", "separable"))
    size: str = _setting(
        "small",
        "about 5 k, 20 k, 60 k or 200 k parameters",
        among=("tiny", "small", "medium", "large"),
    )
    module: str = _setting(
        "", "your own instead: 'package.module:function' from (window, outputs) to a module"
    )
    loss: str = _setting("", "distillation loss, a file of fedge/distill; default the task's")
    temperature: float = _setting(2.0, "softens the teacher's answers", 0.1, 100)
    hard_weight: float = _setting(0.3, "weight of the labels beside the teacher's answers", 0, 1)
    entropy_weight: float = _setting(0.1, "of the student's entropy, in squared_entropy", 0, 10)
    feature_weight: float = _setting(0.5, "of the relations between features, in relational", 0, 100)
    epochs: int = _setting(40, "passes of distillation", 1, 10_000)
    tune_epochs: int = _setting(15, "passes of quantization-aware distillation after pruning", 0, 10_000)
    learning_rate: float = _setting(5e-3, "peak of a one-cycle schedule (AdamW)", 1e-6, 1)
    batch: int = _setting(64, "windows per step", 2, 4096)
    keep: float = _setting(1.0, "share of the multiply-adds kept when whole channels are removed", 0.05, 1)
    most_parameters: int = _setting(0, "remove channels down to so many parameters; 0 for no bound", 0, 10**8)
    most_us: float = _setting(0.0, "or down to so many microseconds a window here; 0 for no bound", 0, 1e6)
    cut_steps: int = _setting(3, "steps in which channels are removed, with training between", 1, 100)
    cut_epochs: int = _setting(8, "passes of distillation after each of them", 0, 10_000)
    sensitivity: str = _setting(
        "magnitude", "what weights and channels are chosen by", among=("magnitude", "taylor")
    )
    prune_share: float = _setting(0.4, "share of the weights (not biases) set to zero for good", 0, 0.95)


@dataclass(frozen=True)
class Quantize:
    """Int8 activations and the initial download."""

    calibration: str = _setting(
        "percentile",
        "fixed range (minmax), or adapted to the values",
        among=("minmax", "percentile", "mse"),
    )
    percentile: float = _setting(99.99, "share of activations that is not clipped, in percent", 99, 100)
    headroom: float = _setting(1.2, "factor on calibrated ranges, for what training still changes", 1, 10)
    download_bits: int = _setting(4, "bits per weight of the initial download", 2, 8)
    snapshot_bits: int = _setting(
        6, "bits per weight of a snapshot for a client that was away too long", 2, 8
    )


@dataclass(frozen=True)
class Rounds:
    """The federation's rounds."""

    rounds: int = _setting(30, "rounds", 1, 1_000_000)
    fraction: float = _setting(1.0, "share of the participants in each round", 0.0001, 1)
    max_change: float = _setting(1.0, "an update with a larger entry is refused", 1e-6, 100)
    max_norm: float = _setting(0.0, "an update of a larger 2-norm is refused; 0 for no bound", 0, 1e9)
    max_weight: int = _setting(10_000, "most windows that one update counts for", 1, 1_000_000)
    least: int = _setting(
        0, "updates that must count, or the round is given up and tried again", 0, 1_000_000
    )
    quorum: float = _setting(0.0, "the same as a share of the updates that are wanted", 0, 1)
    deadline_seconds: float = _setting(0.0, "how long answers are waited for; 0: until all are there", 0, 1e7)
    gather_seconds: float = _setting(
        15.0, "a server that has just started waits so long for clients to come back", 0, 1e6
    )
    over_select: float = _setting(
        1.0, "clients asked for each update that is wanted; the fastest count", 1, 10
    )
    late: str = _setting(
        "drop",
        "answers that come after their round: not counted, or counted less the later they are",
        among=("drop", "count"),
    )
    late_rounds: int = _setting(5, "rounds for which a late answer is still counted", 1, 1000)
    buffer: int = _setting(
        0,
        "asynchronous: a round ends with so many updates, whenever they were asked for; 0: synchronous",
        0,
        1_000_000,
    )
    attempts: int = _setting(0, "times that a round is tried before the run ends; 0: for ever", 0, 1_000_000)
    pause_seconds: float = _setting(5.0, "between two attempts", 0, 1e6)
    tags: tuple[str, ...] = _setting((), "only clients with one of these tags take part; empty: all")
    offences: int = _setting(3, "refused updates of a client, one after the other, that bar it", 1, 1000)
    barred_rounds: int = _setting(10, "rounds that it is barred for; twice as many each time", 1, 1_000_000)
    robust: str = _setting(
        "none",
        "what stands in for the mean, so that a few hostile clients cannot steer it",
        among=("none", "multikrum", "bulyan", "trimmed_mean"),
    )
    hostile: int = _setting(1, "robust: clients that may be hostile", 0, 1000)
    robust_most: int = _setting(100, "robust: updates of a round that are kept in memory, at most", 3, 10_000)
    optimizer: str = _setting(
        "avg",
        "what the server does with the mean update; dyn goes with local.dynamic",
        among=("avg", "avgm", "adam", "dyn"),
    )
    server_learning_rate: float = _setting(1.0, "factor on the mean update", 0.001, 100)
    server_momentum: float = _setting(0.9, "of avgm, and first moment of adam", 0, 0.999)
    server_beta2: float = _setting(0.99, "second moment of adam", 0, 0.9999)
    server_tau: float = _setting(1e-3, "floor of adam's denominator", 1e-9, 1)


@dataclass(frozen=True)
class Local:
    """A client's fine-tuning in one round (SGD with momentum, fake-quantized forward)."""

    epochs: int = _setting(2, "passes over the client's windows", 1, 1000)
    batch: int = _setting(16, "windows per step", 1, 4096)
    learning_rate: float = _setting(0.03, "in the first round", 1e-6, 10)
    final_learning_rate: float = _setting(0.01, "in the last round; a cosine lies between", 1e-6, 10)
    momentum: float = _setting(0.9, "of SGD", 0, 0.999)
    augment: bool = _setting(
        True, "vary the windows (jitter, scale, offset, time shift; images: shift, light)"
    )
    rotate: tuple[str, ...] = _setting(
        (),
        "names of the channels of 3-axis sensors, three by three, to turn at random (x, y, z scaled alike)",
    )
    rotate_degrees: float = _setting(15.0, "largest angle", 0, 180)
    proximal: float = _setting(
        0.0, "FedProx: weight of half the squared distance to the global weights", 0, 10
    )
    dynamic: float = _setting(
        0.0, "FedDyn: strength of the drift correction; goes with rounds.optimizer dyn", 0, 10
    )
    personal_head: bool = _setting(False, "the last layer stays on the client and is never sent")


@dataclass(frozen=True)
class Link:
    """One direction of traffic: a codec, and the codec's own settings as further keys of the table."""

    codec: str = _setting("ternary", "a file of fedge/codec")
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fleet:
    """What simulated devices are like; real devices say this of themselves."""

    uplink_bytes: tuple[int, ...] = _setting(
        (), "most bytes of one answer, dealt to the participants in turn; empty: no limit", 160, 2**31
    )
    uplink_bits_per_second: tuple[int, ...] = _setting(
        (), "instead: speed of the uplinks, dealt likewise; with answer_seconds", 1, 2**40
    )
    answer_seconds: float = _setting(10.0, "how long an answer may take on its uplink", 0.001, 86_400)
    devices: str = _setting(
        "", "kinds of devices, in virtual time: phones, gateways, lorawan, 5g or a TOML file; empty: no clock"
    )
    edges: int = _setting(
        0, "edge servers between the clients and the server, which are dealt to them; 0: none", 0, 10_000
    )
    edge_bytes: int = _setting(
        0, "most bytes of an edge server's answer, or 160 and more; 0: as the uplink's codec has it", 0, 2**31
    )
    start_hour: float = _setting(0.0, "of the first virtual day, when the run begins", 0, 24)


@dataclass(frozen=True)
class Redistill:
    """Teaching the student again from the teacher, in the course of the rounds."""

    mode: str = _setting(
        "ensemble",
        "who teaches; gradient: a step of it in every round, within the update that travels anyway",
        among=("none", "teacher", "ensemble", "gradient"),
    )
    every: int = _setting(10, "rounds from one to the next", 1, 1_000_000)
    epochs: int = _setting(5, "passes over the server's data", 1, 1000)
    learning_rate: float = _setting(1e-3, "peak of a one-cycle schedule (AdamW)", 1e-6, 1)
    interpolation: float = _setting(0.3, "0 keeps the aggregate, 1 takes the re-distilled student", 0, 1)
    proximal: float = _setting(0.0, "weight of half the squared distance to the aggregate", 0, 100)
    members: int = _setting(8, "clients whose reconstructed models join the ensemble, at most", 0, 1000)
    gradient_weight: float = _setting(
        1.0, "gradient: weight of the server's step beside the mean update", 0, 10
    )
    gradient_final: float = _setting(
        0.0, "gradient: share of that weight that is left in the last round; it falls linearly", 0, 1
    )
    gradient_epochs: int = _setting(1, "gradient: passes over the server's data in each round", 1, 100)
    teacher_epochs: int = _setting(
        0,
        "passes in which the federation's ensemble teaches the teacher before it teaches; 0: never",
        0,
        1000,
    )
    teacher_rate: float = _setting(3e-4, "peak learning rate of the teacher then", 1e-7, 1)
    bits: int = _setting(3, "bits per weight of the change as it travels", 2, 8)
    judge: str = _setting(
        "clients",
        "who judges: sampled clients, or people held back on the server",
        among=("clients", "server"),
    )
    judge_clients: tuple[str, ...] = _setting(
        (), "of the server's clients, those held back whole to judge; default the last quarter"
    )
    judges: int = _setting(4, "sampled clients that score the candidate", 2, 1000)
    margin: float = _setting(
        0.0, "how much higher a candidate's score must be, beside a clearly lower loss", -1, 1
    )


@dataclass(frozen=True)
class Release:
    """Signed models for the devices."""

    precision: str = _setting(
        "int8",
        "of the released model; below about 20 k parameters float32 may be as fast: fedge bench edge",
        among=("int8", "float32"),
    )
    every: int = _setting(10, "rounds from one release to the next", 1, 1_000_000)
    margin: float = _setting(
        0.02, "how much worse a device's own score may be (gate); of an error, a share of it", 0, 1
    )
    valid_days: int = _setting(90, "days until a release expires", 1, 36_500)


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    scenario: str = "watch"
    task: str = _setting("activity", "what is learned, a file of fedge/tasks")
    seed: int = _setting(0, "everything random follows from it", 0, 2**31 - 1)
    data: Data = Data()
    teacher: Teacher = Teacher()
    student: Student = Student()
    quantize: Quantize = Quantize()
    rounds: Rounds = Rounds()
    local: Local = Local()
    uplink: Link = Link(settings={"share": 0.01})
    downlink: Link = Link(settings={"share": 0.03})
    fleet: Fleet = Fleet()
    redistill: Redistill = Redistill()
    release: Release = Release()

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what the report shows and a resumed run is compared with."""
        return asdict(self)
