"""What ``barnraise peers --plan`` tells: the link graph as one peer knows it, and what the planner makes of it."""

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np

from barnraise.codec.chain import codec_of
from barnraise.collective.compression import asked_for, wire_of
from barnraise.collective.cost import Wire
from barnraise.collective.links import LinkGraph, Links, Row
from barnraise.collective.planner import Plan, plan
from barnraise.errors import ConfigError
from barnraise.ids import PeerId, short
from barnraise.observe.figures import bandwidth, duration, latency
from barnraise.observe.status import Status
from barnraise.runs import reading
from barnraise.runs.reading import PeerNow

MAX_SIZE_MB: Final = 1e6
MAX_LISTED: Final = 16
"""Members whose links are all listed; of a larger group only the peer's own are, and ``--json`` has the rest."""
ROUNDS_USE: Final = "shards"
"""`collective.exchange`: each member sends each shard to its owner, and the owner the result to all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One direction between two members; None is unknown."""

    sender: PeerId
    receiver: PeerId
    latency_s: float | None
    bandwidth_bytes_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What one peer knows of the links between the members, and the plan for it."""

    viewer: PeerId
    members: tuple[PeerId, ...]
    """By rank."""
    links: tuple[Link, ...]
    """Of every ordered pair."""
    elements: int
    plan: Plan


def outlook(peer: PeerNow, state: Status, mb: float | None, codec: str | None) -> Outlook:
    """Return the link graph of a peer and the plan.

    Args:
        peer: whose view.
        state: what it said last.
        mb: megabytes of float32 to plan for; None: the run's parameters.
        codec: for float32, or a level such as ``auto:5``; None: the run's own, for the int16 grid of its rounds.

    Raises:
        ConfigError: size or codec are none, or the peer has not said what is needed.
    """
    members = tuple(PeerId(member.peer) for member in state.members)
    rows = _rows(state)
    elements = _elements(state, mb)
    links = LinkGraph.of_rows(members, rows).between(members)
    wires, reasons = _wires(peer, links, codec)
    made = plan(links, elements, wires)
    return Outlook(
        viewer=PeerId(state.peer),
        members=members,
        links=tuple(_links(members, rows)),
        elements=elements,
        plan=dataclasses.replace(made, reasons=(*made.reasons, *reasons)),
    )


def _wires(peer: PeerNow, links: Links, codec: str | None) -> tuple[list[Wire], tuple[str, ...]]:
    """Return what may travel, and why it is no more than that."""
    if codec is None:
        return [Wire.of(codec_of(reading.run_config(peer.directory).round.codec, np.int16), links.world_size)], ()
    found = asked_for(codec, links.world_size, links)
    return [wire_of(name, links.world_size) for name in found.codecs], found.reasons


def table(found: Outlook) -> list[tuple[str, ...]]:
    """Return the rows of the link graph's table: from, to, latency, bandwidth."""
    rank = {peer: number for number, peer in enumerate(found.members)}
    listed = found.links
    if len(found.members) > MAX_LISTED:
        listed = tuple(link for link in listed if link.sender == found.viewer)
    return [
        (
            f"{rank[link.sender]} {short(link.sender)}",
            f"{rank[link.receiver]} {short(link.receiver)}",
            latency(link.latency_s),
            bandwidth(link.bandwidth_bytes_s),
        )
        for link in listed
    ]


def text(found: Outlook) -> str:
    """Return in plain words what is missing, which members are near each other, and what the planner would do."""
    chosen = found.plan
    lines = [*_gaps(found), _clusters(found), ""]
    lines.append(
        f"For {4e-6 * found.elements:,.1f} MB ({found.elements:,} parameters) with codec {chosen.codec} the planner "
        f"would choose {chosen.kind}, which takes some {duration(chosen.predicted_s)}. Why:"
    )
    lines += [f"  - {reason}" for reason in chosen.reasons]
    if chosen.alternatives:
        lines.append("What else it weighed:")
        lines += [f"  - {name}: {duration(seconds)}" for name, seconds in chosen.alternatives]
    lines += [
        "",
        f"A run's rounds exchange by all-to-all {ROUNDS_USE}, whatever the plan says; the collectives of a context and "
        "of barnraise bench allreduce go by the planner.",
    ]
    return "\n".join(lines)


def record(found: Outlook) -> dict[str, object]:
    """Return the same for a program."""
    chosen = found.plan
    return {
        "members": list(found.members),
        "links": [
            {
                "from": link.sender,
                "to": link.receiver,
                "latency_s": link.latency_s,
                "bandwidth_bytes_s": link.bandwidth_bytes_s,
            }
            for link in found.links
        ],
        "clusters": [[found.members[rank] for rank in group] for group in chosen.groups],
        "elements": found.elements,
        "codec": chosen.codec,
        "kind": chosen.kind,
        "chunk_elements": chosen.chunk_elements,
        "predicted_s": chosen.predicted_s,
        "reasons": list(chosen.reasons),
        "alternatives": [{"name": name, "predicted_s": seconds} for name, seconds in chosen.alternatives],
        "rounds_use": ROUNDS_USE,
    }


def _rows(state: Status) -> dict[PeerId, Row]:
    """Return the rows that the status holds, as the link graph wants them."""
    count = len(state.members)
    return {
        PeerId(row.peer): Row(
            uplink_kb_s=row.uplink_kb_s,
            downlink_kb_s=row.downlink_kb_s,
            latencies_us=row.latencies_us,
            bandwidths_kb_s=row.bandwidths_kb_s,
        )
        for row in state.links
        if len(row.latencies_us) == len(row.bandwidths_kb_s) == count
    }


def _links(members: tuple[PeerId, ...], rows: dict[PeerId, Row]) -> list[Link]:
    found = []
    for sender in members:
        row = rows.get(sender)
        for place, receiver in enumerate(members):
            if receiver != sender:
                latency_us = row.latencies_us[place] if row else 0
                bandwidth_kb_s = row.bandwidths_kb_s[place] if row else 0
                found.append(
                    Link(
                        sender=sender,
                        receiver=receiver,
                        latency_s=latency_us / 1e6 if latency_us else None,
                        bandwidth_bytes_s=bandwidth_kb_s * 1e3 if bandwidth_kb_s else None,
                    )
                )
    return found


def _elements(state: Status, mb: float | None) -> int:
    if mb is None:
        if state.parameters < 1:
            raise ConfigError("the peer has not said how large its model is. Say it: --mb MEGABYTES.")
        return state.parameters
    if not 0 < mb <= MAX_SIZE_MB:
        raise ConfigError(f"--mb {mb:g} is not over 0 and at most {MAX_SIZE_MB:,.0f} megabytes.")
    return max(1, round(mb * 1e6 / 4))


def _gaps(found: Outlook) -> list[str]:
    """Say how many figures are missing and what the planner takes for them."""
    latencies = sum(link.latency_s is None for link in found.links)
    bandwidths = sum(link.bandwidth_bytes_s is None for link in found.links)
    if not latencies + bandwidths:
        return []
    return [
        f"Of {len(found.links)} links {latencies} have no latency and {bandwidths} no bandwidth yet: the planner takes "
        "the other direction's, or what is usual among the rest, or 20 ms and 100 Mbit/s where nothing is known."
    ]


def _clusters(found: Outlook) -> str:
    groups = found.plan.groups
    if len(groups) <= 1:
        return "All members are about as near to each other: one cluster."
    named = "; ".join(", ".join(f"{rank} {short(found.members[rank])}" for rank in group) for group in groups)
    return f"{len(groups)} clusters of members that are near each other: {named}."
