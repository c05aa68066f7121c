"""Every built-in teacher, and the check that any teacher has to pass."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedge.errors import ConfigError
from fedge.models.teacher import FAMILIES, SIZES, build_teacher, check_teacher, feature_width
from fedge.models.teacher_residual import WIDTHS

MILLIONS = {"small": 0.23, "base": 0.7, "large": 2.5, "huge": 10.0}
WINDOWS = [(128, 6), (8, 1), (30, 24), (9, 40), (32, 32, 3), (8, 8, 1), (9, 40, 2)]
FITTING = [
    (family, window) for family in FAMILIES for window in WINDOWS if family != "inception" or len(window) == 2
]


def made(family: str, size: str, window: tuple[int, ...], outputs: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_teacher(family, size, window, outputs)


def inputs(window: tuple[int, ...], n: int = 4) -> Tensor:
    return torch.randn(n, window[-1], *window[:-1], generator=torch.Generator().manual_seed(1))


class OldBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(i, o, 5, 2, 2, bias=False)
        self.norm1 = nn.BatchNorm1d(o)
        self.second = nn.Conv1d(o, o, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm1d(o)
        self.shortcut = nn.Conv1d(i, o, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(y + self.shortcut(x))


class OldTeacher(nn.Module):
    """The network of version 0.1, in whose place the residual family stands."""

    def __init__(self, widths: tuple[int, ...], channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(channels, widths[0], 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm1d(widths[0])
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.Sequential(*(OldBlock(i, o) for i, o in pairs))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(self.drop(x.mean(dim=2)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("size", "widths"), [("small", (64, 96, 128)), ("base", (96, 160, 256))])
@pytest.mark.parametrize("window", [(128, 6), (8, 1), (30, 24)])
def test_residual_teachers_are_those_of_earlier_results_bit_for_bit(
    size: str, widths: tuple[int, ...], window: tuple[int, int]
) -> None:
    new = made("residual", size, window, 7)
    torch.manual_seed(0)
    old = OldTeacher(widths, window[1], 7)
    x = inputs(window, 8)
    for _ in range(2):  # the initial weights, and those after a step with dropout
        ours, theirs = new.state_dict(), old.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)
        for teacher in (new, old):
            torch.manual_seed(5)
            optimizer = torch.optim.SGD(teacher.parameters(), 0.1)
            teacher(x).square().mean().backward()
            optimizer.step()
    assert torch.equal(new.eval()(x), old.eval()(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("family", "window"), [f for f in FITTING if f[1] in ((128, 6), (32, 32, 3))])
def test_parameter_counts_are_as_documented(family: str, size: str, window: tuple[int, ...]) -> None:
    outputs = 48 if family == "autoencoder" else 7
    count = sum(p.numel() for p in build_teacher(family, size, window, outputs).parameters())
    assert count == pytest.approx(MILLIONS[size] * 1e6, rel=0.1)


@pytest.mark.parametrize("size", ["small", "base", "large"])
@pytest.mark.parametrize(("family", "window"), FITTING)
def test_any_window_gets_one_answer_of_its_own(family: str, size: str, window: tuple[int, ...]) -> None:
    teacher = made(family, size, window, 5).eval()
    x = inputs(window)
    with torch.no_grad():
        together, features = teacher(x), teacher.features(x)  # type: ignore[operator]
        alone = torch.cat([teacher(one[None]) for one in x])
        again = teacher.head(features)  # type: ignore[operator]
    assert together.shape == (4, 5)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, together)
    assert features.shape == (4, feature_width(teacher, window))
    check_teacher(teacher, window, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_teachers_work_too(family: str) -> None:
    for window in ((8, 3), (8, 8, 3)):
        if family != "inception" or len(window) == 2:
            check_teacher(build_teacher(family, "huge", window, 3), window, 3)


@pytest.mark.parametrize(("family", "window"), FITTING)
def test_every_weight_learns_even_with_a_batch_of_two(family: str, window: tuple[int, ...]) -> None:
    teacher = made(family, "small", window, 8)
    teacher(inputs(window, 2)).square().sum().backward()
    without = [n for n, p in teacher.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert torch.cat([p.grad.flatten() for p in teacher.parameters() if p.grad is not None]).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_takes_part(family: str) -> None:
    teacher = made(family, "small", (64, 2), 8)
    teacher(inputs((64, 2), 8)).square().sum().backward()
    still = [n for n, p in teacher.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("window", [(64, 2), (16, 16, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_drops_features_and_evaluation_does_not(family: str, window: tuple[int, ...]) -> None:
    if family == "inception" and len(window) == 3:
        window = (32, 2)
    teacher, x = made(family, "small", window, 8), inputs(window)
    for module in teacher.modules():  # batch statistics kept still, so that only dropout is left
        module.training = isinstance(module, nn.Dropout)
    assert not torch.equal(teacher(x), teacher(x))
    assert torch.equal(teacher.eval()(x), teacher(x))


def test_the_sides_of_small_images_are_not_halved_away() -> None:
    trunk = build_teacher("residual", "large", (8, 40, 1), 2)
    x = trunk.blocks(trunk.stem(torch.zeros(1, 1, 8, 40)))  # type: ignore[operator]
    assert x.shape[2:] == (4, 3)
    assert set(WIDTHS) == {1, 2}


@pytest.mark.parametrize("window", [(64, 6), (16, 16, 3)])
@pytest.mark.parametrize(("outputs", "narrow"), [(200, 16), (24, 6), (3, 1)])
def test_an_autoencoder_passes_little_through_its_bottleneck(
    window: tuple[int, ...], outputs: int, narrow: int
) -> None:
    assert feature_width(build_teacher("autoencoder", "small", window, outputs), window) == narrow


def test_an_autoencoder_knows_where_in_a_window_something_was() -> None:
    teacher = made("autoencoder", "small", (64, 1), 16).eval()
    early, late = torch.zeros(1, 1, 64), torch.zeros(1, 1, 64)
    early[..., :16] = late[..., -16:] = 1.0
    swapped = early.flip(2)
    assert torch.equal(swapped, late)
    assert (teacher(early) - teacher(late)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("residul", "small", (8, 1), 2), "did you mean 'residual'"),
        (("residual", "medium", (8, 1), 2), "teacher.size: unknown size 'medium'"),
        (("inception", "small", (8, 8, 1), 2), "images need residual"),
        (("residual", "small", (8,), 2), "no teacher from windows"),
        (("residual", "small", (8, 8, 8, 1), 2), "no teacher from windows"),
        (("residual", "small", (0, 1), 2), "no teacher from windows"),
        (("autoencoder", "small", (8, 1), 0), "no teacher from windows"),
    ],
)
def test_what_cannot_be_built_is_refused(
    arguments: tuple[str, str, tuple[int, ...], int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_teacher(*arguments)


class Given(nn.Module):
    """Answers whatever a function makes of the batch."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(x) if callable(self.answer) else self.answer


def fails(_x: Tensor) -> Tensor:
    raise ValueError("first\nsecond")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: x.new_zeros(len(x), 4),
            r"gives float32 \[2, 4\]; .* \[2, 6, 16\] and needs float32 \[2, 3\]",
        ),
        (lambda x: x.new_zeros(len(x), 3).squeeze(0), r"gives float32 \[3\]; .* needs float32 \[1, 3\]"),
        (lambda x: x.new_zeros(2, 3), r"gives float32 \[2, 3\]; .* needs float32 \[1, 3\]"),
        (lambda x: x.new_zeros(len(x), 3).double(), r"gives float64 \[2, 3\]"),
        (lambda x: x.new_full((len(x), 3), torch.nan), "not finite"),
        (lambda x: x.new_full((len(x), 3), torch.inf), "not finite"),
        (lambda x: x.mean(2)[:, :3].softmax(1), "probabilities"),
        (lambda x: {"logits": x}, "gives a dict"),
        (lambda _x: None, "gives a NoneType"),
        (lambda x: F.conv2d(x, torch.zeros(1, 6, 3, 3, 3)), "the teacher fails: RuntimeError"),
        (fails, "the teacher fails: ValueError: first; the task gives a teacher"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_with_what_it_gives(answer: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_teacher(Given(answer), (16, 6), 3)


def test_one_output_may_be_anything_finite() -> None:
    check_teacher(Given(lambda x: x.new_ones(len(x), 1)), (16, 6), 1)


def test_checking_a_teacher_that_draws_numbers_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    check_teacher(Given(lambda x: torch.randn(len(x), 3)), (16, 6), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_checking_a_teacher_changes_nothing() -> None:
    teacher = nn.Sequential(nn.BatchNorm1d(6), nn.Flatten(), nn.Dropout(), nn.Linear(96, 3))
    teacher[0].eval()  # frozen by its user
    before = {n: v.clone() for n, v in teacher.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    check_teacher(teacher, (16, 6), 3)
    feature_width(teacher, (16, 6))
    with pytest.raises(ConfigError):
        check_teacher(teacher, (16, 6), 4)
    assert all(torch.equal(before[n], v) for n, v in teacher.state_dict().items())
    assert [m.training for m in teacher.modules()] == [True, False, True, True, True]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("features", [None, nn.Conv1d(6, 4, 3), lambda x: x.nonsense, lambda x: x[0, :, 0]])
def test_features_that_are_none_are_not_taken_for_features(features: object) -> None:
    teacher = Given(None)
    if features is not None:
        teacher.features = features  # type: ignore[assignment]
    assert feature_width(teacher, (16, 6)) is None


def test_a_users_features_count_if_they_are_one_row_a_window() -> None:
    teacher = Given(None)
    teacher.features = lambda x: x.mean(2)  # type: ignore[assignment]
    assert feature_width(teacher, (16, 6)) == 6
