"""Machines of one network find each other by multicast DNS and average an array; no address is written anywhere.

python examples/auto_discovery.py                        # this machine is all three peers
python examples/auto_discovery.py 3 --listen 0.0.0.0:0   # or this on each of three machines with the same cluster.key
"""

import argparse
import subprocess
import sys

import numpy as np

import barnraise

NUM_PEERS = 3


def meet(count: int, listen: str) -> None:
    with barnraise.discover(name="example", listen=listen) as context:
        context.wait_for_peers(count, timeout_s=60)  # the ranks follow from the peers' ids
        mine = np.full(1_000_000, context.rank, np.float32)
        context.all_reduce(mine, op="mean")
        print(f"rank {context.rank} of {context.world_size}: mean of the ranks {mine[0]}", flush=True)
        context.barrier()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", nargs="?", type=int, help="peers to wait for; none: start as many here")
    parser.add_argument("--listen", default="127.0.0.1:0")
    arguments = parser.parse_args()
    if arguments.count:
        meet(arguments.count, arguments.listen)
        return
    others = [subprocess.Popen([sys.executable, __file__, str(NUM_PEERS)]) for _ in range(NUM_PEERS - 1)]
    meet(NUM_PEERS, arguments.listen)
    sys.exit(max(other.wait() for other in others))


if __name__ == "__main__":
    main()
