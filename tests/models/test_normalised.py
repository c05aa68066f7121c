import pytest
import torch
from torch import Tensor

from fedge.models.normalised import Normalised
from fedge.models.student import Conv, StudentSpec, forward
from fedge.models.student_families import FAMILIES, SIZES, build_spec

SMALL = StudentSpec(2, (9,), 3, (Conv("one", 2, 4, 5, 2), Conv("two", 4, 4, 3, 1, 4)))
WINDOWS = [(4, 3), (9, 1), (128, 6), (8, 8, 1), (17, 15, 3), (32, 32, 3)]


def trained(spec: StudentSpec, seed: int = 0) -> Normalised:
    """Any weights and any running statistics, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = Normalised(spec).double()
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
        for norm in model.norms:
            norm.get_buffer("running_var").abs_().add_(1e-3)
    return model.eval()


def windows(n: int, spec: StudentSpec) -> Tensor:
    return torch.randn(n, *spec.input, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS)
def test_folding_batchnorm_away_changes_nothing(family: str, size: str, window: tuple[int, ...]) -> None:
    model = trained(build_spec(family, size, window, 5))
    folded, x = model.folded(), windows(3, model.spec)
    assert {n: tuple(p.shape) for n, p in folded.items()} == model.spec.shapes()
    assert list(folded) == list(model.spec.shapes())
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(forward(model.spec, folded, x), expected, rtol=1e-9, atol=1e-9)


def test_the_head_sees_the_features() -> None:
    model = trained(SMALL)
    x = windows(3, SMALL)
    with torch.no_grad():
        seen = model.features(x)
        assert tuple(seen.shape) == (3, SMALL.features)
        assert torch.equal(model.head(seen), model(x))


def test_folded_weights_are_copies() -> None:
    model = Normalised(SMALL)
    kept = {n: p.clone() for n, p in model.folded().items()}
    folded = model.folded()
    for value in folded.values():
        value.add_(1)
    assert all(torch.equal(p, kept[n]) for n, p in model.folded().items())
    assert not any(p.requires_grad for p in folded.values())
