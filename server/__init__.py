"""The Flower ServerApp, where ``[tool.flwr.app.components]`` looks for it."""
