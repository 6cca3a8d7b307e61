"""What holds for every test: nothing touches the user's own files; and a run's directory to look into."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from barnraise.config import RoundConfig, RunConfig
from barnraise.consensus.agreement import Decision
from barnraise.dag.blobs import Blobs
from barnraise.dag.store import Store
from barnraise.identity import Identity
from barnraise.runs.directory import IDENTITY_FILE, RunDirectory, create
from barnraise.swarm import records
from barnraise.swarm.records import Contribution, Cut, Metrics, Result, Vertex, Void
from barnraise.swarm.state import State, follow, genesis
from barnraise.swarm.workspace import root_of

SIZE = 300
VOTE_CONTEXT = "barnraise 1 vote"


@pytest.fixture(autouse=True)
def barnraise_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what barnraise has of this user in a directory of the test's own."""
    home = tmp_path_factory.mktemp("home") / "barnraise"
    monkeypatch.setenv("BARNRAISE_HOME", str(home))
    return home


@dataclass(kw_only=True)
class MadeRun:
    """A run's directory as its peers leave it: their logs, checkpoints and tensors, without any training."""

    directory: RunDirectory
    state: State
    keys: list[Identity]
    """By seniority; the first two vote for everything."""
    vertices: list[Vertex] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.directory.path

    def home(self, index: int) -> Path:
        """A peer's directory."""
        return self.directory.home(index)


@pytest.fixture
def made_run(tmp_path: Path) -> Callable[..., MadeRun]:
    """Return a function that makes a run of three peers; the last one has missed the last round."""

    def make(rounds: int = 3, path: Path = tmp_path / "run") -> MadeRun:
        config = RunConfig(round=RoundConfig(rounds=5, steps=2))
        directory = create(config, 3, path, datetime(2026, 1, 2, 3, 4, 5))
        theta, zeros = np.linspace(-1, 1, SIZE, dtype=np.float32), np.zeros(SIZE, np.float32)
        keys = [Identity.load(directory.home(index) / IDENTITY_FILE) for index in range(3)]
        state = genesis(directory.config, 1, root_of(theta), root_of(zeros))
        run = MadeRun(directory=directory, state=state, keys=keys)
        stores = [Store(run.home(index) / "log.sqlite", directory.config.run_id) for index in range(3)]
        for store in stores:
            store.found(root_of(theta), ((0, SIZE),))
        for number in range(rounds):
            step = zeros + np.float32(number)
            is_last = number == rounds - 1
            _round(run, stores[:2] if is_last else stores, theta + step, step)
        for store in stores:
            store.close()
        return run

    return make


def _round(run: MadeRun, stores: list[Store], theta: np.ndarray, momentum: np.ndarray) -> None:
    """Add a cut, in round 1 a void and another cut, and a result to the logs."""
    if run.state.round == 1:
        _append(run, stores, _cut(run.state))
        cut = records.digest(records.encode(run.state.cut))
        _append(run, stores, Void(**_about(run.state), cut=cut, without=(run.state.peers[2],)))
    _append(run, stores, _cut(run.state))
    for store_home in range(len(stores)):
        blobs = Blobs(run.home(store_home) / "blobs")
        blobs.put(theta.astype(np.float32))
        blobs.put(momentum.astype(np.float32))
    result = Result(
        **_about(run.state),
        cut=records.digest(records.encode(run.state.cut)),
        excluded=(),
        gram=b"",
        aggregate_root=bytes(32),
        theta_root=root_of(theta.astype(np.float32)),
        momentum_root=root_of(momentum.astype(np.float32)),
        exponents=(16,),
        metrics=Metrics(1_500_000, 2_000_000 if run.state.round else -1, 6144),
        ledger=b"",
        joined=(),
        left=(),
        time=1_767_323_045,
        vertex=bytes(32),
    )
    vertex = records.vertex_id(_vertex(run.state, result))
    _append(run, stores, msgspec.structs.replace(result, vertex=vertex))


def _vertex(state: State, result: Result) -> Vertex:
    vertex = follow(state, result)[1]
    assert vertex is not None
    return vertex


def _about(state: State) -> dict[str, object]:
    return {
        "run": state.run,
        "epoch": state.epoch,
        "round": state.round,
        "attempt": state.attempt,
        "previous": state.head,
    }


def _cut(state: State) -> Cut:
    members = [peer for peer in state.peers if peer not in state.without]
    return Cut(**_about(state), contributions=tuple(Contribution(peer, bytes(32), 16) for peer in members))


def _append(run: MadeRun, stores: list[Store], event: Cut | Result | Void) -> None:
    height, value = run.state.height, records.encode(event)
    statement = run.state.scope.statement(0, records.digest(value))
    votes = tuple((key.peer_id, key.sign(VOTE_CONTEXT, statement)) for key in run.keys[:2])
    run.state, vertex = follow(run.state, event)
    run.vertices += [vertex] if vertex else []
    decision = Decision(value=value, view=0, votes=votes)
    for store in stores:
        store.append(height, [decision], [vertex] if vertex else [], None)
