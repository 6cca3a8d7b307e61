"""A model, a network, one call: two nodes train a classifier of noisy points together.

python examples/node_train.py                        # this machine is both nodes
BARNRAISE_JOIN=... python examples/node_train.py     # one more node; the first prints its invitation
"""

import os
import subprocess
import sys

import torch
from torch import nn
from torch.utils.data import TensorDataset

import barnraise


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)  # the same on every node
    points = torch.randn(2000, 2, generator=generator)
    return TensorDataset(points, (points.norm(dim=1) > 1.2).long())


def main() -> None:
    founds = "BARNRAISE_JOIN" not in os.environ
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    network = barnraise.NetworkConfig(min_peers=2)  # train only while two are there
    with barnraise.Node(model, network, learning_rate=0.01) as node:
        node.join_network(sync_every=5, batch_size=32, rounds=10)
        if founds:
            print(f"others join with BARNRAISE_JOIN={node.invitation}", flush=True)
            other = subprocess.Popen([sys.executable, __file__], env={**os.environ, "BARNRAISE_JOIN": node.invitation})
        result = node.train(dataset())
    losses = f"{result.losses[0]:.3f} -> {result.losses[-1]:.3f}"
    print(f"{len(result.losses)} rounds, loss {losses}, parameters {result.theta.hex()[:12]}", flush=True)
    if founds:
        sys.exit(other.wait())


if __name__ == "__main__":
    main()
