"""The theme choice: every schedule measured over emulated links, and beside them the one that the planner takes."""

from collections.abc import Sequence
from typing import Final

from measure.comparison import Taken, Way, fill, group, ours, take_turns, warm_up
from measure.emulator import DEVICE
from measure.namespaces import Host, Links, emulated, lacking
from measure.ranks import Ranks, Refused, TurnFailed, raised
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
                taken = _taken(hosts, size_mb, settings, failed)
                found[f"{place}_{size_mb:g}MB"] = _told(title, taken, failed, report)
                report.keep(title, taken)


def _taken(hosts: Sequence[Host], size_mb: float, settings: Settings, failed: dict[str, str]) -> Taken:
    """Take turns by all schedules but those that fail, which are noted; after a failure a new group goes on."""
    while True:
        with group(hosts, ("ours",), DEVICE) as ranks:
            fill(ranks, size_mb)
            try:
                return take_turns(ranks, _available(ranks, failed), settings.repetitions)
            except TurnFailed as error:
                if error.schedule in failed:
                    raise
                failed[error.schedule] = str(error)


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
            warm_up(ranks, _named(schedule), is_reference=True)
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
