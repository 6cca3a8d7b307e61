"""The backend over real networks: control and bulk plane in a thread of their own, under trio; no tensors' types."""

import atexit
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeVar

import blake3
import msgspec
import structlog
import trio

from barnraise.api.choice import Choice
from barnraise.api.mesh import Mesh
from barnraise.api.plans import Input
from barnraise.api.roster import DiscoveredRoster, Roster, StaticRoster
from barnraise.api.streams import Call
from barnraise.collective.buffers import Vector
from barnraise.errors import BarnraiseError, ConfigError, LocalError, Unavailable, leaves
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId, RunId
from barnraise.net.addresses import LAN, lan_address
from barnraise.net.announcement import Announcement, cluster_tag
from barnraise.net.bulk import open_bulk
from barnraise.net.discovery import announce
from barnraise.net.host import Libp2pNetwork, open_network
from barnraise.net.seam import LinkSpeed
from barnraise.peer.keyring import Hello
from barnraise.runs import places
from barnraise.swarm import records

T = TypeVar("T")
CLOSE_DEADLINE_S: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """How to reach the network, and whom to look for."""

    identity: Identity
    cluster_key: ClusterKey
    run: RunId
    roster: Roster
    listen: tuple[str, int]
    """IP address and port of the control plane."""
    reached_at: str
    """IP address by which others reach this machine."""
    bulk_port: int
    bootstrap: tuple[str, ...]
    authorise: Callable[[PeerId], bool]
    mdns: bool


def discovered(
    cluster_key: ClusterKey | str | Path | None,
    name: str,
    listen: str,
    bulk_port: int,
    bootstrap: Sequence[str],
    mdns: bool,
) -> "NetworkBackend":
    """Open the backend of `context.discover`."""
    key, identity = _key_of(cluster_key), Identity.generate()
    host, port = _resolved(listen)
    return NetworkBackend(
        Setup(
            identity=identity,
            cluster_key=key,
            run=run_id(key, name),
            roster=DiscoveredRoster(identity.peer_id),
            listen=(host, port),
            reached_at=host,
            bulk_port=bulk_port,
            bootstrap=tuple(bootstrap),
            authorise=lambda peer: True,
            mdns=mdns,
        )
    )


def listed(
    addresses: Sequence[str],
    rank: int,
    cluster_key: ClusterKey | str | Path | None,
    name: str,
    listen: str | None,
    bulk_port: int,
) -> "NetworkBackend":
    """Open the backend of `context.static_peers`."""
    if not 0 <= rank < len(addresses):
        raise ConfigError(f"rank {rank} is not on the list, which has ranks 0 .. {len(addresses) - 1}")
    if len(set(addresses)) < len(addresses):
        raise ConfigError(f"the list names an address twice: {', '.join(addresses)}. Give each machine its own.")
    key = _key_of(cluster_key)
    identities = [rank_identity(key, name, i) for i in range(len(addresses))]
    peers = tuple(identity.peer_id for identity in identities)
    reached_at = _resolved(addresses[rank])
    return NetworkBackend(
        Setup(
            identity=identities[rank],
            cluster_key=key,
            run=run_id(key, name),
            roster=StaticRoster(peers),
            listen=_resolved(listen) if listen else reached_at,
            reached_at=reached_at[0],
            bulk_port=bulk_port,
            bootstrap=tuple(_multiaddress(*_parts(addresses[i]), peers[i]) for i in range(len(peers)) if i != rank),
            authorise=set(peers).__contains__,
            mdns=False,
        )
    )


def run_id(key: ClusterKey, name: str) -> RunId:
    """Return the id by which machines of one cluster and one name know each other; it does not give the key away."""
    material = key.derive(b"context") + name.encode()
    return RunId(blake3.blake3(material, derive_key_context="barnraise 1 context").digest())


def rank_identity(key: ClusterKey, name: str, rank: int) -> Identity:
    """Return the keys of a rank. All machines derive all ranks' ids, so a list of addresses is all that they share.

    Whoever has the cluster key can be any rank. It could take part in everything else of the cluster as well.
    """
    purpose = f"rank {rank} of {name}".encode()
    return Identity(key.derive(b"ed25519, " + purpose), key.derive(b"ml-dsa, " + purpose))


class NetworkBackend:
    """A `Backend` whose network lives in a thread of its own."""

    def __init__(self, setup: Setup) -> None:
        """Start the thread, and return when the planes listen.

        Raises:
            ConfigError: they cannot listen there.
        """
        _keep_stdout_clean()
        self._setup = setup
        self._mesh = Mesh(setup.identity.peer_id, setup.roster)
        self._address = ""
        self._refusals: Callable[[], str] = str
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="barnraise context", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error:
            raise _cause(self._error)
        atexit.register(self.close)

    @property
    def rank(self) -> int:
        """This peer's place."""
        return self._mesh.rank

    @property
    def world_size(self) -> int:
        """Number of peers."""
        return len(self._mesh.group)

    @property
    def address(self) -> str:
        """Multiaddress of the control plane."""
        return self._address

    @property
    def speeds(self) -> tuple[LinkSpeed | None, ...]:
        """What was measured of the way to each rank; None: too little was sent there, or it is this one."""
        return tuple(self._mesh.speed(peer) for peer in self._mesh.group)

    def wait_for_peers(self, count: int | None, timeout_s: float) -> None:
        """Return once the peers are there."""
        try:
            self._call(lambda: self._mesh.wait_for_peers(count, timeout_s))
        except Unavailable as error:
            raise Unavailable(f"{error}{self._refusals()}") from error

    @property
    def members(self) -> tuple[int, ...]:
        """Ranks that are in."""
        return self._mesh.collectives.members

    @property
    def lost(self) -> Mapping[int, str]:
        """Ranks that are out."""
        return self._mesh.collectives.lost

    def carry_out(self, call: Call, given: Input, out: Vector, timeout_s: float) -> None:
        """Carry a collective out, in this thread."""
        if self._error:
            raise _cause(self._error)
        self._mesh.collectives.carry_out(call, given, out, timeout_s)

    def choice(self, call: Call) -> Choice:
        """Return how an all-reduce would go, and why."""
        return self._mesh.collectives.choice(call)

    def close(self) -> None:
        """Leave the group and end the thread."""
        atexit.unregister(self.close)
        try:
            self._token.run_sync_soon(self._stop.set)
        except trio.RunFinishedError:
            return
        self._thread.join(CLOSE_DEADLINE_S)

    def _call(self, act: Callable[[], Awaitable[T]]) -> T:
        try:
            return trio.from_thread.run(act, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            if self._error:
                raise _cause(self._error) from None
            raise Unavailable("this context was closed. Open another.") from None

    def _run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _live(self) -> None:
        setup, mesh = self._setup, self._mesh
        self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
        async with open_bulk(
            setup.identity,
            setup.cluster_key,
            sink=lambda peer, header, size_bytes: None,
            arrived=lambda peer, header: None,
            streams=mesh.streams.take,
            host=setup.listen[0],
            port=setup.bulk_port,
        ) as bulk:
            hello = Hello(records.VERSION, setup.identity.public.encode(), setup.reached_at, bulk.address[1])
            async with (
                open_network(
                    setup.identity,
                    setup.cluster_key,
                    run=setup.run,
                    hello=msgspec.msgpack.encode(hello),
                    listen=_multiaddress(*setup.listen),
                    bootstrap=setup.bootstrap,
                    authorise=setup.authorise,
                ) as network,
                trio.open_nursery() as nursery,
            ):
                mesh.begin(network, bulk, nursery)
                if setup.mdns:
                    nursery.start_soon(self._announce, network)
                self._address = network.addresses[0]
                self._refusals = lambda: "".join(f" Peer {peer}: {why}." for peer, why in network.refusals.items())
                self._ready.set()
                try:
                    await self._stop.wait()
                    await mesh.leave()
                finally:
                    await mesh.close()
                nursery.cancel_scope.cancel()

    async def _announce(self, network: Libp2pNetwork) -> None:
        """Tell the local network of this peer, and dial who says the same of itself."""
        setup = self._setup
        ours = Announcement(
            peer=setup.identity.peer_id,
            run=setup.run,
            address=network.addresses[0],
            cluster_tag=cluster_tag(setup.cluster_key),
            label=socket.gethostname()[:32],
        )
        try:
            async with announce(ours, lambda seen: network.meet([seen.place])):
                await trio.sleep_forever()
        except Unavailable as error:
            structlog.get_logger().warning("mdns.unavailable", reason=str(error))


def _key_of(given: ClusterKey | str | Path | None) -> ClusterKey:
    if given is None:
        return places.cluster_key()
    if isinstance(given, ClusterKey):
        return given
    if isinstance(given, str):
        try:
            return ClusterKey.from_text(given)
        except ValueError as error:
            if not Path(given).is_file():
                raise ConfigError(f"cluster_key: neither a file nor a key ({error}). Copy it again.") from None
    return ClusterKey.load(Path(given))


def _parts(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{text!r} is not host:port. Write for example 192.168.1.7:4001.")
    return host, int(port)


def _resolved(text: str) -> tuple[str, int]:
    """Return the IP address and port of ``host:port``."""
    host, port = _parts(text)
    if host == LAN:
        return lan_address(), port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"{host!r} of {text!r} is not known here ({error}). Write its IP address.") from error
    return str(found[0][4][0]), port


def _multiaddress(host: str, port: int, peer: PeerId | None = None) -> str:
    try:
        kind = f"ip{ip_address(host).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{port}" + (f"/p2p/{peer}" if peer else "")


def _keep_stdout_clean() -> None:
    """Where the user's program has not said what becomes of logs, warnings go to stderr and the rest nowhere."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger("warning"),
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever stderr is by then
        )


def _cause(error: BaseException) -> BaseException:
    """Return the error that a user can do something about, from within trio's groups."""
    for found in leaves(error):
        if isinstance(found, BarnraiseError):
            return found
    return LocalError(f"the network's thread ended: {error!r}")
