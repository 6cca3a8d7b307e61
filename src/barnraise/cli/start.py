"""``barnraise start``: one long-lived peer as a configuration file says, for a service or a container to keep alive."""

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from barnraise.cli.conduct import conduct, told
from barnraise.cli.join import FOR_EVER
from barnraise.cli.launch import LogLevel, Swarm
from barnraise.cli.train import resolve
from barnraise.config import BULK_PORT, CONTROL_PORT, PeerConfig, load_peer_table, parse_run_id
from barnraise.identity import ClusterKey
from barnraise.runs import directory as rundir
from barnraise.runs import invitation as invitations
from barnraise.runs import places
from barnraise.runs.directory import RunDirectory


def start(
    *,
    config: Annotated[Path | None, Parameter(alias="-c")] = None,
    invitation: str | None = None,
    preset: Literal["local", "small", "medium", "large"] | None = None,
    compression_level: int | None = None,
    link_mbit: float | None = None,
    port: int | None = None,
    max_peers: int | None = None,
    directory: Annotated[Path | None, Parameter(name="--dir")] = None,
    tensorboard: Path | None = None,
    wandb: str | None = None,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    log_level: LogLevel | None = None,
) -> int:
    """Be one long-lived peer: of the run in its directory, else of the one it is invited to, else of a new one.

    `barnraise config` writes a file to begin with. SIGTERM and Ctrl-C finish the round and leave; started again, the peer
    takes part again.

    Args:
        config: TOML or YAML: the run's keys, for a new run, and a table `peer` with this machine's.
        invitation: The word that a run printed, or a file that holds it.
        preset: Size of a new run's model.
        compression_level: How small a new run's updates travel, 1 (whole) to 9 (least); 3, int8, is the default. A codec
            that the configuration names goes first.
        link_mbit: Mbit/s of the slowest link that a new run will use, which only you can know before others join: below
            100 the level counts as one more, below 10 as two more, from 1000 on as one less.
        port: Port of the control plane; the next one is the bulk plane's.
        max_peers: Most peers to be connected to at once.
        directory: Where the peer keeps everything; overrides data_dir of the file. Default: peers/default among this
            user's data.
        tensorboard: Write the run's figures to this directory, for TensorBoard.
        wandb: Write the run's figures to this project of Weights & Biases.
        json: Print one event a line, as JSON.
        log_level: What the peer writes to its stderr.log.
    """
    with told(json=json):
        peer = _peer_table(config, directory)
        flags = {"preset": preset, "compression_level": compression_level, "link_mbit": link_mbit}
        made = _directory(peer, config, invitation, flags)
        kept = dataclasses.asdict(peer)
        for name in ("data_dir", "cluster_key_file", "run_id", "bootstrap"):
            del kept[name]
        settings = {**kept, **_given(port, max_peers, log_level, peer)}
        swarm = Swarm(
            directory=made,
            settings=settings,
            patience=FOR_EVER,
            resume_command="the same command",
            tensorboard=tensorboard,
            wandb=wandb,
        )
        conduct(swarm, json=json)
    return 0


def _peer_table(config: Path | None, directory: Path | None) -> PeerConfig:
    """Return this machine's settings: the file's over the defaults of a peer that others find again."""
    defaults = {
        "data_dir": places.peers_directory() / "default",
        "cluster_key_file": places.cluster_key_file(),
        "listen": f"/ip4/127.0.0.1/tcp/{CONTROL_PORT}",
        "bulk_listen": f"127.0.0.1:{BULK_PORT}",
    }
    peer = PeerConfig(**defaults) if config is None else load_peer_table(config, defaults)  # type: ignore[arg-type]
    return peer if directory is None else dataclasses.replace(peer, data_dir=directory)


def _directory(
    peer: PeerConfig, config: Path | None, invitation: str | None, flags: Mapping[str, object]
) -> RunDirectory:
    """Return the directory of the run that the peer takes part in; it is made the first time, a new run with ``flags``."""
    path, now = peer.data_dir.expanduser(), datetime.now()
    if (path / rundir.CLUSTER_KEY_FILE).is_file():
        return rundir.reopen(path)
    if invitation is not None:
        return rundir.join(invitations.parse(invitation), path, now)
    if peer.cluster_key_file == places.cluster_key_file():
        key = places.cluster_key()
    else:
        key = ClusterKey.load(peer.cluster_key_file)
    if peer.run_id:
        run = invitations.Invitation(run=parse_run_id(peer.run_id), addresses=peer.bootstrap, secret=key.secret)
        return rundir.join(run, path, now)
    return rundir.create(resolve(config, flags), 1, path, now, key)


def _given(port: int | None, max_peers: int | None, log_level: LogLevel | None, peer: PeerConfig) -> dict[str, object]:
    """Return what options say, as keys of `PeerConfig`."""
    found: dict[str, object] = {"max_peers": max_peers, "log_level": log_level}
    if port is not None:
        host = peer.bulk_listen.rpartition(":")[0]
        found |= {"listen": f"{peer.listen.rpartition('/')[0]}/{port}", "bulk_listen": f"{host}:{port + 1}"}
    return {name: value for name, value in found.items() if value is not None}
