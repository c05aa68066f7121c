"""``fedge infer`` with ``--devices``: the same inputs and answers, the model on several devices."""

import argparse
from pathlib import Path

from fedge.edge import infer_command
from fedge.errors import ConfigError

_STREAM = "-"
_BATCH = 4096  # windows of a file that are split at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What :func:`run` reads: all that ``fedge infer`` takes, and which devices answer."""
    infer_command.add_arguments(parser)
    group = parser.add_argument_group("answered by other devices (leave MODEL out)")
    group.add_argument(
        "--devices", metavar="HOST:PORT,...", help="split the windows over these, each a `fedge serve`"
    )
    group.add_argument(
        "--bundle", type=Path, metavar="DIR", help="TLS: an enrolment bundle of the devices' federation"
    )
    group.add_argument("--devices-ca", type=Path, metavar="FILE", help="TLS: authority of their certificates")
    group.add_argument(
        "--deadline", type=float, default=10.0, metavar="S", help="seconds for one request (default: 10)"
    )


def run(options: argparse.Namespace) -> None:
    """Answer until the input ends.

    Raises:
        FedgeError: as for :func:`fedge.edge.infer_command.run`; and no device answers.
    """
    if options.devices is None:
        if options.bundle or options.devices_ca:
            raise ConfigError("--bundle and --devices-ca are for --devices")
        infer_command.run(options)
        return
    if options.input != _STREAM:
        raise ConfigError("with --devices the devices have the model: give INPUT alone")
    if options.wait:
        raise ConfigError("--wait is for a device's home: with --devices there is none")
    if not 0.01 <= options.deadline <= 3600:
        raise ConfigError(f"--deadline {options.deadline:g}: give 0.01 to 3600 seconds")
    from fedge.serving.across import Devices
    from fedge.serving.peer import Address
    from fedge.serving.tls import Peer as Tls

    addresses = [Address.parse(text) for text in options.devices.split(",") if text.strip()]
    if not addresses or len(set(addresses)) != len(addresses):
        raise ConfigError("--devices: give each HOST:PORT once")
    options.input = str(options.model)
    if options.batch is None and options.input != _STREAM:
        options.batch = _BATCH
    tls = Tls(options.bundle, options.devices_ca) if options.bundle or options.devices_ca else None
    infer_command.run(options, Devices(addresses, tls, options.deadline))
