"""One line of versions: every way to the current one ends in the same bits, and the shortest is taken."""

import numpy as np
import pytest

from fedge.errors import PayloadError
from fedge.flower.compress_scheme import LARGEST, Coded, Coding, scheme_of
from fedge.flower.compress_versions import History, advance, apply_step, begin, read_base, way_from
from flower.compress_build import initial


def _history(
    bits: int | None, versions: int, share: float = 0.05, goal: float = 1.0
) -> tuple[list[History], Coded]:
    scheme = scheme_of(initial(), (), Coding("raw"), Coding("ternary", {"share": share}))
    weights = initial()
    line = [begin(scheme, weights, bits)]
    rng = np.random.default_rng(0)
    for _ in range(versions):
        weights = {
            n: (w + goal * rng.normal(0, 0.01, w.shape)).astype(np.float32) for n, w in weights.items()
        }
        line.append(advance(line[-1], weights))
    return line, weights


def _walk(history: History, known: History | None) -> Coded:
    base, steps = way_from(history, None if known is None else known.version)
    held = read_base(base, history.scheme) if base else known.held if known else {}
    for step in steps:
        held = apply_step(held, step, history.scheme)
    return held


@pytest.mark.parametrize("bits", [None, 8, 3])
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_from_every_version_and_from_nothing_the_way_ends_in_the_same_bits(
    bits: int | None, share: float
) -> None:
    line, _ = _history(bits, 12, share)
    for known in (None, *line):
        held = _walk(line[-1], known)
        assert all(np.array_equal(held[n], w) for n, w in line[-1].held.items())


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_no_way_is_longer_than_the_weights_in_float32(share: float) -> None:
    line, _ = _history(8, 40, share)
    raw = 4 * line[0].scheme.values + 5
    for known in (None, *range(1, 41)):
        base, steps = way_from(line[-1], known)
        assert (len(base.payload) if base else 0) + sum(map(len, steps)) <= raw
    assert sum(map(len, line[-1].steps)) <= raw


def test_what_a_step_leaves_out_the_next_ones_carry() -> None:
    line, weights = _history(3, 5)
    last = line[-1]
    before = max(np.abs(weights[n] - last.held[n]).max() for n in weights)
    for _ in range(60):
        last = advance(last, weights)
    after = max(np.abs(weights[n] - last.held[n]).max() for n in weights)
    assert after < 0.2 * before


def test_versions_that_are_not_of_this_line_get_everything() -> None:
    line, _ = _history(8, 3)
    for known in (0, 5, 99, -1):
        assert way_from(line[-1], known)[0] is not None
    assert way_from(line[-1], 4) == (None, ())


def test_weights_further_away_than_float32_reaches_are_refused() -> None:
    line, _ = _history(None, 0)
    far = {n: np.full_like(w, LARGEST) for n, w in initial().items()}
    low = begin(line[0].scheme, {n: -w for n, w in far.items()}, None)
    with pytest.raises(PayloadError, match="not finite"):
        advance(low, far)
