"""Machines average a vector again and again, and leave it to their links how it is encoded; at the end they say why.

python examples/codec_by_links.py                        # this machine is all three peers
python examples/codec_by_links.py 3 --listen 0.0.0.0:0   # or this on each of three machines with the same cluster.key
"""

import subprocess
import sys

import numpy as np

import barnraise


def meet(count: int, listen: str = "127.0.0.1:0") -> None:
    feedback = barnraise.Residual(1_000_000)
    with barnraise.discover(name="by links", listen=listen, compression_level=5) as context:
        context.wait_for_peers(count, timeout_s=60)
        mine, total = np.random.default_rng(context.rank).standard_normal(1_000_000, np.float32), np.float64(0)
        for _ in range(20):
            gradient = mine.copy()
            context.all_reduce(gradient, codec="auto", feedback=feedback)
            total = total + gradient
        choice = context.plan(len(gradient), codec="auto")
        error = np.linalg.norm(total / 20 - exact(context.world_size)) / np.linalg.norm(exact(context.world_size))
        print(f"rank {context.rank}: {choice.codec} by {choice.kind}, error {error:.4f}: {'; '.join(choice.reasons)}")
        context.barrier()


def exact(count: int) -> np.ndarray:
    return np.mean(
        [np.random.default_rng(rank).standard_normal(1_000_000, np.float32) for rank in range(count)], axis=0
    )


if len(sys.argv) > 1:
    meet(int(sys.argv[1]), *sys.argv[3:])
else:
    others = [subprocess.Popen([sys.executable, __file__, "3"]) for _ in range(2)]
    meet(3)
    sys.exit(max(other.wait() for other in others))
