"""Why a device does not take, or no longer runs, a release: one word for machines, a sentence for people.

| code | meaning |
|---|---|
| ``not_signed`` | who is trusted did not sign it |
| ``expired`` | the signatures, or the release, have run out: perhaps somebody holds newer ones back |
| ``older`` | the signed metadata are older than what was seen before |
| ``altered`` | a file is not the one that was signed |
| ``too_long`` | a file is longer than signed, or than a device reads |
| ``malformed`` | it is signed, but not written as it must be |
| ``nothing`` | no release has been published, or none promoted where the device insists on that |
| ``up_to_date`` | the device runs it already |
| ``tried_before`` | its version is not above every one that was tried on this device |
| ``below_promoted`` | the offline key has promoted a later one |
| ``pinned`` | the owner wants to keep the current one |
| ``changed`` | the device changed over to another model during the test |
| ``stopped`` | the device's process ended while it tested the release |
| ``live_errors`` | live, it failed on too large a share of windows |
| ``live_slow`` | live, it took too long for a window |
| ``live_worse`` | live, its score was too low on windows that were labelled later |
| ``dies_on_start`` | processes that started it ended without one answer |
| ``by_hand`` | the owner went back |
| ``damaged`` | what the device's disk holds is not what was installed |

The gate has codes of its own: ``fedge.edge.gate.Decision``.
"""

from fedge.errors import ReleaseError

TEXTS = {
    "stopped": "ended the process that tested it",
    "live_errors": "fails on too large a share of windows",
    "live_slow": "takes too many microseconds for a window",
    "live_worse": "has too low a score on windows that were labelled later",
    "dies_on_start": "ended the processes that started it, without one answer",
    "by_hand": "was taken back by hand",
    "damaged": "is damaged on this device's disk",
    "does_not_open": "does not open here",
}
"""What a release did, by code: the predicate of a sentence."""


class NotTakenError(ReleaseError):
    """A release, or what says that there is one, is not taken.

    Attributes:
        code: the reason for machines.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
