"""Which codecs of float32 a compression level allows over given links, and why; pure. The planner chooses among them.

A level alone is a codec (`codec.level`). Three things have a say besides. A slow link makes it a higher level and a fast
one a lower one: that link counts which no route avoids, since somebody's values have to cross it whatever the schedule.
A schedule that the user insists on may not bear what a level loses; then it is the highest level that it does bear. And
numbers as they are stay a candidate, for where encoding saves nothing: of small vectors latency is all of the time.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from barnraise.codec.chain import codec_of
from barnraise.codec.level import SPECS, level_named, level_over
from barnraise.collective.cost import FLOAT32, Wire
from barnraise.collective.links import Links
from barnraise.collective.planner import is_suited

RAW: Final = "fp32"
"""The codec that sends numbers as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowed:
    """What a level allows."""

    codecs: tuple[str, ...]
    """One or two, the lossier one last: it is the level's own."""
    reasons: tuple[str, ...]
    """Sentences, for people."""


def wire_of(codec: str, count: int) -> Wire:
    """Return what the cost model wants to know of a codec among so many members. Raises `ConfigError` like `codec_of`."""
    return FLOAT32 if codec == RAW else Wire.of(codec_of(codec, np.float32), count)


def asked_for(codec: str, count: int, links: Links | None, kind: str | None = None) -> Allowed:
    """Return the codecs that a name asks for: itself, or what a level in its place allows. Arguments as for `allowed`."""
    level = level_named(codec)
    return Allowed(codecs=(codec,), reasons=()) if level is None else allowed(level, count, links, kind)


def allowed(level: int, count: int, links: Links | None, kind: str | None = None) -> Allowed:
    """Return the codecs among which a level leaves the choice.

    Args:
        level: 1 to 9.
        count: members.
        links: between them, the same on all of them; None: not known.
        kind: the schedule that the user insists on, one of `kinds.KINDS`; None: any.

    Raises:
        ConfigError: there is no such level.
    """
    wanted, reason = _over(level, None if links is None or count < 2 else bottleneck_bytes_s(links) / 125_000)
    if count < 2:
        return Allowed(codecs=(RAW,), reasons=("nothing is sent, so nothing is encoded",))
    borne = next(number for number in range(wanted, 0, -1) if _bears(kind, number, count))
    codec, reasons = _codec(borne), [reason]
    if borne != wanted:
        reasons.append(f"{kind} encodes sums again at each hop and does not bear {_codec(wanted)}: {codec}")
    is_choice = codec != RAW and links is not None and kind in (None, "hierarchical")
    return Allowed(codecs=(RAW, codec) if is_choice else (codec,), reasons=tuple(reasons))


def bottleneck_bytes_s(links: Links) -> float:
    """Return the bandwidth of the slowest link that no route avoids: of the best tree, its worst link.

    Each edge goes both ways at the slower one's bandwidth, and no faster than its hosts' own lines (Prim 1957).
    """
    hosts = np.minimum(links.uplink_bytes_s, links.downlink_bytes_s)
    pairs = np.minimum(links.bandwidth_bytes_s, links.bandwidth_bytes_s.T)
    pairs = np.minimum(pairs, np.minimum(hosts[:, None], hosts[None, :]))
    bottleneck, reach = np.inf, pairs[0].copy()
    outside = np.arange(links.world_size) > 0
    while outside.any():
        rank = int(np.where(outside, reach, -1.0).argmax())
        bottleneck = min(bottleneck, float(reach[rank]))
        outside[rank] = False
        reach = np.maximum(reach, pairs[rank])
    return float(bottleneck)


def _over(level: int, megabits: float | None) -> tuple[int, str]:
    """Return what a level comes to over a link, and why."""
    wanted = level_over(level, megabits)
    if megabits is None:
        return wanted, f"level {level} is {_codec(level)} as long as the links are not known"
    speed = f"{megabits:,.0f}" if megabits >= 10 else f"{megabits:.2g}"
    shift = "" if wanted == level else f", so level {level} counts as {wanted}"
    said = f"the slowest link that no route avoids has {speed} Mbit/s as far as is known"
    return wanted, f"{said}{shift}: {_codec(wanted)}"


def _codec(level: int) -> str:
    return SPECS["float32"][level - 1]


def _bears(kind: str | None, level: int, count: int) -> bool:
    return kind is None or is_suited(kind, wire_of(_codec(level), count), count)
