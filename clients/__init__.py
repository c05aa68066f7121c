"""The Flower ClientApp, where ``[tool.flwr.app.components]`` looks for it."""
