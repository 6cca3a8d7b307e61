"""The theme failure: one of four processes is killed, or stopped, in the middle of 100 MB; when do the others know, and when are they done?"""

import signal
import statistics
import time
from dataclasses import dataclass
from typing import Any, Final

from measure.comparison import fill, group, ours, warm_up
from measure.ranks import LEAD_S, Rank, loopback
from measure.themes import Bound, Figures, Report, Settings

from barnraise.errors import LocalError

WORLD: Final = 4
SIZE_MB: Final = 100.0
NORMAL_TURNS: Final = 3
FRACTIONS: Final = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Of a normal turn's time, when the blow falls."""
LOST: Final = "context.lost"
"""What our side logs when it learns of a peer's end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blow:
    """What came of one."""

    normal_s: float
    known_s: float | None
    """From the blow until the last survivor knew; None: it fell too late, all were done."""
    redo_s: float | None
    """From then until the last survivor had its result."""
    said: str


def failure(settings: Settings, report: Report) -> None:
    """Strike some times with SIGKILL, and with SIGSTOP."""
    found: Figures = report.figures.setdefault("failure", {})
    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        blows = [_strike(trial, number) for trial in range(max(7, settings.repetitions))]
        found[name] = _told(name, blows, report)


def _strike(trial: int, number: signal.Signals) -> Blow:
    """Raise a group, see how long it takes undisturbed, and strike one of its ranks in the middle."""
    victim, fraction = trial % WORLD, FRACTIONS[trial % len(FRACTIONS)]
    with group(loopback(WORLD), ("ours",)) as ranks:
        fill(ranks, SIZE_MB)
        warm_up(ranks, ours(), is_reference=True)
        normal_s = statistics.median(ranks.reduce("ours", **ours().how()).wall_s for _ in range(NORMAL_TURNS))
        began_s = time.monotonic() + LEAD_S
        for rank in ranks:
            rank.tell("reduce", side="ours", at=began_s, how=ours().how() | {"checked": True})
        time.sleep(max(0.0, began_s + fraction * normal_s - time.monotonic()))
        ranks[victim].send_signal(number)
        struck_s = time.monotonic()
        said = _answers([rank for rank in ranks if rank.index != victim])
    return _blow(normal_s, struck_s, said)


def _answers(survivors: list[Rank]) -> list[dict[str, Any]]:
    """Return what the survivors say of the collective, and see that all have the same result.

    Raises:
        LocalError: they have not; how long it took means nothing then.
    """
    said = [rank.reply() for rank in survivors]
    if not any("failed" in answer for answer in said):
        for rank in survivors:
            rank.tell("used")
        digests = {rank.answer()["digest"] for rank in survivors}
        if len(digests) != 1:
            raise LocalError(f"the survivors' results differ: {', '.join(sorted(digests))}")
    return said


def _blow(normal_s: float, struck_s: float, said: list[dict[str, Any]]) -> Blow:
    refusals = [answer["failed"] for answer in said if "failed" in answer]
    if refusals:
        return Blow(normal_s=normal_s, known_s=None, redo_s=None, said=refusals[0])
    knew = [min((event["at"] for event in answer["events"] if event["event"] == LOST), default=None) for answer in said]
    if any(at is None for at in knew):
        words = "some finished without noticing" if any(knew) else "all were done before"
        return Blow(normal_s=normal_s, known_s=None, redo_s=None, said=words)
    known_s = max(knew)
    done_s = max(answer["ended"] for answer in said)
    return Blow(normal_s=normal_s, known_s=known_s - struck_s, redo_s=done_s - known_s, said="")


def _told(name: str, blows: list[Blow], report: Report) -> Figures:
    counted = [blow for blow in blows if blow.known_s is not None and blow.redo_s is not None]
    for blow in blows:
        if blow.said:
            report.say(f"{name}: not counted: {blow.said}")
    found: Figures = {"counted": len(counted), "of": len(blows), "raw": [_raw(blow) for blow in blows]}
    if not counted:
        report.say(f"{name}: nothing could be measured")
        return found
    known = [blow.known_s or 0.0 for blow in counted]
    redone = [(blow.redo_s or 0.0) / blow.normal_s for blow in counted]
    is_kill = name == "killed"
    found["normal_s"] = report.figure(f"{name}: a normal turn", statistics.median(b.normal_s for b in counted), "s")
    found["known_s"] = report.figure(f"{name}: until all know, median", statistics.median(known), "s")
    worst = report.figure(f"{name}: until all know, worst", max(known), "s", Bound(at_most=1.0) if is_kill else None)
    ratio = report.figure(
        f"{name}: redo / normal, median", statistics.median(redone), "x", Bound(at_most=2.0) if is_kill else None
    )
    return found | {"known_worst_s": worst, "redo_ratio": ratio, "redo_worst_ratio": round(max(redone), 3)}


def _raw(blow: Blow) -> dict[str, Any]:
    return {
        "normal_s": round(blow.normal_s, 4),
        "known_s": blow.known_s if blow.known_s is None else round(blow.known_s, 4),
        "redo_s": blow.redo_s if blow.redo_s is None else round(blow.redo_s, 4),
        "said": blow.said,
    }
