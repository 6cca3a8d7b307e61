"""A peer whose key was replaced: the new key takes the old one's place in its directory, once the log says so."""

import os
from pathlib import Path
from typing import Final

from barnraise.errors import ConfigError
from barnraise.identity import Identity
from barnraise.ids import PeerId, short
from barnraise.runs.directory import IDENTITY_FILE
from barnraise.swarm.state import State

NEXT_IDENTITY_FILE: Final = "identity.next.key"
"""The key that a peer asked to go on with."""


def take_over(data_dir: Path, state: State, me: PeerId) -> bool:
    """Put a peer's new key in the place of its old one, if the members have agreed to that.

    The old key is kept beside it: it may have signed what somebody still asks about. Killed at any point, this leaves one
    of the two in the place, whole; the next start does the rest.

    Args:
        data_dir: the peer's directory.
        state: what the members agreed on last.
        me: the peer's id, of the key that it was started with.

    Returns:
        Whether the peer is to be started again, as it has another key now.

    Raises:
        ConfigError: the new key cannot be read.
        OSError: the files cannot be changed.
    """
    path = data_dir / NEXT_IDENTITY_FILE
    if not _is_retired(state, me) or not path.exists():
        return False
    if Identity.load(path).peer_id not in state.peers:
        return False
    old = data_dir / f"identity.{short(me)}.key"
    if not old.exists():
        os.link(data_dir / IDENTITY_FILE, old)
    path.replace(data_dir / IDENTITY_FILE)
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True


def refuse_if_revoked(state: State, me: PeerId) -> None:
    """Raise `ConfigError` where a peer's key was given up: nobody lets it in any more."""
    if _is_retired(state, me):
        raise ConfigError(
            f"the members agreed that nobody is {me} any more: its key was revoked or replaced. Join anew with another "
            f"key; operators can give it the old one's place: barnraise key readmit {me}"
        )


def _is_retired(state: State, peer: PeerId) -> bool:
    """Tell whether nobody is a peer any more; a member whose key cannot be done without yet still is one."""
    return any(retired.peer == peer for retired in state.retired)
