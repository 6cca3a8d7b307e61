"""One try at one collective, as the two threads that make it and those that watch it share it; it sends and receives nothing.

Both threads go through a program, each through its own list, and a `Run` counts how far they are. What one of them does
next may need so many steps of the other; it then sleeps until the count is there, and the other wakes it at that count
and at no other. An attempt ends early when it fails here, or when `Attempt.stop` is called from elsewhere.
"""

import enum
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from barnraise.api.streams import Begin
from barnraise.collective.buffers import Buffers
from barnraise.collective.program import Program, Run
from barnraise.ids import PeerId

NEVER: Final = sys.maxsize
"""No count comes to it: nobody sleeps."""


class Trouble(enum.Enum):
    """What was wrong with a peer."""

    BROKEN = "broken"
    """The stream to or from it."""
    DAMAGED = "damaged"
    """What it sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an attempt failed here."""

    rank: int
    """Of the group, at fault as far as can be seen from here."""
    trouble: Trouble
    reason: str


@dataclass(frozen=True, slots=True)
class Work:
    """What an attempt does, once all is known that it takes."""

    program: Program
    buffers: Buffers


@dataclass(frozen=True, slots=True)
class Party:
    """Somebody else who takes part."""

    rank: int
    """In the group."""
    peer: PeerId


class Halted(Exception):
    """The attempt was stopped."""


class Attempt:
    """One try at one collective.

    Args:
        begin: what is said before the first frame on each stream.
        parties: all members by their place in the schedule.
        place: our place among them.
        prepare: makes the work of the weights of all, by place. Called in the receiving thread.
        is_meeting: everybody hears from everybody before the work begins; else the weights are 1, and who has nothing
            to receive from a rank does not hear from it.
        is_closing: everybody hears from everybody, at the end, that all is done there.
        on_failure: told of a failure, in one of the two threads.
        on_given: told that all is sent, where the attempt was given to `Pump.give`.
    """

    def __init__(
        self,
        *,
        begin: Begin,
        parties: Sequence[Party],
        place: int,
        prepare: Callable[[Sequence[float]], Work],
        is_meeting: bool = False,
        is_closing: bool = False,
        on_failure: Callable[["Attempt"], None] = lambda attempt: None,
        on_given: Callable[[], None] = lambda: None,
    ) -> None:
        self.begin = begin
        self.parties = tuple(parties)
        self.place = place
        self.is_meeting, self.is_closing = is_meeting, is_closing
        self.on_given = on_given
        self.failure: Failure | None = None
        self.crash: BaseException | None = None
        self.receiving_from: Party | None = None
        self.sending_to: Party | None = None
        self.is_stopped = self.is_given = False
        self._prepare = prepare
        self._on_failure = on_failure
        self._turn = threading.Condition()
        self._wakes_sender_at = self._wakes_receiver_at = NEVER
        """Counts of the other thread for which each sleeps."""
        self._is_sender_out = False
        self._run: Run | None = None
        self._buffers: Buffers | None = None

    # ---- what both threads ask --------------------------------------------------------------------------------

    def prepare(self, weights: Sequence[float]) -> None:
        """Make the work, and let the sender begin."""
        work = self._prepare(weights)
        with self._turn:
            self._buffers, self._run = work.buffers, Run(work.program)
            self._turn.notify_all()

    def prepare_alone(self) -> None:
        """Make the work, where that takes nothing from the others."""
        if not self.is_meeting:
            self.prepare([1.0] * len(self.parties))

    @property
    def progress(self) -> tuple[int, int]:
        """Return a pair of numbers that change as long as it moves."""
        return (-1, -1) if self._run is None else (self._run.num_sent, self._run.num_received)

    @property
    def waits_for(self) -> Party | None:
        """Return who must do something next: send us a chunk, or take one from us."""
        if self._run is None or self._run.next_receive() is not None:
            return self.receiving_from
        return self.sending_to or self.receiving_from

    @property
    def run(self) -> Run:
        """Return how far it is; it was prepared."""
        assert self._run is not None
        return self._run

    @property
    def buffers(self) -> Buffers:
        """Return where everything lies; it was prepared."""
        assert self._buffers is not None
        return self._buffers

    def others(self) -> list[Party]:
        """Return whom our `Begin` is for: all, or those to whom we send."""
        if self.is_meeting or self.is_closing:
            count = len(self.parties)
            return [self.parties[(self.place + offset) % count] for offset in range(1, count)]
        return [self.parties[to] for to in dict.fromkeys(send.to for send in self.run.program.sends)]

    def wait_until_prepared(self) -> None:
        """Sleep until there is work. Raises `Halted`."""
        with self._turn:
            while self._run is None and not self.is_stopped:
                self._turn.wait()
        self.check()

    def wait_for_received(self, count: int) -> None:
        """Sleep until so many receives are done; the sending thread's. Raises `Halted`."""
        run = self.run
        with self._turn:
            self._wakes_sender_at = count
            while run.num_received < count and not self.is_stopped:
                self._turn.wait()
            self._wakes_sender_at = NEVER
        self.check()

    def wait_for_sent(self, count: int) -> None:
        """Sleep until so many sends are out; the receiving thread's. Raises `Halted`."""
        run = self.run
        with self._turn:
            self._wakes_receiver_at = count
            while run.num_sent < count and not self.is_stopped:
                self._turn.wait()
            self._wakes_receiver_at = NEVER
        self.check()

    def note_sent(self) -> None:
        """Count a send."""
        run = self.run
        run.num_sent += 1
        # Who sleeps says for which count, then looks at it; we count, then look for which one somebody sleeps. One sees.
        if run.num_sent >= self._wakes_receiver_at:
            self._wake()

    def note_received(self) -> None:
        """Count a receive."""
        run = self.run
        run.num_received += 1
        if run.num_received >= self._wakes_sender_at:  # see `note_sent`
            self._wake()

    def check(self) -> None:
        """Raise `Halted` if it was stopped."""
        if self.is_stopped:
            raise Halted

    def _wake(self) -> None:
        with self._turn:
            self._turn.notify_all()

    # ---- its end ----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let both threads stop between two frames; from any thread."""
        with self._turn:
            self.is_stopped = True
            self._turn.notify_all()

    def fail(self, party: Party, trouble: Trouble, error: Exception) -> None:
        """Stop, and say why, unless it was stopped before."""
        with self._turn:
            is_news = not self.is_stopped
            if is_news:
                self.failure = Failure(rank=party.rank, trouble=trouble, reason=str(error))
        self.stop()
        if is_news:
            self._on_failure(self)

    def sender_is_out(self) -> None:
        """Note that the sending thread has left this attempt."""
        with self._turn:
            self._is_sender_out = True
            self._turn.notify_all()

    def wait_for_sender(self) -> None:
        """Sleep until the sending thread is done with it. Raises `Halted`."""
        with self._turn:
            while not self._is_sender_out and not self.is_stopped:
                self._turn.wait()
        self.check()
