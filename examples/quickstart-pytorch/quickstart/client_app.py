"""The client: Flower's quickstart, and one line for compression."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedge.flower import compression_mod
from quickstart.task import Net, load_data
from quickstart.task import test as test_fn
from quickstart.task import train as train_fn

app = ClientApp(mods=[compression_mod()])  # added: messages that are not compressed pass through


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model on this node's data."""
    net, config = Net(), context.run_config
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    partition, partitions = context.node_config["partition-id"], context.node_config["num-partitions"]
    data, _ = load_data(partition, partitions)
    torch.set_num_threads(1)
    loss = train_fn(
        net,
        data,
        config["local-epochs"],
        config["learning-rate"],
        config["batch-size"],
        seed=1000 * message.content["config"]["server-round"] + partition,
    )
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data[1])})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model on this node's data."""
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    partition, partitions = context.node_config["partition-id"], context.node_config["num-partitions"]
    _, data = load_data(partition, partitions)
    loss, accuracy = test_fn(net, data)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(data[1])})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
