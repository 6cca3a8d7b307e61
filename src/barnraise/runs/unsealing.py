"""Opens what a peer of this machine keeps sealed, for verbs that look at it: the keys, and plain copies in memory."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from barnraise.config import PeerConfig, load_peer_config
from barnraise.dag import sealing
from barnraise.dag.sealing import BLOBS_DIRECTORY, PASSPHRASE_VARIABLE, SUFFIX, Seal
from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey
from barnraise.runs.directory import CLUSTER_KEY_FILE, PEER_FILE


def seal_of(peer_dir: Path) -> Seal | None:
    """Return what opens a peer's sealed files; None: nothing is sealed, or it takes a passphrase that is not given.

    Raises:
        ConfigError: the peer's settings or its cluster key cannot be read.
    """
    blobs = peer_dir / BLOBS_DIRECTORY
    config = _config(peer_dir)
    source = (config.encrypt if config else "") or sealing.source_of(blobs)
    if not source or (source == "passphrase" and PASSPHRASE_VARIABLE not in os.environ):
        return None
    key = ClusterKey.load(config.cluster_key_file if config else peer_dir.parent / CLUSTER_KEY_FILE)
    return sealing.seal_of(source, key, blobs, dict(os.environ))


def required_seal(peer_dir: Path) -> Seal:
    """Return what opens a peer's sealed files. Raises `ConfigError` as well where the passphrase is not given."""
    seal = seal_of(peer_dir)
    if seal is None:
        raise ConfigError(f"{peer_dir}: its tensors are sealed. Set {PASSPHRASE_VARIABLE} to their passphrase.")
    return seal


@contextlib.contextmanager
def plain(peer_dir: Path, path: Path) -> Iterator[Path]:
    """Give a vector's file as other programs read it: where it is sealed, a copy in memory for as long as the block.

    Args:
        peer_dir: whose it is.
        path: the file.

    Raises:
        ConfigError: the key is not here, or there is no room in memory.
        LocalError: the file is damaged.
    """
    if path.suffix != SUFFIX:
        yield path
        return
    seal = required_seal(peer_dir)
    directory = Path(tempfile.mkdtemp(prefix="barnraise-", dir=sealing.memory_place()))
    try:
        copy = directory / path.stem
        copy.write_bytes(seal.opened(path))
        yield copy
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _config(peer_dir: Path) -> PeerConfig | None:
    file = peer_dir / PEER_FILE
    return load_peer_config(file) if file.is_file() else None
