"""A strategy inside ``Compressed`` does what it does without, with few bytes, whatever answers come."""

import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    Krum,
    Result,
    Strategy,
)

from fedge.errors import ConfigError, PayloadError, UpdateError
from fedge.flower import Compressed, compression_mod
from fedge.flower.compress_frames import Base, decode_down, decode_up, encode_up
from flower.compress_build import (
    Engine,
    Local,
    Named,
    frame_in,
    initial,
    make_app,
    named,
    optimum,
    record,
    set_frame,
    towards,
)

Make = Callable[[], Strategy]
EXACTLY: dict[str, Any] = {"uplink": "raw", "downlink": "raw", "snapshot_bits": None}


def _run(
    strategy: Strategy,
    path: Path,
    rounds: int = 5,
    arrays: Named | None = None,
    local: Local = towards,
    **more: Any,
) -> tuple[Result, Engine]:
    mods = more.pop("mods", None)
    random.seed(0)  # Flower samples the nodes, and the order of a float sum shows in its last bits
    with Engine(make_app(mods, local, more.pop("meddle", None)), 4, path / "states", **more) as engine:
        return strategy.start(engine, record(arrays or initial()), num_rounds=rounds), engine


@pytest.mark.parametrize(
    "make",
    [FedAvg, FedAdam, FedAvgM, FedMedian, FedProx, Krum],
    ids=lambda m: m.__name__,
)
def test_without_loss_every_strategy_does_what_it_does_uncompressed(make: Make, tmp_path: Path) -> None:
    """Through FedAdam and FedAvgM: the weights that they compare with are not those that a codec left."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
    plain, _ = _run(make(), tmp_path / "a", mods=[])
    ours, _ = _run(Compressed(make(), **EXACTLY), tmp_path / "b")
    for name, expected in named(plain.arrays).items():
        np.testing.assert_allclose(named(ours.arrays)[name], expected, rtol=1e-5, atol=1e-6)
    assert dict(ours.train_metrics_clientapp) == dict(plain.train_metrics_clientapp)
    assert ours.evaluate_metrics_clientapp.keys() == plain.evaluate_metrics_clientapp.keys()


@pytest.mark.parametrize(
    ("codec", "rounds", "rate"),
    [("ternary", 40, 0.1), ("quantized", 6, 0.4), ("float16", 8, 0.4)],
)
def test_what_a_codec_leaves_out_comes_later_so_the_run_ends_where_the_plain_one_ends(
    codec: str, rounds: int, rate: float, tmp_path: Path
) -> None:
    sparse = {"share": 0.3} if codec == "ternary" else {}
    strategy = Compressed(FedAvg(), codec, codec, uplink_settings=sparse, downlink_settings=sparse)
    result, _ = _run(strategy, tmp_path, rounds=rounds, local=partial(towards, rate=rate))
    goals = [optimum(i, initial()) for i in range(4)]
    for name, start in initial().items():
        goal = sum((i + 1) * g[name] for i, g in enumerate(goals)) / 10
        before, after = (np.abs(w[name] - goal).mean() for w in ({name: start}, named(result.arrays)))
        assert after < 0.1 * before
        held = np.abs(named(strategy.held())[name] - goal).mean()
        assert held < 0.1 * before


def _drift(partition: int, weights: Named) -> Named:
    """The same change in every round, whatever the weights are."""
    rng = np.random.default_rng(partition)
    return {n: (w + 0.01 * rng.uniform(0.5, 1, w.shape)).astype(w.dtype) for n, w in weights.items()}


@pytest.mark.parametrize("make", [FedAvg, FedAdam], ids=lambda m: m.__name__)
def test_what_the_way_down_leaves_out_is_not_lost_from_the_strategys_weights(
    make: Make, tmp_path: Path
) -> None:
    """A mean of weights that the nodes hold would forget it; to FedAdam it would look like an update."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
    plain, _ = _run(make(), tmp_path / "a", local=_drift, mods=[])
    sparse = Compressed(make(), "raw", "ternary", downlink_settings={"share": 0.01})
    result, _ = _run(sparse, tmp_path / "b", local=_drift)
    for name, expected in named(plain.arrays).items():
        np.testing.assert_allclose(named(result.arrays)[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("down", ["ternary", "raw", "float16"])
def test_what_the_way_up_leaves_out_is_sent_in_later_rounds(down: str, tmp_path: Path) -> None:
    """Nodes hear which of their updates counted: else they would send the same entries for ever."""
    strategy = Compressed(FedAvg(), "ternary", down, uplink_settings={"share": 0.2})
    result, _ = _run(strategy, tmp_path, rounds=16, local=_drift)
    moved = [named(result.arrays)[name] - start for name, start in initial().items()]
    assert min(float(m.min()) for m in moved) > 0.03
    assert np.mean([float(m.mean()) for m in moved]) == pytest.approx(16 * 0.0075, rel=0.3)


def test_an_answer_that_comes_twice_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Counting(FedAvg):
        seen: tuple[int, ...] = ()

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            self.seen = (*self.seen, len(replies))
            return super().aggregate_train(server_round, replies)

    inner = Counting(fraction_evaluate=0.0)
    with (
        Engine(make_app(), 3, tmp_path / "states") as engine,
        caplog.at_level(logging.WARNING, "flwr"),
    ):
        engine.twice = True
        Compressed(inner).start(engine, record(initial()), num_rounds=2)
    assert inner.seen == (3, 3)
    assert sum("answers nothing that this node was asked" in r.message for r in caplog.records) == 6


def test_a_node_cannot_answer_in_the_name_of_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Even if it came by the other's ticket, and answers first."""

    class FiveFirst(Engine):
        def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
            return sorted(super().send_and_receive(*args, **kwargs), key=lambda r: -r.metadata.src_node_id)

    carried: list[tuple[str, int, RecordDict]] = []

    def meddle(reply: Message, context: Context) -> None:
        if context.node_id == 5:
            (stolen,) = (frame_in(c)[1:9] for w, n, c in carried if (w, n) == ("down", 2))
            frame = frame_in(reply.content)
            set_frame(reply.content, frame[:1] + stolen + frame[9:])

    strategy = Compressed(FedAvg(fraction_evaluate=0.0))
    with (
        FiveFirst(make_app(meddle=meddle), 4, tmp_path / "states") as engine,
        caplog.at_level(logging.WARNING, "flwr"),
    ):
        engine.carried = carried
        strategy.start(engine, record(initial()), num_rounds=1)
    refused = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert [m.split(":")[0] for m in refused] == ["refused the answer of node 5"]


def test_bytes_counted_are_those_of_the_frames_that_flower_carries_and_few(tmp_path: Path) -> None:
    def local(partition: int, weights: Named) -> Named:
        return {n: (w + 0.01 * partition).astype(w.dtype) for n, w in weights.items()}

    arrays = {"w": np.random.default_rng(0).normal(0, 0.1, (100, 200)).astype(np.float32)}
    strategy = Compressed(FedAvg())
    _, engine = _run(strategy, tmp_path, rounds=15, arrays=arrays, local=local)
    traffic = strategy.traffic()
    for way, counted in (("down", traffic.down), ("up", traffic.up)):
        for node in (2, 3, 4, 5):
            carried = sum(len(frame_in(c)) for w, n, c in engine.carried if (w, n) == (way, node))
            assert counted[node] == carried
    assert traffic.plain_down[2] == 2 * 15 * 80_000
    assert traffic.plain_up[2] == 15 * 80_000
    assert not any(c.array_records for _, _, c in engine.carried)
    assert traffic.ratio > 50


def test_everything_that_is_no_array_reaches_both_sides_as_it_was(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    def spy(message: Message, context: Context, call_next: Any) -> Message:
        seen.append((list(message.content), dict(message.content["config"])))
        reply: Message = call_next(message, context)
        return reply

    class Spying(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            for reply in replies:
                assert list(reply.content) == ["metrics", "arrays"] or list(reply.content) == [
                    "arrays",
                    "metrics",
                ]
                assert isinstance(reply.content["arrays"], ArrayRecord)
            return super().aggregate_train(server_round, replies)

    config = ConfigRecord({"lr": 0.25, "blob": b"\0\1"})
    with Engine(make_app([compression_mod(), spy]), 2, tmp_path / "states") as engine:
        Compressed(Spying()).start(engine, record(initial()), num_rounds=1, train_config=config)
    assert seen[0] == (["arrays", "config"], {"lr": 0.25, "blob": b"\0\1", "server-round": 1})


def test_nodes_that_are_sampled_now_and_then_walk_the_steps_they_missed_to_the_same_bits(
    tmp_path: Path,
) -> None:
    met: dict[int, list[Named]] = {}

    class Watching(FedAvg):
        def configure_train(self, server_round: int, *args: Any) -> Iterable[Message]:
            everyone = list(super().configure_train(server_round, *args))
            chosen = {2, 3 if server_round % 4 == 0 else 2, 4 if server_round > 5 else 2}
            return [m for m in everyone if m.metadata.dst_node_id in chosen]

    def local(partition: int, weights: Named) -> Named:
        met.setdefault(partition, []).append(weights)
        return towards(partition, weights)

    strategy = Compressed(Watching(fraction_evaluate=0.0))
    _, engine = _run(strategy, tmp_path, rounds=8, local=local)
    downs = [(n, decode_down(frame_in(c))) for w, n, c in engine.carried if w == "down"]
    fours = [d for n, d in downs if n == 3]
    assert isinstance(fours[0].base, Base)
    assert len(fours[0].steps) == 3
    assert (fours[1].base, len(fours[1].steps)) == (None, 4)
    late = next(d for n, d in downs if n == 4)
    assert isinstance(late.base, Base)
    assert len(late.steps) == 5
    for mine, theirs in ((met[1][-1], met[0][-1]), (met[2][-1], met[0][-1])):
        assert all(np.array_equal(mine[n], theirs[n]) for n in mine)


def test_a_node_that_lost_its_state_says_so_and_gets_everything_again(tmp_path: Path) -> None:
    strategy = Compressed(FedAvg(fraction_evaluate=0.0))
    with Engine(make_app(), 2, tmp_path / "states") as engine:
        result = strategy.start(engine, record(initial()), num_rounds=2)
        engine.forget(3)
        engine.carried.clear()
        strategy.start(engine, result.arrays or record(initial()), num_rounds=3)
    third = [decode_down(frame_in(c)) for w, n, c in engine.carried if (w, n) == ("down", 3)]
    assert [d.base is not None for d in third] == [False, True, False]
    assert sum(n == 3 for w, n, _ in engine.carried if w == "up") == 2


def test_a_fresh_process_for_every_message_changes_nothing(tmp_path: Path) -> None:
    results = []
    for fresh in (False, True):
        (tmp_path / str(fresh)).mkdir()
        results.append(_run(Compressed(FedAvg()), tmp_path / str(fresh), fresh=fresh)[0])
    warm, cold = (named(r.arrays) for r in results)
    assert all(np.array_equal(warm[n], cold[n]) for n in warm)


def test_counters_and_statistics_travel_exactly_and_in_their_own_dtypes(tmp_path: Path) -> None:
    arrays: Named = initial() | {
        "bn.running_mean": np.linspace(-1, 1, 7, dtype=np.float32),
        "bn.running_var": np.full(7, 1e-6, np.float32),
        "bn.num_batches_tracked": np.array(0, np.int64),
        "mask": np.array([True, False]),
        "half": np.ones(3, np.float16),
        "double": np.ones((2, 2), np.float64),
        "empty": np.zeros((0, 4), np.float32),
    }

    def local(partition: int, weights: Named) -> Named:
        assert {n: w.dtype for n, w in weights.items()} == {n: a.dtype for n, a in arrays.items()}
        assert {n: w.shape for n, w in weights.items()} == {n: a.shape for n, a in arrays.items()}
        changed = {n: w.copy() for n, w in weights.items()}
        changed["bn.running_mean"] += np.float32(1e-3 * partition)
        changed["bn.num_batches_tracked"] += 1 + (partition == 3)
        changed["double"] += 0.5
        return changed

    result, _ = _run(Compressed(FedAvg()), tmp_path, rounds=3, arrays=arrays, local=local)
    final = named(result.arrays)
    mean = np.float32(1e-3 * (0 * 1 + 1 * 2 + 2 * 3 + 3 * 4) / 10)
    np.testing.assert_allclose(final["bn.running_mean"], arrays["bn.running_mean"] + 3 * mean, rtol=1e-5)
    np.testing.assert_allclose(final["bn.running_var"], arrays["bn.running_var"], rtol=1e-6)
    # Means 1.4, then (rounded to whole batches for the clients) 1 + 1.4 and 2 + 1.4.
    assert float(final["bn.num_batches_tracked"]) == pytest.approx(3.4)


def _cut(frame: bytes) -> bytes:
    return frame[:-3]


def _flip(frame: bytes) -> bytes:
    return frame[:-6] + bytes([frame[-6] ^ 1]) + frame[-5:]


def _stolen(frame: bytes) -> bytes:
    return frame[:1] + bytes(8) + frame[9:]


def _frame(change: Callable[[bytes], bytes]) -> Callable[[RecordDict], None]:
    return lambda content: set_frame(content, change(frame_in(content)))


def _metrics(**values: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({"num-examples": 4, "loss": 0.5} | values)

    return change


def _remove(*names: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        for name in names:
            del content[name]

    return change


def _add(name: str, added: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[name] = added

    return change


HOSTILE: dict[str, Callable[[RecordDict], None]] = {
    "a frame that was cut": _frame(_cut),
    "a frame that was changed": _frame(_flip),
    "an empty frame": _frame(lambda _f: b""),
    "fifteen bytes": _frame(lambda _f: b"\1garbage garbage"),
    "another node's ticket": _frame(_stolen),
    "no update": _frame(lambda f: encode_up(decode_up(f).__class__(decode_up(f).ticket, None))),
    "two frames": _add("more", ConfigRecord({"fedge-frame": b"x"})),
    "a frame of text": _add("arrays", ConfigRecord({"fedge-frame": "x"})),
    "plain arrays": _add("arrays", record(initial())),
    "nothing": _remove("arrays", "metrics"),
    "no metrics": _remove("metrics"),
    "two metrics": _add("more", MetricRecord({"num-examples": 1})),
    "a weight that is not finite": _metrics(**{"num-examples": float("nan")}),
    "a negative weight": _metrics(**{"num-examples": -1}),
    "a weight of 1e12": _metrics(**{"num-examples": 1e12}),
    "a weight that is a list": _metrics(**{"num-examples": [1, 2]}),
    "a loss that is not finite": _metrics(loss=float("inf")),
    "a metric that the others do not have": _metrics(surprise=1),
    "a list where the others have a number": _metrics(loss=[0.5, 0.5]),
    "a second array record": _add("more", record(initial())),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_an_odd_answer_is_logged_and_left_out_and_the_run_goes_on(
    attack: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def meddle(reply: Message, context: Context) -> None:
        if context.node_id == 5 and reply.metadata.message_type == "train":
            HOSTILE[attack](reply.content)

    class Without(FedAvg):
        def configure_train(self, *args: Any) -> Iterable[Message]:
            return [m for m in super().configure_train(*args) if m.metadata.dst_node_id != 5]

    for folder in "ab":
        (tmp_path / folder).mkdir()
    expected, _ = _run(Compressed(Without(), **EXACTLY), tmp_path / "a", rounds=2)
    logging.getLogger("flwr").propagate = True
    with caplog.at_level(logging.WARNING, "flwr"):
        result, _ = _run(Compressed(FedAvg(), **EXACTLY), tmp_path / "b", rounds=2, meddle=meddle)
    for name, value in named(expected.arrays).items():
        np.testing.assert_array_equal(named(result.arrays)[name], value)
    assert sum("refused the answer of node 5" in r.message for r in caplog.records) == 2


@pytest.mark.parametrize("size", [2e3, 1e30])
def test_a_change_beyond_the_limit_is_refused(size: float, tmp_path: Path) -> None:
    def local(partition: int, weights: Named) -> Named:
        if partition == 3:
            return {n: (w + np.float32(size)).astype(w.dtype) for n, w in weights.items()}
        return weights

    result, _ = _run(Compressed(FedAvg(), **EXACTLY), tmp_path, rounds=1, local=local)
    assert max(float(np.abs(a).max()) for a in named(result.arrays).values()) < 1


def test_training_that_ends_in_nan_is_the_clients_error_and_the_others_go_on(tmp_path: Path) -> None:
    def local(partition: int, weights: Named) -> Named:
        return {n: w * np.float32("nan") for n, w in weights.items()} if partition == 1 else weights

    result, engine = _run(Compressed(FedAvg()), tmp_path, rounds=2, local=local)
    assert all(np.isfinite(a).all() for a in named(result.arrays).values())
    assert sum(n == 3 and "arrays" in c for w, n, c in engine.carried if w == "up") == 0


def test_a_round_without_a_sound_answer_changes_nothing(tmp_path: Path) -> None:
    strategy = Compressed(FedAvg(fraction_evaluate=0.0))
    result, engine = _run(strategy, tmp_path, rounds=3, meddle=lambda r, _c: set_frame(r.content, b""))
    assert result.arrays is None or len(result.arrays) == 0
    versions = {decode_down(frame_in(c)).version for w, _, c in engine.carried if w == "down"}
    assert versions == {1}


def test_a_strategy_with_a_start_of_its_own_keeps_it(tmp_path: Path) -> None:
    class Saving(FedAvg):
        saved = 0

        def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
            self.saved += 1
            result = super().start(grid, *args, **kwargs)
            assert self.configure_train.__self__ is not self  # type: ignore[attr-defined]
            return result

    inner = Saving()
    strategy = Compressed(inner)
    _run(strategy, tmp_path, rounds=1)
    assert inner.saved == 1
    assert sum(strategy.traffic().up.values()) > 0
    assert not {"configure_train", "aggregate_train"} & set(vars(inner))


def test_inside_it_a_wrapper_for_privacy_works_with_its_mod(tmp_path: Path) -> None:
    wrapped = DifferentialPrivacyClientSideFixedClipping(
        FedAvg(), 0.0, clipping_norm=0.5, num_sampled_clients=4
    )
    mods = [compression_mod(), fixedclipping_mod]
    result, _ = _run(Compressed(wrapped, **EXACTLY), tmp_path, rounds=1, mods=mods)
    change = [named(result.arrays)[n] - w for n, w in initial().items()]
    assert 0.1 < float(np.sqrt(sum((c**2).sum() for c in change))) <= 0.5001


def test_a_client_app_with_the_mod_serves_an_uncompressed_strategy_too(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
    bare, with_mod = (_run(FedAvg(), tmp_path / f, mods=m)[0] for f, m in (("a", []), ("b", None)))
    assert named(bare.arrays).keys() == named(with_mod.arrays).keys()
    assert all(np.array_equal(a, named(with_mod.arrays)[n]) for n, a in named(bare.arrays).items())


def test_answers_without_the_mod_are_refused_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(message: Message, _context: Context, _next: Any) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    with caplog.at_level(logging.WARNING, "flwr"):
        _run(Compressed(FedAvg(fraction_evaluate=0.0)), tmp_path, rounds=1, mods=[answer])
    assert any("has its ClientApp the compression_mod?" in r.message for r in caplog.records)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"uplink": "ternery"}, "did you mean 'ternary'"),
        ({"downlink": "zip"}, "unknown codec 'zip'"),
        ({"uplink_settings": {"shore": 0.1}}, "did you mean 'share'"),
        ({"downlink_settings": {"share": 2}}, "share of entries is 2"),
        ({"uplink_settings": {"share": "much"}}, "ternary"),
        ({"snapshot_bits": 9}, "bits is 9"),
        ({"snapshot_bits": 0}, "bits is 0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_when_it_is_given(settings: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Compressed(FedAvg(), **settings)


def test_arrays_that_cannot_be_compressed_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'w' has dtype complex64"):
        _run(Compressed(FedAvg()), tmp_path, arrays={"w": np.zeros(3, np.complex64)})
    with pytest.raises(PayloadError, match="'w' has values that are not finite"):
        _run(Compressed(FedAvg()), tmp_path, arrays={"w": np.full(3, np.nan, np.float32)})
    with pytest.raises(UpdateError, match="before the first round"):
        Compressed(FedAvg()).held()


def test_different_arrays_for_different_nodes_are_refused(tmp_path: Path) -> None:
    class Personal(FedAvg):
        def configure_train(self, *args: Any) -> Iterable[Message]:
            messages = list(super().configure_train(*args))
            content = RecordDict(dict(messages[0].content.items()))
            content["arrays"] = record(initial(seed=1))
            messages[0].content = content
            return messages

    with pytest.raises(ConfigError, match="the same for all nodes"):
        _run(Compressed(Personal()), tmp_path)


def test_errors_of_a_client_reach_the_strategy(tmp_path: Path) -> None:
    errors: list[Error] = []

    class Listening(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            errors.extend(r.error for r in replies if r.has_error())
            return super().aggregate_train(server_round, replies)

    def local(partition: int, weights: Named) -> Named:
        if partition == 2:
            raise ZeroDivisionError("a bug in the app")
        return weights

    _run(Compressed(Listening()), tmp_path, rounds=2, local=local)
    assert len(errors) == 2
    assert all("a bug in the app" in (e.reason or "") for e in errors)


def test_the_adapters_of_fedges_own_frames_load_nothing_of_this() -> None:
    script = (
        "import sys, fedge.flower.messages\n"
        "assert not [m for m in sys.modules if m.startswith('fedge.flower.compress')]\n"
        "from fedge.flower import compression_mod\n"
        "assert 'fedge.flower.compression' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
        "from fedge.flower import Compressed\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import fedge.flower

    with pytest.raises(AttributeError, match="'Compresed'"):
        _ = fedge.flower.Compresed  # type: ignore[attr-defined]
