"""Which run is joined, from what, and where; no process is started."""

import stat
from pathlib import Path

import pytest

from barnraise import cli
from barnraise.cli import join as verb
from barnraise.cli.launch import Swarm
from barnraise.errors import ConfigError, Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import RunId
from barnraise.net import discovery
from barnraise.net.announcement import Announcement, cluster_tag
from barnraise.runs import places
from barnraise.runs.invitation import Invitation

PEERS = [Identity(bytes([number]) * 32, bytes([number + 100]) * 32).peer_id for number in range(1, 4)]
RUN = RunId(bytes([7]) * 32)
FAR = f"/ip4/192.0.2.7/tcp/4001/p2p/{PEERS[0]}"
NEAR = f"/ip4/127.0.0.1/tcp/4001/p2p/{PEERS[0]}"


@pytest.fixture(autouse=True)
def conducted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Swarm]:
    """Keep what would be raised, and raise nothing."""
    found: list[Swarm] = []
    monkeypatch.setattr(verb, "conduct", lambda swarm, *, json: found.append(swarm))
    monkeypatch.chdir(tmp_path)
    return found


def invitation(*addresses: str) -> Invitation:
    return Invitation(run=RUN, addresses=addresses, secret=bytes([5]) * 32)


def test_an_invitation_makes_one_peer_that_knows_whom_to_ask(conducted: list[Swarm], tmp_path: Path) -> None:
    assert cli.main(["join", invitation(NEAR).encode(), "--dir", str(tmp_path / "peer")]) == 0
    (swarm,) = conducted
    directory = swarm.directory
    assert directory.path == tmp_path / "peer"
    assert (len(directory.peers), directory.config) == (1, None)
    settings = directory.peer_config(0)
    assert (settings.run_id, settings.bootstrap) == (RUN.hex(), (NEAR,))
    assert ClusterKey.load(settings.cluster_key_file).secret == bytes([5]) * 32
    assert stat.S_IMODE(settings.cluster_key_file.stat().st_mode) == 0o600
    assert swarm.resume_command == f"barnraise join {tmp_path / 'peer'}"
    assert swarm.patience.waiting_s == float("inf")


def test_an_invitation_may_be_a_file(conducted: list[Swarm], tmp_path: Path) -> None:
    invitation(NEAR).write(tmp_path / "invitation")
    assert cli.main(["join", "invitation", "--dir", "peer"]) == 0
    assert conducted[0].directory.invitation == invitation(NEAR)


def test_by_default_a_run_is_kept_below_runs(conducted: list[Swarm], tmp_path: Path) -> None:
    assert cli.main(["join", invitation(NEAR).encode()]) == 0
    assert conducted[0].directory.path.parent == tmp_path / "runs"
    assert conducted[0].directory.path.name.endswith(RUN.hex()[:6])


def test_a_directory_in_which_a_run_was_joined_before_is_taken_up_again(conducted: list[Swarm], tmp_path: Path) -> None:
    assert cli.main(["join", invitation(NEAR).encode(), "--dir", "peer"]) == 0
    assert cli.main(["join", "peer"]) == 0
    first, again = conducted
    assert again.directory.path == first.directory.path
    assert again.directory.peers == first.directory.peers
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peer"]


@pytest.mark.parametrize("word", ["nonsense", "barnraise1-short", "."])
def test_what_is_no_invitation_is_refused_and_leaves_nothing_behind(
    word: str, conducted: list[Swarm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["join", word, "--dir", "peer"]) == 2
    assert "invitation" in capsys.readouterr().err
    assert not conducted
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "host", "expected"),
    [
        pytest.param(NEAR, None, None, id="a run on this machine stays on this machine"),
        pytest.param(FAR, None, "lan", id="a run elsewhere must reach us"),
        pytest.param(FAR, "127.0.0.1", "127.0.0.1", id="as told"),
        pytest.param(NEAR, "lan", "lan", id="as told, too"),
    ],
)
def test_where_a_peer_listens_follows_from_where_the_run_is(
    address: str, host: str | None, expected: str | None, tmp_path: Path
) -> None:
    made = verb._place(invitation(address).encode(), tmp_path / "peer", host)
    assert verb._host(made, host) == expected


def test_settings_are_the_peers(conducted: list[Swarm], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    words = ["--data", "text.txt", "--device", "cpu", "--threads", "3", "--log-level", "debug", "--listen", "127.0.0.1"]
    assert cli.main(["join", invitation(FAR).encode(), "--dir", "peer", *words]) == 0
    settings = conducted[0].settings
    assert settings["data"] == str(tmp_path / "text.txt")
    assert (settings["device"], settings["threads"], settings["log_level"]) == ("cpu", 3, "debug")
    assert str(settings["listen"]).startswith("/ip4/127.0.0.1/")


# ---- without an invitation ----------------------------------------------------------------------------------------


def seen(run: int, peer: int) -> Announcement:
    return Announcement(
        peer=PEERS[peer],
        run=RunId(bytes([run]) * 32),
        address=f"/ip4/127.0.0.1/tcp/{4001 + peer}/p2p/{PEERS[peer]}",
        cluster_tag=cluster_tag(places.cluster_key()),
        label=f"host-{peer}",
    )


def nearby(monkeypatch: pytest.MonkeyPatch, *found: Announcement) -> list[bytes]:
    """Have these be found; return the tags that are looked for."""
    asked: list[bytes] = []

    def find(tag: bytes, seconds: float, host: str) -> list[Announcement]:
        asked.append(tag)
        return list(found) if host == "127.0.0.1" else []

    monkeypatch.setattr(discovery, "find", find)
    return asked


def test_the_one_run_nearby_is_joined_with_this_machines_key(
    monkeypatch: pytest.MonkeyPatch, conducted: list[Swarm]
) -> None:
    asked = nearby(monkeypatch, seen(1, 0), seen(1, 1))
    assert cli.main(["join", "--dir", "peer", "--listen", "127.0.0.1"]) == 0
    found = conducted[0].directory.invitation
    assert found is not None
    assert (found.run, found.addresses) == (bytes([1]) * 32, (seen(1, 0).address, seen(1, 1).address))
    assert found.secret == places.cluster_key().secret
    assert set(asked) == {cluster_tag(places.cluster_key())}


def test_several_runs_nearby_and_nobody_to_ask_is_an_error_that_names_them(
    monkeypatch: pytest.MonkeyPatch, conducted: list[Swarm], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nearby(monkeypatch, seen(1, 0), seen(2, 1), seen(1, 2))
    assert cli.main(["join"]) == 2
    said = capsys.readouterr().err
    assert "several runs are nearby" in said
    assert f"1 run {'01' * 6} on host-0; 2 run {'02' * 6} on host-1" in said
    assert not conducted
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("answer", "run"), [("1", 1), (" 2 ", 2)])
def test_on_a_terminal_the_user_chooses(monkeypatch: pytest.MonkeyPatch, answer: str, run: int) -> None:
    nearby(monkeypatch, seen(1, 0), seen(2, 1))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert verb._found_nearby(None).run == bytes([run]) * 32


@pytest.mark.parametrize("answer", ["0", "3", "-1", "", "both", "²"])
def test_a_choice_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    nearby(monkeypatch, seen(1, 0), seen(2, 1))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    with pytest.raises(ConfigError, match="is none of 1 to 2"):
        verb._found_nearby(None)


def test_no_run_nearby_says_where_the_key_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    nearby(monkeypatch)
    with pytest.raises(Unavailable, match="no run with this machine's cluster key") as caught:
        verb._found_nearby("127.0.0.1")
    assert str(places.cluster_key_file()) in str(caught.value)


def test_a_network_that_cannot_be_searched_is_named_and_the_others_are_searched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(tag: bytes, seconds: float, host: str) -> list[Announcement]:
        raise Unavailable("no multicast")

    monkeypatch.setattr(discovery, "find", find)
    with pytest.raises(Unavailable, match="no run with"):
        verb._found_nearby("127.0.0.1")
    assert "nothing can be looked for from 127.0.0.1: no multicast" in capsys.readouterr().err
