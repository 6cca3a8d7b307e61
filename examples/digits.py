"""Not only for text: a small CNN learns to read scikit-learn's 1797 scanned digits, in as many terminals as you open.

python examples/digits.py                            # founds a run and prints how others join it
BARNRAISE_JOIN=... python examples/digits.py         # joins it
"""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import barnraise


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def main() -> None:
    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    images = (images.float() / 16).view(-1, 1, 8, 8)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # the same split on every peer
    train, test = chosen[:1500], chosen[1500:]
    model = cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    rounds = int(os.environ.get("ROUNDS", "12"))
    with barnraise.join(model, optimizer, sync_every=10, batch_size=32, rounds=rounds) as swarm:
        print(f"others join with BARNRAISE_JOIN={swarm.invitation}", flush=True)
        swarm.scheduler(optimizer, warmup_steps=5)  # of the run's steps, not this peer's
        for x, y in swarm.batches(TensorDataset(images[train], labels[train])):  # each sample goes to one peer
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if swarm.step(loss, samples=len(x)):
                print(f"round {swarm.round}  {swarm.num_members} peers  loss {loss.item():.3f}", flush=True)

    model.eval()
    with torch.no_grad():
        accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"accuracy {accuracy:.3f} on {len(test)} digits that nobody trained on")


if __name__ == "__main__":
    main()
