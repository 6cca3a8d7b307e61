"""The theme links: the same comparison over emulated links of 100 Mbit/s and 50 ms, and what disturbs such links."""

import functools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from measure.comparison import GLOO, PORTS, Taken, Way, fill, group, ours, take_turns
from measure.emulator import DEVICE
from measure.namespaces import Links, emulated, lacking
from measure.ranks import LEAD_S, Ranks, now_s
from measure.themes import Bound, Figures, Report, Settings

from barnraise.errors import LocalError

NUM_HOSTS: Final = 4
RATE_MBIT: Final = 100.0
SIZE_MB: Final = 25.0
IDLE_S: Final = 30.0
SLOW_SIZE_MB: Final = 10.0
"""With a host at a tenth of the speed a turn of 25 MB takes half a minute on either side."""
WITHIN: Final = 0.95
"""Two medians of one thing differ by as much."""
PROBE_BYTES: Final = 10_000_000
LOSS: Final = 0.001
INTERNET_MTU: Final = 1500
"""How much loss slows a connection depends on the size of its packets."""
TOP_K: Final = Way(name="topk1", codec="topk:0.01")
WIDE: Final = Links(up_mbit=(RATE_MBIT,) * NUM_HOSTS)


def links(settings: Settings, report: Report) -> None:
    """Go through the scenarios that were asked for; all, if none was."""
    why = lacking()
    if why is not None:
        report.skip("100mbit_50ms", f"links cannot be emulated here: {why}.")
        return
    for name, scenario in SCENARIOS.items():
        if not settings.scenarios or name.startswith(settings.scenarios):
            report.say(f"-- {name}")
            report.attempt(name, functools.partial(scenario, settings, report))


def warmed(settings: Settings, report: Report) -> None:
    """Measure connections that were used just before."""
    ways = (GLOO, ours(), ours("bf16"), ours("int8"), TOP_K)
    bounds = {"fp32": 0.95, "bf16": 1.7, "int8": 3.5, "topk1": 6.0}
    with _connected(WIDE, report) as ranks:
        fill(ranks, SIZE_MB)
        taken = take_turns(ranks, ways, settings.repetitions)
        report.figures["100mbit_50ms"] = _speedups("25 MB", taken, bounds, report)
        report.keep("100mbit_50ms", taken)
        fill(ranks, 1.0)
        taken = take_turns(ranks, ways, settings.repetitions)
    found = {
        name: report.figure(f"1 MB {name} / gloo", taken.ratios(name)["wall"], "x", _half(name)) for name in bounds
    }
    report.figures["100mbit_50ms_1MB"] = found
    report.keep("100mbit_50ms_1MB", taken)


def _half(name: str) -> Bound | None:
    return Bound(at_most=0.5) if name == "fp32" else None


def idle(settings: Settings, report: Report) -> None:
    """Measure connections that carried nothing for half a minute."""
    with _connected(WIDE, report) as ranks:
        fill(ranks, SIZE_MB)
        taken = take_turns(ranks, (GLOO, ours("int8")), settings.repetitions, pause_s=IDLE_S)
    report.figures["100mbit_50ms_idle"] = _speedups("after 30 s idle", taken, {"int8": 2.8}, report)
    report.keep("100mbit_50ms_idle", taken)


def lossy(congestion: str, *, without_bbr: bool = False) -> Callable[[Settings, Report], None]:
    """Return a scenario with random loss on hosts with this default congestion control, which may be all there is."""
    name = f"{congestion}_alone" if without_bbr else congestion

    def scenario(settings: Settings, report: Report) -> None:
        lost = Links(up_mbit=WIDE.up_mbit, loss=LOSS, mtu=INTERNET_MTU, congestion=congestion)
        with _connected(lost, report, without_bbr=without_bbr) as ranks:
            fill(ranks, SIZE_MB)
            taken = take_turns(ranks, (GLOO, ours()), settings.repetitions)
        used = _ideal_s(SIZE_MB, RATE_MBIT) / taken.wall_s("fp32")
        found = {
            "used": report.figure(f"{name}, 0.1 % loss: share of the link used", used, "", Bound(at_least=0.8)),
            "gloo_used": report.figure("the same, gloo", _ideal_s(SIZE_MB, RATE_MBIT) / taken.wall_s("gloo")),
        }
        report.figures[f"100mbit_50ms_loss_{name}"] = found
        report.keep(f"100mbit_50ms_loss_{name}", taken)

    return scenario


def slow_host(settings: Settings, report: Report) -> None:
    """Measure with and without one host at a tenth of the speed of the others."""
    ways = (GLOO, ours(), ours("int8"))
    found: Figures = {}
    even = {}
    for name, rates in (("even", WIDE.up_mbit), ("slow", (RATE_MBIT / 10, *WIDE.up_mbit[1:]))):
        with _connected(Links(up_mbit=rates), report) as ranks:
            fill(ranks, SLOW_SIZE_MB)
            taken = take_turns(ranks, ways, settings.repetitions)
        for way in ("fp32", "int8"):
            even.setdefault(way, taken.speedup(way))
            bound = Bound(at_least=round(WITHIN * even[way], 2)) if name == "slow" else None
            found.setdefault(way, {})[name] = report.figure(
                f"{name}: {way}, times gloo's speed", taken.speedup(way), "x", bound
            )
        report.keep(f"100mbit_50ms_slow_host_{name}", taken)
    report.figures["100mbit_50ms_slow_host"] = found


def _ideal_s(size_mb: float, rate_mbit: float) -> float:
    """Return how long a host sends at best: 2 (n - 1) / n times the vector."""
    return 2 * (NUM_HOSTS - 1) / NUM_HOSTS * size_mb * 8 / rate_mbit


def _speedups(title: str, taken: Taken, bounds: dict[str, float], report: Report) -> Figures:
    report.say(f"{title}: gloo {taken.wall_s('gloo'):.3f} s")
    return {
        name: report.figure(f"{title} {name}, times gloo's speed", taken.speedup(name), "x", Bound(at_least=bound))
        for name, bound in bounds.items()
    }


@contextmanager
def _connected(between: Links, report: Report, *, without_bbr: bool = False) -> Iterator[Ranks]:
    """Make hosts, see that their links are what was asked for, and connect both sides over them."""
    with emulated(between) as hosts, group(hosts, ("gloo", "ours"), DEVICE, without_bbr) as ranks:
        verify(ranks, between, report)
        yield ranks


def verify(ranks: Ranks, between: Links, report: Report) -> None:
    """Print what plain sockets get out of these links.

    Raises:
        LocalError: the links are not what was asked for; what is measured over them would mean nothing.
    """
    port = PORTS["probe"]
    for rank, host in zip(ranks, ranks.hosts, strict=True):
        rank.tell("listen", address=host.address, port=port)
        rank.answer()
    near, far = ranks[0], ranks.hosts[1].address
    near.tell("round_trip", address=far, port=port)
    round_trip_ms = 1e3 * near.answer()["round_trip_s"]
    near.tell("congestion", address=far, port=port)
    congestion = near.answer()["congestion"]
    got = _pour_round(ranks, port)
    shares = ", ".join(f"{mbit:.1f}" for mbit in got)
    report.say(f"plain sockets: {round_trip_ms:.1f} ms there and back, {shares} Mbit/s all at once with {congestion}")
    if between.loss:
        return
    wanted = between.mbit_to_next()
    is_slow = statistics.median(mbit / most for mbit, most in zip(got, wanted, strict=True)) < 0.7
    if is_slow or abs(round_trip_ms - between.round_trip_ms) > 0.2 * between.round_trip_ms + 2:
        raise LocalError(f"these are not the links that were asked for: {between}. Measure on a less busy machine.")


def _pour_round(ranks: Ranks, port: int) -> list[float]:
    """Let every host send to the next one at once; return the Mbit/s of each."""
    began_s = now_s() + 10 * LEAD_S
    addresses = [host.address for host in ranks.hosts]
    for rank, address in zip(ranks, [*addresses[1:], addresses[0]], strict=True):
        rank.tell("pour", address=address, port=port, size_bytes=PROBE_BYTES, at=began_s)
    return [rank.answer()["mbit_s"] for rank in ranks]


SCENARIOS: Final[dict[str, Callable[[Settings, Report], None]]] = {
    "warmed": warmed,
    "loss_cubic": lossy("cubic"),
    "loss_bbr": lossy("bbr"),
    "loss_alone": lossy("cubic", without_bbr=True),
    "slow_host": slow_host,
    "idle": idle,
}
