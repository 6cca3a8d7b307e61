"""One peer of hivemind, told what to do by lines of JSON like `measure.rank`; it may run under another Python than ours.

Of a step, `DecentralizedAverager._aggregate_with_group` alone is timed: the all-reduce itself, without the seconds in
which hivemind looks for a group. Imports nothing of barnraise.
"""

import json
import multiprocessing
import os
import sys
import time
from typing import Any, BinaryIO

MATCHMAKING_S = 3.0
STEP_TIMEOUT_S = 60.0


class Peer:
    """What the orders mean."""

    def __init__(self) -> None:
        multiprocessing.set_start_method("fork", force=True)  # under spawn it fails to pickle itself
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        self._took: Any = multiprocessing.SimpleQueue()
        self._dht: Any = None
        self._averager: Any = None

    def join(self, rank: int, world: int, elements: int, initial: list[str], codec: str) -> dict[str, Any]:
        """Start a DHT node and an averager; say where the node is reached."""
        import hivemind
        from hivemind.averaging import averager
        from hivemind.compression import Float16Compression, NoCompression, Uniform8BitQuantization

        kinds = {"fp32": NoCompression, "fp16": Float16Compression, "int8": Uniform8BitQuantization}
        _time_all_reduce(averager.DecentralizedAverager, self._took)
        self._dht = hivemind.DHT(initial_peers=initial, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
        self._averager = averager.DecentralizedAverager(
            [self._torch.full((elements,), float(rank))],
            self._dht,
            prefix="bench",
            target_group_size=world,
            min_group_size=world,
            min_matchmaking_time=MATCHMAKING_S,
            request_timeout=2.0,
            compression=kinds[codec](),
            start=True,
        )
        return {"addresses": [str(address) for address in self._dht.get_visible_maddrs()]}

    def average(self, value: float) -> dict[str, Any]:
        """Average a vector of one value; say how long the all-reduce took, and what came of it."""
        from hivemind.utils.timed_storage import get_dht_time

        with self._averager.get_tensors() as tensors:
            tensors[0].fill_(value)
        start = get_dht_time() + MATCHMAKING_S
        group = self._averager.step(wait=True, timeout=STEP_TIMEOUT_S, scheduled_time=start)
        with self._averager.get_tensors() as tensors:
            low, high = float(tensors[0].min()), float(tensors[0].max())
        took_s = 0.0
        while not self._took.empty():
            took_s = self._took.get()
        return {"took_s": took_s, "group": len(group or ()), "low": low, "high": high}


def _time_all_reduce(kind: Any, took: Any) -> None:
    whole = kind._aggregate_with_group

    async def timed(self: Any, *arguments: Any, **named: Any) -> Any:
        began_s = time.perf_counter()
        result = await whole(self, *arguments, **named)
        took.put(time.perf_counter() - began_s)
        return result

    kind._aggregate_with_group = timed


def main() -> None:
    """Answer orders until there are no more."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        peer = Peer()
        import hivemind

        _say(output, {"version": hivemind.__version__})
    except ImportError as error:
        _say(output, {"failed": str(error)})
        return
    for line in sys.stdin.buffer:
        what = json.loads(line)
        try:
            _say(output, getattr(peer, what.pop("order"))(**what))
        except Exception as error:  # whatever hivemind raises is told
            _say(output, {"failed": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _say(output: BinaryIO, what: dict[str, Any]) -> None:
    output.write(json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
