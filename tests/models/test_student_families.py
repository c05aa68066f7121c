import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ConfigError
from fedge.models.normalised import Normalised
from fedge.models.student_families import FAMILIES, SIZES, build_spec

THOUSANDS = {"tiny": 5, "small": 20, "medium": 60, "large": 200}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [(128, 6), (50, 3), (32, 32, 3), (28, 28, 1)])
def test_parameter_counts_are_as_documented(family: str, size: str, window: tuple[int, ...]) -> None:
    spec = build_spec(family, size, window, 7)
    assert spec.parameters() == pytest.approx(1000 * THOUSANDS[size], rel=0.25)
    assert spec.parameters() == sum(p.numel() for p in Normalised(spec).folded().values())


def test_sizes_grow() -> None:
    for family in FAMILIES:
        for window in ((128, 6), (32, 32, 3)):
            counts = [build_spec(family, size, window, 7).multiply_adds() for size in SIZES]
            assert all(2 * a < b for a, b in itertools.pairwise(counts))


def test_a_separable_student_filters_and_mixes_by_turns() -> None:
    convs = build_spec("separable", "tiny", (64, 6), 7).convs
    assert [c.depthwise for c in convs] == [False, True, False, True, False, True, False]
    assert all(c.kernel == 1 and c.stride == 1 for c in convs[2::2])
    assert not any(c.depthwise for c in build_spec("plain", "tiny", (64, 6), 7).convs)


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(SIZES),
    st.tuples(st.integers(1, 2000), st.integers(1, 24))
    | st.tuples(st.integers(1, 96), st.integers(1, 96), st.integers(1, 4)),
)
def test_any_window_and_any_image_has_a_student_that_fits_it(
    family: str, size: str, window: tuple[int, ...]
) -> None:
    spec = build_spec(family, size, window, 5)
    assert spec.window == window
    least = 4 if len(window) == 2 else 2
    assert min(spec.sizes()[-1]) >= min(least, *spec.size)
    for c, extent in zip(spec.convs, spec.sizes(), strict=True):
        assert c.stride in (1, 2)
        assert min(extent) >= min(least, *spec.size)


def test_an_unknown_family_or_size_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="known: plain, separable"):
        build_spec("residual", "tiny", (64, 6), 7)
    with pytest.raises(ConfigError, match="known: tiny, small, medium, large"):
        build_spec("plain", "huge", (64, 6), 7)
