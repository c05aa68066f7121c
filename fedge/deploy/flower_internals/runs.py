"""The supervisor's side: runs of the SuperLink are started, looked at and stopped."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control.control_http_client import ControlHttpClient

from fedge.deploy.flower_internals.calls import reached

_ACTIVE = ("pending", "starting", "running")


class Runs:
    """The runs of the SuperLink at ``address``. Safe to share between threads.

    Every method raises ``ConnectionError`` when the SuperLink is away, and ``UpdateError`` when it will not
    hear of a run.
    """

    def __init__(self, address: str) -> None:
        """Connect when first needed."""
        self._control = ControlHttpClient(f"http://{address}", verify=False)

    def close(self) -> None:
        """Drop the connections."""
        self._control.close()

    def start(self, app: Path, config: Mapping[str, str]) -> int:
        """Start a run of the Flower app in the folder ``app``, the only one; returns its id."""
        content = build_fab_from_disk(app)
        fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))
        with reached():
            for run, older in self._control.ListRuns(ListRunsRequest()).run_dict.items():
                if older.status.status in _ACTIVE:
                    self._control.StopRun(StopRunRequest(run_id=run))
            return int(self._control.StartRun(request).run_id)

    def stop(self, run: int) -> None:
        """Make sure that a run has ended."""
        if self.ended(run) is not None:
            return
        with reached():
            self._control.StopRun(StopRunRequest(run_id=run))

    def ended(self, run: int) -> str | None:
        """Why a run is over (``"completed"``, or what went wrong); ``None`` while it goes on."""
        with reached():
            status = self._control.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
        if status.status in _ACTIVE:
            return None
        done = status.sub_status == "completed"
        return "completed" if done else f"{status.sub_status or status.status}: {status.details}"
