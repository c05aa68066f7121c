"""The Flower ``ClientApp`` of a simulated fleet: ``flwr run .`` at the repository root finds it here."""

from fedge.simulation.life import client_app

app = client_app
