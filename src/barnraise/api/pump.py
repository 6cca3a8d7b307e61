"""One rank's threads in a collective: the caller's receives, another one sends; knows neither tensors nor members.

An `Attempt` is one try at one collective; `Pump.carry_out` makes it. The two threads share a `Run`, which says what may
go on, and wake each other only where one of them sleeps. Nothing is agreed on beforehand and nothing acknowledged: each
stream that an attempt uses begins with a `Begin`, by which the receiver checks that both do the same, and up to which it
discards what is left of earlier attempts.

An attempt ends early in one of three ways, whichever is first: a stream fails, a peer's `Halt` comes, or `Attempt.stop`
is called from elsewhere. Both threads then stop between two frames, so the streams are good for the next attempt; a
thread that is stuck in a frame is freed by `Pump.free`, which costs that stream.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Final, NoReturn

from barnraise.api.attempt import Attempt, Halted, Party, Trouble
from barnraise.api.streams import MAX_CONTROL_BYTES, Begin, Done, Halt, Incoming, Outgoing, Streams
from barnraise.codec.codec import Malformed
from barnraise.errors import ConfigError, PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.frames import MAX_PAYLOAD_BYTES

JOIN_S: Final = 5.0
MIN_WEIGHT: Final = 1e-12
"""Of an input, and one over it the most: no sum of 256 of them leaves float32, nor does one over it."""


class Pump:
    """Two threads and their streams, one attempt after the other."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._jobs: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        self._room = memoryview(bytearray(MAX_PAYLOAD_BYTES))
        """For what may be a frame of any kind."""
        self._sending: Attempt | None = None
        self._receiving: Attempt | None = None
        self._thread = threading.Thread(target=self._send_for_good, name="barnraise sender", daemon=True)
        self._thread.start()

    def carry_out(self, attempt: Attempt) -> None:
        """Receive, while another thread sends, until both are done.

        Raises:
            Halted: it was stopped; ``attempt.failure`` says why, if it was for something here.
            ConfigError: a peer does something else.
        """
        if self._sending is None:
            self._streams.bury()
        self._receiving = attempt
        attempt.prepare_alone()
        has_others = bool(attempt.others())
        if has_others:
            self._jobs.put(attempt)
        try:
            self._receive_all(attempt)
            if has_others:
                attempt.wait_for_sender()
        except BaseException:
            attempt.stop()
            raise
        finally:
            self._receiving = None
            if attempt.crash is not None:
                raise attempt.crash

    def give(self, attempt: Attempt) -> None:
        """Let the sending thread carry out an attempt in which nothing is received; do not wait for it."""
        attempt.is_given = True
        self._jobs.put(attempt)

    def free(self, stuck: Attempt) -> None:
        """Interrupt the streams in which a stopped attempt's threads are stuck; from any thread."""
        receiving, sending = stuck.receiving_from, stuck.sending_to
        if receiving is not None:
            self._streams.drop(receiving.peer, outgoing=False)
        if sending is not None:
            self._streams.drop(sending.peer, incoming=False)
        self._streams.wake()

    @property
    def attempts(self) -> list[Attempt]:
        """Return what the threads are in: none, one, or two where one was stopped and a thread is not out of it yet."""
        return list(dict.fromkeys(attempt for attempt in (self._receiving, self._sending) if attempt is not None))

    def close(self) -> None:
        """End the thread and free the streams."""
        attempts = self.attempts
        for attempt in attempts:
            attempt.stop()
        self._jobs.put(None)
        self._streams.close(lambda: self._thread.join(JOIN_S), is_busy=bool(attempts))

    # ---- sending ----------------------------------------------------------------------------------------------

    def _send_for_good(self) -> None:
        while (attempt := self._jobs.get()) is not None:
            self._sending = attempt
            begun: dict[PeerId, Outgoing] = {}
            try:
                self._send_all(attempt, begun)
                if attempt.is_given:
                    attempt.on_given()
            except Halted:
                self._say_halt(attempt, begun)
            except BaseException as error:  # handed to the caller's thread, which raises it
                attempt.crash = error
                attempt.stop()
                self.free(attempt)
            finally:
                attempt.sending_to = None
                self._sending = None
                attempt.sender_is_out()

    def _send_all(self, attempt: Attempt, begun: dict[PeerId, Outgoing]) -> None:
        if attempt.is_given:
            attempt.prepare_alone()
        parties = attempt.others()
        opened = self._streams.outgoing([party.peer for party in parties], lambda: attempt.is_stopped)
        for party in parties:
            with self._sending_to(attempt, party):
                outgoing = opened[party.peer]
                if isinstance(outgoing, Unavailable):
                    raise outgoing
                outgoing.say(attempt.begin)
                begun[party.peer] = outgoing
        attempt.wait_until_prepared()
        self._send_chunks(attempt, begun)
        attempt.check()
        if attempt.is_closing:
            attempt.wait_for_received(len(attempt.run.program.receives))
            done = Done(attempt.begin.sequence, attempt.begin.epoch)
            for party in parties:
                with self._sending_to(attempt, party):
                    begun[party.peer].say(done)

    def _send_chunks(self, attempt: Attempt, begun: Mapping[PeerId, Outgoing]) -> None:
        """Send by the program. What is done for each chunk is few words: the cache has just been swept by the last one."""
        run, payload, parties = attempt.run, attempt.buffers.payload, attempt.parties
        streams = {place: begun[party.peer].stream for place, party in enumerate(parties) if party.peer in begun}
        try:
            for send in run.program.sends:
                if send.needs > run.num_received:
                    attempt.wait_for_received(send.needs)
                if attempt.is_stopped:
                    raise Halted
                attempt.sending_to = parties[send.to]
                streams[send.to].send(payload(send))
                attempt.note_sent()
        except (Unavailable, PeerError, Malformed) as error:
            self._blame(attempt, attempt.sending_to, error, is_sending=True)

    def _sending_to(self, attempt: Attempt, party: Party) -> contextlib.AbstractContextManager[None]:
        attempt.sending_to = party
        return self._dealing(attempt, party, is_sending=True)

    def _say_halt(self, attempt: Attempt, begun: Mapping[PeerId, Outgoing]) -> None:
        """Wake those who wait for what will not come."""
        halt = Halt(attempt.begin.sequence, attempt.begin.epoch)
        for party in attempt.others():
            if party.peer in begun and (attempt.failure is None or attempt.failure.rank != party.rank):
                attempt.sending_to = party
                with contextlib.suppress(Unavailable, PeerError):
                    begun[party.peer].say(halt)

    # ---- receiving --------------------------------------------------------------------------------------------

    def _receive_all(self, attempt: Attempt) -> None:
        begun: dict[int, Incoming] = {}
        if attempt.is_meeting:
            self._meet(attempt, begun)
        self._receive_chunks(attempt, begun)
        attempt.check()
        if attempt.is_closing:
            self._hear_done(attempt, begun)
        attempt.receiving_from = None

    def _receive_chunks(self, attempt: Attempt, begun: dict[int, Incoming]) -> None:
        """Receive by the program; see `_send_chunks`."""
        run, buffers, parties = attempt.run, attempt.buffers, attempt.parties
        try:
            for receive in run.program.receives:
                if receive.needs > run.num_sent:
                    attempt.wait_for_sent(receive.needs)
                if attempt.is_stopped:
                    raise Halted
                attempt.receiving_from = party = parties[receive.sender]
                incoming = begun.get(receive.sender)
                if incoming is None:
                    begun[receive.sender] = incoming = self._await_begin(attempt, party)
                room = buffers.room(receive)
                size = incoming.stream.receive(room) if len(room) >= MAX_CONTROL_BYTES else self._small(incoming, room)
                if size <= MAX_CONTROL_BYTES:
                    self._look(incoming, room[:size])
                buffers.arrived(receive, size)
                attempt.note_received()
        except (Unavailable, PeerError, Malformed) as error:
            self._blame(attempt, attempt.receiving_from, error, is_sending=False)

    def _meet(self, attempt: Attempt, begun: dict[int, Incoming]) -> None:
        """Hear from everybody, and make the work of what they say they weigh."""
        weights = [attempt.begin.weight] * len(attempt.parties)
        for place, party in enumerate(attempt.parties):
            if place != attempt.place:
                with self._receiving_from(attempt, party):
                    begun[place] = incoming = self._await_begin(attempt, party)
                    assert incoming.begun is not None
                    weights[place] = weight = incoming.begun.weight
                    if not MIN_WEIGHT <= weight <= 1 / MIN_WEIGHT:
                        raise Malformed(f"it says that its input weighs {weight}")
        attempt.prepare(weights)

    def _hear_done(self, attempt: Attempt, begun: dict[int, Incoming]) -> None:
        """Hear from everybody that all is done there."""
        for place, party in enumerate(attempt.parties):
            if place != attempt.place:
                with self._receiving_from(attempt, party):
                    incoming = begun.get(place) or self._await_begin(attempt, party)
                    size = incoming.stream.receive(self._room)
                    said = incoming.control(self._room[:size])
                    if isinstance(said, Begin):
                        incoming.begun = said
                    if not isinstance(said, Done):
                        raise Halted

    def _await_begin(self, attempt: Attempt, party: Party) -> Incoming:
        """Discard what comes from a peer until it begins this attempt.

        A stream that ends before is a rest of an earlier attempt, which cost it: the peer opens another when it begins.
        """
        ours = attempt.begin
        while (incoming := self._streams.incoming(party.peer, lambda: attempt.is_stopped)) is not None:
            try:
                while incoming.begun is None or incoming.begun.number < ours.number:
                    self._skip(attempt, incoming)
            except Unavailable:
                self._streams.discard(party.peer, incoming)
                continue
            if incoming.begun.number > ours.number:
                raise Halted  # the others have gone on, and we shall hear of it
            compare(ours, incoming.begun, party)
            return incoming
        raise Halted

    def _skip(self, attempt: Attempt, incoming: Incoming) -> None:
        size = incoming.stream.receive(self._room)
        said = incoming.control(self._room[:size])
        if isinstance(said, Begin):
            incoming.begun = said
        if attempt.is_stopped:
            raise Halted

    def _small(self, incoming: Incoming, room: memoryview) -> int:
        """Receive a chunk so small that a frame of the peer's own would not fit into its room."""
        size = incoming.stream.receive(self._room)
        self._look(incoming, self._room[:size])
        if size > len(room):
            raise Malformed(f"{size} bytes where at most {len(room)} were due")
        room[:size] = self._room[:size]
        return size

    def _look(self, incoming: Incoming, frame: memoryview) -> None:
        """Raise `Halted` where a frame is not data: either it is a `Halt`, or a later attempt has begun there."""
        said = incoming.control(frame)
        if isinstance(said, Begin):
            incoming.begun = said
        if said is not None:
            raise Halted

    def _receiving_from(self, attempt: Attempt, party: Party) -> contextlib.AbstractContextManager[None]:
        attempt.receiving_from = party
        return self._dealing(attempt, party, is_sending=False)

    # ---- what goes wrong --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _dealing(self, attempt: Attempt, party: Party, *, is_sending: bool) -> Iterator[None]:
        """What goes wrong within is the peer's doing, and stops the attempt."""
        try:
            yield
        except (Unavailable, PeerError, Malformed) as error:
            self._blame(attempt, party, error, is_sending=is_sending)

    def _blame(self, attempt: Attempt, party: Party | None, error: Exception, *, is_sending: bool) -> NoReturn:
        assert party is not None
        trouble = Trouble.BROKEN if isinstance(error, Unavailable) else Trouble.DAMAGED
        self._streams.drop(party.peer, outgoing=is_sending, incoming=not is_sending)
        attempt.fail(party, trouble, error)
        self._streams.wake()
        raise Halted from error


def compare(ours: Begin, theirs: Begin, party: Party) -> None:
    """Raise `ConfigError` where a peer is in the same collective and does something else."""
    if ours.call != theirs.call:
        raise ConfigError(
            f"collective {ours.sequence} is {ours.call} here and {theirs.call} at rank {party.rank}. All ranks must "
            "call the same collectives in the same order."
        )
    if ours.digest != theirs.digest:
        raise ConfigError(
            f"rank {party.rank} is in another group of the same name, or carries out {ours.call} in another way. "
            "Close all and start again."
        )
