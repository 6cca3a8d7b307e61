"""One group of ranks, several ways to add up the same vectors, in turn; and what came out, as ratios to the first way."""

import itertools
import socket
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from measure.ranks import Host, Ranks, Turn, median_ratio, raised

from barnraise.errors import LocalError

LOOPBACK: Final = "lo"
PORTS: Final[Mapping[str, int]] = {"gloo": 29_500, "ours": 29_501, "probe": 29_502}
"""On hosts of their own."""
WARM_UPS: Final = 2
"""Of each way: the first dials, and finds its memory."""
MAX_ERROR: Final[Mapping[str, float]] = {"fp32": 1e-6, "fp16": 4e-3, "bf16": 2e-2, "int8": 6e-2}
"""What a codec may be off, relative to the sum in float32; a result beyond it is a failure, not a fast result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to add up."""

    name: str
    side: str = "ours"
    codec: str = "fp32"
    schedule: str = "auto"

    def how(self) -> dict[str, Any]:
        """Return what our side is asked for."""
        return {} if self.side == "gloo" else {"codec": self.codec, "schedule": self.schedule}


GLOO: Final = Way(name="gloo", side="gloo")


def ours(codec: str = "fp32", schedule: str = "auto") -> Way:
    """Return a way of ours, named by its codec, and by its schedule unless the planner chooses that."""
    name = codec if schedule == "auto" else f"{codec}:{schedule}"
    return Way(name=name, codec=codec, schedule=schedule)


@dataclass(kw_only=True)
class Taken:
    """The turns of every way, by its name, in the order in which they were taken."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)

    def wall_s(self, name: str) -> float:
        """Return the median wall time of one way."""
        return statistics.median(turn.wall_s for turn in self.turns[name])

    def cpu_s(self, name: str) -> float:
        """Return the median CPU time, all ranks together, of one way."""
        return statistics.median(turn.cpu_s for turn in self.turns[name])

    def ratios(self, name: str, to: str = GLOO.name) -> dict[str, float]:
        """Return the medians of CPU and wall time over those of another way, turn by turn."""
        mine, theirs = self.turns[name], self.turns[to]
        return {
            "cpu": median_ratio([turn.cpu_s for turn in mine], [turn.cpu_s for turn in theirs]),
            "wall": median_ratio([turn.wall_s for turn in mine], [turn.wall_s for turn in theirs]),
        }

    def speedup(self, name: str, to: str = GLOO.name) -> float:
        """Return how many times faster one way is than another, by the wall."""
        return 1 / self.ratios(name, to)["wall"]

    def raw(self) -> dict[str, dict[str, list[float]]]:
        """Return every turn, in milliseconds."""
        return {
            name: {
                "wall_ms": [round(1e3 * turn.wall_s, 2) for turn in turns],
                "cpu_ms": [round(1e3 * turn.cpu_s, 2) for turn in turns],
            }
            for name, turns in self.turns.items()
        }


@contextmanager
def group(
    hosts: Sequence[Host], sides: Sequence[str], interface: str = LOOPBACK, without_bbr: bool = False
) -> Iterator[Ranks]:
    """Raise a rank on each host and connect them, on each side; ours, if so asked, as on a kernel without bbr."""
    with raised(hosts) as ranks:
        for side in sides:
            more = {"without_bbr": True} if without_bbr and side == "ours" else {}
            connect(ranks, side, interface, **more)
        yield ranks


def connect(ranks: Ranks, side: str, interface: str, **more: Any) -> None:
    """Let all ranks connect on one side, told ``more``; on one machine each needs a port of its own."""
    ports = free_ports(len(ranks)) if interface == LOOPBACK else [PORTS[side]] * len(ranks)
    addresses = [f"{host.address}:{port}" for host, port in zip(ranks.hosts, ports, strict=True)]
    for rank in ranks:
        rank.tell("open", side=side, rank=rank.index, addresses=addresses, interface=interface, **more)
    for rank in ranks:
        rank.answer()


def fill(ranks: Ranks, size_mb: float) -> None:
    """Give each rank a vector of its own."""
    elements = round(size_mb * 1e6 / 4)
    for rank in ranks:
        rank.tell("fill", elements=elements, seed=1 + rank.index)
    for rank in ranks:
        rank.answer()


def take_turns(ranks: Ranks, ways: Sequence[Way], repetitions: int, pause_s: float = 0.0) -> Taken:
    """Warm up and check every way, then let them take turns; who begins changes from round to round.

    Args:
        ranks: connected and filled.
        ways: the first is what the others are checked against.
        repetitions: turns of each that count.
        pause_s: all stand still for so long before each turn.

    Raises:
        LocalError: a way's ranks disagree, or its result is too far off.
    """
    for way in ways:
        warm_up(ranks, way, is_reference=way is ways[0])
    taken = Taken(turns={way.name: [] for way in ways})
    for number in range(repetitions):
        for way in itertools.islice(itertools.cycle(ways), number % len(ways), number % len(ways) + len(ways)):
            if pause_s:
                time.sleep(pause_s)
            taken.turns[way.name].append(ranks.reduce(way.side, **way.how()))
    return taken


def warm_up(ranks: Ranks, way: Way, *, is_reference: bool) -> None:
    """Take turns that do not count, and look at what comes of them."""
    for _ in range(WARM_UPS):
        turn = ranks.reduce(way.side, **way.how(), checked=True)
    if len(set(turn.digests)) != 1:
        raise LocalError(f"{way.name}: the ranks' results differ: {', '.join(turn.digests)}")
    if is_reference:
        ranks.ask("expect")
    elif turn.error > MAX_ERROR.get(way.codec, float("inf")):
        raise LocalError(
            f"{way.name}: the result is off by {turn.error:.2g} of its norm; {MAX_ERROR[way.codec]:g} may be"
        )


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports
