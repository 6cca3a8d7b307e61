"""The directory of a run on one machine: who its peers are, their keys, the configuration that they share.

runs/20261122-013000-a1b2c3/
  run.toml          the run's genesis, as resolved; its hash is the run id
  cluster.key       the secret that admits peers (0600)
  invitation        what others need to join (0600)
  events.jsonl      all events, of the launcher and of every peer
  peer-0/           the most senior peer: identity.key, peer.toml, stderr.log, and what it keeps of the run
  peer-1/ ...
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from barnraise.config import PeerConfig, RunConfig, load_peer_config, load_run_config, save
from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.runs.invitation import Invitation

IDENTITY_FILE: Final = "identity.key"
CLUSTER_KEY_FILE: Final = "cluster.key"
RUN_FILE: Final = "run.toml"
PEER_FILE: Final = "peer.toml"
EVENTS_FILE: Final = "events.jsonl"
STDERR_FILE: Final = "stderr.log"
INVITATION_FILE: Final = "invitation"
DEFAULT_PARENT: Final = Path("runs")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDirectory:
    """A run's files, all written but the peers' configurations, which name the first peer's address."""

    path: Path
    config: RunConfig | None
    """None: the run is to be joined, and the peer fetches it."""
    peers: tuple[PeerId, ...]
    """Those of this machine, by seniority."""
    invitation: Invitation | None = None
    """How to reach a run that is to be joined."""

    def resolved(self) -> RunConfig:
        """Return the run's configuration, also of a run that was joined since; raises `ConfigError` before that."""
        return self.config or load_run_config(self.run_file)

    @property
    def run_file(self) -> Path:
        """The resolved `RunConfig`."""
        return self.path / RUN_FILE

    @property
    def events_file(self) -> Path:
        """All events of the run."""
        return self.path / EVENTS_FILE

    def home(self, index: int) -> Path:
        """Return the data directory of a peer."""
        return self.path / f"peer-{index}"

    def stderr_file(self, index: int) -> Path:
        """Return where a peer's stderr goes."""
        return self.home(index) / STDERR_FILE

    def write_peer_config(self, index: int, settings: PeerConfig) -> Path:
        """Save a peer's resolved configuration; return its file."""
        file = self.home(index) / PEER_FILE
        save(settings, file)
        return file

    def peer_config(self, index: int) -> PeerConfig:
        """Return the settings of a peer: as it had them before, or everything on loopback, its share of the cores."""
        known = self.home(index) / PEER_FILE
        if known.exists():
            key = self.path / CLUSTER_KEY_FILE  # the directory may have been moved since
            return dataclasses.replace(load_peer_config(known), data_dir=self.home(index), cluster_key_file=key)
        return PeerConfig(
            data_dir=self.home(index),
            cluster_key_file=self.path / CLUSTER_KEY_FILE,
            threads=max(1, (os.cpu_count() or 1) // len(self.peers)),
            run_id=self.invitation.run.hex() if self.invitation else "",
            bootstrap=self.invitation.addresses if self.invitation else (),
        )


def reopen(path: Path) -> RunDirectory:
    """Return the directory of a run that was begun before.

    Raises:
        ConfigError: there is none, or its files cannot be read.
    """
    homes = sorted(path.glob("peer-*"), key=lambda home: int(home.name.partition("-")[2] or -1))
    if not homes or not (path / CLUSTER_KEY_FILE).is_file():
        raise ConfigError(f"{path}: holds no run. Name a directory below {DEFAULT_PARENT} that one was begun in.")
    run_file = path / RUN_FILE
    return RunDirectory(
        path=path.resolve(),
        config=load_run_config(run_file) if run_file.exists() else None,
        peers=tuple(Identity.load(home / IDENTITY_FILE).peer_id for home in homes),
    )


def join(invitation: Invitation, path: Path | None, now: datetime) -> RunDirectory:
    """Make the keys of one peer that joins a run; nothing is left behind if that fails.

    Args:
        invitation: to the run.
        path: the directory to make; None: one below ``runs/``, named after the time and the run id.
        now: the local time, for that name.

    Raises:
        ConfigError: the directory cannot be made, or holds something already.
    """
    with _staged(path) as staging:
        peers = _make_peers(staging, 1)
        ClusterKey.keep(invitation.secret, staging / CLUSTER_KEY_FILE)
        final = _settle(staging, path, invitation.run.hex(), now)
    return RunDirectory(path=final, config=None, peers=peers, invitation=invitation)


def create(
    config: RunConfig, num_peers: int, path: Path | None, now: datetime, cluster_key: ClusterKey | None = None
) -> RunDirectory:
    """Make the keys of ``num_peers`` peers and a run that they found; nothing is left behind if that fails.

    Args:
        config: the run's configuration; its founders are filled in here.
        num_peers: how many.
        path: the directory to make; None: one below ``runs/``, named after the time and the run id.
        now: the local time, for that name.
        cluster_key: admits peers; None: a new one, of this run alone.

    Raises:
        ConfigError: the directory cannot be made, or holds something already.
    """
    with _staged(path) as staging:
        peers = _make_peers(staging, num_peers)
        config = dataclasses.replace(config, founders=peers)
        if cluster_key is None:
            ClusterKey.create(staging / CLUSTER_KEY_FILE)
        else:
            ClusterKey.keep(cluster_key.secret, staging / CLUSTER_KEY_FILE)
        save(config, staging / RUN_FILE)
        final = _settle(staging, path, config.run_id.hex(), now)
    return RunDirectory(path=final, config=config, peers=peers)


@contextlib.contextmanager
def _staged(path: Path | None) -> Iterator[Path]:
    """Give a new directory beside where it shall be in the end; it is gone if the block fails."""
    parent = DEFAULT_PARENT if path is None else path.parent
    with _told_as_config_error(parent if path is None else path):
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".raising-", dir=parent))
        try:
            yield staging
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _settle(staging: Path, path: Path | None, run: str, now: datetime) -> Path:
    """Move a staged directory to where it shall be; several runs may be begun within a second."""
    if path is not None:
        return staging.rename(path).resolve()
    name = f"{now:%Y%m%d-%H%M%S}-{run[:6]}"
    taken = {found.name for found in staging.parent.iterdir()}
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return staging.rename(staging.parent / next(free for free in numbered if free not in taken)).resolve()


def _make_peers(directory: Path, num_peers: int) -> tuple[PeerId, ...]:
    """Make ``num_peers`` identities, each in a data directory named by its seniority: among founders, the peer id."""
    made: dict[PeerId, Path] = {}
    for number in range(num_peers):
        home = directory / f"new-{number}"
        home.mkdir()
        made[Identity.create(home / IDENTITY_FILE).peer_id] = home
    peers = tuple(sorted(made))
    for index, peer in enumerate(peers):
        made[peer].rename(directory / f"peer-{index}")
    return peers


@contextlib.contextmanager
def _told_as_config_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path}: no run can be made there ({error.strerror}). Name a directory that is empty or not there yet "
            "and whose parent you may write to: --dir DIR."
        ) from error
