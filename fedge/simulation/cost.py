"""What a client's work costs, in seconds of a reference core: from the work, never from a clock.

The constants were measured once, as CPU time on one core of a server (x86-64, AVX-512) with the ``plain``
students ``tiny`` to ``large`` of ``watch``, and are part of the program: two runs of the same settings take
the same virtual time, wherever they run. What a device is relative to that core is said in its profile.
"""

from dataclasses import dataclass

MULTIPLY_ADDS_PER_SECOND = 2.2e10
"""Of training: forward and backward, fake-quantized, batches of 16."""

SECONDS_PER_STEP = 3.2e-3
"""Of a batch, whatever the size of the student: what a step costs that multiplies nothing."""

SECONDS_PER_ROUND = 0.02
"""To decode the task and to code, sign and save the answer."""

_BACKWARD = 3  # multiply-adds of a training pass for each one of a forward pass (Baydin et al. 2018, 3.2)


@dataclass(frozen=True)
class Work:
    """What one round asks of one client.

    Attributes:
        multiply_adds: of one forward pass over one window.
        windows: that it trains on.
        later: windows that it scores the weights on.
        epochs: passes over the windows.
        batch: windows per step.
    """

    multiply_adds: int
    windows: int
    later: int
    epochs: int
    batch: int

    def training_seconds(self) -> float:
        """On the reference core, scoring included."""
        steps = -(-self.windows // self.batch) * self.epochs
        forward = self.multiply_adds / MULTIPLY_ADDS_PER_SECOND
        return (
            SECONDS_PER_ROUND
            + steps * SECONDS_PER_STEP
            + forward * (_BACKWARD * self.windows * self.epochs + self.later)
        )

    def scoring_seconds(self) -> float:
        """On the reference core, of a task without training."""
        return SECONDS_PER_ROUND + self.multiply_adds / MULTIPLY_ADDS_PER_SECOND * self.later
