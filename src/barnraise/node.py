"""The composition root: a peer is assembled here and nowhere else. ``python -m barnraise.node PEER.toml RUN.toml``.

Events go to stdout, one JSON line each. If stdin is a pipe, the peer leaves when it closes: whoever started it holds
the other end.
"""

import argparse
import os
import signal
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

from barnraise.config import PeerConfig, RunConfig, load_peer_config, load_run_config
from barnraise.dag.blobs import Blobs
from barnraise.dag.store import Founding, Store
from barnraise.errors import BarnraiseError, ConfigError, LocalError
from barnraise.identity import ClusterKey, Identity
from barnraise.link.messages import Hello as TrainerHello
from barnraise.link.messages import Initialise, Initialised
from barnraise.link.process import TrainerProcess, TrainerUp
from barnraise.net.bulk import BulkLimits, open_bulk
from barnraise.net.host import open_network
from barnraise.net.seam import Network
from barnraise.observe.events import EventLog
from barnraise.peer.driver import Driver
from barnraise.peer.keyring import Hello, Keyring
from barnraise.swarm import records
from barnraise.swarm.adopt import adopt
from barnraise.swarm.member import Member
from barnraise.swarm.state import genesis
from barnraise.swarm.workspace import Workspace, root_of

MAX_PARAMETERS: Final = 1 << 33
"""Eight thousand million: more than fits a machine whose trainer says so is a broken layout."""


async def run_peer(run: RunConfig, config: PeerConfig, run_file: Path, events: EventLog) -> None:
    """Be a peer of a run until the run is over.

    Raises:
        BarnraiseError, OSError, sqlite3.Error: why it had to leave; what was agreed is on disk.
    """
    (config.data_dir / "trainer").mkdir(parents=True, exist_ok=True)
    identity = Identity.load(config.data_dir / "identity.key")
    cluster_key = ClusterKey.load(config.cluster_key_file)
    store = Store(config.data_dir / "log.sqlite", run.run_id)
    blobs = Blobs(config.data_dir / "blobs")
    trainer = TrainerProcess(_trainer_command(config, run_file), config.data_dir / "trainer.log")
    drivers: list[Driver] = []  # the bulk plane's address is needed before there is a driver; nobody can send before
    host, port = _host_and_port(config.bulk_listen)
    planes = open_bulk(
        identity,
        cluster_key,
        sink=lambda sender, header, size: drivers[0].courier.sink(sender, header, size),
        arrived=lambda sender, header: drivers[0].courier.arrived(sender, header),
        host=host,
        port=port,
        limits=BulkLimits(connections=config.bulk_connections),
    )
    async with planes as bulk, trio.open_nursery() as nursery:
        nursery.start_soon(trainer.run)
        host, port = bulk.address
        hello = msgspec.msgpack.encode(Hello(records.VERSION, identity.public.encode(), host, port))
        async with open_network(
            identity,
            cluster_key,
            run=run.run_id,
            hello=hello,
            listen=config.listen,
            bootstrap=config.bootstrap,
            authorise=lambda peer: True,
        ) as network:
            address = network.addresses[0]
            events.emit("peer.started", peer=identity.peer_id, address=address, run=run.run_id.hex(), pid=os.getpid())
            driver = await _assemble(run, config, identity, store, blobs, trainer, events, network)
            drivers.append(driver)
            await driver.run(bulk)
        nursery.cancel_scope.cancel()
    store.close()


async def _assemble(
    run: RunConfig,
    config: PeerConfig,
    identity: Identity,
    store: Store,
    blobs: Blobs,
    trainer: TrainerProcess,
    events: EventLog,
    network: Network,
) -> Driver:
    """Bring a fresh or interrupted peer to where its disk says it was."""
    founding = await _founding(run, config, store, blobs, trainer, events)
    size = founding.blocks[-1][1]
    zeros = np.zeros(size, np.float32)
    keys = Keyring(identity)
    state = genesis(run, len(founding.blocks), founding.theta, root_of(zeros))
    log = store.log()
    state = adopt(state, log, lambda *vote: True).state  # our own disk: these votes were checked when they came
    residual = store.residual()
    workspace = Workspace(
        founding.blocks,
        theta=blobs.get(state.theta_root),
        momentum=blobs.get(state.momentum_root) if state.round else zeros,
        residual=blobs.get(residual) if residual else zeros.copy(),
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
    )


async def _founding(
    run: RunConfig, config: PeerConfig, store: Store, blobs: Blobs, trainer: TrainerProcess, events: EventLog
) -> Founding:
    """Meet the trainer; on a fresh disk, have it write the first parameters."""
    up = await trainer.events.receive()
    if not isinstance(up, TrainerUp):
        raise LocalError(f"the trainer began with {up!r:.200}")
    events.emit("trainer.started", pid=up.hello.pid, device=up.hello.device)
    blocks = _blocks(run, up.hello)
    known = store.founding()
    if known is not None:
        if known.blocks != blocks:
            raise ConfigError("the trainer's model is not the one that this data directory holds; name another one")
        return known
    path = config.data_dir / "initial.f32"
    await trainer.assign(Initialise(path=str(path)))
    while not isinstance(event := await trainer.events.receive(), Initialised):
        if isinstance(event, TrainerUp):
            events.emit("trainer.restarted", pid=event.hello.pid, exit=event.died)
    theta = np.fromfile(path, np.float32)
    path.unlink()
    if len(theta) != blocks[-1][1] or not np.isfinite(theta).all():
        raise LocalError(f"the trainer wrote {len(theta)} first parameters, finite ones expected: {blocks[-1][1]}")
    name = blobs.put(theta)
    store.found(name, blocks)
    return Founding(theta=name, blocks=blocks)


def _blocks(run: RunConfig, hello: TrainerHello) -> tuple[tuple[int, int], ...]:
    """Return where each tensor of the trainer's model lies in the flat vector.

    Raises:
        ConfigError: it trains on another text than the run's.
        LocalError: its layout is empty or too large.
    """
    if run.data.digest and hello.data_digest.hex() != run.data.digest:
        raise ConfigError(
            f"the training text here has digest {hello.data_digest.hex()[:12]}, the run's has {run.data.digest[:12]}. "
            "Give every peer the same text."
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
    options = ("--config", str(run_file), "--device", config.device, "--threads", str(config.threads))
    return (sys.executable, "-P", "-m", "barnraise.train", *options)


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"bulk_listen = {text!r} is not HOST:PORT. Write 127.0.0.1:0 for any free port.")
    return host, int(port)


async def _supervise(run: RunConfig, config: PeerConfig, run_file: Path, events: EventLog) -> None:
    """Run the peer until it is done, its stdin closes, or it is told to stop."""
    async with trio.open_nursery() as nursery:
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            nursery.start_soon(_leave_with_stdin, nursery.cancel_scope)
        nursery.start_soon(_leave_on_signal, nursery.cancel_scope)
        await run_peer(run, config, run_file, events)
        nursery.cancel_scope.cancel()


async def _leave_with_stdin(scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        while await stdin.receive_some(4096):
            pass
    scope.cancel()


async def _leave_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


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
        run = load_run_config(arguments.run)
        with EventLog(config.data_dir / "metrics.jsonl", sys.stdout) as events:
            trio.run(_supervise, run, config, arguments.run, events)
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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _known_causes(error: BaseException) -> Iterator[BarnraiseError | OSError | sqlite3.Error]:
    """Return the errors that a user can do something about, from within trio's groups."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _known_causes(part)
    elif isinstance(error, BarnraiseError | OSError | sqlite3.Error):
        yield error


if __name__ == "__main__":
    sys.exit(main())
