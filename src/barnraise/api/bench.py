"""One rank of ``barnraise bench allreduce``: opens a context, takes turns at collectives, and prints what they took.

Orders and findings are `barnraise.observe.measurements`, lines of JSON on stdin and stdout. All ranks measure the same collectives in the same order, and tell each other what they took in one more collective.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from barnraise.api import networked
from barnraise.api.context import Context
from barnraise.api.networked import NetworkBackend
from barnraise.collective.compression import asked_for, wire_of
from barnraise.collective.links import LinkGraph, Links, Row
from barnraise.collective.planner import plan
from barnraise.errors import BarnraiseError
from barnraise.ids import PeerId
from barnraise.net.seam import LinkSpeed
from barnraise.observe.measurements import Failed, Joined, Line, Measured, Opened, Orders, Planned

WARM_UPS: Final = 2
"""The first dials, and finds its memory."""
MB: Final = 1_000_000


def measure(context: Context, orders: Orders) -> None:
    """Measure all that was ordered, and print each figure as soon as it is known."""
    for size_mb in orders.sizes_mb:
        source = _numbers(_elements(size_mb), context.rank)
        vector = np.empty_like(source)
        for codec in orders.codecs:
            for schedule in orders.schedules:
                turns = []
                for number in range(WARM_UPS + orders.repetitions):
                    np.copyto(vector, source)
                    took = _turn(context, vector, codec, schedule, orders.timeout_s)
                    if number >= WARM_UPS:
                        turns.append(took)
                _say(_summed_up(turns, size_mb, codec, schedule))


def _numbers(elements: int, rank: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(rank).standard_normal(elements, np.float32)


def _turn(
    context: Context,
    vector: np.ndarray[tuple[int], np.dtype[np.float32]],
    codec: str,
    schedule: str,
    timeout_s: float,
) -> tuple[float, float]:
    """Return the slowest rank's seconds and all ranks' CPU seconds of one collective."""
    context.barrier(timeout_s)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    context.all_reduce(vector, op="sum", codec=codec, schedule=schedule, timeout_s=timeout_s)
    took_s = time.perf_counter() - began_s
    context.barrier(timeout_s)  # what a rank still does for others counts as well
    figures = np.zeros((2, context.world_size))
    figures[:, context.rank] = took_s, time.process_time() - cpu_s
    context.all_reduce(figures, op="sum", timeout_s=timeout_s)
    return float(figures[0].max()), float(figures[1].sum())


def _summed_up(turns: list[tuple[float, float]], size_mb: float, codec: str, schedule: str) -> Measured:
    return Measured(
        size_mb=size_mb,
        codec=codec,
        schedule=schedule,
        wall_s=statistics.median(wall_s for wall_s, _ in turns),
        cpu_s=statistics.median(cpu_s for _, cpu_s in turns),
        turns_s=tuple(wall_s for wall_s, _ in turns),
    )


def tell_plans(context: Context, speeds: Sequence[LinkSpeed | None], orders: Orders) -> None:
    """Print what the planner would choose for each size and codec over the links as they are known now.

    Args:
        context: of the group.
        speeds: of the way to each rank.
        orders: which sizes and codecs.
    """
    if context.world_size < 2:
        return
    links = _links(context, speeds, orders.timeout_s)
    for size_mb in orders.sizes_mb:
        for codec in orders.codecs:
            found = asked_for(codec, context.world_size, links)
            wires = [wire_of(name, context.world_size) for name in found.codecs]
            chosen = plan(links, _elements(size_mb), wires)
            _say(
                Planned(
                    size_mb=size_mb,
                    codec=codec,
                    schedule=chosen.kind,
                    predicted_s=chosen.predicted_s,
                    reasons=(*chosen.reasons, *found.reasons),
                )
            )


def _links(context: Context, speeds: Sequence[LinkSpeed | None], timeout_s: float) -> Links:
    """Put together what all ranks know of their own ways."""
    known = np.zeros((2, context.world_size, context.world_size))
    for rank, speed in enumerate(speeds):
        if speed is not None:
            known[:, context.rank, rank] = 1e6 * speed.latency_s, 1e-3 * speed.bandwidth_bytes_s
    context.all_reduce(known, op="sum", timeout_s=timeout_s)
    latencies_us, bandwidths_kb_s = known.round().astype(int).tolist()
    members = [PeerId(str(rank)) for rank in range(context.world_size)]
    rows = {
        peer: Row(
            uplink_kb_s=0,
            downlink_kb_s=0,
            latencies_us=tuple(latencies_us[rank]),
            bandwidths_kb_s=tuple(bandwidths_kb_s[rank]),
        )
        for rank, peer in enumerate(members)
    }
    return LinkGraph.of_rows(members, rows).between(members)


def _elements(size_mb: float) -> int:
    return round(size_mb * MB / 4)


def _open(orders: Orders) -> NetworkBackend:
    key, name = orders.cluster_key, orders.name
    if orders.addresses:
        return networked.listed(orders.addresses, orders.rank, key, name, None, 0)
    return networked.discovered(key, name, orders.listen, 0, orders.bootstrap, mdns=True)


def _say(line: Line) -> None:
    print(msgspec.json.encode(line).decode(), flush=True)


def _carry_out(orders: Orders, context: Context, backend: NetworkBackend) -> None:
    _say(Opened(address=context.address))
    context.wait_for_peers(None if orders.addresses else orders.num_peers, orders.wait_s)
    _say(Joined(rank=context.rank, world_size=context.world_size))
    measure(context, orders)
    tell_plans(context, backend.speeds, orders)
    context.barrier(orders.timeout_s)


def main() -> int:
    """Do as stdin says."""
    try:
        orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders)
        backend = _open(orders)
        with Context(backend) as context:
            _carry_out(orders, context, backend)
    except BarnraiseError as error:
        _say(Failed(exit_code=error.exit_code, why=str(error)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
