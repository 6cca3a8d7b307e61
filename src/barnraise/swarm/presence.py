"""Who is there, as one member sees it: connections that are up, who has been silent for too long, and what their links do."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from barnraise.collective.links import Row
from barnraise.ids import PeerId
from barnraise.swarm.records import NEWEST

NEWCOMER_FRESH_S = 3.0
"""A request to join counts while it is no older than three heartbeats."""


@dataclass(kw_only=True)
class _Sighting:
    connected: bool = False
    heard_at: float = 0.0
    height: int = -1
    wants_in: bool = False
    wants_out: bool = False
    is_hollow: bool = False
    speaks: int = 0
    links: Row | None = None
    links_epoch: int = -1
    """Whose members ``links`` is about, in their order."""


@dataclass(kw_only=True)
class Presence:
    """Opinion, not agreement: it only decides whom to wait for, and what plans and people are told of links."""

    me: PeerId
    timeout_s: float
    started_at: float
    num_changes: int = 0
    """Grows whenever somebody comes, goes, is heard again after a long silence, or first says how far it is."""
    _seen: dict[PeerId, _Sighting] = field(default_factory=dict)
    _down: dict[tuple[PeerId, ...], tuple[float, frozenset[PeerId]]] = field(default_factory=dict)
    """Of members asked about: since when the first of those who are there is silent, and who is gone. Holds until one
    more falls silent; asked for each message, at 100 members it would take half of a peer's time to find out anew."""
    _starting: dict[tuple[PeerId, ...], bool] = field(default_factory=dict)

    def up(self, peer: PeerId, now: float) -> None:
        """Note a connection."""
        sighting = self._seen.setdefault(peer, _Sighting())
        sighting.connected, sighting.heard_at = True, now
        self._change()

    def down(self, peer: PeerId) -> None:
        """Note that a connection is gone."""
        sighting = self._seen.setdefault(peer, _Sighting())
        sighting.connected, sighting.links = False, None
        self._change()

    def heard(self, peer: PeerId, now: float) -> None:
        """Note a sign of life."""
        sighting = self._seen.get(peer)
        if sighting is None or now - sighting.heard_at > self.timeout_s:
            self._change()
            sighting = self._seen.setdefault(peer, _Sighting(connected=True))
        sighting.heard_at = now

    def note(
        self, peer: PeerId, *, height: int, wants_in: bool, wants_out: bool, is_hollow: bool, speaks: int = 0
    ) -> None:
        """Note what a peer said of itself."""
        sighting = self._seen.get(peer)
        if sighting is None or sighting.height < 0:
            self._change()
            sighting = self._seen.setdefault(peer, _Sighting(connected=True))
        sighting.height, sighting.is_hollow = height, is_hollow
        sighting.wants_in, sighting.wants_out, sighting.speaks = wants_in, wants_out, speaks

    def speaking(self) -> dict[PeerId, int]:
        """Return the newest version of records that everybody who is connected says it reads, and that we do."""
        told = {peer: sighting.speaks for peer, sighting in self._seen.items() if sighting.connected}
        return told | {self.me: NEWEST}

    def note_links(self, peer: PeerId, epoch: int, row: Row) -> None:
        """Note what a peer said of its own links to the members of an epoch."""
        if peer not in self._seen:
            self._change()
        sighting = self._seen.setdefault(peer, _Sighting(connected=True))
        sighting.links, sighting.links_epoch = row, epoch

    def links(self, epoch: int) -> dict[PeerId, Row]:
        """Return the rows of those who are connected and have told theirs, of this very set of members."""
        return {
            peer: sighting.links
            for peer, sighting in self._seen.items()
            if sighting.links is not None and sighting.links_epoch == epoch
        }

    @property
    def connected(self) -> tuple[PeerId, ...]:
        """Return everybody who is connected."""
        return tuple(peer for peer, sighting in self._seen.items() if sighting.connected)

    def silences(self, now: float) -> dict[PeerId, float]:
        """Return for everybody who is connected the seconds since it was last heard."""
        return {peer: now - sighting.heard_at for peer, sighting in self._seen.items() if sighting.connected}

    def anyone_behind(self, height: int) -> bool:
        """Tell whether somebody who is connected has not said that it got this far."""
        return any(self.is_behind(peer, height) for peer in self._seen)

    def is_behind(self, peer: PeerId, height: int) -> bool:
        """Tell whether a peer is connected and has not said that it got this far."""
        sighting = self._seen.get(peer)
        return sighting is not None and sighting.connected and sighting.height < height

    def is_up(self, peer: PeerId) -> bool:
        """Tell whether a peer is connected."""
        return peer in self._seen and self._seen[peer].connected

    def is_starting(self, members: tuple[PeerId, ...]) -> bool:
        """Tell whether some member was never seen, or has not said how far it is: early on that is no reason to worry."""
        known = self._starting.get(members)
        if known is None:
            known = self._starting[members] = any(peer != self.me and self._is_new(peer) for peer in members)
        return known

    def down_among(self, members: tuple[PeerId, ...], now: float) -> frozenset[PeerId]:
        """Return the members that are gone: disconnected, silent, or never seen since long ago."""
        known = self._down.get(members)
        if known is None or now - known[0] > self.timeout_s:
            down = frozenset(peer for peer in members if peer != self.me and self._is_gone(peer, now))
            there = (self._last_sign(peer) for peer in members if peer != self.me and peer not in down)
            known = self._down[members] = (min(there, default=now), down)
        return known[1]

    def told_height(self, members: Iterable[PeerId], num_witnesses: int) -> int:
        """Return the greatest height that so many of the others say they have reached, or passed; -1: there is none."""
        told = sorted((self._seen[peer].height for peer in members if peer in self._seen), reverse=True)
        return told[num_witnesses - 1] if len(told) >= num_witnesses else -1

    def ahead_of(self, height: int) -> tuple[PeerId, ...]:
        """Return the connected peers that said they are further."""
        return tuple(sorted(peer for peer, seen in self._seen.items() if seen.connected and seen.height > height))

    def donors(self) -> tuple[PeerId, ...]:
        """Return the connected peers that have the run's tensors."""
        return tuple(
            sorted(p for p, seen in self._seen.items() if seen.connected and seen.height >= 0 and not seen.is_hollow)
        )

    def leavers(self, members: Iterable[PeerId]) -> frozenset[PeerId]:
        """Return the members that said they leave."""
        return frozenset(peer for peer in members if peer in self._seen and self._seen[peer].wants_out)

    def newcomers(self, members: Iterable[PeerId], height: int, now: float) -> tuple[PeerId, ...]:
        """Return the peers that want in, are connected and have caught up."""
        inside = set(members)
        return tuple(
            sorted(
                peer
                for peer, sighting in self._seen.items()
                if peer not in inside
                and sighting.wants_in
                and sighting.connected
                and sighting.height >= height - 1
                and now - sighting.heard_at <= NEWCOMER_FRESH_S
            )
        )

    def _is_new(self, peer: PeerId) -> bool:
        sighting = self._seen.get(peer)
        return sighting is None or (sighting.connected and sighting.height < 0)

    def _is_gone(self, peer: PeerId, now: float) -> bool:
        return not self._may_be_there(peer) or now - self._last_sign(peer) > self.timeout_s

    def _may_be_there(self, peer: PeerId) -> bool:
        return peer not in self._seen or self._seen[peer].connected

    def _last_sign(self, peer: PeerId) -> float:
        """Return when a peer was last heard; who was never seen has had since our start to come."""
        sighting = self._seen.get(peer)
        return sighting.heard_at if sighting else self.started_at

    def _change(self) -> None:
        self.num_changes += 1
        self._down.clear()
        self._starting.clear()
