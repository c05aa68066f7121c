"""A ClientApp for worker processes: it does what its frame says. Its run config names a ``folder`` for marks.

echo            answers with what it keeps: one ``+`` for every message so far
raise           a bug
die N           kills its own process, until that has happened N times
wait NAME       answers once there is a mark of that name; ``mark NAME`` makes it
other           answers with what is no frame of fedge
"""

import os
import signal
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedge.flower.client_app import IDENTITY, ContextStore
from fedge.flower.messages import frame_of, with_frame

app = ClientApp()


@app.query("who")
def who(message: Message, context: Context) -> Message:
    identity = f"c{context.node_config['partition-id']}"
    return Message(RecordDict({"fedge": ConfigRecord({IDENTITY: identity})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    store, folder = ContextStore(context), Path(str(context.run_config["folder"]))
    word, _, rest = frame_of(message).decode().partition(" ")
    kept = (store.load() or b"") + b"+"
    store.save(kept)
    if word == "raise":
        raise ZeroDivisionError("a bug in the app")
    if word == "die":
        _die(folder, context.node_id, int(rest))
    if word == "mark":
        (folder / rest).touch()
    while word == "wait" and not (folder / rest).exists():
        time.sleep(0.001)
    if word == "other":
        return Message(RecordDict({"odd": ConfigRecord()}), reply_to=message)
    return Message(with_frame(f"{context.node_id} {kept.decode()}".encode()), reply_to=message)


def _die(folder: Path, node: int, times: int) -> None:
    with (folder / f"deaths-{node}").open("ab", buffering=0) as file:
        if file.tell() < times:
            file.write(b"x")
            os.kill(os.getpid(), signal.SIGKILL)
