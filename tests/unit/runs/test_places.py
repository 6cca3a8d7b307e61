"""Where this user's things are, and the key that is made there once."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from barnraise.errors import ConfigError
from barnraise.runs import places

HOME = Path.home()


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", HOME / ".local/share/barnraise"),
        ({}, "darwin", HOME / "Library/Application Support/barnraise"),
        ({"XDG_DATA_HOME": "/data"}, "linux", Path("/data/barnraise")),
        ({"XDG_DATA_HOME": "/data"}, "darwin", Path("/data/barnraise")),
        ({"XDG_DATA_HOME": "relative"}, "linux", HOME / ".local/share/barnraise"),
        ({"XDG_DATA_HOME": "/data", "BARNRAISE_HOME": "/mine"}, "linux", Path("/mine")),
        ({"BARNRAISE_HOME": ""}, "linux", HOME / ".local/share/barnraise"),
        ({"BARNRAISE_HOME": "~/mine"}, "linux", HOME / "mine"),
    ],
)
def test_the_home_is_named_or_follows_the_platform(environment: dict[str, str], platform: str, expected: Path) -> None:
    assert places.home(environment, platform) == expected


def test_no_test_touches_the_users_own_files(barnraise_home: Path) -> None:
    assert places.home() == barnraise_home
    assert HOME not in places.home().parents or "pytest" in str(places.home())


def test_the_cluster_key_is_made_once_and_for_its_owner_alone(barnraise_home: Path) -> None:
    assert not barnraise_home.exists()
    first = places.cluster_key()
    assert places.cluster_key_file() == barnraise_home / "cluster.key"
    assert stat.S_IMODE(places.cluster_key_file().stat().st_mode) == 0o600
    assert places.cluster_key().to_text() == first.to_text()
    assert [path.name for path in barnraise_home.iterdir()] == ["cluster.key"]


def test_all_who_need_the_key_first_at_once_get_the_same() -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = [future.result() for future in [pool.submit(places.cluster_key) for _ in range(8)]]
    assert len({key.to_text() for key in keys}) == 1


def test_a_key_that_others_can_read_is_refused() -> None:
    places.cluster_key()
    places.cluster_key_file().chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        places.cluster_key()
