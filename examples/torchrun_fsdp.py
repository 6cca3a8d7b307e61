"""Two processes as one peer with FSDP2: each holds half of every parameter, the swarm sees whole ones.

torchrun --nproc-per-node 2 examples/torchrun_fsdp.py                       # founds a run
BARNRAISE_JOIN=... torchrun --nproc-per-node 2 examples/torchrun_fsdp.py    # joins it
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import barnraise


def main() -> None:
    if "RANK" not in os.environ:  # started without torchrun: be one process of one
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    torch.manual_seed(rank)
    with barnraise.join(model, optimizer, sync_every=20) as swarm:
        if rank == 0:
            print(f"others join with BARNRAISE_JOIN={swarm.invitation}", flush=True)
        for _ in range(int(os.environ.get("STEPS", "100"))):
            x = torch.randn(32, 8)
            loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if swarm.step(loss, samples=len(x)) and rank == 0:
                print(f"round {swarm.round}  {swarm.num_members} peers  loss {loss.item():.4f}", flush=True)
            if swarm.is_over:
                break
    checksum = sum(value.full_tensor().double().sum().item() for value in model.parameters())
    print(f"rank {rank}: loss {loss.item():.4f}, parameters sum to {checksum:.6f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
