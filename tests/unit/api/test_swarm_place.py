"""Founding, joining and finding a run's files; what may be said of time."""

from datetime import datetime
from pathlib import Path

import pytest

from barnraise.api import place as places
from barnraise.api.place import MAX_ROUNDS, Place, Rules
from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey, Identity
from barnraise.runs.invitation import Invitation

NOW = datetime(2026, 1, 2, 3, 4, 5)
DIGEST = "ab" * 32


def rules(**changes: object) -> Rules:
    fields: dict[str, object] = {
        "sync_every": 50,
        "rounds": None,
        "batch_size": 16,
        "min_peers": 1,
        "strategy": "diloco",
        "overrides": {},
    }
    return Rules(**(fields | changes))  # type: ignore[arg-type]


def founded(path: Path, **changes: object) -> Place:
    return places.found(rules(**changes), layout=DIGEST, initial=DIGEST, path=path, now=NOW)


def test_a_founder_is_alone_and_the_run_says_what_model_it_is_of(tmp_path: Path) -> None:
    place = founded(tmp_path / "run", min_peers=3, strategy="fedavg", overrides={"outer": {"lr": 0.5}, "seed": 9})
    config = place.config
    assert config.founders == (Identity.load(place.settings.data_dir / "identity.key").peer_id,)
    assert (config.model.architecture, config.model.layout, config.model.initial) == ("custom", DIGEST, DIGEST)
    assert (config.data.kind, config.strategy, config.seed, config.outer.lr) == ("own", "fedavg", 9, 0.5)
    assert (config.round.steps, config.round.rounds, config.round.min_peers) == (50, MAX_ROUNDS, 3)
    assert config.inner.batch_size == 16
    assert place.founded


def test_a_founder_that_comes_back_finds_its_place(tmp_path: Path) -> None:
    assert places.find(tmp_path / "run") is None
    place = founded(tmp_path / "run")
    assert places.find(tmp_path / "run") is None, "its peer was never started"
    place.write_settings()
    found = places.find(tmp_path / "run")
    assert found is not None
    assert not found.founded
    assert (found.run_file, found.settings, found.config) == (place.run_file, place.settings, place.config)


def test_who_joins_knows_the_run_by_its_invitation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    founder = founded(tmp_path / "run")
    key = ClusterKey.load(founder.settings.cluster_key_file)
    peer = founder.config.founders[0]
    address = f"/ip4/127.0.0.1/tcp/5000/p2p/{peer}"
    word = Invitation(run=founder.config.run_id, addresses=(address,), secret=key.secret).encode()
    first, second = (places.join(word, path=None, now=NOW) for _ in range(2))
    for place in (first, second):
        assert place.settings.run_id == founder.config.run_id.hex()
        assert place.settings.bootstrap == (address,)
        assert ClusterKey.load(place.settings.cluster_key_file).secret == key.secret
        assert not place.run_file.exists()
        assert place.path.parent == tmp_path / "runs"
    assert first.path != second.path, "two may join in one second"
    with pytest.raises(ConfigError, match="no run can be made there"):
        places.join(word, path=first.path, now=NOW)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("2m", 120.0), ("1.5 h", 5400.0), ("250ms", 0.25), ("10min", 600.0)]
)
def test_a_round_may_be_a_time(text: str, seconds: float) -> None:
    assert places.interval(text) == {"seconds": seconds, "steps": MAX_ROUNDS}


@pytest.mark.parametrize("text", ["", "s", "30", "30 days", "1.2.3s", "-3s", "٣s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="'30s' or '2m'"):
        places.interval(text)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sync_every": 0}, "round.steps = 0 is outside"),
        ({"strategy": "magic"}, "strategy"),
        ({"overrides": {"outer": {"speed": 1}}}, "unknown key 'outer.speed'"),
    ],
)
def test_rules_out_of_range_are_refused_and_leave_nothing(
    tmp_path: Path, changes: dict[str, object], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        founded(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
