"""The Flower ``ServerApp``: ``flwr run .`` at the repository root finds it here."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedge.simulation.flwr_run import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """The whole life of a model, with the clients that ``grid`` reaches."""
    serve(grid, context.run_config)
