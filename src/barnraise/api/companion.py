"""The peer's process beside the user's loop: started here, heard in a thread, and never left behind.

Its stdin is a pipe that this process holds open: when it closes, be it that this process was killed, the peer leaves.
It leads a session of its own, so that a Ctrl-C meant for the loop does not reach it before the loop has decided.
"""

import atexit
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from barnraise.api.place import Place, with_settings
from barnraise.errors import Aborted, BarnraiseError, ConfigError, LocalError, Unavailable
from barnraise.ids import RunId
from barnraise.observe import plain
from barnraise.observe.events import EventLog, describe
from barnraise.observe.view import View, apply, empty
from barnraise.observe.vocabulary import AnyEvent, Error, PeerJoined, PeerLost, PeerStarted, RoundCommitted, decode
from barnraise.runs.directory import EVENTS_FILE, STDERR_FILE
from barnraise.train.session import Session

PEER_COMMAND: Final = (sys.executable, "-P", "-m", "barnraise.node")
"""Followed by the peer's and the run's configuration files. -P: the user's directory must not shadow modules."""
START_S: Final = 120.0
"""For the peer to listen; importing libp2p takes 1.3 s of CPU, fetching a run's configuration the network's time."""
LEAVE_AT_ONCE_S: Final = 15.0
KILLED_S: Final = 5.0
POLL_S: Final = 0.02
"""Between two attempts to reach a peer that is starting."""
_KINDS: Final[dict[int, type[BarnraiseError]]] = {2: ConfigError, 3: Unavailable, 4: Aborted}

log = logging.getLogger("barnraise")


class Companion:
    """One peer's process and what it has said."""

    def __init__(self, place: Place, command: Sequence[str] = PEER_COMMAND) -> None:
        """Start it; `connect` is next."""
        self.peer_id = self.run_id = self.address = ""
        """Empty until it listens; the address is a multiaddress that others find this peer at."""
        self.committed: RoundCommitted | None = None
        """The round that was agreed last."""
        self._connected: set[str] = set()
        self._error: Error | None = None
        self._has_ended = False
        self._view: View = empty(1)
        self._changed = threading.Condition()
        self.place = place
        self._socket_directory = Path(tempfile.mkdtemp(prefix="barnraise-"))
        self._socket = self._socket_directory / "trainer"
        place = with_settings(place, trainer_socket=str(self._socket))
        self._stderr_file = place.settings.data_dir / STDERR_FILE
        self._events = EventLog(place.path / EVENTS_FILE)
        with self._stderr_file.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*command, str(place.write_settings()), str(place.run_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name="barnraise-events", daemon=True)
        self._reader.start()
        atexit.register(self.kill)

    def connect(self) -> Session:
        """Return the connection on which the peer gives out work.

        Raises:
            BarnraiseError: the peer ended instead of listening; in its own words.
        """
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            try:
                session = Session.connect(self._socket)
            except Unavailable:
                if self._process.poll() is not None:
                    raise self.why_it_ended() from None
                time.sleep(POLL_S)
            else:
                self._remove_socket()
                return session
        raise Unavailable(f"the peer does not listen after {START_S:.0f} s. Look into {self._stderr_file}.")

    @property
    def run(self) -> RunId:
        """The run's id."""
        return RunId(bytes.fromhex(self.run_id))

    @property
    def num_connected(self) -> int:
        """Peers of the run that are here or connected to us."""
        return 1 + len(self._connected)

    def wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for something that the peer's events bring about; False: it took too long, or the peer ended."""
        with self._changed:
            self._changed.wait_for(lambda: until() or self._has_ended, timeout_s)
            return until()

    def why_it_ended(self) -> BarnraiseError:
        """Return a peer's last words as the error that its exit code stands for; it has ended or is about to."""
        code = self._end(LEAVE_AT_ONCE_S)
        kind = _KINDS.get(code, LocalError)
        if self._error is not None:
            return kind(f"{self._error.message} {self._error.next}".rstrip())
        lines = self._stderr_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = f" Its last line: {lines[-1][:300]}." if lines else ""
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return kind(f"the peer {how} while the loop went on.{last} Look into {self._stderr_file}.")

    def wait_for_end(self, timeout_s: float) -> bool:
        """Wait for a peer that leaves by itself; False: it was made to."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        left = self._process.returncode is not None
        self.leave_at_once()
        return left

    def leave_at_once(self) -> None:
        """Let go of the peer and see it off; nothing of it is left afterwards."""
        self._let_go()
        self._end(LEAVE_AT_ONCE_S)
        atexit.unregister(self.kill)

    def kill(self) -> None:
        """Kill the peer and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        self._remove_socket()

    def _let_go(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()

    def _end(self, timeout_s: float) -> int:
        """Wait for the process, or kill it; return its exit status after its last event was heard."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("the peer does not leave; it is killed")
            self.kill()
            self._process.wait(KILLED_S)
        self._reader.join(KILLED_S)
        self._let_go()
        if not self._reader.is_alive():
            self._events.close()
        self._remove_socket()
        assert self._process.returncode is not None  # wait() returned
        return self._process.returncode

    def _read(self) -> None:
        """Hear the peer's events until its end; runs in a thread."""
        assert self._process.stdout is not None  # it was opened as a pipe
        with self._process.stdout as stdout:
            for line in stdout:
                try:
                    record, event = decode(line.strip())
                except ValueError as error:
                    log.debug("the peer printed what is no event (%s): %r", error, line[:200])
                    continue
                self._events.write({**record, "source": 0})
                log.debug("%s", describe(record))
                self._take(event)
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _take(self, event: AnyEvent) -> None:
        with self._changed:
            match event:
                case PeerStarted():
                    self.peer_id, self.run_id, self.address = event.peer, event.run, event.address
                case PeerJoined():
                    self._connected.add(event.other)
                case PeerLost():
                    self._connected.discard(event.other)
                case RoundCommitted():
                    self.committed = event
                case Error():
                    self._error = event
                case _:
                    pass
            before, self._view = self._view, apply(self._view, 0, event)
            self._changed.notify_all()
        told = plain.line(before, self._view, 0, event)
        if told is not None:
            log.info("%s", told)

    def _remove_socket(self) -> None:
        shutil.rmtree(self._socket_directory, ignore_errors=True)
