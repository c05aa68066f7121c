"""``fedge bench codec``: every codec is in it, the keys are there, and the numbers are what they say."""

import json
from typing import Any

import numpy as np
import pytest
from codec.cases import heavy

from fedge import plugins
from fedge.bench import codec as bench
from fedge.bench._updates import Recorded, stretched
from fedge.cli import main
from fedge.federated.coding import Coding, build_codec
from fedge.observe import silent

SHAPES = {"conv.weight": (4000,), "conv.bias": (40,), "head.weight": (2000,)}
KEYS = {"ratio_to_entropy", "encode_mb_s", "decode_mb_s", "bytes_per_parameter", "relative_error"}
UPLINK = Coding("ternary", {"share": 0.02})


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    updates = {c: [heavy(SHAPES, seed=10 * i + r) for r in range(3)] for i, c in enumerate("ab")}
    return Recorded(updates, UPLINK)


@pytest.fixture(scope="module")
def result(recorded: Recorded) -> dict[str, Any]:
    return bench.measure(recorded, silent, large=80_000, repeats=1)


def test_every_codec_of_the_folder_is_measured(result: dict[str, Any]) -> None:
    assert set(plugins.names("codec")) <= set(result["codecs"])
    assert {"zlib_float32", "ternary+zlib", "quantized+zlib", "eden_1bit"} <= set(result["codecs"])


def test_the_promised_keys_are_there_for_the_default_codec_and_for_each(result: dict[str, Any]) -> None:
    assert KEYS | {"codecs", "sizes"} <= set(result)
    assert all(set(row) >= KEYS for row in result["codecs"].values())
    assert {k: result[k] for k in KEYS} == {k: result["codecs"]["ternary"][k] for k in KEYS}
    assert result["default"] == {"codec": "ternary", "share": 0.02}


def test_a_lossless_codec_has_its_four_bytes_and_no_error(result: dict[str, Any]) -> None:
    raw = result["codecs"]["raw"]
    assert raw["relative_error"] == 0
    assert raw["bytes_per_parameter"] == pytest.approx(4 + 5 / 6040)
    assert raw["ratio_to_entropy"] is None


def test_peers_on_the_same_levels_have_the_same_error(result: dict[str, Any]) -> None:
    codecs = result["codecs"]
    for name, row in codecs.items():
        base, plus, _ = name.partition("+")
        assert not plus or row["relative_error"] == codecs[base]["relative_error"]


def test_the_ratio_is_that_of_the_payload_without_its_container(
    recorded: Recorded, result: dict[str, Any]
) -> None:
    """Once more by hand, for the one large update, whose default payload has 1 kB and more."""
    update = stretched(recorded.all[0], 80_000, seed=0)
    codec = build_codec(UPLINK)
    payload = codec.encode(codec.init({n: a.shape for n, a in update.items()}), update)[1]
    count, sent = 80_000, 1600
    values = np.concatenate(list(update.values()))
    negative = int((values[np.argsort(-np.abs(values), kind="stable")[:sent]] < 0).sum())
    parts = [p for p in (count - sent, negative, sent - negative) if p]
    bits = -sum(p * np.log2(p / count) for p in parts)
    assert len(payload) >= bench.SHORTEST_PAYLOAD
    assert result["ratio_to_entropy"] == pytest.approx(8 * (len(payload) - 5) / bits, rel=1e-9)


def test_short_payloads_say_nothing_about_the_entropy(result: dict[str, Any]) -> None:
    real = result["sizes"]["real"]["codecs"]
    assert real["ternary"]["payload_bytes"] < bench.SHORTEST_PAYLOAD
    assert real["ternary"]["ratio_to_entropy"] is None
    assert real["quantized"]["payload_bytes"] >= bench.SHORTEST_PAYLOAD
    assert real["quantized"]["ratio_to_entropy"] is not None


def test_error_feedback_shows_in_the_sum_of_the_rounds() -> None:
    """The same update over and over: with the residual the sum comes near, without it it never does."""
    same = heavy(SHAPES)
    updates = {"a": [same] * 30}
    errors = [
        bench.error_of_sum(build_codec(Coding("ternary", {"share": 0.2, "error_feedback": on})), updates)
        for on in (True, False)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_the_terminal_shows_every_row_and_what_is_missing(result: dict[str, Any]) -> None:
    shown = "\n".join(bench.lines(result | {"not_measured": ["zstd: needs a package"]}))
    assert all(f"\n{name} " in shown for name in result["codecs"])
    assert "not measured: zstd: needs a package" in shown


def test_json_is_one_object_on_the_last_line(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "run", lambda: result)
    assert main(["bench", "codec", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == json.loads(json.dumps(result))
    assert main(["bench", "codec"]) == 0
    assert capsys.readouterr().out.splitlines() == "\n".join(bench.lines(result)).splitlines()


def test_fewer_than_one_seed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "communication", "--seeds", "0"]) == 2
    assert capsys.readouterr().err == "fedge: error: --seeds 0: give at least one\n"
