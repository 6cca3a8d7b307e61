"""One long-lived peer: from a file, a directory or an invitation; no process is started."""

from pathlib import Path

import pytest

from barnraise import cli
from barnraise.cli import start as verb
from barnraise.cli.launch import Swarm
from barnraise.config import BULK_PORT, CONTROL_PORT
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import RunId
from barnraise.runs import places
from barnraise.runs.invitation import Invitation

PEER = Identity(bytes([1]) * 32, bytes([2]) * 32).peer_id
RUN = RunId(bytes([7]) * 32)
ADDRESS = f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"
WORD = Invitation(run=RUN, addresses=(ADDRESS,), secret=bytes([5]) * 32).encode()


@pytest.fixture(autouse=True)
def conducted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Swarm]:
    """Keep what would be raised, and raise nothing."""
    found: list[Swarm] = []
    monkeypatch.setattr(verb, "conduct", lambda swarm, *, json: found.append(swarm))
    monkeypatch.chdir(tmp_path)
    return found


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_without_anything_it_founds_a_run_of_its_own_among_this_users_data(conducted: list[Swarm]) -> None:
    assert cli.main(["start"]) == 0
    (swarm,) = conducted
    assert swarm.directory.path == (places.peers_directory() / "default").resolve()
    assert swarm.directory.resolved().founders == swarm.directory.peers
    assert len(swarm.directory.peers) == 1
    assert swarm.settings["listen"] == f"/ip4/127.0.0.1/tcp/{CONTROL_PORT}"
    assert swarm.settings["bulk_listen"] == f"127.0.0.1:{BULK_PORT}"
    assert ClusterKey.load(swarm.directory.path / "cluster.key").secret == places.cluster_key().secret
    assert swarm.patience.waiting_s == float("inf")


def test_started_again_it_is_the_same_peer_of_the_same_run(conducted: list[Swarm]) -> None:
    for _ in range(2):
        assert cli.main(["start", "--dir", "peer", "--preset", "local"]) == 0
    first, again = conducted
    assert again.directory.peers == first.directory.peers
    assert again.directory.resolved() == first.directory.resolved()


@pytest.mark.parametrize("name", ["peer.toml", "peer.yaml"])
def test_a_file_says_what_the_run_is_and_what_the_peer(name: str, conducted: list[Swarm], tmp_path: Path) -> None:
    toml = 'seed = 5\n[round]\nrounds = 7\n[peer]\ndata_dir = "here"\ndevice = "cpu"\nmdns = true\nmax_peers = 9\n'
    yaml = "seed: 5\nround:\n  rounds: 7\npeer:\n  data_dir: here\n  device: cpu\n  mdns: true\n  max_peers: 9\n"
    assert cli.main(["start", "-c", write(tmp_path / name, toml if name.endswith("toml") else yaml)]) == 0
    (swarm,) = conducted
    assert swarm.directory.path == tmp_path / "here"
    run = swarm.directory.resolved()
    assert (run.seed, run.round.rounds) == (5, 7)
    assert {key: swarm.settings[key] for key in ("device", "mdns", "max_peers")} == {
        "device": "cpu",
        "mdns": True,
        "max_peers": 9,
    }
    assert not {"data_dir", "cluster_key_file", "run_id", "bootstrap"} & set(swarm.settings)


def test_options_override_the_file(conducted: list[Swarm], tmp_path: Path) -> None:
    file = write(tmp_path / "peer.toml", '[peer]\ndata_dir = "here"\nmax_peers = 9\nbulk_listen = "0.0.0.0:1"\n')
    words = ["--dir", "there", "--port", "7000", "--max-peers", "3", "--log-level", "error"]
    assert cli.main(["start", "-c", file, *words]) == 0
    (swarm,) = conducted
    assert swarm.directory.path == tmp_path / "there"
    assert swarm.settings["listen"] == "/ip4/127.0.0.1/tcp/7000"
    assert swarm.settings["bulk_listen"] == "0.0.0.0:7001"
    assert (swarm.settings["max_peers"], swarm.settings["log_level"]) == (3, "error")


def test_a_new_runs_codec_goes_with_the_compression_level(conducted: list[Swarm]) -> None:
    assert cli.main(["start", "--dir", "peer", "--compression-level", "5"]) == 0
    (swarm,) = conducted
    assert swarm.directory.resolved().round.codec == "int4"
    assert cli.main(["start", "--dir", "far", "--link-mbit", "20"]) == 0
    assert conducted[1].directory.resolved().round.codec == "int8+zstd:1"


def test_an_invitation_makes_it_a_peer_of_that_run_and_is_not_needed_again(conducted: list[Swarm]) -> None:
    assert cli.main(["start", "--invitation", WORD, "--dir", "peer"]) == 0
    assert cli.main(["start", "--dir", "peer"]) == 0
    first, again = conducted
    assert first.directory.config is None
    settings = first.directory.peer_config(0)
    assert (settings.run_id, settings.bootstrap) == (RUN.hex(), (ADDRESS,))
    assert again.directory.peers == first.directory.peers
    assert again.directory.config is None


def test_a_file_may_name_the_run_and_whom_to_ask(conducted: list[Swarm], tmp_path: Path) -> None:
    key = ClusterKey.create(tmp_path / "key")
    table = f'[peer]\ndata_dir = "here"\ncluster_key_file = "{tmp_path / "key"}"\nrun_id = "{RUN.hex()}"\n'
    file = write(tmp_path / "peer.toml", table + f'bootstrap = ["{ADDRESS}"]\n')
    assert cli.main(["start", "-c", file]) == 0
    settings = conducted[0].directory.peer_config(0)
    assert (settings.run_id, settings.bootstrap) == (RUN.hex(), (ADDRESS,))
    assert ClusterKey.load(settings.cluster_key_file).secret == key.secret


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--invitation", "nonsense"], "neither an invitation nor a file"),
        (["-c", "missing.toml"], "missing.toml: cannot be read"),
        (["-c", "bad.toml"], "unknown key 'peer.colour'"),
        (["-c", "short.toml"], "is not 64 hexadecimal digits"),
        (["--preset", "huge"], "local"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing_behind(
    words: list[str], said: str, conducted: list[Swarm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "bad.toml", '[peer]\ncolour = "red"\n')
    write(tmp_path / "short.toml", '[peer]\nrun_id = "abcd"\n')
    assert cli.main(["start", *words, "--dir", "peer"]) == 2
    assert said in capsys.readouterr().err
    assert not conducted
    assert not (tmp_path / "peer").exists()
