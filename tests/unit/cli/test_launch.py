"""The launcher against real processes that play peers."""

import contextlib
import dataclasses
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from barnraise.cli import launch
from barnraise.cli.faults import Fault
from barnraise.cli.launch import Patience, Swarm, raise_swarm
from barnraise.config import RoundConfig, RunConfig, load_peer_config
from barnraise.errors import Aborted, ConfigError, LocalError, Unavailable
from barnraise.identity import ClusterKey
from barnraise.ids import RunId
from barnraise.observe.view import View
from barnraise.observe.vocabulary import AnyEvent, PeerExited, RoundPlanned
from barnraise.runs import directory as rundir
from barnraise.runs.invitation import Invitation, parse

FAKE_PEER = Path(__file__).with_name("fake_peer.py")
NOW = datetime(2026, 1, 2, 3, 4, 5)


class Recorder:
    """A display that keeps what it is shown; ``on_event`` may act on it."""

    def __init__(self) -> None:
        self.events: list[tuple[int, AnyEvent]] = []
        self.notes: list[str] = []
        self.invitations: list[tuple[str, str]] = []

    def event(self, before: View, after: View, source: int, record: Mapping[str, Any], event: AnyEvent) -> None:
        self.events.append((source, event))

    def tick(self, view: View) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def invite(self, word: str, file: str) -> None:
        self.invitations.append((word, file))

    def names(self) -> set[str]:
        return {type(event).__name__ for _, event in self.events}


def swarm(tmp_path: Path, mode: str, *faults: Fault, num_peers: int = 2, **patience: float) -> Swarm:
    config = RunConfig(round=RoundConfig(rounds=3, steps=5))
    return Swarm(
        directory=rundir.create(config, num_peers, tmp_path / "run", NOW),
        faults=faults,
        command=(sys.executable, str(FAKE_PEER), mode),
        patience=Patience(**patience),
    )


async def assert_nobody_is_left(asked: Swarm) -> None:
    for index in range(len(asked.directory.peers)):
        pid_file = asked.directory.home(index) / "trainer.pid"
        if pid_file.exists():
            await until(partial(has_ended, int(pid_file.read_text())))


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has waited for yet; SIGKILL takes a moment."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_a_run_goes_from_the_first_process_to_the_last(tmp_path: Path) -> None:
    asked, shown = swarm(tmp_path, "well", num_peers=3), Recorder()
    view = await raise_swarm(asked, shown)
    assert [row.state for row in view.peers] == ["finished"] * 3
    assert [row.exit_code for row in view.peers] == [0, 0, 0]
    assert view.done == 3
    assert view.tokens == 300
    assert view.wall_s > 0
    assert not shown.notes
    assert_led_by_the_most_senior(asked, view)
    assert_events_are_kept(asked)
    await assert_nobody_is_left(asked)


def assert_led_by_the_most_senior(asked: Swarm, view: View) -> None:
    directory = asked.directory
    assert list(directory.peers) == sorted(directory.peers)
    assert tuple(row.peer for row in view.peers) == directory.peers == directory.resolved().founders
    bootstraps = [load_peer_config(directory.home(index) / "peer.toml").bootstrap for index in range(3)]
    assert bootstraps == [(), (view.peers[0].address,), (view.peers[0].address,)]


def assert_events_are_kept(asked: Swarm) -> None:
    records = [msgspec.json.decode(line) for line in asked.directory.events_file.read_bytes().splitlines()]
    assert (records[0]["event"], records[0]["source"]) == ("run.started", "launcher")
    assert {record["source"] for record in records} == {"launcher", 0, 1, 2}
    assert sum(record["event"] == "round.committed" for record in records) == 9


async def test_a_peer_is_killed_when_it_begins_the_round_and_the_others_finish(tmp_path: Path) -> None:
    asked, shown = swarm(tmp_path, "hold", Fault(kind="peer", index=1, round=1)), Recorder()
    view = await raise_swarm(asked, shown)
    assert view.peers[1].exit_code == -signal.SIGKILL
    assert view.peers[1].state == "killed by signal 9 in round 1"
    assert view.peers[0].finished is not None
    assert "FaultInjected" in shown.names()
    await assert_nobody_is_left(asked)


async def test_a_trainer_is_killed_by_the_pid_that_its_peer_told(tmp_path: Path) -> None:
    asked, shown = swarm(tmp_path, "well", Fault(kind="trainer", index=0, round=0)), Recorder()
    view = await raise_swarm(asked, shown)
    assert view.over
    (fault,) = [event for _, event in shown.events if type(event).__name__ == "FaultInjected"]
    assert msgspec.to_builtins(fault)["pid"] == int((asked.directory.home(0) / "trainer.pid").read_text())


async def test_a_peer_that_does_not_start_ends_the_run_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"peer 1: port 4001 is in use\. Choose another\."):
        await raise_swarm(swarm(tmp_path, "refuse"), Recorder())


async def test_a_peer_that_dies_without_words_is_quoted_from_its_stderr(tmp_path: Path) -> None:
    asked = swarm(tmp_path, "well")
    broken = Swarm(directory=asked.directory, command=(sys.executable, "-c", "raise SystemExit('out of luck')"))
    with pytest.raises(LocalError, match=r"exit code 1 before it finished\. Its last line: out of luck"):
        await raise_swarm(broken, Recorder())


async def test_a_peer_that_says_nothing_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    asked = swarm(tmp_path, "mute", start_s=0.0)
    with pytest.raises(Unavailable, match="peer 0 is not up after 0 s"):
        await raise_swarm(asked, Recorder())


async def test_peers_that_all_wait_abort_the_run(tmp_path: Path) -> None:
    with pytest.raises(Aborted, match="waiting: too few members to agree"):
        await raise_swarm(swarm(tmp_path, "wait", waiting_s=0.0), Recorder())


async def test_different_checkpoints_are_a_failure(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"different checkpoints \(peer 0: v, peer 1: another\)"):
        await raise_swarm(swarm(tmp_path, "differ"), Recorder())


async def test_who_does_not_leave_is_killed(tmp_path: Path) -> None:
    asked = swarm(tmp_path, "deaf", leave_s=0.0)
    view = await raise_swarm(asked, Recorder())
    assert {row.exit_code for row in view.peers} == {-signal.SIGKILL}
    await assert_nobody_is_left(asked)


async def test_others_are_not_waited_for_for_ever_once_one_has_finished(tmp_path: Path) -> None:
    shown = Recorder()
    view = await raise_swarm(swarm(tmp_path, "hold", finish_s=0.0), shown)
    assert view.peers[0].finished is not None
    assert view.peers[1].finished is None
    assert any("not every peer finished" in note for note in shown.notes)


async def test_what_is_no_event_is_shown_and_ends_nothing(tmp_path: Path) -> None:
    shown = Recorder()
    view = await raise_swarm(swarm(tmp_path, "mumble"), shown)
    assert view.over
    assert sum("Hello, world!" in note for note in shown.notes) == 2


def has_begun(shown: Recorder, number: int) -> bool:
    """Tell whether both peers are in a round, as the launcher knows."""
    return {source for source, event in shown.events if isinstance(event, RoundPlanned) and event.round == number} == {
        0,
        1,
    }


def has_all(asked: Swarm, name: str) -> bool:
    return all((asked.directory.home(index) / name).exists() for index in range(len(asked.directory.peers)))


def wishes(asked: Swarm) -> list[str]:
    return [(asked.directory.home(index) / "wishes").read_text() for index in range(len(asked.directory.peers))]


async def interrupted(asked: Swarm, shown: Recorder, *signals: tuple[Callable[[], bool], int]) -> View:
    """Raise a swarm and send the launcher signals, each once something holds; unwrap what it raises."""

    async def press() -> None:
        for holds, number in signals:
            await until(holds)
            os.kill(os.getpid(), number)

    found: list[View | BaseException] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(press)
        try:
            found.append(await raise_swarm(asked, shown))
        except (KeyboardInterrupt, Exception) as error:  # a nursery would wrap it in a group
            found.append(error)
        nursery.cancel_scope.cancel()
    await assert_nobody_is_left(asked)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_the_first_signal_lets_every_peer_finish_its_round_and_the_run_pauses(tmp_path: Path, first: int) -> None:
    asked, shown = swarm(tmp_path, "heed"), Recorder()
    view = await interrupted(asked, shown, (lambda: has_begun(shown, 1), first))
    assert wishes(asked) == ["pause 1\n"] * 2
    assert [row.left.rounds for row in view.peers if row.left] == [2, 2]
    assert [row.exit_code for row in view.peers] == [0, 0]
    assert any("finishing the round" in note for note in shown.notes)


async def test_where_members_of_other_machines_go_on_the_peers_leave_the_run(tmp_path: Path) -> None:
    asked, shown = swarm(tmp_path, "company"), Recorder()
    view = await interrupted(asked, shown, (lambda: has_begun(shown, 1), signal.SIGINT))
    assert wishes(asked) == ["leave\n"] * 2
    assert all(row.left for row in view.peers)


async def test_the_second_signal_lets_go_of_peers_that_do_not_finish_their_round(tmp_path: Path) -> None:
    asked, shown = swarm(tmp_path, "stubborn", leave_s=0.0), Recorder()
    begun, asked_to = (lambda: has_begun(shown, 1)), (lambda: has_all(asked, "wishes"))
    with pytest.raises(KeyboardInterrupt, match="What was agreed"):
        await interrupted(asked, shown, (begun, signal.SIGINT), (asked_to, signal.SIGINT))
    assert {event.code for _, event in shown.events if isinstance(event, PeerExited)} == {-signal.SIGKILL}


async def test_after_the_second_signal_every_peer_leaves_in_its_own_time(tmp_path: Path) -> None:
    asked, shown = swarm(tmp_path, "hold", finish_s=600.0), Recorder()
    begun = lambda: has_begun(shown, 1)  # noqa: E731
    with pytest.raises(KeyboardInterrupt, match="What was agreed"):
        await interrupted(asked, shown, (begun, signal.SIGINT), (lambda: has_all(asked, "wishes"), signal.SIGINT))
    assert has_all(asked, "left")
    assert {event.code for _, event in shown.events if isinstance(event, PeerExited)} == {0}


async def test_the_third_signal_kills(tmp_path: Path) -> None:
    asked, shown = swarm(tmp_path, "stubborn", leave_s=600.0), Recorder()
    signals = (
        (lambda: has_begun(shown, 1), signal.SIGINT),
        (lambda: has_all(asked, "wishes"), signal.SIGINT),
        (lambda: has_all(asked, "left"), signal.SIGTERM),
    )
    with pytest.raises(KeyboardInterrupt, match="What was agreed"):
        await interrupted(asked, shown, *signals)
    assert {event.code for _, event in shown.events if isinstance(event, PeerExited)} == {-signal.SIGKILL}


async def test_a_signal_before_all_peers_are_up_ends_it_at_once(tmp_path: Path) -> None:
    asked, shown = swarm(tmp_path, "mute", start_s=600.0), Recorder()
    is_there = (asked.directory.home(0) / "mute").exists
    with pytest.raises(KeyboardInterrupt, match="Nothing had begun"):
        await interrupted(asked, shown, (is_there, signal.SIGINT))


async def test_once_all_peers_are_up_others_are_invited_by_a_file_that_nobody_else_reads(tmp_path: Path) -> None:
    asked, shown = swarm(tmp_path, "well", num_peers=3), Recorder()
    view = await raise_swarm(asked, shown)
    ((word, name),) = shown.invitations
    file = asked.directory.path / "invitation"
    assert name == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().strip() == word
    invitation = parse(word)
    assert invitation.run == asked.directory.resolved().run_id
    assert invitation.addresses == tuple(row.address for row in view.peers[:2])
    assert invitation.secret == ClusterKey.load(asked.directory.path / "cluster.key").secret


def joined(tmp_path: Path, mode: str = "joined") -> Swarm:
    invitation = Invitation(run=RunId(bytes(32)), addresses=(), secret=bytes(32))
    return Swarm(
        directory=rundir.join(invitation, tmp_path / "joined", NOW),
        command=(sys.executable, str(FAKE_PEER), mode),
    )


async def test_who_joins_is_one_peer_and_invites_nobody(tmp_path: Path) -> None:
    asked, shown = joined(tmp_path), Recorder()
    view = await raise_swarm(asked, shown)
    assert len(view.peers) == 1
    assert view.peers[0].finished
    assert not shown.invitations
    assert "RunStarted" in shown.names()  # told once the peer has fetched what the run is
    assert load_peer_config(asked.directory.home(0) / "peer.toml").run_id == bytes(32).hex()


async def test_a_peer_that_never_learned_its_run_starts_again(tmp_path: Path) -> None:
    asked = joined(tmp_path)
    asked.directory.write_peer_config(0, asked.directory.peer_config(0))
    again = dataclasses.replace(asked, directory=rundir.reopen(asked.directory.path))
    assert again.directory.config is None
    view = await raise_swarm(again, Recorder())
    assert view.peers[0].finished


async def test_a_peer_that_is_started_again_listens_where_it_did(tmp_path: Path) -> None:
    asked = swarm(tmp_path, "well")
    await raise_swarm(asked, Recorder())
    kept = [load_peer_config(asked.directory.home(index) / "peer.toml") for index in range(2)]
    ports = [int(settings.listen.rpartition("/")[2]) for settings in kept]
    assert [settings.listen.rpartition("/")[0] for settings in kept] == ["/ip4/127.0.0.1/tcp"] * 2
    assert ports == [4001, 4002]
    assert [settings.mdns for settings in kept] == [True, False]


@pytest.mark.parametrize(("kind", "host"), [("ip4", "127.0.0.1"), ("ip6", "::1")])
def test_a_port_that_is_taken_by_now_gives_way_to_any_other(kind: str, host: str) -> None:
    family = socket.AF_INET6 if kind == "ip6" else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        assert launch._free(f"/{kind}/{host}/tcp/{port}") == f"/{kind}/{host}/tcp/0"
    assert launch._free(f"/{kind}/{host}/tcp/{port}") == f"/{kind}/{host}/tcp/{port}"


@pytest.mark.parametrize("listen", ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/many", "nonsense", ""])
def test_an_address_that_is_none_is_left_for_the_peer_to_refuse(listen: str) -> None:
    assert launch._free(listen) == listen


class Breaker(Recorder):
    """Fails as a pipe that was closed does."""

    def event(self, before: View, after: View, source: int, record: Mapping[str, Any], event: AnyEvent) -> None:
        if isinstance(event, RoundPlanned):
            raise BrokenPipeError


async def test_an_error_of_the_display_leaves_no_process_behind(tmp_path: Path) -> None:
    asked = swarm(tmp_path, "hold")
    with pytest.raises(BaseExceptionGroup) as raised:
        await raise_swarm(asked, Breaker())
    assert raised.group_contains(BrokenPipeError)
    await assert_nobody_is_left(asked)


DRIVER = """
import sys, trio
from datetime import datetime
from pathlib import Path
from barnraise.runs import directory as rundir
from barnraise.cli.display import PlainDisplay
from barnraise.cli.launch import Swarm, raise_swarm
from barnraise.config import RunConfig
made = rundir.create(RunConfig(), 2, Path(sys.argv[1]), datetime.now())
trio.run(raise_swarm, Swarm(directory=made, command=(sys.executable, sys.argv[2], "hold")), PlainDisplay(sys.stdout))
"""


async def test_peers_leave_when_the_launcher_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", DRIVER, str(run), str(FAKE_PEER)]
    launcher = await trio.lowlevel.open_process(command, stdout=subprocess.DEVNULL)
    try:
        pid_file = run / "peer-1" / "trainer.pid"
        await until(lambda: pid_file.exists())
        launcher.kill()
        await launcher.wait()
        await until(lambda: (run / "peer-0" / "left").exists() and (run / "peer-1" / "left").exists())
    finally:
        launcher.kill()
        for pid_file in run.glob("peer-*/trainer.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    with trio.fail_after(30):
        while not holds():  # noqa: ASYNC110  # a process gives no trio.Event
            await trio.sleep(0.01)
