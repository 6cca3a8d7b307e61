"""The composition root: a peer is assembled here and nowhere else. ``python -m barnraise.node PEER.toml RUN.toml``.

Events go to stdout, one JSON line each. If stdin is a pipe, the peer leaves at once when it closes: whoever started it
holds the other end. A line on it asks for less: ``leave`` to finish the round and leave the run, ``pause N`` to stop
after round N without leaving it. The first SIGINT or SIGTERM means ``leave``, a second one at once.

RUN.toml need not be there: whoever joins names the run in PEER.toml, and its configuration is asked of its peers.
"""

import argparse
import contextlib
import dataclasses
import functools
import math
import os
import signal
import socket
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import structlog
import trio
from numpy.typing import NDArray

from barnraise.codec.chain import codec_of
from barnraise.config import PeerConfig, RunConfig, load_peer_config, load_run_config, parse_run_id, save
from barnraise.dag.blobs import Blobs
from barnraise.dag.sealing import open_blobs
from barnraise.dag.store import Founding, Store
from barnraise.errors import BarnraiseError, ConfigError, LocalError, Unavailable, leaves
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import Digest, RunId
from barnraise.link.messages import Hello as TrainerHello
from barnraise.link.messages import Initialise, Initialised, layout_digest
from barnraise.link.process import ExternalTrainer, TrainerGone, TrainerLink, TrainerProcess, TrainerUp
from barnraise.net.addresses import bulk_endpoint, control_endpoint
from barnraise.net.announcement import Announcement, cluster_tag
from barnraise.net.bulk import BulkLimits, open_bulk
from barnraise.net.discovery import announce
from barnraise.net.host import Libp2pNetwork, open_network
from barnraise.net.seam import Network, NetworkEvent
from barnraise.observe.events import EventLog
from barnraise.peer.driver import Driver
from barnraise.peer.enrol import enrol
from barnraise.peer.faults import Drill
from barnraise.peer.keyring import Hello, Keyring
from barnraise.peer.petitions import introduce
from barnraise.peer.succession import refuse_if_revoked, take_over
from barnraise.swarm import records
from barnraise.swarm.adopt import adopt
from barnraise.swarm.member import Member
from barnraise.swarm.state import genesis
from barnraise.swarm.workspace import Workspace, root_of

MAX_WISH_BYTES: Final = 4096
MAX_PARAMETERS: Final = 1 << 33
"""Eight thousand million: more than fits a machine whose trainer says so is a broken layout."""


ENROL_SPARE_S: Final = 10.0
"""What a peer of the run may take to answer, on a busy machine, on top of what reaching it takes."""
LAYOUT_FILE: Final = "layout.msgpack"
VOTERS_FILE: Final = "voters"
"""Public keys of everybody whose vote is in the log."""


class Wishes:
    """What whoever started the peer asks of it; kept until there is a driver to hear it."""

    def __init__(self) -> None:
        self._driver: Driver | None = None
        self._left: tuple[int | None] | None = None
        self.at_once = trio.Event()

    async def leave(self, after_round: int | None = None) -> None:
        """Finish the round, or ``after_round``, and leave; at once if nothing has begun."""
        if self._driver is None:
            self.at_once.set()
        else:
            await self._driver.leave(after_round)

    def heard_by(self, driver: Driver) -> None:
        """Pass everything on to a driver from now on."""
        self._driver = driver


async def run_peer(config: PeerConfig, run_file: Path, events: EventLog, wishes: Wishes) -> None:
    """Be a peer of a run until the run is over.

    Raises:
        BarnraiseError, OSError, sqlite3.Error: why it had to leave; what was agreed is on disk.
    """
    (config.data_dir / "trainer").mkdir(parents=True, exist_ok=True)
    identity = Identity.load(config.data_dir / "identity.key")
    cluster_key = ClusterKey.load(config.cluster_key_file)
    is_known = not config.run_id or await trio.Path(run_file).exists()
    known = load_run_config(run_file) if is_known else None
    run_id = known.run_id if known else parse_run_id(config.run_id)
    drivers: list[Driver] = []  # the bulk plane's address is needed before there is a driver; nobody can send before
    host, port = bulk_endpoint(config.bulk_listen, config.listen)
    planes = open_bulk(
        identity,
        cluster_key,
        sink=lambda sender, header, size: drivers[0].courier.sink(sender, header, size) if drivers else None,
        arrived=lambda sender, header: drivers[0].courier.arrived(sender, header),
        host=host,
        port=port,
        limits=BulkLimits(connections=config.bulk_connections, congestion=config.congestion),
    )
    with (
        contextlib.closing(Store(config.data_dir / "log.sqlite", run_id)) as store,
        contextlib.closing(open_blobs(config, cluster_key)) as blobs,
    ):
        store.watch = blobs.watch = Drill().at_start
        async with planes as bulk, trio.open_nursery() as nursery:
            host, port = bulk.address
            hello = msgspec.msgpack.encode(Hello(records.VERSION, identity.public.encode(), host, port))
            async with open_network(
                identity,
                cluster_key,
                run=run_id,
                hello=hello,
                listen=control_endpoint(config.listen),
                bootstrap=config.bootstrap,
                authorise=lambda peer: True,
                max_peers=config.max_peers,
                connection_timeout_s=config.connection_timeout_s,
            ) as network:
                started = {"peer": identity.peer_id, "address": network.addresses[0], "run": run_id.hex()}
                events.emit("peer.started", **started, pid=os.getpid())
                if config.mdns:
                    nursery.start_soon(_meet_on_local_network, network, cluster_key, run_id, events)
                run, meanwhile = (known, []) if known else await _enrolled(network, config, run_id, run_file, events)
                trainer = _trainer(config, run_file)
                nursery.start_soon(trainer.run)
                driver = await _assemble(run, config, identity, store, blobs, trainer, events, network)
                drivers.append(driver)
                wishes.heard_by(driver)
                await driver.run(bulk, meanwhile)
            nursery.cancel_scope.cancel()


async def _meet_on_local_network(network: Libp2pNetwork, cluster_key: ClusterKey, run: RunId, events: EventLog) -> None:
    """Announce this peer, and go to others of the run, until cancelled."""
    ours = Announcement(
        peer=network.peer_id,
        run=run,
        address=network.addresses[0],
        cluster_tag=cluster_tag(cluster_key),
        label=socket.gethostname()[:32],
    )
    try:
        async with announce(ours, lambda seen: network.meet([seen.place])):
            await trio.sleep_forever()
    except Unavailable as error:
        events.emit("peer.refused", reason=f"no mDNS here: {error}")


async def _enrolled(
    network: Libp2pNetwork, config: PeerConfig, run: RunId, run_file: Path, events: EventLog
) -> tuple[RunConfig, list[NetworkEvent]]:
    """Learn the run's configuration and keep it for the trainer and for the next start."""
    deadline_s = config.max_retries * config.connection_timeout_s + ENROL_SPARE_S
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.find_anybody, config.max_retries)  # says why, where nobody is there
        found, meanwhile = await enrol(network, run, deadline_s, events)
        nursery.cancel_scope.cancel()
    here = dataclasses.replace(found.data, source=config.data or found.data.source)
    found = dataclasses.replace(found, data=here)
    partial = run_file.with_name(run_file.name + ".partial.toml")
    save(found, partial)
    partial.replace(run_file)
    return found, meanwhile


def _trainer(config: PeerConfig, run_file: Path) -> TrainerLink:
    if config.trainer_socket:
        return ExternalTrainer(Path(config.trainer_socket))
    return TrainerProcess(_trainer_command(config, run_file), config.data_dir / "trainer.log")


async def _assemble(
    run: RunConfig,
    config: PeerConfig,
    identity: Identity,
    store: Store,
    blobs: Blobs,
    trainer: TrainerLink,
    events: EventLog,
    network: Network,
) -> Driver:
    """Bring a fresh or interrupted peer to where its disk says it was."""
    is_fresh = store.ballot() is None  # it may have founded the run, or fetched its log, and died before it voted again
    trainer_up = await _trainer_up(trainer, events)
    founding = await _founding(run, config, trainer_up.hello, store, blobs, trainer, events)
    size = founding.blocks[-1][1]
    zeros = np.zeros(size, np.float32)
    keys = Keyring(identity, config.data_dir / VOTERS_FILE)
    state = genesis(run, len(founding.blocks), founding.theta, root_of(zeros))
    log = store.log()
    state = adopt(state, log, lambda *vote: True).state  # our own disk: these votes were checked when they came
    if take_over(config.data_dir, state, identity.peer_id):
        raise Unavailable("the members agreed to the new key of this peer, which has it now; start it again")
    refuse_if_revoked(state, identity.peer_id)
    theta = blobs.find(state.theta_root)
    momentum = blobs.find(state.momentum_root) if state.round else zeros
    is_hollow = theta is None or momentum is None  # fetched from somebody who has them; what rounding left is lost
    named = store.residual()
    residual = blobs.find(named) if named else None
    workspace = Workspace(
        founding.blocks,
        theta=zeros if theta is None else theta,
        momentum=zeros if momentum is None else momentum,
        residual=zeros.copy() if residual is None else residual,
        codec=codec_of(run.round.codec, np.int16),
        num_parameters=sum(math.prod(tensor.shape) for tensor in trainer_up.hello.layout if not tensor.is_buffer),
    )
    member = Member(
        me=identity.peer_id,
        state=state,
        sign=identity.sign,
        verify=keys.verify,
        now=trio.current_time(),
        peer_timeout_s=config.peer_timeout_s,
        ballot=store.ballot(),
        recent=log,
        is_fresh=is_fresh,
        is_hollow=is_hollow,
        introduce=functools.partial(introduce, keys),
    )
    return Driver(
        config=config,
        member=member,
        workspace=workspace,
        store=store,
        blobs=blobs,
        keys=keys,
        trainer=trainer,
        events=events,
        network=network,
        device=trainer_up.hello.device,
    )


async def _trainer_up(trainer: TrainerLink, events: EventLog) -> TrainerUp:
    """Meet the trainer."""
    up = await trainer.events.receive()
    if not isinstance(up, TrainerUp):
        raise LocalError(f"the trainer began with {up!r:.200}")
    hello = up.hello
    events.emit("trainer.started", pid=hello.pid, device=hello.device, dtype=hello.dtype, reason=hello.reason)
    return up


async def _founding(
    run: RunConfig,
    config: PeerConfig,
    hello: TrainerHello,
    store: Store,
    blobs: Blobs,
    trainer: TrainerLink,
    events: EventLog,
) -> Founding:
    """Return what the run begins with; on a fresh disk, have the trainer write the first parameters.

    Where they are not those of the run (a model of the user's own that was drawn anew, say), the run's are fetched
    from a peer that has them before anything else is done.
    """
    blocks = _blocks(run, hello)
    known = store.founding()
    if known is not None:
        if known.blocks != blocks:
            raise ConfigError("the trainer's model is not the one that this data directory holds; name another one")
        return known
    (config.data_dir / LAYOUT_FILE).write_bytes(msgspec.msgpack.encode(hello.layout))
    theta = await _first_parameters(blobs.scratch or config.data_dir, blocks[-1][1], trainer, events)
    name = root_of(theta)
    if run.model.initial in ("", name.hex()):
        blobs.put(theta, name)
    else:
        name = Digest(bytes.fromhex(run.model.initial))
    store.found(name, blocks)
    return Founding(theta=name, blocks=blocks)


async def _first_parameters(directory: Path, size: int, trainer: TrainerLink, events: EventLog) -> NDArray[np.float32]:
    path = directory / "initial.f32"
    await trainer.assign(Initialise(path=str(path)))
    while not isinstance(event := await trainer.events.receive(), Initialised):
        if isinstance(event, TrainerUp):
            events.emit("trainer.restarted", pid=event.hello.pid, exit=event.died)
        elif isinstance(event, TrainerGone):
            raise Unavailable("the trainer left before the run began")
    theta = np.fromfile(path, np.float32)
    path.unlink()
    if len(theta) != size or not np.isfinite(theta).all():
        raise LocalError(f"the trainer wrote {len(theta)} first parameters, finite ones expected: {size}")
    return theta


def _blocks(run: RunConfig, hello: TrainerHello) -> tuple[tuple[int, int], ...]:
    """Return where each tensor of the trainer's model lies in the flat vector.

    Raises:
        ConfigError: it trains another model, or on another text, than the run's.
        LocalError: its layout is empty or too large.
    """
    if run.data.kind == "text" and run.data.digest and hello.data_digest.hex() != run.data.digest:
        raise ConfigError(
            f"the training text here has digest {hello.data_digest.hex()[:12]}, the run's has {run.data.digest[:12]}. "
            "Give every peer the same text."
        )
    if run.model.layout and layout_digest(hello.layout) != run.model.layout:
        raise ConfigError(
            f"the model here has other tensors than the run's ({layout_digest(hello.layout)[:12]} instead of "
            f"{run.model.layout[:12]}). Give every peer the same model."
        )
    blocks: list[tuple[int, int]] = []
    end = 0
    for tensor in hello.layout:
        start, end = end, end + int(np.prod(tensor.shape, dtype=np.int64))
        blocks.append((start, end))
    if not 0 < end <= MAX_PARAMETERS:
        raise LocalError(f"the trainer's model has {end} parameters; 1 to {MAX_PARAMETERS} are possible")
    return tuple(blocks)


def _trainer_command(config: PeerConfig, run_file: Path) -> tuple[str, ...]:
    if config.trainer:
        return config.trainer
    options = ["--config", str(run_file), "--device", config.device, "--threads", str(config.threads)]
    if config.profile_rounds:
        options += ["--profile-rounds", str(config.profile_rounds), "--profile-dir", str(config.data_dir / "profile")]
    return (sys.executable, "-P", "-m", "barnraise.train", *options)


async def _supervise(config: PeerConfig, run_file: Path, events: EventLog) -> None:
    """Run the peer until it is done, its stdin closes, or it is told to stop."""
    wishes = Wishes()
    async with trio.open_nursery() as nursery:
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            nursery.start_soon(_heed_stdin, wishes)
        nursery.start_soon(_heed_signals, wishes)
        nursery.start_soon(_leave_at_once, wishes, nursery.cancel_scope)
        await run_peer(config, run_file, events, wishes)
        nursery.cancel_scope.cancel()


async def _leave_at_once(wishes: Wishes, scope: trio.CancelScope) -> None:
    await wishes.at_once.wait()
    scope.cancel()


async def _heed_stdin(wishes: Wishes) -> None:
    """Do what a line says; what is no such line is none of ours."""
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        async for data in stdin:
            *lines, rest = (rest + data)[-MAX_WISH_BYTES:].split(b"\n")
            for line in lines:
                match line.split():
                    case [b"leave"]:
                        await wishes.leave()
                    case [b"pause", number] if number.isdigit():
                        await wishes.leave(int(number))
    wishes.at_once.set()


async def _heed_signals(wishes: Wishes) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            break
        await wishes.leave()
        async for _ in signals:
            wishes.at_once.set()


def main() -> int:
    """Parse the arguments, be a peer, return the exit code."""
    parser = argparse.ArgumentParser(prog="barnraise.node", description="Be one peer of a run.")
    parser.add_argument("peer", type=Path, help="this machine's configuration, TOML")
    parser.add_argument("run", type=Path, help="the run's configuration, TOML")
    arguments = parser.parse_args()
    events = EventLog(None, sys.stdout)
    place = arguments.peer.parent
    try:
        config = load_peer_config(arguments.peer)
        place = config.data_dir
        _log_to_stderr(config.log_level)
        with EventLog(config.data_dir / "metrics.jsonl", sys.stdout) as events:
            trio.run(_supervise, config, arguments.run, events)
    except BaseException as error:
        cause = next(_known_causes(error), None)
        if cause is None:
            raise
        message = str(cause) if isinstance(cause, BarnraiseError) else f"{cause} (while working in {place})"
        events.emit("error", message=message, next="Mend it and start this peer again; the others go on.")
        print(f"barnraise: {message}", file=sys.stderr)
        return cause.exit_code if isinstance(cause, BarnraiseError) else 1
    return 0


def _log_to_stderr(level: str) -> None:
    """Keep stdout for events."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


def _known_causes(error: BaseException) -> Iterator[BarnraiseError | OSError | sqlite3.Error]:
    """Return the errors that a user can do something about, from within trio's groups."""
    return (leaf for leaf in leaves(error) if isinstance(leaf, BarnraiseError | OSError | sqlite3.Error))


if __name__ == "__main__":
    sys.exit(main())
