"""Who the others are: what a peer says of itself when it is admitted, and the keys that its votes are checked with."""

import contextlib
import ipaddress
from pathlib import Path

import msgspec

from barnraise.errors import PeerError
from barnraise.identity import Identity, PublicIdentity
from barnraise.ids import PeerId
from barnraise.swarm import records


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer says of itself when it is admitted."""

    version: int
    identity: bytes
    bulk_host: str
    bulk_port: int


def read_hello(peer: PeerId, data: bytes) -> tuple[PublicIdentity, str, int]:
    """Return a peer's keys and the address of its bulk plane.

    Raises:
        PeerError: it is malformed, or the keys are not this peer's.
    """
    try:
        hello = msgspec.msgpack.decode(data, type=Hello)
        identity = PublicIdentity.decode(hello.identity)
        # A name would be looked up, and may be made to fail on purpose; what is no single machine's is dialled in vain.
        host = ipaddress.ip_address(hello.bulk_host)
        if host.is_unspecified or host.is_multicast:
            raise ValueError(f"{host} is no address of one machine")
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise PeerError(peer, f"introduced itself badly: {error}", data) from error
    if identity.peer_id != peer or hello.version != records.VERSION or not 0 < hello.bulk_port < 65536:
        raise PeerError(peer, f"introduced itself as {identity.peer_id}, version {hello.version}", data)
    return identity, hello.bulk_host, hello.bulk_port


class Keyring:
    """The public keys of everybody met so far; enough to check the votes of members that are gone.

    Those whose signature ever held, members all of them, are kept on disk: a log is worth nothing to a newcomer
    without the keys of its voters, and they may have left before this peer was last started.
    """

    def __init__(self, identity: Identity, file: Path | None = None) -> None:
        """``file`` keeps the keys, one a line; None: nothing is kept."""
        self.known: dict[PeerId, PublicIdentity] = {identity.peer_id: identity.public}
        self._kept = {identity.peer_id}
        self._file = file
        for line in file.read_text("ascii").splitlines() if file is not None and file.exists() else ():
            with contextlib.suppress(ValueError):  # cut short by a crash
                voter = PublicIdentity.decode(bytes.fromhex(line))
                self.known[voter.peer_id] = voter
                self._kept.add(voter.peer_id)

    def add(self, identity: PublicIdentity) -> None:
        """Remember a peer's keys, which its id vouches for."""
        self.known[identity.peer_id] = identity

    def verify(self, peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        """Tell whether a known peer's signature holds."""
        if peer not in self.known or not self.known[peer].verify(context, message, signature):
            return False
        if peer not in self._kept:
            self._kept.add(peer)
            self._keep(self.known[peer])
        return True

    def _keep(self, identity: PublicIdentity) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="ascii") as file:
                file.write(f"\n{identity.encode().hex()}\n")  # behind whatever a crash cut short
