"""The directory of a run."""

import stat
from datetime import datetime
from pathlib import Path

import pytest

from barnraise.config import PeerConfig, RunConfig, load_peer_config, load_run_config
from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey, Identity
from barnraise.runs import directory as rundir

NOW = datetime(2026, 1, 2, 3, 4, 5)


def test_every_peer_has_its_own_key_and_all_share_the_run(tmp_path: Path) -> None:
    made = rundir.create(RunConfig(seed=7), 3, tmp_path / "run", NOW)
    assert load_run_config(made.run_file) == made.config
    assert made.config.founders == made.peers == tuple(sorted(made.peers))
    assert [Identity.load(made.home(index) / "identity.key").peer_id for index in range(3)] == list(made.peers)
    ClusterKey.load(made.path / "cluster.key")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700


def test_the_default_name_tells_when_and_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = rundir.create(RunConfig(), 1, None, NOW)
    assert made.path == tmp_path / "runs" / f"20260102-030405-{made.config.run_id.hex()[:6]}"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [made.path.name]


def test_the_peer_configuration_is_read_back(tmp_path: Path) -> None:
    made = rundir.create(RunConfig(), 1, tmp_path / "run", NOW)
    settings = made.peer_config(0)
    assert load_peer_config(made.write_peer_config(0, settings)) == settings
    assert isinstance(settings, PeerConfig)
    assert settings.listen.startswith("/ip4/127.0.0.1/")
    assert settings.cluster_key_file.exists()


def test_an_existing_run_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "run"
    rundir.create(RunConfig(), 1, path, NOW)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"no run can be made there \(Directory not empty\).*--dir DIR"):
        rundir.create(RunConfig(), 1, path, NOW)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run: no run can be made there"):
        rundir.create(RunConfig(), 1, tmp_path / "file" / "run", NOW)
