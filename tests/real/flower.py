"""A Flower simulation with two clients: one round, a step of SGD on a sentence each, MiniLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.real.batches import LABELS, SENTENCES, minilm


def train(out: Path) -> None:
    """Run the round, with a mod that records what comes in and goes out."""
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from textleak.integrations.flower import LeakageMod
    from textleak.private.secrets import Secret

    torch.manual_seed(0)
    first, tokenizer = minilm()
    mod = LeakageMod(
        lambda: minilm()[0], tokenizer, client="fedavg:optimizer=sgd,lr=0.01,steps=1", know="nothing", out=out
    )
    app, server = ClientApp(mods=[mod]), ServerApp()

    @app.train()
    def round_of(message: Any, context: Any) -> Any:
        at = int(context.node_config["partition-id"])
        network, tokenizer = minilm()
        network.load_state_dict(message.content["arrays"].to_torch_state_dict())
        network.eval()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        batch = tokenizer([SENTENCES[at]], return_tensors="pt")
        network(**batch, labels=torch.tensor(LABELS[at : at + 1])).loss.backward()
        optimizer.step()
        content = RecordDict(
            {"arrays": ArrayRecord(network.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
        )
        return Message(content=content, reply_to=message)

    @server.main()
    def main(grid: Any, context: Any) -> None:
        del context
        strategy = FedAvg(fraction_evaluate=0.0)
        strategy.start(grid, ArrayRecord(first.state_dict()), num_rounds=1)

    run_simulation(server, app, num_supernodes=2)
    for at in range(2):  # the mod sees no batch
        secret = Secret(
            sentences=SENTENCES[at : at + 1],
            ids=(tuple(tokenizer(SENTENCES[at])["input_ids"]),),
            labels=LABELS[at : at + 1],
        )
        secret.save(out / f"round-1-client-{at}.truth.json")
