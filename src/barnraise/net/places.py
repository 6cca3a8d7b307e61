"""Where the peers of a run may be: what the operator named, what peers told, what was seen on the local network; pure.

| book    | whose word               | dialled                          | passed on |
|---------|--------------------------|----------------------------------|-----------|
| named   | the operator's           | first, for ever                  | no: it may hold names that only this machine resolves |
| told    | a peer's, of the cluster | for ever                         | yes; what a peer says of itself outweighs the others |
| seen    | anybody's on the network | until it was in vain often enough | no        |
"""

from collections.abc import Iterable
from typing import Final

from barnraise.ids import PeerId
from barnraise.net.addresses import PeerAddress, encode_peers

MAX_TOLD_PEERS: Final = 512
"""Whoever is told beyond that is not dialled."""
MAX_SEEN_PEERS: Final = 64
"""Anybody on the local network can pretend to be many."""


class Places:
    """One peer's address book.

    Args:
        local: whose book it is.
        named: addresses that the operator gave.
    """

    def __init__(self, local: PeerId, named: Iterable[PeerAddress]) -> None:
        self._local = local
        self.named: dict[PeerId, tuple[PeerAddress, ...]] = {}
        self.told: dict[PeerId, tuple[PeerAddress, ...]] = {}
        self.seen: dict[PeerId, tuple[PeerAddress, ...]] = {}
        self.names_itself = False
        """Whether the operator gave this peer's own address."""
        for address in named:
            if address.peer == local:
                self.names_itself = True
            else:
                self.named[address.peer] = (*self.named.get(address.peer, ()), address)

    def of(self, peer: PeerId) -> tuple[PeerAddress, ...]:
        """Return where to try a peer, in this order."""
        addresses = (*self.named.get(peer, ()), *self.told.get(peer, ()), *self.seen.get(peer, ()))
        return tuple(dict.fromkeys(addresses))

    def hear(self, sender: PeerId, peer: PeerId, addresses: tuple[PeerAddress, ...]) -> tuple[bool, bool]:
        """Take in where a peer says that another, or itself, is.

        Returns:
            Whether that peer is new, and whether it is a peer's own word that is new.
        """
        is_new = peer not in self.told
        is_news = peer == sender and self.told.get(peer) != addresses
        if peer == self._local or not addresses or (is_new and len(self.told) >= MAX_TOLD_PEERS):
            return False, False
        if is_new or is_news:
            self.told[peer] = addresses
        return is_new, is_news

    def see(self, address: PeerAddress) -> bool:
        """Take in what was seen on the local network; return whether there was room for it."""
        peer = address.peer
        if peer == self._local or (peer not in self.seen and len(self.seen) >= MAX_SEEN_PEERS):
            return False
        self.seen[peer] = (address,)
        return True

    def is_only_seen(self, peer: PeerId) -> bool:
        """Return whether nobody but the local network speaks of a peer."""
        return peer not in self.named and peer not in self.told

    def sought(self) -> dict[PeerId, str]:
        """Return whom we look for by ourselves, and where."""
        return {peer: ", ".join(texts_of(addresses)) for peer, addresses in {**self.seen, **self.named}.items()}

    def message(self, ours: tuple[str, ...]) -> bytes:
        """Return the message that tells a peer where we and all others are."""
        return encode_peers({self._local: ours, **{peer: texts_of(places) for peer, places in self.told.items()}})

    def news_of(self, peer: PeerId) -> bytes:
        """Return the message that tells where one peer is."""
        return encode_peers({peer: texts_of(self.told[peer])})


def texts_of(addresses: Iterable[PeerAddress]) -> tuple[str, ...]:
    """Return addresses as they are written down."""
    return tuple(address.text for address in addresses)
