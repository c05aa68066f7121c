"""The server: Flower's quickstart, and one line for compression."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedge.flower import Compressed
from quickstart.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds, and save the model."""
    torch.manual_seed(context.run_config["seed"])
    arrays = ArrayRecord(Net().state_dict())

    strategy = FedAvg()
    if context.run_config["compress"]:
        strategy = Compressed(strategy)  # added

    result = strategy.start(
        grid=grid, initial_arrays=arrays, num_rounds=context.run_config["num-server-rounds"]
    )
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
