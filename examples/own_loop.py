"""Your own loop in a swarm: the lines with `swarm` are all that is new.

python examples/own_loop.py                          # founds a run and prints how others join it
BARNRAISE_JOIN=... python examples/own_loop.py       # joins it, from another terminal or machine
"""

import os

import torch
from torch import nn

import barnraise

STEPS = int(os.environ.get("STEPS", "1000"))


def main() -> None:
    torch.manual_seed(int(os.environ.get("SEED", "0")))
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    with barnraise.join(model, optimizer, sync_every=50) as swarm:
        print(f"others join with BARNRAISE_JOIN={swarm.invitation}", flush=True)
        for _ in range(STEPS):
            x = torch.rand(256, 2) * 4 - 2  # data of its own: no two peers see the same
            y = torch.sin(x[:, :1] * 2) * torch.cos(x[:, 1:])
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if swarm.step(loss, samples=len(x)):
                print(f"round {swarm.round}  {swarm.num_members} peers  loss {loss.item():.4f}", flush=True)
            if swarm.is_over:
                break
    print(f"left with loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
