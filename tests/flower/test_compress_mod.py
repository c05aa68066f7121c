"""A node's memory: nothing that it changed is lost or counted twice, whatever happens to its answers."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedge.flower import Compressed, compression_mod
from fedge.flower.compress_frames import NO_TICKET, Base, Down, decode_up, encode_down
from fedge.flower.compress_scheme import Coded, Coding, Scheme, decode, scheme_of
from fedge.flower.compress_versions import History, advance, begin, way_from
from fedge.flower.messages import CANNOT_FOLLOW, REFUSED
from fedge.update import weights_hash
from flower.compress_build import Engine, Named, frame_in, initial, make_app, named, record

STEP = 0.01


def _scheme(uplink: str = "ternary") -> Scheme:
    return scheme_of(initial(), (), Coding(uplink), Coding("ternary"))


def _drift(partition: int, weights: Named) -> Named:
    """A change that needs many payloads of a sparse codec."""
    rng = np.random.default_rng(partition)
    return {n: (w + STEP * rng.normal(size=w.shape)).astype(w.dtype) for n, w in weights.items()}


class Server:
    """One node, driven message by message."""

    def __init__(self, path: Path, app: ClientApp | None = None) -> None:
        self.engine = Engine(app or make_app(local=_drift), 1, path / "states")
        self.history: History = begin(_scheme(), initial(), None)
        self.known: int | None = None
        self.counted = NO_TICKET
        self.sent = 0

    def down(self, **changed: Any) -> Down:
        self.sent += 1
        base, steps = way_from(self.history, self.known)
        fields = {
            "ticket": self.sent.to_bytes(8, "little"),
            "counted": self.counted,
            "hash": weights_hash(self.history.held),
            "version": self.history.version,
            "base": base,
            "steps": steps,
            "exact": zlib.compress(b""),
        }
        return Down(**(fields | changed))

    def send(self, frame: bytes, kind: str = "train") -> Message:
        content = RecordDict({"arrays": ConfigRecord({"fedge-frame": frame}), "config": ConfigRecord()})
        (reply,) = self.engine.send_and_receive([Message(content, 2, kind)])
        return reply

    def train(self, *, count: bool) -> Coded:
        """One round whose answer counts or is lost; what it decodes to."""
        down = self.down()
        up = decode_up(frame_in(self.send(encode_down(down)).content))
        assert up.ticket == down.ticket
        assert up.change is not None
        if count:
            self.counted, self.known = up.ticket, self.history.version
        scheme = self.history.scheme
        return decode(scheme.uplink.build(), up.change.payload, scheme.limits(10))


@pytest.mark.parametrize("fates", ["ccccc", "lllcc", "clclcl", "cllccllcc"])
def test_what_counted_and_the_residual_add_up_to_the_changes_that_counted(fates: str, tmp_path: Path) -> None:
    """Error feedback's law, with answers counted (c) and lost (l): a lost round is as if it had not been."""
    server = Server(tmp_path)
    total = {n: np.zeros_like(w) for n, w in initial().items()}
    for fate in fates:
        decoded = server.train(count=fate == "c")
        total = {n: total[n] + decoded[n] * (fate == "c") for n in total}
    server.send(encode_down(server.down()), "evaluate")  # settles the last one
    residual = server.train(count=True)
    start = initial()
    one = {n: _drift(0, start)[n] - start[n] for n in start}
    flat = np.concatenate([one[n].reshape(-1) for n in one]) * fates.count("c")
    got = np.concatenate([total[n].reshape(-1) for n in total])
    carried = np.concatenate([one[n].reshape(-1) for n in one])
    # The next payload is the largest 1 % of (what was left out + one more change): its signs and places show
    # the residual that was kept.
    expected = flat - got + carried
    sent = np.concatenate([residual[n].reshape(-1) for n in residual])
    places = np.flatnonzero(sent)
    assert len(places) == round(0.01 * len(sent))
    assert np.abs(expected[places]).min() >= np.sort(np.abs(expected))[-len(places)] - 1e-5
    np.testing.assert_array_equal(np.sign(sent[places]), np.sign(expected[places]))


def test_a_message_that_arrives_twice_leaves_the_node_as_one_would(tmp_path: Path) -> None:
    server = Server(tmp_path)
    frame = encode_down(server.down())
    first, second = (decode_up(frame_in(server.send(frame).content)) for _ in range(2))
    assert first == second


def test_steps_that_the_node_already_took_are_skipped(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.train(count=True)
    for round_ in range(3):
        goal = {n: w + round_ for n, w in initial().items()}
        server.history = advance(server.history, goal)
        server.train(count=False)  # took the step, but the server does not know
        assert server.known == 1
    server.train(count=True)


def _not_known(server: Server) -> bytes:
    return encode_down(server.down(base=None, steps=()))


def _wrong_hash(server: Server) -> bytes:
    return encode_down(server.down(hash=bytes(8)))


def _bad_payload(server: Server) -> bytes:
    return encode_down(server.down(base=Base(server.history.scheme.to_bytes(), b"garbage", False)))


def _bad_scheme(server: Server) -> bytes:
    return encode_down(server.down(base=Base(b"garbage", b"", False)))


def _unknown_codec(server: Server) -> bytes:
    scheme = scheme_of(initial(), (), Coding("os"), Coding("ternary"))
    return encode_down(server.down(base=Base(scheme.to_bytes(), server.down().base.payload, True)))  # type: ignore[union-attr]


def _large_model(server: Server) -> bytes:
    scheme = scheme_of({"w": np.broadcast_to(np.float32(0), (1 << 15, 1 << 14))}, (), *2 * (Coding("raw"),))
    return encode_down(server.down(base=Base(scheme.to_bytes(), b"", False)))


def _bomb(server: Server) -> bytes:
    return encode_down(server.down(exact=zlib.compress(bytes(1 << 20))))


def _cut(server: Server) -> bytes:
    return encode_down(server.down())[:-1]


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (_not_known, CANNOT_FOLLOW, "holds no weights yet"),
        (_wrong_hash, CANNOT_FOLLOW, "do not lead to version 1"),
        (_bad_payload, REFUSED, "payload"),
        (_bad_scheme, REFUSED, "deflated"),
        (_unknown_codec, REFUSED, "unknown codec 'os'"),
        (_large_model, REFUSED, "max_values"),
        (_bomb, REFUSED, "more than 0"),
        (_cut, REFUSED, "truncated"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_message_that_is_not_what_it_claims_is_refused_and_nothing_is_remembered(
    make: Callable[[Server], bytes], code: int, says: str, tmp_path: Path
) -> None:
    server = Server(tmp_path)
    reply = server.send(make(server))
    assert reply.error.code == code
    assert says in (reply.error.reason or "")
    assert not server.engine.memory(2)
    server.train(count=True)


def test_steps_from_a_version_ahead_of_the_nodes_are_refused(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.train(count=True)
    for _ in range(3):
        server.history = advance(server.history, {n: w + 1 for n, w in initial().items()})
    reply = server.send(encode_down(server.down(base=None, steps=server.history.steps[-1:])))
    assert reply.error.code == CANNOT_FOLLOW
    assert "this node holds version 1; the steps lead from 3 to 4" in (reply.error.reason or "")


@pytest.mark.parametrize("damage", [b"", b"FP1\0garbage", b"\0" * 100])
def test_a_memory_that_cannot_be_read_is_as_none(damage: bytes, tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.train(count=True)
    server.engine.memory(2)["fedge"] = ConfigRecord({"state": damage})
    assert server.send(encode_down(server.down())).error.code == CANNOT_FOLLOW


def test_an_app_that_answers_with_several_or_other_arrays_gets_told(tmp_path: Path) -> None:
    def answer(*records: Named) -> ClientApp:
        app = ClientApp(mods=[compression_mod()])

        @app.train()
        def train(message: Message, _context: Context) -> Message:
            content = {f"r{i}": record(r) for i, r in enumerate(records)}
            return Message(RecordDict({**content, "m": MetricRecord({"n": 1})}), reply_to=message)

        return app

    wrong = {"more": np.zeros(1, np.float32)}
    shape = initial() | {"fc.bias": np.zeros(3, np.float32)}
    cases = {"2 ArrayRecords": (initial(), initial()), "more": (initial() | wrong,), "shape": (shape,)}
    for i, (says, records) in enumerate(cases.items()):
        (tmp_path / str(i)).mkdir()
        server = Server(tmp_path / str(i), answer(*records))
        assert says in (server.send(encode_down(server.down())).error.reason or "")


def test_a_lost_answer_costs_the_run_nothing_but_that_answer(tmp_path: Path) -> None:
    strategy = Compressed(FedAvg(fraction_evaluate=0.0))
    with Engine(make_app(local=_drift), 4, tmp_path / "states") as engine:
        lost = iter([True, False, False, True] * 10)
        engine.lose = lambda reply: reply.metadata.src_node_id == 3 and next(lost)
        strategy.start(engine, record(initial()), num_rounds=8)
    assert all(np.isfinite(a).all() for a in named(strategy.held()).values())
    assert sum(n == 3 for w, n, _ in engine.carried if w == "up") == 8


def test_the_mod_raises_no_error_of_its_own_through_the_app(tmp_path: Path) -> None:
    """A refusal is an answer: an exception would be a traceback in the SuperNode's log."""
    reply = Server(tmp_path).send(b"")
    assert reply.error.code == REFUSED
    assert "Traceback" not in (reply.error.reason or "")


@pytest.mark.parametrize("known", [True, False])
def test_a_node_that_gets_everything_again_keeps_its_residual_if_the_server_knows_its_updates(
    known: bool, tmp_path: Path
) -> None:
    """A residual of another run, that this server knows nothing of, is not carried into this one."""
    server = Server(tmp_path)
    first, _, _ = (server.train(count=True) for _ in range(3))
    server.known = None
    if not known:
        server.counted = NO_TICKET
    again = server.train(count=True)
    assert all(np.array_equal(first[n], again[n]) for n in first) == (not known)
