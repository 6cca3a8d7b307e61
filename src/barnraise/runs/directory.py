"""The directory of a run on one machine: who its peers are, their keys, the configuration that they share.

runs/20261122-013000-a1b2c3/
  run.toml          the run's genesis, as resolved; its hash is the run id
  cluster.key       the secret that admits peers (0600)
  events.jsonl      all events, of the launcher and of every peer
  peer-0/           the most senior peer: identity.key, peer.toml, stderr.log, and what it keeps of the run
  peer-1/ ...
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from barnraise.config import PeerConfig, RunConfig, save
from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId, short

IDENTITY_FILE: Final = "identity.key"
CLUSTER_KEY_FILE: Final = "cluster.key"
RUN_FILE: Final = "run.toml"
PEER_FILE: Final = "peer.toml"
EVENTS_FILE: Final = "events.jsonl"
STDERR_FILE: Final = "stderr.log"
DEFAULT_PARENT: Final = Path("runs")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDirectory:
    """A run's files, all written but the peers' configurations, which name the first peer's address."""

    path: Path
    config: RunConfig
    peers: tuple[PeerId, ...]
    """By seniority."""

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
        """Return the settings of a peer on this machine: everything on loopback, its share of the cores."""
        return PeerConfig(
            data_dir=self.home(index),
            cluster_key_file=self.path / CLUSTER_KEY_FILE,
            threads=max(1, (os.cpu_count() or 1) // len(self.peers)),
        )


def create(config: RunConfig, num_peers: int, path: Path | None, now: datetime) -> RunDirectory:
    """Make the keys of ``num_peers`` peers and a run that they found; nothing is left behind if that fails.

    Args:
        config: the run's configuration; its founders are filled in here.
        num_peers: how many.
        path: the directory to make; None: one below ``runs/``, named after the time and the run id.
        now: the local time, for that name.

    Raises:
        ConfigError: the directory cannot be made, or holds something already.
    """
    parent = DEFAULT_PARENT if path is None else path.parent
    with _told_as_config_error(parent if path is None else path):
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".raising-", dir=parent))
        try:
            peers = _make_peers(staging, num_peers)
            config = dataclasses.replace(config, founders=peers)
            ClusterKey.create(staging / CLUSTER_KEY_FILE)
            save(config, staging / RUN_FILE)
            final = parent / f"{now:%Y%m%d-%H%M%S}-{short(config.run_id)[:6]}" if path is None else path
            staging.rename(final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return RunDirectory(path=final.resolve(), config=config, peers=peers)


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
