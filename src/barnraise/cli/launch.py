"""Raises a swarm on one machine: starts a process for each peer, follows their events, leaves none behind.

Each peer's stdin is a pipe that the launcher holds open: the peer leaves at once when it closes, be it because the run
is over, because of a second Ctrl-C, or because the launcher was killed. At the first Ctrl-C each peer is asked on it to
finish the round: then it leaves the run, or, where all members are of this machine, the run pauses. Each peer leads a process group of its
own, so that what it started goes with it. All decisions are taken in one task, `_Launcher._follow`, in the order in
which events arrive.
"""

import contextlib
import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import trio

from barnraise.cli.display import Display
from barnraise.cli.faults import Fault
from barnraise.config import DataConfig
from barnraise.errors import Aborted, BarnraiseError, ConfigError, LocalError, Unavailable
from barnraise.identity import ClusterKey
from barnraise.ids import RunId
from barnraise.net.addresses import LAN, lan_address
from barnraise.observe.events import EventLog
from barnraise.observe.view import LAUNCHER, PeerRow, View, apply, empty
from barnraise.observe.vocabulary import (
    MAX_LINE_BYTES,
    AnyEvent,
    FaultInjected,
    PeerExited,
    PeerStarted,
    RoundPlanned,
    RunStarted,
    TrainerStarted,
    decode,
)
from barnraise.runs import directory as rundir
from barnraise.runs.directory import CLUSTER_KEY_FILE, INVITATION_FILE, RunDirectory
from barnraise.runs.invitation import Invitation

PEER_COMMAND: Final = (sys.executable, "-P", "-m", "barnraise.node")
"""Followed by the peer's and the run's configuration files. -P: the user's directory must not shadow modules."""

LogLevel = Literal["debug", "info", "warning", "error"]

TICK_S: Final = 1.0
INVITED_ADDRESSES: Final = 2
"""The second one is for when the first peer is gone."""
KILLED_S: Final = 5.0
"""How long a process may take to end after SIGKILL; a disk that hangs can hold one longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long the launcher waits, in seconds, before it goes on without somebody."""

    start_s: float = 60.0
    """For a peer to say that it is up; importing libp2p takes 1.3 s of CPU, four at once on a busy machine more."""
    finish_s: float = 60.0
    """For the others, once one peer has finished."""
    waiting_s: float = 90.0
    """For peers that all wait: on one machine nobody comes back who could help them."""
    leave_s: float = 15.0
    """For a peer to leave once its stdin is closed."""
    drain_s: float = 1.0
    """For the last events of a peer whose process has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Swarm:
    """What to raise."""

    directory: RunDirectory
    faults: tuple[Fault, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of `PeerConfig` that all peers have in common."""
    resume_command: str = ""
    """What goes on with the run once it was left."""
    tensorboard: Path | None = None
    wandb: str | None = None
    command: Sequence[str] = PEER_COMMAND
    patience: Patience = dataclasses.field(default_factory=Patience)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Told:
    """One event: whose, as it was written, and as it is understood."""

    source: int
    record: dict[str, Any]
    event: AnyEvent


async def raise_swarm(swarm: Swarm, display: Display, heard: Callable[[AnyEvent], None] = lambda event: None) -> View:
    """Run a swarm from its first process to its last, and return what it came to; ``heard`` is told each event.

    Raises:
        ConfigError, Unavailable, Aborted, LocalError: a peer did not start, or no peer finished; with a peer's own
            words where it left some.
        KeyboardInterrupt: the user stopped it; all peers have left.
    """
    with EventLog(swarm.directory.events_file) as log:
        launcher = _Launcher(swarm, display, log, heard)
        await launcher.run()
        launcher.check()
    return launcher.view


class _Launcher:
    def __init__(self, swarm: Swarm, display: Display, log: EventLog, heard: Callable[[AnyEvent], None]) -> None:
        self.view = empty(len(swarm.directory.peers))
        self._swarm = swarm
        self._display = display
        self._log = log
        self._heard = heard
        self._faults = list(swarm.faults)
        self._processes: dict[int, trio.Process] = {}
        self._num_signals = 0
        self._gave_up: BarnraiseError | None = None
        self._began = time.monotonic()
        self._first_finished: float | None = None
        self._leaving_since: float | None = None
        self._send, self._receive = trio.open_memory_channel[_Told](0)

    async def run(self) -> None:
        """Raise the swarm, follow it to its end, and see every process off."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            await self._run(signals)

    async def _run(self, signals: AsyncIterator[int]) -> None:
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(self._heed, signals)
                self._announce()
                await self._start(nursery, 0, bootstrap=())
                await self._follow(nursery)
            finally:
                await self._clear_up()
                nursery.cancel_scope.cancel()

    def check(self) -> None:
        """Raise what the run's end means, unless the peers that lived to see it agree."""
        directory = self._swarm.directory
        finished = [row.finished for row in self.view.peers if row.finished is not None]
        if self._num_signals > 1:
            raise KeyboardInterrupt(f"What was agreed until then is in {directory.path}.")
        if self._gave_up is not None:
            raise self._gave_up
        if not finished and any(row.left for row in self.view.peers):
            return
        if not finished and self._num_signals:
            raise KeyboardInterrupt(f"Nothing had begun; what there is is in {directory.path}.")
        if not finished:
            raise _why_it_ended(self.view, directory)
        if len({event.vertex for event in finished}) > 1:
            ends = ", ".join(f"peer {row.index}: {row.finished.vertex}" for row in self.view.peers if row.finished)
            raise LocalError(f"the peers ended with different checkpoints ({ends}). Report this with {directory.path}.")

    async def _follow(self, nursery: trio.Nursery) -> None:
        """Take what the peers tell, until every process has ended."""
        while self._leaving_since is None or any(self.view.peers[index].alive for index in self._processes):
            told: _Told | None = None
            with trio.move_on_after(TICK_S):
                told = await self._receive.receive()
            if told is None:
                self._display.tick(self.view)
            else:
                await self._handle(nursery, told)
            await self._judge(time.monotonic())
        self._display.tick(self.view)

    async def _handle(self, nursery: trio.Nursery, told: _Told) -> None:
        self._show(told)
        directory = self._swarm.directory
        match told.event:
            case PeerStarted() if told.source == 0 and self._leaving_since is None:
                self._keep_address(told)
                for index in range(1, len(self.view.peers)):
                    await self._start(nursery, index, bootstrap=(told.event.address,))
                self._invite()
            case PeerStarted():
                self._keep_address(told)
                self._invite()
            case TrainerStarted() if directory.config is None and directory.run_file.exists():
                self._swarm = dataclasses.replace(self._swarm, directory=rundir.reopen(directory.path))
                self._announce()
            case RoundPlanned():
                self._inject(told.source, told.event.round)
            case _:
                pass

    async def _judge(self, now: float) -> None:
        """Decide whether it is time to leave, or to make those leave who do not."""
        patience, rows = self._swarm.patience, self.view.peers
        if self._leaving_since is not None:
            if now - self._leaving_since > patience.leave_s:
                self._kill_groups()
            return
        if self._first_finished is None and any(row.finished for row in rows):
            self._first_finished = now
        if not self._has_failed(now) and not self.view.over:
            if self._first_finished is None or now - self._first_finished <= patience.finish_s:
                return
            self._display.note(f"not every peer finished within {patience.finish_s:.0f} s of the first; going on")
        await self._leave()

    def _has_failed(self, now: float) -> bool:
        """Return whether the run cannot come to anything any more, and remember why."""
        patience, directory = self._swarm.patience, self._swarm.directory
        missing = [row for row in self.view.peers if not row.peer]
        stillborn = next((row for row in missing if not row.alive), None)
        if stillborn is not None:
            self._gave_up = _words_of(stillborn, directory)
        elif missing and now - self._began > patience.start_s:
            self._gave_up = Unavailable(
                f"peer {missing[0].index} is not up after {patience.start_s:.0f} s. "
                f"Look into {directory.stderr_file(missing[0].index)}, or try again on a less busy machine."
            )
        elif self.view.waiting_since is not None and time.time() - self.view.waiting_since > patience.waiting_s:
            row = next(row for row in self.view.peers if row.alive)
            self._gave_up = Aborted(
                f"the peers that are left wait since {patience.waiting_s:.0f} s and nobody will come: "
                f"peer {row.index} is {row.state}. What was agreed until then is in {directory.path}."
            )
        return self._gave_up is not None

    async def _start(self, nursery: trio.Nursery, index: int, *, bootstrap: tuple[str, ...]) -> None:
        """Start one peer's process and listen to it."""
        directory = self._swarm.directory
        settings = directory.peer_config(index)
        settings = dataclasses.replace(settings, listen=_free(settings.listen))
        settings = dataclasses.replace(settings, **self._swarm.settings)
        if bootstrap:
            settings = dataclasses.replace(settings, bootstrap=bootstrap)
        elif len(directory.peers) > 1 or directory.invitation is None:
            # One peer of each machine is enough to be found by.
            settings = dataclasses.replace(settings, mdns=True)
        file = directory.write_peer_config(index, settings)
        with directory.stderr_file(index).open("ab") as stderr:
            process = await trio.lowlevel.open_process(
                [*self._swarm.command, str(file), str(directory.run_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self._processes[index] = process
        nursery.start_soon(self._attend, index, process)

    async def _attend(self, index: int, process: trio.Process) -> None:
        """Pass on a peer's events, and its end. A trainer may hold the pipe open for longer than the peer lives."""
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, index, process, done)
            await process.wait()
            with trio.move_on_after(self._swarm.patience.drain_s):
                await done.wait()
            nursery.cancel_scope.cancel()
        assert process.returncode is not None  # wait() returned
        await self._send.send(_own(index, PeerExited(time=time.time(), code=process.returncode)))

    async def _read(self, index: int, process: trio.Process, done: trio.Event) -> None:
        assert process.stdout is not None  # it was opened as a pipe
        buffered = bytearray()
        async for chunk in process.stdout:
            buffered += chunk
            *lines, rest = bytes(buffered).split(b"\n")
            buffered = bytearray(rest)
            if len(buffered) > MAX_LINE_BYTES:
                lines.append(bytes(buffered))
                buffered.clear()
            for line in filter(None, lines):
                await self._pass_on(index, line)
        done.set()

    async def _pass_on(self, index: int, line: bytes) -> None:
        try:
            record, event = decode(line)
        except ValueError as error:
            self._display.note(f"peer {index} printed what is no event ({error}): {line[:200]!r}")
        else:
            await self._send.send(_Told(source=index, record={**record, "source": index}, event=event))

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        """Finish the round at the first Ctrl-C (or SIGTERM, or a terminal that closes), leave at the second."""
        async for _ in signals:
            self._num_signals += 1
            match self._num_signals:
                case 1 if not all(row.peer for row in self.view.peers):
                    await self._leave()  # nothing has begun, and a peer that is not up yet would miss the wish
                case 1:
                    self._display.note("finishing the round, then leaving; Ctrl-C again to leave at once")
                    await self._ask_to_leave()
                case 2:
                    await self._leave()
                case _:
                    self._kill_groups()

    async def _ask_to_leave(self) -> None:
        """Ask each peer to finish its round and leave; where nobody would be left, to pause the run instead."""
        rows = self.view.peers
        ours, newest = {row.peer for row in rows}, max((row.round for row in rows if row.alive), default=0)
        wish = f"pause {newest}\n" if set(self.view.members) <= ours else "leave\n"
        for process in self._processes.values():
            if process.stdin is not None:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await process.stdin.send_all(wish.encode())

    async def _leave(self) -> None:
        """Let go of every peer: its stdin closes."""
        if self._leaving_since is None:
            self._leaving_since = time.monotonic()
        for process in self._processes.values():
            if process.stdin is not None:
                await process.stdin.aclose()

    def _keep_address(self, told: _Told) -> None:
        """Have a peer listen at the same port when it is started again: others look for it there."""
        if isinstance(told.event, PeerStarted):
            directory = self._swarm.directory
            kept = directory.peer_config(told.source)
            port = told.event.address.partition("/p2p/")[0].rpartition("/")[2]
            listen = f"{kept.listen.rpartition('/')[0]}/{port}"
            directory.write_peer_config(told.source, dataclasses.replace(kept, listen=listen))

    def _invite(self) -> None:
        """Say how others join, once all peers of a run that was begun here are up."""
        directory, rows = self._swarm.directory, self.view.peers
        if directory.config is None or directory.invitation or not all(row.address for row in rows):
            return
        addresses = tuple(row.address for row in rows[:INVITED_ADDRESSES])
        secret = ClusterKey.load(directory.path / CLUSTER_KEY_FILE).secret
        invitation = Invitation(run=RunId(bytes.fromhex(self.view.run)), addresses=addresses, secret=secret)
        invitation.write(directory.path / INVITATION_FILE)
        own_text = _own_text(directory)
        self._display.invite(invitation.encode() + own_text, f"{directory.path / INVITATION_FILE}{own_text}")

    def _announce(self) -> None:
        directory = self._swarm.directory
        if directory.config is None:
            return
        rounds = directory.config.round
        started = RunStarted(
            time=time.time(),
            run=directory.config.run_id.hex(),
            directory=str(directory.path),
            peers=len(directory.peers),
            rounds=rounds.rounds,
            steps=rounds.steps,
        )
        self._show(_own(LAUNCHER, started))

    def _show(self, told: _Told) -> None:
        before, self.view = self.view, apply(self.view, told.source, told.event)
        self._log.write(told.record)
        self._heard(told.event)
        self._display.event(before, self.view, told.source, told.record, told.event)

    def _inject(self, source: int, round_number: int) -> None:
        """Kill what the user asked to be killed when this peer begins this round, or a later one if it missed it."""
        for fault in [fault for fault in self._faults if fault.index == source and fault.round <= round_number]:
            self._faults.remove(fault)
            process, trainer = self._processes[source], self.view.peers[source].trainer_pid
            pid = process.pid if fault.kind == "peer" else trainer
            if fault.kind == "peer":
                process.kill()
            elif trainer == 0 or not _kill(trainer):
                self._display.note(f"--kill {fault}: there was no trainer to kill")
                continue
            injected = FaultInjected(time=time.time(), target=fault.target, round=round_number, pid=pid)
            self._show(_own(LAUNCHER, injected))

    def _kill_groups(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
                os.killpg(process.pid, signal.SIGKILL)

    async def _clear_up(self) -> None:
        """Leave no process behind, whatever happened: trainers of killed peers included."""
        self._kill_groups()
        with trio.CancelScope(shield=True), trio.move_on_after(KILLED_S):
            pipes = [pipe for process in self._processes.values() for pipe in (process.stdin, process.stdout)]
            for pipe in filter(None, pipes):
                await pipe.aclose()
            for process in self._processes.values():
                await process.wait()


def _own_text(directory: RunDirectory) -> str:
    """Return the option that whoever joins needs besides, where the text is not the one that everybody has."""
    source = directory.resolved().data.source
    return "" if source == DataConfig().source else f" --data {shlex.quote(source)}"


def _own(source: int, event: AnyEvent) -> _Told:
    """Return what the launcher itself has to tell of a peer, or of itself."""
    name = "launcher" if source == LAUNCHER else source
    return _Told(source=source, record={**msgspec.to_builtins(event), "source": name}, event=event)


def _free(listen: str) -> str:
    """Return where to listen: any port, where that of the last time is taken by now."""
    parts = listen.split("/")
    if len(parts) != 5 or not parts[4].isdecimal():
        return listen  # it is the peer's to say what is wrong with it
    family = socket.AF_INET6 if parts[1] == "ip6" else socket.AF_INET
    host = lan_address() if parts[2] == LAN else parts[2]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(parts[4])))
        except OSError:
            return "/".join([*parts[:4], "0"])
    return listen


def _kill(pid: int) -> bool:
    """Kill a process with SIGKILL; return whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _why_it_ended(view: View, directory: RunDirectory) -> BarnraiseError:
    """Return why no peer finished, in the words of the first that left some."""
    return _words_of(next((row for row in view.peers if row.error is not None), view.peers[0]), directory)


def _words_of(row: PeerRow, directory: RunDirectory) -> BarnraiseError:
    """Return a dead peer's last words as the error that its exit code stands for."""
    kinds: dict[int | None, type[BarnraiseError]] = {2: ConfigError, 3: Unavailable, 4: Aborted}
    kind = kinds.get(row.exit_code, LocalError)
    if row.error is not None:
        return kind(f"peer {row.index}: {row.error.message} {row.error.next}".rstrip())
    file = directory.stderr_file(row.index)
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines() if file.exists() else []
    last = f" Its last line: {lines[-1][:300]}." if lines else ""
    return kind(f"peer {row.index} {row.state} before it finished.{last} Look into {file}.")
