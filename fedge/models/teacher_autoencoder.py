"""A residual encoder, a narrow bottleneck, and a decoder to a summary of the window: for anomalies."""

from torch import Tensor, nn

from fedge.models.teacher_residual import Residual

_WIDEST, _HIDDEN, _PARTS = 16, 128, 4


class Autoencoder(nn.Module):
    """``[n, outputs]``, the reconstruction, of windows or images, channels first.

    All that the decoder knows of a window passes through at most 16 numbers, and never through more than a
    quarter of what it has to give: so it learns what normal windows have in common, and what it cannot
    give back is out of the ordinary. The encoder averages a window in four parts (an image in four by four),
    since the mean over all of it no longer knows where in the window something was.
    """

    def __init__(self, widths: tuple[int, ...], window: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        narrow = max(1, min(_WIDEST, outputs // 4))
        self.encoder = Residual(widths, window, narrow, _PARTS)
        self.head = nn.Sequential(nn.Linear(narrow, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, outputs))

    def features(self, x: Tensor) -> Tensor:
        """The bottleneck, ``[n, d]``."""
        return self.encoder(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction ``[n, outputs]`` of what is summed up of ``x``."""
        return self.head(self.features(x))  # type: ignore[no-any-return]
