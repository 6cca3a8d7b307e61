"""The directory of a run on one machine whose peer has agreed with itself, in earnest: real keys, votes, and a model."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from barnraise.config import ModelConfig, RunConfig
from barnraise.dag.blobs import Blobs
from barnraise.dag.store import Store
from barnraise.identity import Identity
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.initialise import uniform
from barnraise.runs import directory as rundir
from barnraise.runs.directory import IDENTITY_FILE
from barnraise.swarm.state import genesis

from ..dag.signed_log import SignedLog

TINY = ModelConfig(hidden_size=8, num_layers=2, num_heads=1, max_seq_len=8)
Theta = np.ndarray[Any, np.dtype[np.float32]]


def trained(model: ModelConfig = TINY) -> Theta:
    """Return parameters without the zeros that a model begins with."""
    return uniform(2, "all", (flatten(build(model, 1)).values.numel(),), 0.3)


def agreed_run(path: Path, model: ModelConfig = TINY, theta: Theta | None = None, peers: int = 1) -> Path:
    """Make a run of three rounds at ``path``; all of its peers are on this machine, and the first one keeps the log."""
    made = rundir.create(RunConfig(model=model), peers, path, datetime(2026, 1, 2))
    assert made.config is not None
    home = made.home(0)
    theta = trained(model) if theta is None else theta
    root = Blobs(home / "blobs").put(theta)
    keys = [Identity.load(made.home(index) / IDENTITY_FILE) for index in range(peers)]
    log = SignedLog(
        config=made.config,
        keys={key.peer_id: key for key in keys},
        state=genesis(made.config, 1, root, root),
        root=root,
    )
    for _ in range(3):
        log.round()
    store = Store(home / "log.sqlite", made.config.run_id)
    store.append(0, log.decisions, log.vertices, None)
    store.close()
    return made.path
