"""Which schedule a call goes by: the planner's choice where links are known, else a rule that needs none; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from barnraise.api.streams import Call
from barnraise.codec.chain import codec_of
from barnraise.collective import planner
from barnraise.collective.adoption import Graph
from barnraise.collective.clusters import groups_of
from barnraise.collective.cost import FLOAT32, Wire
from barnraise.collective.kinds import schedule_of
from barnraise.collective.links import LinkGraph, Links
from barnraise.collective.schedule import Schedule
from barnraise.errors import ConfigError
from barnraise.ids import PeerId

RAW: Final = "fp32"
"""The codec that sends numbers as they are, float64 too."""
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
    chunk_elements: int | None = None
    """None: as many as fit a frame."""


def is_raw(call: Call) -> bool:
    """Tell whether numbers travel as they are."""
    return call.codec == RAW


def goes_by_links(call: Call) -> bool:
    """Tell whether the graph has a say in a call."""
    return call.operation in ("mean", "sum") and call.schedule in BY_LINKS


def links_between(group: Sequence[PeerId], members: Sequence[int], graph: Graph) -> Links:
    """Return the links between the members, as a graph of the whole group describes them; the same on all of them."""
    rows = {group[rank]: row for rank, row in graph.rows.items()}
    return LinkGraph.of_rows(group, rows).between([group[rank] for rank in members])


def choose(call: Call, count: int, links: Links | None, *, is_whole: bool = True) -> Choice:
    """Return the schedule of an all-reduce.

    Args:
        call: what is asked for.
        count: members.
        links: between them; None: not known yet.
        is_whole: nobody was lost.

    Raises:
        ConfigError: the schedule is unknown, or needs regions and there is one.
    """
    if call.schedule not in BY_LINKS:
        schedule = schedule_of(call.schedule, count)
        return Choice(kind=call.schedule, schedule=schedule, predicted_s=None, reasons=("as asked for",))
    if links is None or count < 2 or not goes_by_links(call):
        return _rule_of_thumb(call, count)
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
    wire = FLOAT32 if is_raw(call) else Wire.of(codec_of(call.codec, np.float32), count)
    made = planner.plan(links, width * call.size, [wire], kind=kind)
    return Choice(
        kind=made.kind,
        schedule=made.schedule,
        chunk_elements=made.chunk_elements // width,
        predicted_s=made.predicted_s,
        reasons=made.reasons,
        alternatives=made.alternatives,
    )


def _rule_of_thumb(call: Call, count: int) -> Choice:
    """Return what suits links that are alike; the same on all ranks, whatever they have measured."""
    is_large = call.size * np.dtype(call.dtype).itemsize >= RING_BYTES
    # What is lost in encoding grows with every hop of a ring; shards have two.
    kind = "ring" if is_large and is_raw(call) and count > 2 else "shards"
    unknown = "the links have not been measured yet" if count > 1 else "there is nobody to send to"
    return Choice(kind=kind, schedule=schedule_of(kind, count), predicted_s=None, reasons=(unknown,))
