"""What is known of the links between peers: latencies and bandwidths, learnt here and told by others; measures nothing.

Theory of operation. Each peer learns its own outgoing links: latency from heartbeats (half a round trip), bandwidth from
real transfers. It tells them as a `Row` of whole numbers. `LinkGraph.of_rows` puts everybody's rows together, and since
all peers hold the same rows, `LinkGraph.between` gives all of them the same `Links`: the matrix, by rank, that the cost
model, the planner and the simulator work on. What nobody measured is filled in: first from the other direction of the
same pair, then with the median of what is known, then with a default.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from barnraise.collective.clusters import Matrix, regions
from barnraise.errors import LocalError, PeerError
from barnraise.ids import PeerId

ALPHA: Final = 0.2
"""The weight of a new sample: five heartbeats after a change, two thirds of it are believed."""
MIN_TRANSFER_BYTES: Final = 256 * 1024
"""Less says nothing of bandwidth: it fits the buffers of two sockets, so the clock measures memory."""
MIN_SHARE_OF_TRANSFER: Final = 0.5
"""At least so much of the time must be transfer rather than latency, else the rest is a difference of near equals."""
KEPT_TOTALS: Final = 16
"""A host's limit is the most it moved in so many windows: a maximum that forgets, as BBR's (Cardwell et al. 2016)."""
DEFAULT_LATENCY_S: Final = 0.020
DEFAULT_BANDWIDTH_BYTES_S: Final = 12.5e6
"""Where nothing is known at all: two homes in one country at 100 Mbit/s."""

UNFAIR: Final = 1.5
"""Streams that share a line differ by so much from each other."""

DEADLINE_FACTOR: Final = 8.0
"""A link may fall to an eighth of its profile: one CUBIC stream gets a seventh of a link that loses 0.1 % of packets."""
DEADLINE_FLOOR_S: Final = 5.0
"""Long enough for two lost retransmissions of TCP (1 s and 2 s, RFC 6298) and a pause of the process besides."""

MAX_ROW_MEMBERS: Final = 4096
MAX_ROW_BYTES: Final = 48 * 1024
"""4096 members at 5 + 5 bytes and the head: below the control plane's 64 KiB."""
MAX_LATENCY_US: Final = 60_000_000
MAX_BANDWIDTH_KB_S: Final = 1_000_000_000

Vector = npt.NDArray[np.float64]
Regions = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkProfile:
    """One direction between two peers."""

    latency_s: float
    """One way."""
    bandwidth_bytes_s: float
    jitter_s: float = 0.0
    """Mean distance of a latency sample from the mean."""

    def predicted_s(self, size_bytes: float) -> float:
        """Return how long ``size_bytes`` take, from the first byte that leaves to the last one that arrives."""
        return self.latency_s + size_bytes / self.bandwidth_bytes_s


def deadline_s(profile: LinkProfile, size_bytes: int) -> float:
    """Return how long a hop may take before the peer counts as stalled: generous, since a false alarm costs a redo.

    A peer that died is told by its connection, at once; this is for one that hangs.
    """
    return DEADLINE_FACTOR * (profile.predicted_s(size_bytes) + profile.jitter_s) + DEADLINE_FLOOR_S


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Links:
    """The links between the members of a group, by rank; nothing in it is unknown, nothing changes."""

    latency_s: Matrix
    bandwidth_bytes_s: Matrix
    uplink_bytes_s: Vector
    """float64[n]: what each host can send in all."""
    downlink_bytes_s: Vector
    region: Regions
    """intp[n]: where each host is. What it sends to other regions, or hears from them, shares one line: a slow link far
    away is rarely slow for its own sake."""
    is_held_by_loss: bool = False
    """Some host's connections slow down with every loss, so that one stream does not fill its line; several may."""

    @property
    def world_size(self) -> int:
        """Return the number of ranks."""
        return len(self.uplink_bytes_s)

    def profile(self, sender: int, receiver: int) -> LinkProfile:
        """Return one direction of a pair."""
        return LinkProfile(
            latency_s=float(self.latency_s[sender, receiver]),
            bandwidth_bytes_s=float(self.bandwidth_bytes_s[sender, receiver]),
        )

    def among(self, ranks: Sequence[int]) -> "Links":
        """Return the links between some of the ranks, numbered anew in the order given."""
        chosen = np.asarray(ranks, dtype=np.intp)
        return Links(
            latency_s=self.latency_s[np.ix_(chosen, chosen)],
            bandwidth_bytes_s=self.bandwidth_bytes_s[np.ix_(chosen, chosen)],
            uplink_bytes_s=self.uplink_bytes_s[chosen],
            downlink_bytes_s=self.downlink_bytes_s[chosen],
            region=self.region[chosen],
            is_held_by_loss=self.is_held_by_loss,
        )

    def unshared(self) -> "Links":
        """Return what each link should carry alone; what was measured may be a share of a line.

        While a host sends to several others, or several to it, each link carries its part of that host's line, and may
        never have been seen otherwise. A line to or from a region is as fast as the fastest link over it. A link that is
        slower than its two ends' lines, but no slower than a share of `UNFAIR` times less than a fair one, is taken to be
        as fast as they are. One that is slower still is slow for its own sake.
        """
        is_other = ~np.eye(self.world_size, dtype=bool)
        known = np.where(is_other, self.bandwidth_bytes_s, 0.0)
        sent, received = np.zeros_like(known), np.zeros_like(known)
        for region in np.unique(self.region):
            there = self.region == region
            sent[:, there] = known[:, there].max(axis=1)[:, None]
            received[there, :] = known[there, :].max(axis=0)
        line = np.minimum(sent, received)
        is_share = is_other & (known * UNFAIR * max(1, self.world_size - 1) >= line)
        return replace(self, bandwidth_bytes_s=np.where(is_share, np.maximum(known, line), self.bandwidth_bytes_s))

    @classmethod
    def uniform(cls, world_size: int, profile: LinkProfile) -> "Links":
        """Return a group whose links are all alike, as in one room."""
        return cls.of_regions([world_size], profile, profile)

    @classmethod
    def of_regions(cls, sizes: Sequence[int], inside: LinkProfile, across: LinkProfile) -> "Links":
        """Return regions of so many hosts, ranks in order; a host's limit is that of its fastest link."""
        region = np.repeat(np.arange(len(sizes)), sizes)
        is_inside = region[:, None] == region[None, :]
        bandwidth = np.where(is_inside, inside.bandwidth_bytes_s, across.bandwidth_bytes_s)
        latency = np.where(is_inside, inside.latency_s, across.latency_s)
        outgoing, incoming = _limits(bandwidth)
        return cls(
            latency_s=latency,
            bandwidth_bytes_s=bandwidth,
            uplink_bytes_s=outgoing,
            downlink_bytes_s=incoming,
            region=region,
        )


Microseconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_LATENCY_US)]
KilobytesPerSecond = Annotated[int, msgspec.Meta(ge=0, le=MAX_BANDWIDTH_KB_S)]


class Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one peer knows of its own links, in the order of the agreed members; 0 is unknown, and its own place."""

    uplink_kb_s: KilobytesPerSecond
    downlink_kb_s: KilobytesPerSecond
    latencies_us: Annotated[tuple[Microseconds, ...], msgspec.Meta(max_length=MAX_ROW_MEMBERS)]
    bandwidths_kb_s: Annotated[tuple[KilobytesPerSecond, ...], msgspec.Meta(max_length=MAX_ROW_MEMBERS)]
    is_held_by_loss: bool = False
    """See `Links`."""


WORTH_TELLING: Final = 0.2
"""A figure that changed by more is news."""


def has_changed(old: Row, new: Row) -> bool:
    """Tell whether a row of the same members has a figure that changed much."""
    pairs = [
        (old.uplink_kb_s, new.uplink_kb_s),
        (old.downlink_kb_s, new.downlink_kb_s),
        *zip(old.latencies_us, new.latencies_us, strict=True),
        *zip(old.bandwidths_kb_s, new.bandwidths_kb_s, strict=True),
    ]
    is_other = old.is_held_by_loss != new.is_held_by_loss
    return is_other or any(abs(after - before) > WORTH_TELLING * before for before, after in pairs)


_rows = msgspec.msgpack.Decoder(Row)


def encode_row(row: Row) -> bytes:
    """Return a row as it travels."""
    return msgspec.msgpack.encode(row)


def decode_row(sender: PeerId, data: bytes, num_members: int) -> Row:
    """Return the row that ``sender`` told; it may say anything of its own links, but only of so many.

    Raises:
        PeerError: it is too long, malformed, out of range or of another number of members.
    """
    if len(data) > MAX_ROW_BYTES:
        raise PeerError(sender, f"its link profile has {len(data)} bytes; at most {MAX_ROW_BYTES}", data)
    try:
        row = _rows.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(sender, f"its link profile is malformed: {error}", data) from error
    if not len(row.latencies_us) == len(row.bandwidths_kb_s) == num_members:
        counts = f"{len(row.latencies_us)} latencies and {len(row.bandwidths_kb_s)} bandwidths"
        raise PeerError(sender, f"its link profile has {counts}; the group has {num_members} members", data)
    return row


@dataclass(slots=True)
class _Estimate:
    """One directed pair, as far as it is known."""

    latency_s: float = math.nan
    jitter_s: float = 0.0
    bandwidth_bytes_s: float = math.nan

    def note_latency(self, sample_s: float) -> None:
        if math.isnan(self.latency_s):
            self.latency_s = sample_s
            return
        self.jitter_s += ALPHA * (abs(sample_s - self.latency_s) - self.jitter_s)
        self.latency_s += ALPHA * (sample_s - self.latency_s)

    def note_bandwidth(self, sample_bytes_s: float) -> None:
        known = self.bandwidth_bytes_s
        self.bandwidth_bytes_s = sample_bytes_s if math.isnan(known) else known + ALPHA * (sample_bytes_s - known)

    def note_at_least(self, sample_bytes_s: float) -> None:
        if not self.bandwidth_bytes_s >= sample_bytes_s:  # true for nan, too
            self.bandwidth_bytes_s = sample_bytes_s


class LinkGraph:
    """What one peer knows of all links; misuse raises `LocalError`."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[PeerId, PeerId], _Estimate] = {}
        self._sent: dict[PeerId, deque[float]] = {}
        self._received: dict[PeerId, deque[float]] = {}
        self._held_by_loss: set[PeerId] = set()

    @classmethod
    def of_rows(cls, members: Sequence[PeerId], rows: Mapping[PeerId, Row]) -> "LinkGraph":
        """Return the graph that the members' rows describe; the same rows give the same graph everywhere."""
        graph = cls()
        for sender in members:
            row = rows.get(sender)
            if row is None:
                continue
            for receiver, latency_us, bandwidth_kb_s in zip(
                members, row.latencies_us, row.bandwidths_kb_s, strict=True
            ):
                if receiver != sender and (latency_us or bandwidth_kb_s):
                    graph._pairs[sender, receiver] = _Estimate(
                        latency_s=latency_us / 1e6 if latency_us else math.nan,
                        bandwidth_bytes_s=bandwidth_kb_s * 1e3 if bandwidth_kb_s else math.nan,
                    )
            for totals, limit in ((graph._sent, row.uplink_kb_s), (graph._received, row.downlink_kb_s)):
                if limit:
                    totals[sender] = deque([limit * 1e3], KEPT_TOTALS)
            if row.is_held_by_loss:
                graph._held_by_loss.add(sender)
        return graph

    def note_heartbeat(self, sender: PeerId, receiver: PeerId, round_trip_s: float) -> None:
        """Learn from a heartbeat and its answer."""
        _expect_positive("a round trip", round_trip_s)
        self._pair(sender, receiver).note_latency(round_trip_s / 2)

    def note_transfer(
        self, sender: PeerId, receiver: PeerId, size_bytes: int, took_s: float, num_latencies: int = 0
    ) -> None:
        """Learn from bytes that had the link to themselves; too few, or mostly latency, and they only set a lower bound.

        Args:
            sender: Where they came from.
            receiver: Where they went.
            size_bytes: How many there were.
            took_s: How long the link was busy with them, waiting for the sender's sums left out.
            num_latencies: How often the latency is in ``took_s``: 0 from the first byte's arrival to the last one's,
                1 from departure to arrival, 2 from a request to the end of its answer.
        """
        _expect_positive("a transfer's time", took_s)
        if size_bytes < MIN_TRANSFER_BYTES:
            return
        pair = self._pair(sender, receiver)
        transfer_s = took_s - num_latencies * self._latency_s(sender, receiver)
        if transfer_s >= MIN_SHARE_OF_TRANSFER * took_s:
            pair.note_bandwidth(size_bytes / transfer_s)
        else:
            pair.note_at_least(size_bytes / took_s)

    def note_sent(self, sender: PeerId, sizes_bytes: Mapping[PeerId, int], took_s: float) -> None:
        """Learn from all that one host sent in a window of time: its limit, and that no link is slower than its part."""
        _expect_positive("a window", took_s)
        self._note_total(self._sent, sender, sizes_bytes, took_s)
        for receiver, size_bytes in sizes_bytes.items():
            if size_bytes >= MIN_TRANSFER_BYTES:
                self._pair(sender, receiver).note_at_least(size_bytes / took_s)

    def note_received(self, receiver: PeerId, sizes_bytes: Mapping[PeerId, int], took_s: float) -> None:
        """Learn from all that one host received in a window of time."""
        _expect_positive("a window", took_s)
        self._note_total(self._received, receiver, sizes_bytes, took_s)
        for sender, size_bytes in sizes_bytes.items():
            if size_bytes >= MIN_TRANSFER_BYTES:
                self._pair(sender, receiver).note_at_least(size_bytes / took_s)

    def forget(self, peer: PeerId) -> None:
        """Drop a peer that left; it may come back over another line."""
        self._pairs = {pair: estimate for pair, estimate in self._pairs.items() if peer not in pair}
        self._sent.pop(peer, None)
        self._received.pop(peer, None)

    def profile(self, sender: PeerId, receiver: PeerId) -> LinkProfile:
        """Return one direction of a pair, with its jitter; what is unknown is filled in from all that is known."""
        peers = sorted({sender, receiver, *(peer for pair in self._pairs for peer in pair)})
        links = self.between(peers)
        estimate = self._pairs.get((sender, receiver)) or self._pairs.get((receiver, sender)) or _Estimate()
        known = links.profile(peers.index(sender), peers.index(receiver))
        return LinkProfile(
            latency_s=known.latency_s, bandwidth_bytes_s=known.bandwidth_bytes_s, jitter_s=estimate.jitter_s
        )

    def row(self, sender: PeerId, members: Sequence[PeerId]) -> Row:
        """Return what is told of one peer's own links."""
        own = [self._pairs.get((sender, receiver), _Estimate()) for receiver in members]
        return Row(
            uplink_kb_s=_whole(max(self._sent.get(sender, ()), default=math.nan), 1e-3, MAX_BANDWIDTH_KB_S),
            downlink_kb_s=_whole(max(self._received.get(sender, ()), default=math.nan), 1e-3, MAX_BANDWIDTH_KB_S),
            latencies_us=tuple(_whole(pair.latency_s, 1e6, MAX_LATENCY_US) for pair in own),
            bandwidths_kb_s=tuple(_whole(pair.bandwidth_bytes_s, 1e-3, MAX_BANDWIDTH_KB_S) for pair in own),
        )

    def between(self, members: Sequence[PeerId]) -> Links:
        """Return the links between the members, ranks in the order given."""
        rank = {peer: number for number, peer in enumerate(members)}
        latency, bandwidth = (np.full((len(rank), len(rank)), math.nan) for _ in range(2))
        for (sender, receiver), pair in self._pairs.items():
            if sender in rank and receiver in rank:
                latency[rank[sender], rank[receiver]] = pair.latency_s
                bandwidth[rank[sender], rank[receiver]] = pair.bandwidth_bytes_s
        latency = _filled(latency, DEFAULT_LATENCY_S)
        bandwidth = _filled(bandwidth, DEFAULT_BANDWIDTH_BYTES_S)
        limits = _limits(bandwidth)
        for totals, limit in zip((self._sent, self._received), limits, strict=True):
            for peer in totals.keys() & rank.keys():
                limit[rank[peer]] = max(limit[rank[peer]], *totals[peer])
        return Links(
            latency_s=latency,
            bandwidth_bytes_s=bandwidth,
            uplink_bytes_s=limits[0],
            downlink_bytes_s=limits[1],
            region=regions(latency),
            is_held_by_loss=not self._held_by_loss.isdisjoint(rank),
        )

    def _pair(self, sender: PeerId, receiver: PeerId) -> _Estimate:
        if sender == receiver:
            raise LocalError(f"{sender} has no link to itself")
        return self._pairs.setdefault((sender, receiver), _Estimate())

    def _latency_s(self, sender: PeerId, receiver: PeerId) -> float:
        """Return the pair's latency, 0 if nobody measured it."""
        for pair in ((sender, receiver), (receiver, sender)):
            estimate = self._pairs.get(pair)
            if estimate is not None and not math.isnan(estimate.latency_s):
                return estimate.latency_s
        return 0.0

    @staticmethod
    def _note_total(
        totals: dict[PeerId, deque[float]], peer: PeerId, sizes_bytes: Mapping[PeerId, int], took_s: float
    ) -> None:
        total = sum(sizes_bytes.values())
        if total >= MIN_TRANSFER_BYTES:
            totals.setdefault(peer, deque(maxlen=KEPT_TOTALS)).append(total / took_s)


def _filled(matrix: Matrix, default: float) -> Matrix:
    """Return the matrix without gaps: from the transposed, then the median, then the default."""
    known = np.where(np.isnan(matrix), matrix.T, matrix)
    values: npt.NDArray[Any] = known[~np.isnan(known)]
    known[np.isnan(known)] = np.median(values) if len(values) else default
    return known


def _limits(bandwidth: Matrix) -> tuple[Vector, Vector]:
    """Return what each host sends and receives at most, as its fastest links show it."""
    if len(bandwidth) < 2:
        return bandwidth.diagonal().copy(), bandwidth.diagonal().copy()
    others = np.where(np.eye(len(bandwidth), dtype=bool), 0.0, bandwidth)
    return others.max(axis=1), others.max(axis=0)


def _whole(value: float, factor: float, limit: int) -> int:
    """Return a measured value as a whole number, 0 if there is none; a measured one is never 0."""
    return 0 if math.isnan(value) else min(max(round(value * factor), 1), limit)


def _expect_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise LocalError(f"{what} of {value} s")
