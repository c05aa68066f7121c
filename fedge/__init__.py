"""fedge: federated learning for edge devices, on Flower."""

import os

__version__ = "0.1.0"

# ONNX Runtime reports its use to its maker by default and writes an identifier of the device into the user's
# cache. It reads this once, before its first model; what the user has set counts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
