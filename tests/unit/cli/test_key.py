"""``barnraise key``: what it shows tells keys apart and gives no secret away; what it makes is its owner's alone."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from barnraise import cli
from barnraise.cli.key import fingerprint
from barnraise.identity import ClusterKey, Identity
from barnraise.runs import places


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where there are no runs."""
    monkeypatch.chdir(tmp_path)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert cli.main(["key", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_looking_makes_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"file": str(places.cluster_key_file()), "fingerprint": None}
    assert shown(capsys) == {"cluster": expected, "peers": []}
    assert cli.main(["key"]) == 0
    assert "not made yet" in capsys.readouterr().out
    assert not places.home().exists()


def test_a_run_is_shown_with_its_peers_and_without_secrets(
    made_run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(1, tmp_path / "runs" / "mine")
    own = ClusterKey.load(run.path / "cluster.key")
    found = shown(capsys)
    assert [peer["peer"] for peer in found["peers"]] == list(run.directory.peers)
    assert found["cluster"]["fingerprint"] == fingerprint(own)
    assert cli.main(["key"]) == 0
    out = capsys.readouterr().out
    assert run.directory.peers[2] in out
    seed = Identity.load(run.home(0) / "identity.key").ed25519_seed
    for secret in (own.to_text(), own.to_text()[4:20], seed.hex()):
        assert secret not in out + json.dumps(found)


def test_a_run_without_a_key_of_its_own_has_this_users(
    made_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(1)
    (run.path / "cluster.key").unlink()
    mine = places.cluster_key()
    found = shown(capsys, "--dir", str(run.path))
    assert found["cluster"] == {"file": str(places.cluster_key_file()), "fingerprint": fingerprint(mine)}


def test_new_keys_are_made_for_their_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster, identity = tmp_path / "new" / "cluster.key", tmp_path / "new" / "identity.key"
    found = shown(capsys, "--new-cluster", str(cluster), "--new-identity", str(identity))
    for file in (cluster, identity):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert found["cluster"]["fingerprint"] == fingerprint(ClusterKey.load(cluster))
    assert found["peers"] == [{"peer": Identity.load(identity).peer_id, "file": str(identity)}]
    before = cluster.read_bytes()
    assert cli.main(["key", "--new-cluster", str(cluster)]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert cluster.read_bytes() == before


def test_fingerprints_tell_keys_apart() -> None:
    one, other = ClusterKey(bytes(32)), ClusterKey(bytes([1]) * 32)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(ClusterKey(bytes(32)))
    assert len(fingerprint(one)) == 16


def test_a_named_directory_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "--dir", "nowhere"]) == 2
    assert "--dir DIR" in capsys.readouterr().err
