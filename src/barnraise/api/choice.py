"""Which schedule and codec a call goes by: the planner's choice where links are known, else a rule that needs none; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from barnraise.api.streams import Call
from barnraise.codec.level import level_named
from barnraise.collective import planner
from barnraise.collective.adoption import Graph
from barnraise.collective.clusters import groups_of
from barnraise.collective.compression import RAW, Allowed, asked_for, wire_of
from barnraise.collective.kinds import schedule_of
from barnraise.collective.links import LinkGraph, Links
from barnraise.collective.schedule import Schedule
from barnraise.errors import ConfigError
from barnraise.ids import PeerId

RING_BYTES: Final = 8 << 20
"""From here on the ring's fewer streams are worth its latencies, on links that are alike."""

BY_LINKS: Final = ("auto", "hierarchical")
"""What a call may say instead of a schedule's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """How a tensor is to be added up, and why."""

    kind: str
    """The schedule's name."""
    predicted_s: float | None
    """None: the links are not known, or do not matter."""
    reasons: tuple[str, ...]
    """Sentences, for people."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """What else was weighed, with its predicted seconds, best first."""
    schedule: Schedule
    codec: str
    """How values travel."""
    chunk_elements: int | None = None
    """None: as many as fit a frame."""


def is_raw(codec: str) -> bool:
    """Tell whether numbers travel as they are, float64 too."""
    return codec == RAW


def goes_by_links(call: Call) -> bool:
    """Tell whether the graph has a say in a call."""
    return call.operation in ("mean", "sum") and (call.schedule in BY_LINKS or level_named(call.codec) is not None)


def links_between(group: Sequence[PeerId], members: Sequence[int], graph: Graph) -> Links:
    """Return the links between the members, as a graph of the whole group describes them; the same on all of them."""
    rows = {group[rank]: row for rank, row in graph.rows.items()}
    return LinkGraph.of_rows(group, rows).between([group[rank] for rank in members])


def choose(call: Call, count: int, links: Links | None, *, is_whole: bool = True) -> Choice:
    """Return schedule and codec of an all-reduce.

    Args:
        call: what is asked for.
        count: members.
        links: between them; None: not known yet.
        is_whole: nobody was lost.

    Raises:
        ConfigError: schedule or codec are unknown, or the schedule needs regions and there is one.
    """
    encoding = _encoding(call, count, links)
    if call.schedule not in BY_LINKS:
        reasons = ("as asked for", *encoding.reasons)
        schedule, codec = schedule_of(call.schedule, count), encoding.codecs[-1]
        return Choice(kind=call.schedule, schedule=schedule, codec=codec, predicted_s=None, reasons=reasons)
    if links is None or count < 2 or not goes_by_links(call):
        return _rule_of_thumb(call, count, encoding)
    is_wanted = call.schedule == "hierarchical"
    num_regions = len(groups_of(links.region))
    if is_wanted and num_regions < 2 and is_whole:
        raise ConfigError(
            f"schedule='hierarchical' is for machines in several places, and all {count} are as near to each other. "
            "Use schedule='auto'."
        )
    kind = "hierarchical" if is_wanted and num_regions > 1 else None
    # A chunk and a vector of float64 are so many float32 as their bytes are.
    width = np.dtype(call.dtype).itemsize // 4
    wires = {codec: wire_of(codec, count) for codec in encoding.codecs}
    made = planner.plan(links, width * call.size, list(wires.values()), kind=kind)
    return Choice(
        kind=made.kind,
        schedule=made.schedule,
        codec=next(codec for codec, wire in wires.items() if wire.name == made.codec),
        chunk_elements=made.chunk_elements // width,
        predicted_s=made.predicted_s,
        reasons=(*made.reasons, *encoding.reasons),
        alternatives=made.alternatives,
    )


def _encoding(call: Call, count: int, links: Links | None) -> Allowed:
    """Return the codecs that come into question."""
    if call.dtype == "float64" and level_named(call.codec) is not None:
        return Allowed(codecs=(RAW,), reasons=("float64 travels as it is",))
    return asked_for(call.codec, count, links, None if call.schedule == "auto" else call.schedule)


def _rule_of_thumb(call: Call, count: int, encoding: Allowed) -> Choice:
    """Return what suits links that are alike; the same on all ranks, whatever they have measured."""
    codec = encoding.codecs[-1]
    is_large = call.size * np.dtype(call.dtype).itemsize >= RING_BYTES
    # What is lost in encoding grows with every hop of a ring; shards have two.
    kind = "ring" if is_large and is_raw(codec) and count > 2 else "shards"
    unknown = "the links have not been measured yet" if count > 1 else "there is nobody to send to"
    return Choice(
        kind=kind,
        schedule=schedule_of(kind, count),
        codec=codec,
        predicted_s=None,
        reasons=(unknown, *encoding.reasons),
    )
