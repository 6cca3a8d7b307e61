"""The launcher against real processes that play peers."""

import contextlib
import os
import signal
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

from barnraise.cli import rundir
from barnraise.cli.faults import Fault
from barnraise.cli.launch import Patience, Swarm, raise_swarm
from barnraise.config import RoundConfig, RunConfig, load_peer_config
from barnraise.errors import Aborted, ConfigError, LocalError, Unavailable
from barnraise.observe.view import View
from barnraise.observe.vocabulary import AnyEvent, RoundPlanned

FAKE_PEER = Path(__file__).with_name("fake_peer.py")
NOW = datetime(2026, 1, 2, 3, 4, 5)


class Recorder:
    """A display that keeps what it is shown; ``on_event`` may act on it."""

    def __init__(self) -> None:
        self.events: list[tuple[int, AnyEvent]] = []
        self.notes: list[str] = []

    def event(self, before: View, after: View, source: int, record: Mapping[str, Any], event: AnyEvent) -> None:
        self.events.append((source, event))

    def tick(self, view: View) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

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
    assert tuple(row.peer for row in view.peers) == directory.peers == directory.config.founders
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


class Interrupter(Recorder):
    """Presses Ctrl-C when peer 1 is in the round that it will not leave."""

    def event(self, before: View, after: View, source: int, record: Mapping[str, Any], event: AnyEvent) -> None:
        super().event(before, after, source, record, event)
        if source == 1 and isinstance(event, RoundPlanned) and event.round == 1:
            os.kill(os.getpid(), signal.SIGINT)


async def test_ctrl_c_lets_every_peer_leave(tmp_path: Path) -> None:
    asked = swarm(tmp_path, "hold")
    with pytest.raises(KeyboardInterrupt, match="What was agreed"):
        await raise_swarm(asked, Interrupter())
    assert all((asked.directory.home(index) / "left").exists() for index in (0, 1))
    await assert_nobody_is_left(asked)


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
from barnraise.cli import rundir
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
