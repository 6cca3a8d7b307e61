"""How long an all-reduce takes from 4 to 4096 peers, by the cost model: curves, tables, and where a second is enough.

Predicted, not measured: the closed forms of `barnraise.collective.closed_forms` on links that are all alike, for every kind
of schedule that the planner would allow the codec, each with its best chunk size. `--check` compares them with the event
simulator, which runs the real programs of all ranks. Two to sixteen real processes are measured by bench/allreduce.py.

    python bench/scale.py
    python bench/scale.py --check
    python bench/scale.py --json scale.json --plot docs/images/scale.svg
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any, Final, NamedTuple

from measure.scaling import draw

from barnraise.codec.chain import codec_of
from barnraise.collective.closed_forms import KINDS, closed_form_s, hierarchical_s
from barnraise.collective.cost import Job, Wire
from barnraise.collective.kinds import schedule_of
from barnraise.collective.links import LinkProfile, Links
from barnraise.collective.planner import is_suited, plan
from barnraise.sim.links import simulate

PEERS: Final = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MEGABITS: Final = (10, 100, 1_000, 10_000)
LATENCIES_MS: Final = (1, 10, 50, 200)
MEGABYTES: Final = (1, 25, 100, 1_000)
CODECS: Final = ("fp32", "int8", "topk:0.016+int2")
BELOW: Final = 100
"""Peers of the claim that is examined: a second is enough for fewer than a hundred."""
GOAL_S: Final = 1.0
CHECKED: Final = (4, 16, 64, 128)


class Point(NamedTuple):
    """The best schedule at one place of the grid."""

    codec: str
    megabytes: int
    peers: int
    megabits: float
    latency_ms: float
    kind: str
    seconds: float


@cache
def wire_of(spec: str, peers: int) -> Wire:
    """Return a codec as the cost model sees it; what sparse sums grow to depends on the number of peers."""
    return Wire.of(codec_of(spec, "float32"), peers)


@cache
def jobs_of(spec: str, megabytes: int, peers: int) -> tuple[Job, ...]:
    """Return the job in chunks of each size that the planner tries."""
    wire = wire_of(spec, peers)
    size = megabytes * 250_000
    return tuple(Job(size=size, wire=wire, chunk_elements=elements) for elements in wire.chunk_choices())


def profile_of(megabits: float, latency_ms: float) -> LinkProfile:
    """Return a link in the units of the tables."""
    return LinkProfile(latency_s=latency_ms / 1e3, bandwidth_bytes_s=megabits * 1e6 / 8)


def best(spec: str, megabytes: int, peers: int, megabits: float, latency_ms: float) -> Point:
    """Return the fastest schedule on links that are all alike."""
    profile, width = profile_of(megabits, latency_ms), 1 << round(isqrt(peers).bit_length() - 1)
    times: dict[str, float] = {}
    for job in jobs_of(spec, megabytes, peers):
        for kind in KINDS:
            if is_suited(kind, job.wire, peers):
                seconds = closed_form_s(kind, peers, profile, job)
                times[kind] = min(seconds, times.get(kind, seconds))
        if is_suited("hierarchical", job.wire, peers):
            seconds = hierarchical_s(("butterfly", width, profile), ("shards", -(-peers // width), profile), job)
            times["hierarchical"] = min(seconds, times.get("hierarchical", seconds))
    kind = min(times, key=lambda name: times[name])
    return Point(spec, megabytes, peers, megabits, latency_ms, kind, times[kind])


def grid() -> Iterator[Point]:
    """Yield the best schedule at every place."""
    for spec in CODECS:
        for megabytes in MEGABYTES:
            for peers in PEERS:
                for megabits in MEGABITS:
                    for latency_ms in LATENCIES_MS:
                        yield best(spec, megabytes, peers, megabits, latency_ms)


def needed_megabits(spec: str, megabytes: int, peers: int, latency_ms: float) -> float | None:
    """Return the least bandwidth of every peer with which a second is enough; None: 100 Gbit/s is not."""
    low, high = 0.1, 100_000.0
    if best(spec, megabytes, peers, high, latency_ms).seconds >= GOAL_S:
        return None
    for _ in range(30):
        middle = (low * high) ** 0.5
        if best(spec, megabytes, peers, middle, latency_ms).seconds < GOAL_S:
            high = middle
        else:
            low = middle
    return high


def print_grid(points: Sequence[Point]) -> None:
    """Print one table for each codec and size: seconds and the first letters of the schedule."""
    shown = [(megabits, latency) for megabits in MEGABITS for latency in (1, 50, 200)]
    by_place = {point[:5]: point for point in points}
    for spec in CODECS:
        for megabytes in MEGABYTES:
            print(f"\n{spec}, {megabytes} MB of float32: seconds, schedule")
            print(" peers" + "".join(f"{f'{_speed(megabits)} {latency} ms':>19}" for megabits, latency in shown))
            for peers in PEERS[::2]:
                cells = [by_place[spec, megabytes, peers, *place] for place in shown]
                print(f"{peers:>6}" + "".join(f"{f'{cell.seconds:.3g} {cell.kind[:4]}':>19}" for cell in cells))


def print_needed() -> dict[str, dict[str, float | None]]:
    """Print what links a second takes at 99 peers, and return it."""
    peers, needed = BELOW - 1, {}
    print(f"\nLeast bandwidth of each of {peers} peers for an all-reduce in under {GOAL_S:.0f} s, by one-way latency")
    print(f"{'':>28}" + "".join(f"{f'{latency} ms':>14}" for latency in LATENCIES_MS))
    for spec in CODECS:
        for megabytes in MEGABYTES:
            row = {f"{latency} ms": needed_megabits(spec, megabytes, peers, latency) for latency in LATENCIES_MS}
            needed[f"{spec} {megabytes} MB"] = row
            cells = ["never" if value is None else _speed(value) for value in row.values()]
            print(f"{f'{spec}, {megabytes} MB':>28}" + "".join(f"{cell:>14}" for cell in cells))
    return needed


def print_wins(points: Sequence[Point]) -> None:
    """Print how often each schedule is the best one, by size."""
    print("\nShare of the grid at which each schedule is best, fp32")
    for megabytes in MEGABYTES:
        chosen = [point.kind for point in points if point.codec == "fp32" and point.megabytes == megabytes]
        shares = {kind: chosen.count(kind) / len(chosen) for kind in sorted(set(chosen))}
        print(f"{megabytes:>6} MB  " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()))


def print_regions() -> list[dict[str, Any]]:
    """Print what the planner makes of four regions, and of the same without groups."""
    inside, across = profile_of(1_000, 1), profile_of(100, 100)
    rows = []
    print("\nFour regions, 1 ms and 1 Gbit/s inside, 100 ms and 100 Mbit/s a peer between; 25 MB, fp32: seconds")
    print(f"{'peers':>6}  {'plan':<34}{'plan':>8}{'shards':>9}{'ring':>8}")
    for peers in (8, 16, 32, 64):
        links = Links.of_regions([peers // 4] * 4, inside, across)
        chosen, shards, ring = (
            plan(links, 6_250_000, [wire_of("fp32", peers)], kind=kind) for kind in (None, "shards", "ring")
        )
        row = {"peers": peers, "schedule": chosen.schedule.kind, "seconds": chosen.predicted_s}
        rows.append(row | {"shards": shards.predicted_s, "ring": ring.predicted_s})
        times = f"{chosen.predicted_s:>8.2f}{shards.predicted_s:>9.2f}{ring.predicted_s:>8.2f}"
        print(f"{peers:>6}  {chosen.schedule.kind:<34}{times}")
    return rows


def print_check() -> None:
    """Print the forms beside the simulator, which runs every rank's program."""
    print(f"\n{'kind':>12} {'peers':>6} {'link':>17} {'MB':>5} {'form s':>10} {'simulated s':>12} {'ratio':>6}")
    for kind in KINDS:
        for peers in CHECKED:
            for megabits, latency_ms in ((100, 50), (10_000, 1)):
                for megabytes in (1, 25):
                    job = jobs_of("fp32", megabytes, peers)[0]
                    profile = profile_of(megabits, latency_ms)
                    form_s = closed_form_s(kind, peers, profile, job)
                    schedule = schedule_of(kind, peers)
                    simulated_s = simulate(schedule, Links.uniform(peers, profile), job).makespan_s
                    link, ratio = f"{_speed(megabits)} {latency_ms} ms", form_s / simulated_s
                    print(
                        f"{kind:>12} {peers:>6} {link:>17} {megabytes:>5} {form_s:>10.4f} {simulated_s:>12.4f} {ratio:>6.3f}",
                        flush=True,
                    )


def _speed(megabits: float) -> str:
    return f"{megabits / 1000:.3g} Gbit/s" if megabits >= 999.5 else f"{megabits:.3g} Mbit/s"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="compare the forms with the event simulator instead; minutes"
    )
    parser.add_argument("--json", type=Path, help="also write the whole grid to this file")
    parser.add_argument("--plot", type=Path, help="also draw the curves, as SVG; takes the extra [plot]")
    arguments = parser.parse_args()
    if arguments.check:
        print_check()
        return
    points = list(grid())
    print_grid(points)
    print_wins(points)
    needed, over_regions = print_needed(), print_regions()
    if arguments.json:
        figures = {"predicted": True, "goal_s": GOAL_S, "needed_megabits_of_99": needed, "regions": over_regions}
        figures |= {"grid": [point._asdict() for point in points]}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.plot:
        draw(points, MEGABYTES, MEGABITS, CODECS, arguments.plot)


if __name__ == "__main__":
    main()
