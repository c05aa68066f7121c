"""Laws that every codec in the folder obeys, whatever its settings."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge import plugins
from fedge.codec import Codec, Limits, State
from fedge.codec._flat import residual
from fedge.errors import PayloadError

from .cases import CODECS, SHAPES, Named, any_arrays, flat, heavy, limits


def _over(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("codec", [CODECS[n] for n in names], ids=names)


every_codec = _over(list(CODECS))
every_codec_with_a_residual = _over([n for n, c in CODECS.items() if "residual" in c.init(SHAPES)])
every_additive_codec = _over([n for n, c in CODECS.items() if c.additive])


def _round(codec: Codec, state: State, arrays: Named) -> tuple[State, bytes, Named]:
    state, payload = codec.encode(state, arrays)
    return state, payload, codec.decode(payload, limits(arrays))


def _start(codec: Codec, arrays: Named) -> State:
    return codec.init({k: v.shape for k, v in arrays.items()})


@every_codec
@settings(max_examples=20, deadline=None)
@given(arrays=any_arrays(), rounds=st.integers(1, 3))
def test_nothing_is_lost_between_payload_and_residual(codec: Codec, arrays: Named, rounds: int) -> None:
    """decoded + residual' == arrays + residual, exactly wherever float32 can say it."""
    state = _start(codec, arrays)
    for _ in range(rounds):
        before = flat(residual(state)) if "residual" in state else np.float32(0)
        target = flat(arrays) + before
        state, _, decoded = _round(codec, state, arrays)
        assert list(decoded) == list(arrays)
        assert all(d.shape == a.shape for d, a in zip(decoded.values(), arrays.values(), strict=True))
        assert all(d.dtype == np.float32 for d in decoded.values())
        if "residual" in state:
            exact = target.astype(np.float64) - flat(decoded)
            assert np.array_equal(flat(residual(state)), exact.astype(np.float32))


@every_codec
def test_encode_changes_neither_state_nor_arrays_and_repeats_itself(codec: Codec) -> None:
    arrays = heavy(SHAPES)
    state, _ = codec.encode(codec.init(SHAPES), arrays)
    kept_state, kept_arrays = ({k: np.copy(v) for k, v in d.items()} for d in (state, arrays))
    after, payload = codec.encode(state, arrays)
    again, same_payload = codec.encode(state, arrays)
    assert payload == same_payload
    for one, two in ((state, kept_state), (arrays, kept_arrays), (after, again)):
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[k], two[k]) for k in one)


@every_codec
def test_a_stored_state_goes_on_as_if_never_stored(codec: Codec) -> None:
    arrays = heavy(SHAPES)
    state, _ = codec.encode(codec.init(SHAPES), arrays)
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        restored = {k: stored[k] for k in stored.files}
    assert codec.encode(restored, arrays)[1] == codec.encode(state, arrays)[1]


@every_codec_with_a_residual
def test_the_residual_does_not_grow(codec: Codec) -> None:
    arrays = heavy(SHAPES)
    state = codec.init(SHAPES)
    sizes = []
    for _ in range(200):
        state, _ = codec.encode(state, arrays)
        sizes.append(float(np.linalg.norm(flat(residual(state)))))
    assert max(sizes[100:]) <= 1.5 * max(sizes[:100]) + 1e-12


@every_additive_codec
@settings(max_examples=20, deadline=None)
@given(a=any_arrays(1e3), seed=st.integers(0, 99))
def test_additive_codecs_add(codec: Codec, a: Named, seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = {k: np.asarray(rng.normal(size=v.shape), np.float32) for k, v in a.items()}
    together = {k: a[k] + b[k] for k in a}
    state = _start(codec, a)
    parts = [_round(codec, state, x)[2] for x in (a, b)]
    assert np.array_equal(flat(parts[0]) + flat(parts[1]), flat(_round(codec, state, together)[2]))


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_array_that_is_not_finite_is_named(codec: Codec, bad: float) -> None:
    arrays = heavy(SHAPES)
    arrays["head"][3, 4] = bad
    with pytest.raises(PayloadError, match="'head'"):
        codec.encode(codec.init(SHAPES), arrays)


@every_codec
def test_arrays_unlike_the_state_are_refused(codec: Codec) -> None:
    state, arrays = codec.init(SHAPES), heavy(SHAPES)
    reordered = dict(reversed(arrays.items()))
    reshaped = arrays | {"head": arrays["head"].reshape(16, 40)}
    missing = {k: v for k, v in arrays.items() if k != "gain"}
    wider = {k: v.astype(np.float64) for k, v in arrays.items()}
    for wrong in (reordered, reshaped, missing, wider):
        with pytest.raises(PayloadError):
            codec.encode(state, wrong)


@every_codec_with_a_residual
def test_a_residual_of_another_length_is_refused(codec: Codec) -> None:
    state = codec.init(SHAPES)
    with pytest.raises(PayloadError, match="residual"):
        codec.encode({**state, "residual": np.zeros(3, np.float32)}, heavy(SHAPES))


@every_codec
def test_the_state_of_another_codec_or_setting_is_refused(codec: Codec) -> None:
    state = codec.init(SHAPES)
    others = [{**state, "more": np.zeros(1)}, {}, {k: v for k, v in state.items() if k == "layout"}]
    for other in [o for o in others if o.keys() != state.keys()]:
        with pytest.raises(PayloadError, match="state holds"):
            codec.encode(other, heavy(SHAPES))


@every_codec
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-40, 1e-30, 3.0, 3.0e38])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (700,), (3, 0, 2)])
def test_flat_arrays_of_extreme_values_survive(codec: Codec, value: float, shape: tuple[int, ...]) -> None:
    arrays = {"a": np.full(shape, value, np.float32), "b": np.zeros(5, np.float32)}
    _, _, decoded = _round(codec, _start(codec, arrays), arrays)
    assert np.isfinite(flat(decoded)).all()
    if not value:
        assert not flat(decoded).any()


@every_codec
def test_no_arrays_at_all_make_a_payload(codec: Codec) -> None:
    assert _round(codec, codec.init({}), {})[2] == {}


@every_codec_with_a_residual
def test_a_sum_beyond_float32_is_refused(codec: Codec) -> None:
    arrays = {"a": np.linspace(-3e38, 3e38, 50, dtype=np.float32)}
    state = _start(codec, arrays)
    full = {**state, "residual": arrays["a"]}
    with pytest.raises(PayloadError, match="range of float32"):
        codec.encode(full, arrays)


@every_codec
def test_byte_order_and_strides_of_the_sender_do_not_matter(codec: Codec) -> None:
    arrays = heavy(SHAPES)
    swapped = {k: v.astype(">f4") for k, v in arrays.items()}
    strided = {k: np.array(v, order="F") for k, v in arrays.items()}
    payload = codec.encode(codec.init(SHAPES), arrays)[1]
    assert codec.encode(codec.init(SHAPES), swapped)[1] == payload
    assert codec.encode(codec.init(SHAPES), strided)[1] == payload


@every_codec
def test_a_value_above_the_limit_is_refused(codec: Codec) -> None:
    arrays = heavy(SHAPES)
    payload = codec.encode(codec.init(SHAPES), arrays)[1]
    peak = float(np.abs(flat(codec.decode(payload, limits(arrays)))).max())
    codec.decode(payload, limits(arrays, peak))
    with pytest.raises(PayloadError, match="the limit is"):
        codec.decode(payload, limits(arrays, peak * 0.999))


@every_codec
def test_a_payload_above_the_byte_limit_is_refused(codec: Codec) -> None:
    payload = codec.encode(codec.init(SHAPES), heavy(SHAPES))[1]
    codec.decode(payload, Limits(SHAPES, len(payload)))
    with pytest.raises(PayloadError, match="bytes"):
        codec.decode(payload, Limits(SHAPES, len(payload) - 1))


@every_codec
def test_a_payload_for_another_model_is_refused(codec: Codec) -> None:
    payload = codec.encode(codec.init(SHAPES), heavy(SHAPES))[1]
    renamed = {("tail" if k == "head" else k): v for k, v in SHAPES.items()}
    reshaped = {**SHAPES, "head": (16, 40)}
    for other in (renamed, reshaped, dict(reversed(SHAPES.items())), {}):
        with pytest.raises(PayloadError, match="other names or shapes"):
            codec.decode(payload, Limits(other, 1 << 20))


@every_codec
def test_every_truncation_and_every_flipped_bit_is_refused(codec: Codec) -> None:
    payload = codec.encode(codec.init(SHAPES), heavy(SHAPES))[1]
    places = np.random.default_rng(0).permutation(len(payload))[:200].tolist()
    for at in places:
        flipped = bytearray(payload)
        flipped[at] ^= 1 << at % 8
        for broken in (payload[:at], bytes(flipped), payload + payload[:at] + b"\0"):
            with pytest.raises(PayloadError):
                codec.decode(broken, Limits(SHAPES, 1 << 20))


def test_codecs_do_not_take_each_other_s_payloads() -> None:
    for name, one in CODECS.items():
        payload = one.encode(one.init(SHAPES), heavy(SHAPES))[1]
        for other in CODECS.values():
            if one.name != other.name:
                with pytest.raises(PayloadError, match="codec number"):
                    other.decode(payload, Limits(SHAPES, 1 << 20))
        assert name.startswith(one.name)


def test_negative_and_enormous_shapes_are_refused_before_memory_is() -> None:
    for codec in CODECS.values():
        for shape in ((-1, 4), (1 << 40,), (1 << 20, 1 << 20)):
            with pytest.raises(PayloadError, match="shapes"):
                codec.decode(b"\x20\0\0\0\0", Limits({"a": shape}, 100))


def test_every_codec_of_the_folder_is_tested_and_named_after_its_module() -> None:
    assert {c.name for c in CODECS.values()} == set(plugins.names("codec"))
