"""The theme choice: every schedule measured over emulated links, and beside them the one that the planner takes."""

from collections.abc import Sequence
from typing import Any, Final

from measure.comparison import Taken, Way, fill, group, ours, take_turns
from measure.emulator import DEVICE
from measure.namespaces import Host, Links, emulated, lacking
from measure.ranks import Ranks, Refused, TurnFailed, now_s, raised
from measure.themes import Bound, Figures, Report, Settings
from measure.wide import verify

from barnraise.errors import LocalError

SIZES_MB: Final = (0.02, 1.0, 10.0)
"""Small, middle, large."""
SCHEDULES: Final = ("ring", "tree", "butterfly", "shards", "hierarchical", "centralised")
PLACES: Final = {
    "flat": Links(up_mbit=(100.0,) * 4, round_trip_ms=20.0),
    "two_regions": Links(
        up_mbit=(100.0,) * 6, round_trip_ms=4.0, regions=(0, 0, 0, 1, 1, 1), between_ms=80.0, between_mbit=50.0
    ),
}
WITHIN: Final = 1.15
LEARN_S: Final = 15.0
"""Heartbeats have told all latencies, and the graph that was made of them is agreed on."""


def choice(settings: Settings, report: Report) -> None:
    """Measure all schedules at all sizes in both places."""
    why = lacking()
    if why is not None:
        report.skip("choice", f"links cannot be emulated here: {why}.")
        return
    found: Figures = report.figures.setdefault("choice", {})
    for place, between in PLACES.items():
        with emulated(between) as hosts:
            with raised(hosts) as ranks:
                verify(ranks, between, report)
            for size_mb in SIZES_MB:
                title = f"{place} {size_mb:g} MB"
                failed: dict[str, str] = {}
                taken, planned = _taken(hosts, size_mb, settings, failed)
                report.say(f"{title}: auto takes {planned['kind']}")
                found[f"{place}_{size_mb:g}MB"] = _told(title, taken, failed, report) | {"took": planned["kind"]}
                report.keep(title, taken)


def _taken(
    hosts: Sequence[Host], size_mb: float, settings: Settings, failed: dict[str, str]
) -> tuple[Taken, dict[str, Any]]:
    """Take turns by all schedules but those that fail, which are noted; after a failure a new group goes on.

    Returns:
        The turns, and what the planner takes at their end.
    """
    while True:
        with group(hosts, ("ours",), DEVICE) as ranks:
            fill(ranks, size_mb)
            try:
                _learn_links(ranks)
                taken = take_turns(ranks, _available(ranks, failed), settings.repetitions)
                return taken, _planned(ranks)
            except TurnFailed as error:
                if error.schedule in failed:
                    raise
                failed[error.schedule] = str(error)


def _learn_links(ranks: Ranks) -> None:
    """Add up until the planner knows the links: before that there is nothing to choose by."""
    until_s = now_s() + LEARN_S
    while now_s() < until_s:
        ranks.reduce("ours", **_named("auto").how())
    if not _planned(ranks)["is_by_links"]:
        raise LocalError(f"the planner has not learnt the links in {LEARN_S:g} s")


def _planned(ranks: Ranks, schedule: str = "auto") -> dict[str, Any]:
    """Return what the planner says, which is the same on all ranks. Raises `Refused`."""
    return ranks.ask("planned", how=_named(schedule).how())[0]


def _named(schedule: str) -> Way:
    way = ours("fp32", schedule)
    return Way(name=schedule, codec=way.codec, schedule=way.schedule)


def _available(ranks: Ranks, failed: dict[str, str]) -> list[Way]:
    """Return the ways that have not failed and are not refused, the planner's choice first."""
    ways = [_named("auto")]
    for schedule in SCHEDULES:
        if schedule in failed:
            continue
        try:
            _planned(ranks, schedule)
        except Refused as error:
            failed[schedule] = f"refused: {error}"
        else:
            ways.append(_named(schedule))
    return ways


def _told(title: str, taken: Taken, failed: dict[str, str], report: Report) -> Figures:
    for why in failed.values():
        report.say(f"{title}: not measured: {why}")
    if len(taken.turns) < 2:
        raise LocalError(f"{title}: no schedule can be measured")
    times_s = {name: taken.wall_s(name) for name in taken.turns if name != "auto"}
    best = min(times_s, key=lambda name: times_s[name])
    ordered = ", ".join(
        f"{name} {1e3 * took_s:.1f}" for name, took_s in sorted(times_s.items(), key=lambda item: item[1])
    )
    report.say(f"{title}: auto {1e3 * taken.wall_s('auto'):.1f} ms; {ordered}")
    ratio = taken.wall_s("auto") / times_s[best]
    return {
        "auto_over_best": report.figure(f"{title}: auto / {best}", ratio, "x", Bound(at_most=WITHIN)),
        "best": best,
        "ms": {name: round(1e3 * taken.wall_s(name), 2) for name in taken.turns},
        "failed": failed,
    }
