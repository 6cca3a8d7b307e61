"""What every `Network` of links does with them, however they came about: events, sending, and how well they work."""

import trio

from barnraise.errors import Unavailable
from barnraise.ids import PeerId
from barnraise.net.links import Link, open_events
from barnraise.net.seam import NetworkEvent


class LinkedNetwork:
    """One link to each connected peer. Who makes the links is a subclass's business."""

    def __init__(self, peer: PeerId) -> None:
        self.peer_id = peer
        self._events_in, self._events = open_events()
        self._links: dict[PeerId, Link] = {}

    @property
    def events(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        """Everything that happens, in order. The node must keep draining it."""
        return self._events

    async def send(self, to: PeerId, message: bytes) -> None:
        """Queue one message of at most ``MAX_MESSAGE_BYTES``.

        Raises:
            Unavailable: the peer is not connected, or its queue stayed full for the send deadline.
            LocalError: the message is too long.
        """
        link = self._links.get(to)
        if link is None:
            raise Unavailable(f"peer {to} is not connected: {self._why_unlinked(to)}")
        await link.send(message)

    def latency_s(self, peer: PeerId) -> float | None:
        """Return the one-way latency to a connected peer as heartbeats found it; None before one was answered."""
        link = self._links.get(peer)
        return link.latency_s if link else None

    def silent_s(self, peer: PeerId) -> float:
        """Return for how many seconds a connected peer has not answered a heartbeat that it should have; 0: it does."""
        link = self._links.get(peer)
        return link.silent_s if link else 0.0

    def _why_unlinked(self, peer: PeerId) -> str:
        return "waiting for it"
