"""The directory of a run."""

import stat
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from barnraise.config import PeerConfig, RunConfig, load_peer_config, load_run_config, save
from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import RunId
from barnraise.runs import directory as rundir
from barnraise.runs.invitation import Invitation

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


INVITATION = Invitation(run=RunId(bytes([7]) * 32), addresses=(), secret=bytes([5]) * 32)


def test_who_joins_has_a_key_of_its_own_and_the_clusters(tmp_path: Path) -> None:
    made = rundir.join(INVITATION, tmp_path / "run", NOW)
    assert (made.config, len(made.peers)) == (None, 1)
    assert Identity.load(made.home(0) / "identity.key").peer_id == made.peers[0]
    assert ClusterKey.load(made.path / "cluster.key").secret == INVITATION.secret
    for file in ("cluster.key", "peer-0/identity.key"):
        assert stat.S_IMODE((made.path / file).stat().st_mode) == 0o600
    with pytest.raises(ConfigError):
        made.resolved()
    save(RunConfig(seed=9), made.run_file)
    assert made.resolved().seed == 9


def test_a_run_is_reopened_with_its_peers_in_order_and_the_settings_that_they_had(tmp_path: Path) -> None:
    made = rundir.create(RunConfig(), 12, tmp_path / "run", NOW)
    made.write_peer_config(11, replace(made.peer_config(11), threads=7))
    again = rundir.reopen(tmp_path / "run")
    assert (again.peers, again.config, again.path) == (made.peers, made.config, made.path)
    assert again.peer_config(11).threads == 7


def test_a_directory_that_was_moved_is_reopened_where_it_is(tmp_path: Path) -> None:
    made = rundir.create(RunConfig(), 1, tmp_path / "run", NOW)
    made.write_peer_config(0, made.peer_config(0))
    (tmp_path / "run").rename(tmp_path / "moved")
    settings = rundir.reopen(tmp_path / "moved").peer_config(0)
    assert settings.data_dir == tmp_path / "moved" / "peer-0"
    ClusterKey.load(settings.cluster_key_file)


@pytest.mark.parametrize("missing", ["cluster.key", "peer-0"])
def test_what_is_no_run_is_not_reopened(missing: str, tmp_path: Path) -> None:
    made = rundir.create(RunConfig(), 1, tmp_path / "run", NOW)
    (made.path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="holds no run"):
        rundir.reopen(made.path)


def test_a_key_that_is_given_admits_the_peers(tmp_path: Path) -> None:
    key = ClusterKey.create(tmp_path / "key")
    made = rundir.create(RunConfig(), 1, tmp_path / "run", NOW, key)
    assert ClusterKey.load(made.path / "cluster.key").secret == key.secret
