"""Structured pruning: whole channels are removed, so that the exported model is smaller and faster.

Zeros spread over a weight (``prune``) make an update small, but ONNX Runtime multiplies by them all the same.
Here the channels themselves go, from the description and from the weights (Li et al. 2017): what is left is a
student like any other.

A *run* of channels begins with a convolution that mixes channels and goes on through the depthwise ones
behind it, which keep channels apart; it is named after the first. To remove a channel of a run is to set to
zero every weight that reads it, in the next convolution that mixes channels or in the dense layer: the cut
student and the uncut one with those zeros compute the same function.

Widths become multiples of ``STEP``, or of ``DEPTHWISE_STEP`` in a run with depthwise convolutions, because
int8 kernels work on blocks of channels. Measured with ONNX Runtime 1.31 on x86-64 (AVX-512 VNNI), batch 32:
30 channels take 1.4 times as long as 32; with depthwise convolutions 44 take 1.4 times as long as 48. Half
of the multiply-adds, removed channel by channel, leave a small student no faster, or slower.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedge.errors import ConfigError
from fedge.models.student import Conv, Params, StudentSpec, checked

STEP = 8
DEPTHWISE_STEP = 16
LEAST = 4
"""Channels that are left at least; as many as ``DEPTHWISE_STEP`` in a run with depthwise convolutions."""

VALUE = 100
"""Multiply-adds in the time that one int8 activation takes to be written."""

METHODS = ("magnitude", "taylor")

Latency = Callable[[StudentSpec], float]
"""Microseconds that the exported student takes for one window; only the widths matter, not the weights."""

_SLACK = 1 + 1e-9  # for shares of shares


@dataclass(frozen=True)
class Budget:
    """What a student may cost; all bounds that are given hold.

    Attributes:
        multiply_adds: share of the student's own that is kept.
        parameters: number of weights and biases, at most.
        latency_us: for one window, at most.
    """

    multiply_adds: float = 1.0
    parameters: int | None = None
    latency_us: float | None = None


@dataclass(frozen=True)
class Run:
    """Channels that stay apart from one mixing convolution to the next.

    Attributes:
        name: of the convolution that makes them.
        convs: that one and the depthwise ones behind it.
        reader: the layer that mixes them again, or ``head``.
    """

    name: str
    convs: tuple[Conv, ...]
    reader: str

    @property
    def width(self) -> int:
        """Number of channels."""
        return self.convs[0].outputs

    @property
    def step(self) -> int:
        """What a width should be a multiple of."""
        return DEPTHWISE_STEP if len(self.convs) > 1 else STEP

    @property
    def block(self) -> int:
        """Channels that a kernel works on at once: a width costs as much as the next multiple of this."""
        return DEPTHWISE_STEP if len(self.convs) > 1 else LEAST

    def narrower(self, width: int) -> int:
        """The next smaller width; the same where there is none."""
        return max((width - 1) // self.step * self.step, min(width, self.block))


def runs(spec: StudentSpec) -> list[Run]:
    """The runs of a student, in order; depthwise convolutions right on the input belong to none."""
    found: list[Run] = []
    for c in spec.convs:
        if not c.depthwise:
            if found:
                found[-1] = replace(found[-1], reader=c.name)
            found.append(Run(c.name, (c,), "head"))
        elif found:
            found[-1] = replace(found[-1], convs=(*found[-1].convs, c))
    return found


def channel_importance(
    spec: StudentSpec, params: Params, gradients: Iterable[Params] | None, method: str
) -> dict[str, Tensor]:
    """How much each channel matters: for each run ``[width]``, 0 or above, comparable between runs.

    ``taylor`` (Molchanov et al. 2019, the gates of section 3.1): the squared change of the loss, to first
    order, when the channel is removed, averaged over batches. That change is the sum of gradient times
    weight over the weights that read the channel; the filters that make it, depthwise ones included, are in
    it by the chain rule.

    ``magnitude``: squared norm of the filter that makes the channel, times those of its depthwise filters,
    times that of the weights that read it, as a share of the run's sum. The product, because a network with
    ReLU stays the same when a channel is made larger and whatever reads it smaller.

    Args:
        spec: the student.
        params: its weights.
        gradients: of the loss, one of each batch (``prune.gradient``); only ``taylor`` uses them.
        method: one of ``METHODS``.

    Raises:
        ConfigError: no such method, or ``taylor`` without a gradient.
    """
    if method not in METHODS:
        raise ConfigError(f"student.sensitivity: unknown method {method!r}; known: {', '.join(METHODS)}")
    found = runs(spec)
    if method == "magnitude":
        energy = {run.name: _energy(run, params) for run in found}
        return {name: e / e.sum().clamp_min(1e-30) for name, e in energy.items()}
    changes = [{r.name: _change(r, params, one) for r in found} for one in gradients or ()]
    if not changes:
        raise ConfigError("student.sensitivity: taylor needs the gradient of at least one batch")
    return {r.name: torch.stack([c[r.name].square() for c in changes]).mean(0) for r in found}


def _energy(run: Run, params: Params) -> Tensor:
    energy = params[f"{run.reader}.weight"].square().transpose(0, 1).flatten(1).sum(1)
    for c in run.convs:
        energy = energy * params[f"{c.name}.weight"].square().flatten(1).sum(1)
    return energy


def _change(run: Run, params: Params, gradient: Params) -> Tensor:
    """To first order, minus the change of the loss when a channel is removed."""
    name = f"{run.reader}.weight"
    return (params[name] * gradient[name]).transpose(0, 1).flatten(1).sum(1)


def cut(
    spec: StudentSpec, params: Params, keep: Mapping[str, Sequence[int]]
) -> tuple[StudentSpec, dict[str, Tensor]]:
    """The student with only the channels ``keep`` of each run that is named; the others stay whole.

    The result computes what the uncut student computes when every weight that reads a removed channel is
    zero. ``params`` are not changed.

    Raises:
        ConfigError: no such run, or not at least one channel of it, each once and in order.
    """
    found = {run.name: run for run in runs(spec)}
    for name, channels in keep.items():
        if name not in found:
            raise ConfigError(
                f"cut: {name!r} makes no channels of its own; those that do: {', '.join(found)}"
            )
        kept = [int(i) for i in channels]
        if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= found[name].width:
            raise ConfigError(f"cut: channels of {name!r} must rise from 0 to {found[name].width - 1}")
    params = {name: value.detach().clone() for name, value in params.items()}
    for name, channels in keep.items():
        at = torch.tensor([int(i) for i in channels])
        for c in found[name].convs:
            for part in ("weight", "bias"):
                params[f"{c.name}.{part}"] = params[f"{c.name}.{part}"][at]
        reader = f"{found[name].reader}.weight"
        params[reader] = params[reader][:, at]
    return narrowed(spec, {name: len(channels) for name, channels in keep.items()}), params


def narrowed(spec: StudentSpec, widths: Mapping[str, int]) -> StudentSpec:
    """The description with other widths for the runs that are named."""
    convs: list[Conv] = []
    for c in spec.convs:
        before = convs[-1].outputs if convs else spec.channels
        if c.depthwise:
            convs.append(replace(c, inputs=before, outputs=before, groups=before))
        else:
            convs.append(replace(c, inputs=before, outputs=widths.get(c.name, c.outputs)))
    return checked(replace(spec, convs=tuple(convs)))


def smallest(spec: StudentSpec) -> StudentSpec:
    """The narrowest student that cutting can make of this one."""
    return narrowed(spec, {run.name: min(run.width, run.block) for run in runs(spec)})


def work(spec: StudentSpec) -> int:
    """What an int8 student costs for one window, in multiply-adds: its own, and those that writing its
    activations is worth, which in a small one is the larger part. A block of channels that is not full costs
    as much as a full one.
    """
    full = narrowed(spec, {run.name: -(-run.width // run.block) * run.block for run in runs(spec)})
    values = (c.outputs * math.prod(size) for c, size in zip(full.convs, full.sizes(), strict=True))
    return full.multiply_adds() + VALUE * sum(values)


def plan_cut(
    spec: StudentSpec, importance: Mapping[str, Tensor], budget: Budget, latency: Latency | None = None
) -> dict[str, list[int]]:
    """Which channels of each run to keep so that the budget is met; for ``cut``.

    Greedy: again and again the run whose least important channels (as many as take it to its next smaller
    width) cost least importance per ``work`` saved loses them; per parameter where no time is bounded and
    the multiply-adds are few enough. What was saved too much in the end is given back, dearest first.

    Raises:
        ConfigError: even the smallest student is over the budget; the message says what it costs.
    """
    _check_possible(spec, budget, latency)
    found = runs(spec)
    orders = {r.name: importance[r.name].argsort(stable=True).tolist() for r in found}
    widths, gone = {r.name: r.width for r in found}, []
    while not _met(spec, narrowed(spec, widths), budget, latency):
        run = _cheapest(spec, widths, importance, orders, budget)
        if run is None:  # measured times vary: the smallest met the bound a moment ago
            break
        gone.append((run.name, widths[run.name]))
        widths[run.name] = run.narrower(widths[run.name])
    for name, width in reversed(gone[:-1]):
        wider = {**widths, name: width}
        if _met(spec, narrowed(spec, wider), budget, latency):
            widths = wider
    return {r.name: sorted(orders[r.name][r.width - widths[r.name] :]) for r in found}


def _cheapest(
    spec: StudentSpec,
    widths: Mapping[str, int],
    importance: Mapping[str, Tensor],
    orders: Mapping[str, list[int]],
    budget: Budget,
) -> Run | None:
    """The run whose next channels cost least importance for what they save; None where none can be cut."""
    now = narrowed(spec, widths)
    by_parameters = budget.latency_us is None and _kept(spec, now) <= budget.multiply_adds * _SLACK

    def price(run: Run) -> float:
        width = widths[run.name]
        less = narrowed(spec, {**widths, run.name: run.narrower(width)})
        saved = now.parameters() - less.parameters() if by_parameters else work(now) - work(less)
        gone = run.width - width
        lost = orders[run.name][gone : gone + width - run.narrower(width)]
        return float(importance[run.name][lost].sum()) / saved

    able = [r for r in runs(spec) if r.narrower(widths[r.name]) < widths[r.name]]
    return min(able, key=price, default=None)


def _kept(spec: StudentSpec, now: StudentSpec) -> float:
    return now.multiply_adds() / spec.multiply_adds()


def _met(spec: StudentSpec, now: StudentSpec, budget: Budget, latency: Latency | None) -> bool:
    if _kept(spec, now) > budget.multiply_adds * _SLACK:
        return False
    if budget.parameters is not None and now.parameters() > budget.parameters:
        return False
    return budget.latency_us is None or _timed(now, latency) <= budget.latency_us


def _timed(spec: StudentSpec, latency: Latency | None) -> float:
    if latency is None:
        raise ConfigError("student.most_us: a bound on the time needs a function that measures it")
    return latency(spec)


def _check_possible(spec: StudentSpec, budget: Budget, latency: Latency | None) -> None:
    least = smallest(spec)
    most = "this student can be cut to"
    if _kept(spec, least) > budget.multiply_adds * _SLACK:
        share = math.ceil(_kept(spec, least) * 1000) / 1000
        raise ConfigError(f"student.keep: {budget.multiply_adds:.3g} is below {share}, the least {most}")
    if budget.parameters is not None and least.parameters() > budget.parameters:
        count = least.parameters()
        raise ConfigError(f"student.most_parameters: {budget.parameters} is below {count}, the least {most}")
    if budget.latency_us is not None and (took := _timed(least, latency)) > budget.latency_us:
        raise ConfigError(f"student.most_us: {budget.latency_us:.3g} is below {took:.3g}, the least {most}")


def shrink(
    spec: StudentSpec,
    params: Params,
    budget: Budget,
    steps: int,
    retrain: Callable[[StudentSpec, Params], Params],
    importance: Callable[[StudentSpec, Params], Mapping[str, Tensor]],
    latency: Latency | None = None,
) -> tuple[StudentSpec, Params]:
    """Cut in ``steps`` equal ratios down to the budget, training again after each (Molchanov et al. 2019).

    Args:
        spec: the student.
        params: its weights.
        budget: what it may cost in the end; ``multiply_adds`` is a share of what ``spec`` has.
        steps: 1 or more; a step in which nothing is cut trains nothing either.
        retrain: from a student that was just cut to its new weights.
        importance: of each channel (``channel_importance``), asked anew before each cut.
        latency: measures a description; needed for ``budget.latency_us`` only.

    Raises:
        ConfigError: the budget cannot be met, or ``steps`` is below 1; nothing was trained then.
    """
    if steps < 1:
        raise ConfigError(f"student.cut_steps: {steps} is below 1")
    _check_possible(spec, budget, latency)
    whole, started = spec, _timed(spec, latency) if budget.latency_us is not None else 0.0
    for step in range(1, steps + 1):
        now = _part(whole, started, budget, step / steps)
        now = replace(now, multiply_adds=now.multiply_adds * whole.multiply_adds() / spec.multiply_adds())
        keep = plan_cut(spec, importance(spec, params), now, latency)
        if all(len(keep[run.name]) == run.width for run in runs(spec)):
            continue
        spec, params = cut(spec, params, keep)
        params = retrain(spec, params)
    return spec, params


def _part(spec: StudentSpec, started: float, budget: Budget, part: float) -> Budget:
    """The budget after ``part`` of the way from ``spec``, in equal ratios; the budget itself at 1."""
    if part == 1:
        return budget
    own = spec.parameters()
    few, quick = budget.parameters, budget.latency_us
    return Budget(
        budget.multiply_adds**part,
        None if few is None else math.ceil(own * min(1.0, few / own) ** part),
        None if quick is None else started * min(1.0, quick / started) ** part,
    )
