"""The student as the server first trains it: with BatchNorm, which is folded away before the first round."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedge.models.student import StudentSpec

_EPSILON = 1e-5


class Normalised(nn.Module):
    """BatchNorm between each convolution and its ReLU."""

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        flat = len(spec.size) == 1
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if flat else (nn.Conv2d, nn.BatchNorm2d)
        self.convs = nn.ModuleList(
            conv(c.inputs, c.outputs, c.kernel, c.stride, c.kernel // 2, groups=c.groups, bias=False)
            for c in spec.convs
        )
        self.norms = nn.ModuleList(norm(c.outputs, eps=_EPSILON) for c in spec.convs)
        self.head = nn.Linear(spec.features, spec.outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the dense layer sees, ``[n, features]``, of windows ``x [n, channels, *size]``."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x.mean(dim=tuple(range(2, x.dim())))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[n, outputs]`` of windows ``x [n, channels, *size]``."""
        return self.head(self.features(x))  # type: ignore[no-any-return]

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The same function without BatchNorm: weights for ``forward``, statistics frozen into them."""
        params: dict[str, Tensor] = {}
        for spec, conv, norm in zip(self.spec.convs, self.convs, self.norms, strict=True):
            kept: dict[str, Tensor] = {**conv.state_dict(prefix="conv."), **norm.state_dict(prefix="norm.")}
            gain = kept["norm.weight"] / torch.sqrt(kept["norm.running_var"] + _EPSILON)
            weight = kept["conv.weight"]
            params[f"{spec.name}.weight"] = weight * gain.view(-1, *[1] * (weight.dim() - 1))
            params[f"{spec.name}.bias"] = kept["norm.bias"] - kept["norm.running_mean"] * gain
        params["head.weight"] = self.head.weight.detach().clone()
        params["head.bias"] = self.head.bias.detach().clone()
        return params
