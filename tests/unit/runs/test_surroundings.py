"""What is found around a peer: keys, ports, room, sockets, and how its run is doing."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from barnraise.config import PeerConfig
from barnraise.dag.doctor import Finding
from barnraise.dag.sealing import MEMORY_VARIABLE, scratch_of
from barnraise.runs import surroundings
from barnraise.swarm.records import MICRO, Vertex

MakeRun = Callable[..., Any]


@pytest.fixture
def config(made_run: MakeRun) -> PeerConfig:
    run = made_run(1)
    config: PeerConfig = run.directory.peer_config(0)
    return config


def whats(findings: list[Finding]) -> str:
    return "\n".join(f"{finding.level}: {finding.what}" for finding in findings)


def test_keys_that_are_as_they_should_be_are_not_mentioned(config: PeerConfig) -> None:
    assert list(surroundings.keys(config.data_dir, config)) == []
    assert list(surroundings.keys(config.data_dir, None)) == []


def test_a_key_that_others_can_read_is_told_with_the_command(config: PeerConfig) -> None:
    (config.data_dir / "identity.key").chmod(0o644)
    config.cluster_key_file.unlink()
    invitation = config.data_dir.parent / "invitation"
    invitation.write_text("word")
    invitation.chmod(0o640)
    identity, cluster, word = surroundings.keys(config.data_dir, config)
    assert f"chmod 600 {config.data_dir / 'identity.key'}" in identity.what
    assert "cannot be read" in cluster.what
    assert word.mend == f"chmod 600 {invitation}"
    assert {identity.level, cluster.level, word.level} == {"error"}


def test_a_damaged_snapshot_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    good, torn, empty = (tmp_path / "trainer" / f"round-{number:08d}.safetensors" for number in range(3))
    good.write_bytes((2).to_bytes(8, "little") + b"{}")
    torn.write_bytes((900).to_bytes(8, "little") + b"{")
    empty.write_bytes(b"")
    found = list(surroundings.snapshots(tmp_path))
    assert len(found) == 2
    for finding in found:
        assert finding.repair is not None
        finding.repair()
    assert list((tmp_path / "trainer").iterdir()) == [good]


def test_room_is_measured_against_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_available_memory_bytes", lambda: 1 << 60)
    assert list(surroundings.room(tmp_path, 1000, keeps=2)) == []
    (full,) = surroundings.room(tmp_path, 1 << 48, keeps=2)
    assert (full.level, "keep fewer checkpoints than 2" in full.mend) == ("error", True)
    monkeypatch.setattr(surroundings, "_available_memory_bytes", lambda: 1000)
    (memory,) = surroundings.room(tmp_path, 1000, keeps=2)
    assert memory.level == "warning"
    assert "of memory are available" in memory.what
    monkeypatch.setattr(surroundings, "_available_memory_bytes", lambda: None)
    assert list(surroundings.room(tmp_path, 1000, keeps=2)) == []


def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_available_memory_bytes", lambda: None)
    free = surroundings.shutil.disk_usage(tmp_path)._replace(free=40_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    (finding,) = surroundings.room(tmp_path, 1000, keeps=2)
    assert (finding.level, "three rounds' need or less" in finding.what) == ("warning", True)


def test_linux_tells_how_much_memory_there_is() -> None:
    available = surroundings._available_memory_bytes()
    assert available is None or available > 1 << 20


def test_a_port_that_somebody_has_is_told(config: PeerConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = replace(config, bulk_listen=f"127.0.0.1:{port}")
        found = list(surroundings.ports(config))
    assert found[0].level == "error"
    assert f"bulk_listen: nothing can listen on 127.0.0.1, port {port}" in found[0].what
    assert f"ss -ltnp 'sport = :{port}'" in found[0].mend
    assert [finding.level for finding in surroundings.ports(replace(config, bulk_listen="127.0.0.1:0"))] == ["note"]


@pytest.mark.parametrize(
    ("listen", "bulk", "told"),
    [
        ("/ip4/127.0.0.1/tcp/0", "127.0.0.1:0", "only peers on this machine can reach it"),
        (
            "/ip4/192.168.1.5/tcp/4001",
            "192.168.1.5:4002",
            "TCP ports 4001 (listen), 4002 (bulk_listen): peers of the same",
        ),
        ("/ip4/8.8.8.8/tcp/4001", "8.8.8.8:0", "TCP ports 4001 (listen), a free one (bulk_listen)"),
        ("/ip6/::1/tcp/0", "[::1]:0", "only peers on this machine can reach it"),
    ],
)
def test_who_can_reach_a_peer_is_told(config: PeerConfig, listen: str, bulk: str, told: str) -> None:
    found = list(surroundings.ports(replace(config, listen=listen, bulk_listen=bulk)))
    assert told in found[-1].what


def test_an_address_of_another_machine_is_told(config: PeerConfig) -> None:
    found = list(surroundings.ports(replace(config, listen="/ip4/192.0.2.1/tcp/0", bulk_listen="192.0.2.1:0")))
    assert [finding.level for finding in found] == ["error", "error", "note"]
    assert "This machine has no such address now: change listen" in found[0].mend


@pytest.mark.parametrize("listen", ["nonsense", "/ip4/127.0.0.1/udp/x", "/ip4/127.0.0.1"])
def test_an_address_that_is_none_is_told(config: PeerConfig, listen: str) -> None:
    (finding,) = surroundings.ports(replace(config, listen=listen))
    assert finding.level == "error"
    assert listen in finding.what


def test_peers_that_do_not_answer_are_told_unless_they_are_our_own(
    config: PeerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, down, own = (f"/ip4/{host}/tcp/4001/p2p/x" for host in ("192.0.2.1", "192.0.2.2", "127.0.0.1"))
    monkeypatch.setattr(surroundings, "_answers", lambda address: address == up)

    def found(*bootstrap: str) -> list[str]:
        return [finding.level for finding in surroundings.doors(replace(config, bootstrap=bootstrap))]

    assert found() == found(up) == found(own) == []
    assert found(up, down) == ["note"]
    assert found(down) == found(down, own) == ["error"]


def test_a_knock_tells_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert surroundings._answers(f"/ip4/127.0.0.1/tcp/{port}/p2p/x")
    assert not surroundings._answers(f"/ip4/127.0.0.1/tcp/{port}/p2p/x")
    assert not surroundings._answers("/ip4/127.0.0.1/udp/1")
    assert not surroundings._answers("/ip4/127.0.0.1/tcp/99999")


def losses(*newest_first: float) -> list[Vertex]:
    return [
        Vertex(
            run=b"",
            parents=(),
            round=0,
            model=b"",
            outer=b"",
            random=b"",
            cursor=0,
            requeued=(),
            exponents=(),
            time=0,
            contributors=(),
            total_samples=0,
            train_loss=0,
            validation_loss=round(loss * MICRO),
        )
        for loss in newest_first
    ]


@pytest.mark.parametrize(
    ("newest_first", "levels"),
    [
        ((1.0, 1.1, 1.2, 1.3), []),
        ((1.2, 1.1, 1.0, 1.3), []),
        ((2.0, 1.1, 1.0, 1.3), ["warning"]),
        ((2.0, 1.0, -1, -1), []),
        ((), []),
    ],
)
def test_a_loss_far_above_the_best_is_divergence(newest_first: tuple[float, ...], levels: list[str]) -> None:
    assert [finding.level for finding in surroundings.learning(losses(*newest_first))] == levels


def test_sockets_that_nobody_has_are_removed_and_others_notice_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive = tmp_path / "barnraise-1" / "trainer", tmp_path / "barnraise-2" / "trainer"
    listeners = []
    for path in (dead, alive):
        path.parent.mkdir()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        listener.setblocking(False)
        listeners.append(listener)
    (tmp_path / "barnraise-3").mkdir()
    (tmp_path / "barnraise-3" / "no socket").write_bytes(b"")
    listeners[0].close()
    (finding,) = surroundings.sockets()
    with pytest.raises(BlockingIOError):
        listeners[1].accept()
    assert finding.repair is not None
    assert finding.repair() == "removed 1 sockets"
    assert not dead.parent.exists()
    assert alive.is_socket()
    assert list(surroundings.sockets()) == []
    listeners[1].close()


def test_plain_copies_of_a_killed_peer_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, str(tmp_path))
    home = tmp_path / "home"
    home.mkdir()
    assert list(surroundings.scratch(home, is_running=False)) == []
    place = scratch_of(home)
    (place / "theta").write_bytes(b"plain")
    assert list(surroundings.scratch(home, is_running=True)) == []
    (finding,) = surroundings.scratch(home, is_running=False)
    assert finding.repair is not None
    finding.repair()
    assert not place.exists()
