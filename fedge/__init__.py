"""fedge: federated learning for edge devices, on Flower."""

__version__ = "0.1.0"
