"""Clients without work for ``fedge bench simulation``: each answers with a payload that was made before.

What they are sent and what they answer are frames of a round; updates are signed with each client's own key,
unless signatures are left out to see what they cost.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedge.bench import _synthetic as synthetic
from fedge.config import Config
from fedge.errors import UpdateError
from fedge.federated import frames
from fedge.federated.frames import Train, Trained
from fedge.federated.prepare import Prepared
from fedge.flower.client_app import IDENTITY
from fedge.flower.messages import frame_of, with_frame
from fedge.signing import SIGNATURE_BYTES, SigningKey

FEDERATION = "be" * 16
SETTINGS = "settings"
"""Key of the run config."""


@dataclass(frozen=True)
class Idle:
    """A federation whose clients do nothing.

    Attributes:
        clients: how many.
        parameters: of the student.
        signed: whether updates are.
        payloads: different updates; clients send them in turns.
    """

    clients: int
    parameters: int
    signed: bool = True
    payloads: int = 50

    def text(self) -> str:
        """For the run config."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, eq=False)
class Crowd:
    """Everything that these clients know."""

    config: Config
    prepared: Prepared
    payloads: list[bytes]
    keys: dict[str, SigningKey]
    signed: bool

    @staticmethod
    def of(idle: Idle) -> "Crowd":
        """Made anew; the same in every process."""
        config = synthetic.settings(rounds=1_000_000)  # a run's last round would be another thing
        prepared = synthetic.prepared_of(config, idle.parameters, FEDERATION)
        coded = synthetic.payloads_of(prepared.plan.uplink, prepared.support.shapes(), idle.payloads)
        names = [f"c{i:06d}" for i in range(idle.clients)]
        return Crowd(config, prepared, coded, {n: synthetic.key_of(n) for n in names}, idle.signed)

    def name(self, number: int) -> str:
        """Of client ``number``."""
        return f"c{number:06d}"

    def answer(self, frame: bytes, number: int) -> bytes:
        """What client ``number`` says to a task.

        Raises:
            UpdateError: the task is none for a client of the bench.
        """
        name, payload = self.name(number), self.payloads[number % len(self.payloads)]
        if self.signed:
            return synthetic.answer(frame, name, self.keys[name], FEDERATION, payload)
        task = frames.decode_task(frame)
        if not isinstance(task, Train):
            raise UpdateError("unsigned clients answer nothing but a task to train")
        signature = bytes(SIGNATURE_BYTES)
        return frames.encode_reply(Trained(task.round, synthetic.WINDOWS, 0.5, 0.5, None, payload, signature))


def app_of(settings: str = "") -> ClientApp:
    """A ClientApp; where Flower's contexts have no run config, it brings its settings along."""
    app = ClientApp()

    def crowd(context: Context) -> tuple[Crowd, int]:
        given = settings or str(context.run_config[SETTINGS])
        return crowd_of(given), int(context.node_config["partition-id"])

    @app.query("who")
    def who(message: Message, context: Context) -> Message:
        clients, number = crowd(context)
        identity = ConfigRecord({IDENTITY: clients.name(number)})
        return Message(RecordDict({"fedge": identity}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        clients, number = crowd(context)
        return Message(with_frame(clients.answer(frame_of(message), number)), reply_to=message)

    return app


@lru_cache(maxsize=4)
def crowd_of(settings: str) -> Crowd:
    """Made once per process."""
    return Crowd.of(Idle(**json.loads(settings)))


app = app_of()
APP = "fedge.bench._simulation_app:app"
