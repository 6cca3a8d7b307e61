"""The theme hivemind: its all-reduce beside ours, four processes, 25 MB on loopback, in turn."""

import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from measure.comparison import GLOO, fill, group, ours, warm_up
from measure.process import group_cpu_s
from measure.ranks import Ranks, Turn, loopback, median_ratio, raised
from measure.themes import Bound, Figures, Report, Settings

from barnraise.errors import LocalError

WORLD: Final = 4
SIZE_MB: Final = 25.0
JOIN_S: Final = 120.0
TIMES_FASTER: Final = 8.0


def hivemind(settings: Settings, report: Report) -> None:
    """Measure both sides in turn, and Gloo with them."""
    why = lacking(settings.hivemind_python)
    if why is not None:
        report.skip("hivemind", why)
        return
    ways = (ours(), ours("int8"), GLOO)
    turns: dict[str, list[Turn]] = {way.name: [] for way in ways}
    theirs: list[tuple[float, float]] = []
    with group(loopback(WORLD), ("gloo", "ours")) as ranks, _hivemind(settings.hivemind_python) as peers:
        fill(ranks, SIZE_MB)
        for way in (GLOO, *ways[:-1]):
            warm_up(ranks, way, is_reference=way is GLOO)
        _average(peers, 0)
        for number in range(1, settings.repetitions + 1):
            theirs.append(_average(peers, number))
            for way in ways:
                turns[way.name].append(ranks.reduce(way.side, **way.how()))
    report.figures["hivemind"] = _told(turns, theirs, report)


def lacking(python: str) -> str | None:
    """Say in words why hivemind cannot be measured; None: it can."""
    asked = subprocess.run([python, "-c", "import hivemind"], check=False, capture_output=True, text=True)
    if not asked.returncode:
        return None
    last = (asked.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return f"{python} cannot import hivemind ({last}). pip install '.[bench]', or name a Python with --hivemind-python."


def _average(peers: Ranks, number: int) -> tuple[float, float]:
    """Let hivemind average once; return the seconds of its slowest all-reduce and the CPU seconds of the whole step.

    Raises:
        LocalError: the average is none; hivemind does not always say so.
    """
    before_s = sum(group_cpu_s(peer.pid) for peer in peers)
    for peer in peers:
        peer.tell("average", value=float(number + peer.index))
    said = [peer.answer() for peer in peers]
    cpu_s = sum(group_cpu_s(peer.pid) for peer in peers) - before_s
    mean = number + statistics.mean(range(WORLD))
    for answer in said:
        if answer["group"] != WORLD or not mean - 0.1 < answer["low"] <= answer["high"] < mean + 0.1:
            raise LocalError(f"hivemind's average is none: a group of {answer['group']}, values {answer} for {mean}")
    return max(answer["took_s"] for answer in said), cpu_s


@contextmanager
def _hivemind(python: str) -> Iterator[Ranks]:
    elements = round(SIZE_MB * 1e6 / 4)
    with raised(loopback(WORLD), "measure.hivemind_peer", python) as peers:
        initial: list[str] = []
        for peer in peers:
            what: dict[str, Any] = {"rank": peer.index, "world": WORLD, "elements": elements, "codec": "fp32"}
            peer.tell("join", initial=initial, **what)
            initial += peer.answer(JOIN_S)["addresses"]
        yield peers


def _told(turns: dict[str, list[Turn]], theirs: list[tuple[float, float]], report: Report) -> Figures:
    their_s = [took_s for took_s, _ in theirs]
    found: Figures = {
        "hivemind_ms": round(1e3 * statistics.median(their_s), 1),
        "hivemind_step_cpu_ms": round(1e3 * statistics.median(cpu_s for _, cpu_s in theirs), 1),
    }
    report.say(f"hivemind {found['hivemind_ms']} ms; CPU of a whole step {found['hivemind_step_cpu_ms']} ms")
    for name, taken in turns.items():
        ratio = median_ratio(their_s, [turn.wall_s for turn in taken])
        bound = Bound(at_least=TIMES_FASTER) if name == "fp32" else None
        found[name] = report.figure(f"{name}, times hivemind's speed", ratio, "x", bound)
        ratio = median_ratio([cpu_s for _, cpu_s in theirs], [turn.cpu_s for turn in taken])
        found[f"{name}_cpu"] = report.figure(f"{name}, CPU of a hivemind step over ours", ratio, "x")
    return found | {"raw_ms": [round(1e3 * took_s, 1) for took_s in their_s]}
