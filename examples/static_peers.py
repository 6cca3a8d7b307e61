"""Machines on a list average their gradients: data parallel training without a coordinator.

python examples/static_peers.py                                         # this machine is both peers
python examples/static_peers.py 0 192.168.1.7:4001 192.168.1.8:4001     # or a command a machine, with its rank;
python examples/static_peers.py 1 192.168.1.7:4001 192.168.1.8:4001     # both have the same cluster key
"""

import socket
import subprocess
import sys

import torch

import barnraise


def train(rank: int, addresses: list[str]) -> None:
    with barnraise.static_peers(addresses, rank) as context:
        context.wait_for_peers(timeout_s=60)
        torch.manual_seed(0)  # the same first parameters on every rank
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = torch.Generator().manual_seed(rank)  # its own data
        for _ in range(100):
            x = torch.randn(32, 2, generator=data)
            loss = torch.nn.functional.mse_loss(model(x), x @ torch.tensor([[3.0], [-1.0]]) + 2)
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                context.all_reduce(parameter.grad, op="mean")
            optimizer.step()
        weights = [round(value, 3) for value in [*model.weight[0].tolist(), *model.bias.tolist()]]
        print(f"rank {context.rank} of {context.world_size}: weights {weights}", flush=True)
        context.barrier()


def main() -> None:
    if len(sys.argv) > 2:
        train(int(sys.argv[1]), sys.argv[2:])
        return
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        addresses = [f"127.0.0.1:{part.getsockname()[1]}" for part in (one, other)]
    with subprocess.Popen([sys.executable, __file__, "1", *addresses]) as second:
        train(0, addresses)
    sys.exit(second.returncode)


if __name__ == "__main__":
    main()
