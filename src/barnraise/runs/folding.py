"""What the members of a run had agreed on last, folded anew from a peer's log; nothing here writes."""

from pathlib import Path

import numpy as np

from barnraise.errors import ConfigError
from barnraise.runs import reading
from barnraise.swarm.adopt import adopt
from barnraise.swarm.state import State, genesis
from barnraise.swarm.workspace import root_of


def state_of(peer_dir: Path) -> State:
    """Return the state that a peer's log leads to; the votes in it were checked by that peer.

    Raises:
        ConfigError: the peer has not begun, or its log or configuration cannot be read.
        LocalError: the log does not follow from the configuration.
    """
    config = reading.run_config(peer_dir)
    with reading.opened(peer_dir) as reader:
        founding, log = reader.founding(), reader.log()
    if founding is None:
        raise ConfigError(f"{peer_dir}: the peer has not begun yet. Start it, and try again when it has joined.")
    momentum = root_of(np.zeros(founding.blocks[-1][1], np.float32))
    begun = genesis(config, len(founding.blocks), founding.theta, momentum)
    return adopt(begun, log, lambda *vote: True).state
