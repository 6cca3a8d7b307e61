"""Machines that find each other average gradients, 4 bits an element; what that loses of one is made good by the next.

python examples/averaged_gradients.py                        # this machine is all three peers
python examples/averaged_gradients.py 3 --listen 0.0.0.0:0   # or this on each of three machines with the same cluster.key
"""

import subprocess
import sys

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import barnraise


def train(count: int, listen: str = "127.0.0.1:0") -> None:
    torch.manual_seed(0)  # the same first parameters, and the same goal, on every machine
    model, goal = torch.nn.Linear(64, 16), torch.nn.Linear(64, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    feedback = barnraise.Residual(parameters_to_vector(model.parameters()).numel())
    with barnraise.discover(name="gradients", listen=listen) as context:
        context.wait_for_peers(count, timeout_s=60)
        data = torch.Generator().manual_seed(context.rank)
        for _ in range(60):
            x = torch.randn(32 * (context.rank + 1), 64, generator=data)  # higher ranks have more samples
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), goal(x).detach()).backward()
            gradient = parameters_to_vector([parameter.grad for parameter in model.parameters()])
            context.all_reduce(gradient, weight=len(x), codec="int4", feedback=feedback)
            vector_to_parameters(gradient, [parameter.grad for parameter in model.parameters()])
            optimizer.step()
        print(f"rank {context.rank} of {context.world_size}: error {torch.dist(model.weight, goal.weight):.6f}")


if len(sys.argv) > 1:
    train(int(sys.argv[1]), *sys.argv[3:])
else:
    others = [subprocess.Popen([sys.executable, __file__, "3"]) for _ in range(2)]
    train(3)
    sys.exit(max(other.wait() for other in others))
