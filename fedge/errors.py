"""Every error that fedge raises on purpose, in one small tree.

    FedgeError
    |-- InputError            what the user gave is wrong           exit code 2
    |   |-- ConfigError           a scenario, a setting, a combination of them
    |   |-- DataError             a file of data, or what is in it
    |   `-- SetupError     a missing package, no disk, a folder in the way
    `-- RefusedError          what came from elsewhere is refused   exit code 1
        |-- PayloadError          bytes that are not what they claim, or exceed a limit
        |-- SignatureError        a signature that does not verify
        |-- UpdateError           an update that does not belong to this round
        `-- ReleaseError          a release that is damaged, or worse than the current one

A message says what was wrong, where, and what to do. A check raises; it never returns a flag.
"""


class FedgeError(Exception):
    """The root of the tree. ``exit_code`` is what a command ends with."""

    exit_code = 1


class InputError(FedgeError):
    """The user's input, configuration or environment is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """A scenario, a setting or a combination of settings is wrong."""


class DataError(InputError):
    """A file of data, or what is in it, cannot be used."""


class SetupError(InputError):
    """Something around fedge is missing or in the way: a package, disk space, a folder."""


class RefusedError(FedgeError):
    """Something that crossed a trust boundary is refused."""


class PayloadError(RefusedError):
    """Bytes are not what they claim to be, or exceed a limit."""


class SignatureError(RefusedError):
    """A signature does not verify."""


class UpdateError(RefusedError):
    """An update does not belong to this federation, round, base or client."""


class ReleaseError(RefusedError):
    """A release is damaged, or worse on this device than what it runs now."""
