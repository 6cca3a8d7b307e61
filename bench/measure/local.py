"""The theme loopback: Gloo in plaintext and our collectives, encrypted, in the same processes of one machine."""

from typing import Final

from measure.comparison import GLOO, Taken, Way, fill, group, ours, take_turns
from measure.ranks import loopback as this_machine
from measure.themes import Bound, Figures, Report, Settings

WAYS: Final = (
    ours(),
    ours("fp32", "ring"),
    ours("fp32", "shards"),
    ours("bf16"),
    ours("bf16", "ring"),
    ours("bf16", "shards"),
    ours("int8"),
    ours("int8", "ring"),
    ours("int8", "shards"),
)
BOUNDS: Final = {
    "fp32": (Bound(at_most=1.6), Bound(at_most=1.6)),
    "int8": (Bound(at_most=0.95), Bound(at_most=0.95)),
}
BOUND_AT: Final = (4, 25.0)


def loopback(settings: Settings, report: Report) -> None:
    """Measure every number of processes and every size that was asked for."""
    found: Figures = report.figures.setdefault("loopback", {})
    for world in settings.worlds:
        with group(this_machine(world), ("gloo", "ours")) as ranks:
            for size_mb in settings.sizes_mb:
                fill(ranks, size_mb)
                taken = take_turns(ranks, (GLOO, *WAYS), settings.repetitions)
                name = f"{world}x{size_mb:g}MB"
                found[name] = _told(world, size_mb, taken, WAYS, report)
                report.keep(name, taken)


def _told(world: int, size_mb: float, taken: Taken, ways: tuple[Way, ...], report: Report) -> Figures:
    title = f"{world} x {size_mb:g} MB"
    bounds = BOUNDS if (world, size_mb) == BOUND_AT else {}
    gloo_s = taken.wall_s("gloo")
    report.say(f"{title}: gloo {1e3 * gloo_s:.1f} ms, {1e3 * taken.cpu_s('gloo'):.1f} ms of CPU")
    return report.ways(taken, [way.name for way in ways], bounds, title)
