"""What a peer keeps sealed can be looked at by whoever has its key, and by nobody else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from barnraise.dag import sealing
from barnraise.dag.sealing import MEMORY_VARIABLE, PASSPHRASE_VARIABLE, Seal, Source
from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey
from barnraise.runs import reading, unsealing
from barnraise.swarm.workspace import root_of

MakeRun = Callable[..., Any]


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for a file system in memory; a passphrase costs little here."""
    path = tmp_path / "memory"
    path.mkdir()
    monkeypatch.setenv(MEMORY_VARIABLE, str(path))
    monkeypatch.setattr(Seal.__init__, "__defaults__", (b"", 4))
    return path


def sealed(run: Any, source: Source, environment: dict[str, str]) -> Path:
    """Seal what the first peer keeps; return its directory."""
    settings = replace(run.directory.peer_config(0), encrypt=source)
    run.directory.write_peer_config(0, settings)
    key = ClusterKey.load(settings.cluster_key_file)
    sealing.open_blobs(settings, key, environment).close()
    return settings.data_dir


@pytest.mark.parametrize("source", ["cluster", "passphrase"])
def test_a_sealed_checkpoint_is_read_from_a_copy_in_memory(
    made_run: MakeRun, memory: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(2)
    home = sealed(run, source, {PASSPHRASE_VARIABLE: "correct", MEMORY_VARIABLE: str(memory)})
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct")
    found = reading.newest_checkpoint(home)
    assert found.theta_path.suffix == ".sealed"
    assert reading.holds(home, found.vertex.model) is True
    with unsealing.plain(home, found.theta_path) as theta:
        assert memory in theta.parents
        assert root_of(np.fromfile(theta, np.float32)) == found.vertex.model
    assert list(memory.iterdir()) == []


def test_without_the_passphrase_nothing_is_read(made_run: MakeRun, memory: Path) -> None:
    run = made_run(2)
    home = sealed(run, "passphrase", {PASSPHRASE_VARIABLE: "correct", MEMORY_VARIABLE: str(memory)})
    found = reading.newest_checkpoint(home)
    assert unsealing.seal_of(home) is None
    with pytest.raises(ConfigError, match=f"Set {PASSPHRASE_VARIABLE}"), unsealing.plain(home, found.theta_path):
        pass
    with pytest.raises(ConfigError, match=f"Set {PASSPHRASE_VARIABLE}"):
        reading.holds(home, found.vertex.model)


def test_a_wrong_passphrase_is_told(made_run: MakeRun, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(2)
    home = sealed(run, "passphrase", {PASSPHRASE_VARIABLE: "correct", MEMORY_VARIABLE: str(memory)})
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong")
    path = reading.newest_checkpoint(home).theta_path
    with pytest.raises(ConfigError, match="sealed by another passphrase"), unsealing.plain(home, path):
        pass
    assert list(memory.iterdir()) == []


def test_what_lies_in_the_open_is_read_where_it_is(made_run: MakeRun) -> None:
    run = made_run(2)
    found = reading.newest_checkpoint(run.path)
    with unsealing.plain(found.peer_dir, found.theta_path) as theta:
        assert theta == found.theta_path
    assert unsealing.seal_of(found.peer_dir) is None
