"""This peer's own row of the link graph, and when the others are to be told of it; the others' rows are in `Presence`.

Latency is what heartbeats over the control plane found, or what TCP saw on the bulk plane where that is less: the
kernel answers sooner than two event loops do. Bandwidth is what the bulk plane found in real transfers. What the host
sends and receives in all is a lower bound from the rounds' exchanges, the most of the last `KEPT_TOTALS`.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from barnraise.collective.links import (
    DEFAULT_BANDWIDTH_BYTES_S,
    KEPT_TOTALS,
    MAX_BANDWIDTH_KB_S,
    MAX_LATENCY_US,
    MIN_TRANSFER_BYTES,
    Row,
    has_changed,
)
from barnraise.ids import PeerId
from barnraise.net.seam import Bulk, Network
from barnraise.swarm.effects import Broadcast, Effect
from barnraise.swarm.messages import Links
from barnraise.swarm.state import State

MAX_LINK_MEMBERS: Final = 100
"""A larger set of members is not connected all to all, and a row of it that goes to all would not be small."""
SURVEY_S: Final = 2.0
"""How often the own row is looked at, and at most told."""
TELL_S: Final = 10.0
"""A row that hardly changed is told this often: somebody may have missed it, or be new."""


class LinkSurvey:
    """What one peer measured of its own links."""

    def __init__(self, me: PeerId, network: Network, bulk: Bulk) -> None:
        """``me``: whose row it is; the planes are asked, never used."""
        self._me, self._network, self._bulk = me, network, bulk
        self._sent_bytes_s: deque[float] = deque(maxlen=KEPT_TOTALS)
        self._received_bytes_s: deque[float] = deque(maxlen=KEPT_TOTALS)
        self._told: Links | None = None
        self._told_at = 0.0
        self._looked_at: float | None = None

    def measured(self, peer: PeerId) -> tuple[float | None, float | None]:
        """Return the one-way latency to a peer in seconds, and the bandwidth in bytes a second; None: not known yet."""
        speed, beaten_s = self._bulk.speed(peer), self._network.latency_s(peer)
        if speed is None:
            return beaten_s, None
        return min(speed.latency_s, beaten_s or speed.latency_s), speed.bandwidth_bytes_s

    def _bandwidth_kb_s(self, peer: PeerId) -> int:
        """Return what is told of a link's bandwidth: not a lower bound below what others assume of a link they know nothing of."""
        speed = self._bulk.speed(peer)
        if speed is None or (speed.is_at_least and speed.bandwidth_bytes_s < DEFAULT_BANDWIDTH_BYTES_S):
            return 0
        return _whole(speed.bandwidth_bytes_s, 1e-3, MAX_BANDWIDTH_KB_S)

    def _is_held_by_loss(self, peer: PeerId) -> bool:
        speed = self._bulk.speed(peer)
        return speed is not None and speed.is_held_by_loss

    def note_exchange(self, sent_bytes: int, received_bytes: int, took_s: float) -> None:
        """Note what this host moved in a round's exchange, whoever it was with."""
        if took_s <= 0:
            return
        if sent_bytes >= MIN_TRANSFER_BYTES:
            self._sent_bytes_s.append(sent_bytes / took_s)
        if received_bytes >= MIN_TRANSFER_BYTES:
            self._received_bytes_s.append(received_bytes / took_s)

    def row(self, members: Sequence[PeerId]) -> Row:
        """Return the own row, in the order of the members."""
        latencies_s = [None if peer == self._me else self.measured(peer)[0] for peer in members]
        return Row(
            uplink_kb_s=_whole(max(self._sent_bytes_s, default=None), 1e-3, MAX_BANDWIDTH_KB_S),
            downlink_kb_s=_whole(max(self._received_bytes_s, default=None), 1e-3, MAX_BANDWIDTH_KB_S),
            latencies_us=tuple(_whole(latency_s, 1e6, MAX_LATENCY_US) for latency_s in latencies_s),
            bandwidths_kb_s=tuple(0 if peer == self._me else self._bandwidth_kb_s(peer) for peer in members),
            is_held_by_loss=any(self._is_held_by_loss(peer) for peer in members if peer != self._me),
        )

    def news(self, now: float, state: State) -> list[Effect]:
        """Return what to tell the others now, if it is time for that.

        Args:
            now: seconds on any clock that does not go backwards.
            state: who the members are, in the order that all agree on.
        """
        if self._looked_at is not None and now - self._looked_at < SURVEY_S:
            return []
        self._looked_at = now
        if self._me not in state.peers or not 1 < len(state.peers) <= MAX_LINK_MEMBERS:
            return []
        message = Links(epoch=state.epoch, row=self.row(state.peers))
        if now - self._told_at < TELL_S and not is_news(message, self._told):
            return []
        self._told, self._told_at = message, now
        return [Broadcast(message=message)]


def is_news(message: Links, told: Links | None) -> bool:
    """Tell whether a row says something else than the last one: of other members, or a figure that changed much."""
    if told is None or message.epoch != told.epoch:
        return True
    return has_changed(told.row, message.row)


def _whole(value: float | None, factor: float, limit: int) -> int:
    """Return a measured value as a whole number, 0 if there is none; a measured one is never 0."""
    return 0 if value is None else min(max(round(value * factor), 1), limit)
