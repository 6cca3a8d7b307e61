"""``barnraise log``: what the members of a run agreed on, entry by entry, as a peer of this machine has it on disk."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from barnraise.cli.page import Directory, Json, print_json, print_table, readable
from barnraise.ids import short
from barnraise.observe.figures import measured
from barnraise.runs import reading
from barnraise.runs.reading import Entry
from barnraise.swarm.petitions import in_words
from barnraise.swarm.records import MICRO, Amend, Recover

TITLES: Final = ("height", "what", "round", "peers", "loss", "bits/byte", "checkpoint", "time", "besides")


def log(
    *,
    directory: Directory = None,
    last: Annotated[int, Parameter(validator=Number(gte=1))] = 20,
    json: Json = False,
) -> int:
    """List what the members agreed on: which updates went into a round (cut), what it made of the model (result).

    A void is a round that is tried again. The entries are those of the peer that has agreed to most; each was voted
    for by a quorum of the members.

    Args:
        directory: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        last: How many entries, the newest.
        json: Print one object for each entry, in a list, with all fields; ids and hashes as hex digits.
    """
    entries = reading.entries(reading.farthest(reading.find(directory)), last)
    if json:
        print_json([_record(entry) for entry in entries])
    elif entries:
        print_table(TITLES, [_cells(entry) for entry in entries], numbers=TITLES[:1] + TITLES[2:6])
    else:
        print("nothing is agreed yet; barnraise status says what the peers are doing")
    return 0


def kind(entry: Entry) -> str:
    """Return the name of what an entry is: ``cut``, ``result``, ``void``."""
    return type(entry.event).__name__.lower()


def _record(entry: Entry) -> dict[str, Any]:
    return {"height": entry.height, "what": kind(entry), "signers": entry.signers, **readable(entry.event)}


def _cells(entry: Entry) -> tuple[str, ...]:
    event = entry.event
    metrics = getattr(event, "metrics", None)
    contributions = getattr(event, "contributions", None)
    unix_time = getattr(event, "time", None)
    return (
        str(entry.height),
        kind(entry),
        str(event.round),
        "" if contributions is None else str(len(contributions)),
        "" if metrics is None else measured(metrics.train_loss / MICRO),
        "" if metrics is None else measured(bits(metrics.validation_loss)),
        getattr(event, "vertex", b"").hex()[:12],
        "" if unix_time is None else f"{datetime.fromtimestamp(unix_time):%Y-%m-%d %H:%M:%S}",
        _besides(event),
    )


def bits(micro_nats: int) -> float | None:
    """Return a loss of micro-nats per byte in bits; negative: nobody measured."""
    return micro_nats / MICRO / math.log(2) if micro_nats >= 0 else None


def _besides(event: object) -> str:
    parts = [f"attempt {attempt + 1}" for attempt in [getattr(event, "attempt", 0)] if attempt]
    for name in ("joined", "left", "without"):
        peers: Sequence[str] = getattr(event, name, ())
        if peers:
            parts.append(f"{name} {', '.join(map(short, peers))}")
    if isinstance(event, Amend):
        parts.append(in_words(event.change))
    if isinstance(event, Recover):
        parts.append(f"the operators let {', '.join(map(short, event.members))} go on")
    return "; ".join(parts)
