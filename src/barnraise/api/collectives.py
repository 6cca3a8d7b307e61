"""One rank's collectives, carried out whoever dies: the user's call, the pump's attempts and the agreement on members.

The user's thread enters a collective, carries out the attempts that `Survival` starts, and leaves with the result. The
control plane's thread brings what the others say, and `watch`, which finds attempts that do not move. One lock keeps
`Survival`, which is pure, to itself; its effects are carried out under it, and none of them blocks.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
import structlog

from barnraise.api.attempt import Attempt, Halted, Party, Trouble, Work
from barnraise.api.choice import Choice, goes_by_links
from barnraise.api.plans import HandOn, Input, Plans
from barnraise.api.pump import Pump
from barnraise.api.streams import Begin, Call, Streams
from barnraise.api.vigil import Late, Vigil
from barnraise.collective import adoption
from barnraise.collective.adoption import Adoption
from barnraise.collective.buffers import Buffers, Vector
from barnraise.collective.links import Row
from barnraise.collective.survival import Survival
from barnraise.collective.survival_effects import (
    AttemptPlan,
    Deliver,
    Effect,
    Ended,
    Lost,
    Named,
    Start,
    Stop,
    Tell,
)
from barnraise.collective.survival_messages import Fault, Message
from barnraise.errors import BarnraiseError, ConfigError, LocalError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.seam import LinkSpeed

FREE_S: Final = 0.3
"""A thread that is stuck in an attempt for so long after its stop is freed; both ends then need a new stream."""
SURVEY_S: Final = 1.0
"""Between two looks at our own links."""
HELD_S: Final = 3.0
"""The leader of a graph says within 1 s what becomes of it; who is held back for longer complains of it."""
UNEXPLAINED_S: Final = 3.0
"""Whoever stops an attempt tells all why, at once; the control plane may take its time."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True)
class _Request:
    """What the user's thread is in."""

    sequence: int
    call: Call
    given: Input
    timeout_s: float
    began_s: float


@dataclass(frozen=True, slots=True)
class _Kept:
    """The newest result, while others may lack it."""

    sequence: int
    call: Call
    buffers: Buffers


class Collectives:
    """One rank's end of all collectives of a group.

    Args:
        rank: this one.
        group: the peers by rank.
        streams: between them.
        tell: sends a message to a rank over the control plane, in order; does not block.
        speed: what was measured of the way to a peer.
        survey: returns what was measured of all our ways, by rank; None: nothing was.
        mistaken: told in the user's thread of what no further attempt can heal, for the others to hear of.
    """

    def __init__(
        self,
        *,
        rank: int,
        group: Sequence[PeerId],
        streams: Streams,
        tell: Callable[[int, Message | adoption.Message], None],
        speed: Callable[[PeerId], LinkSpeed | None] = lambda peer: None,
        survey: Callable[[], Row | None] = lambda: None,
        mistaken: Callable[[BarnraiseError], None] = lambda error: None,
    ) -> None:
        self.rank = rank
        self.lost: dict[int, str] = {}
        """Ranks that are out, and why."""
        self._group = tuple(group)
        self._streams = streams
        self._tell = tell
        self._mistaken = mistaken
        self._survey = survey
        self._surveyed_at = -SURVEY_S
        self._pump = Pump(streams)
        self._plans = Plans(group)
        self._changed = threading.Condition(threading.RLock())
        self._survival = Survival(
            rank=rank,
            weights=dict.fromkeys(range(len(group)), 1),
            waits_for=self._whom_we_wait_for,
        )
        self._adoption = Adoption(rank, tuple(self._survival.weights), time.monotonic())
        self._request: _Request | None = None
        self._kept: _Kept | None = None
        self._plan: AttemptPlan | None = None
        """What is to be done now."""
        self._waiting: AttemptPlan | None = None
        """The same, until the user's thread has taken it up."""
        self._attempt: Attempt | None = None
        self._vigil = Vigil(speed)
        self._leavers: set[int] = set()
        """Ranks that have left after they had the result we are still working on."""
        self._failure: BarnraiseError | None = None

    # ---- the user's thread ------------------------------------------------------------------------------------

    @property
    def members(self) -> tuple[int, ...]:
        """Ranks that are in."""
        return tuple(self._survival.weights)

    def carry_out(self, call: Call, given: Input, out: Vector, timeout_s: float) -> None:
        """Carry a collective out and write the result to ``out``, which may be the input and else stays as it is.

        Args:
            call: what it is.
            given: this rank's part in it; is not changed before the result is there.
            out: where the result goes.
            timeout_s: how long to wait for the other ranks' users.

        Raises:
            Unavailable: this rank is out, or too few are left.
            ConfigError: the ranks do not call the same thing.
        """
        try:
            buffers = self._carry_out(call, given, timeout_s)
        except (ConfigError, LocalError) as error:
            self.end(error)
            self._mistaken(error)
            raise
        buffers.write_result(out)
        if given.residual is not None:
            given.residual.commit()

    def _carry_out(self, call: Call, given: Input, timeout_s: float) -> Buffers:
        with self._changed:
            self._raise_if_over()
            now = time.monotonic()
            request = self._request = _Request(self._survival.done + 1, call, given, timeout_s, now)
            if self._survival.called < request.sequence:
                self._do(self._survival.entered(now, request.sequence, 1, timeout_s))
        try:
            while (plan := self._next_plan(request)) is not None:
                self._try(request, plan)
        finally:
            with self._changed:
                self._request = None
        kept = self._kept
        assert kept is not None
        assert kept.sequence == request.sequence
        return kept.buffers

    def _next_plan(self, request: _Request) -> AttemptPlan | None:
        """Wait for an attempt to make; None: the result is here."""
        with self._changed:
            while True:
                if self._survival.done >= request.sequence:
                    return None
                if self._failure is not None:
                    raise self._failure
                self._raise_if_over()
                if (plan := self._waiting) is not None and not self._is_held(request):
                    self._waiting = None
                    return plan
                self._changed.wait()

    def _is_held(self, request: _Request) -> bool:
        """Tell whether we have promised not to begin this before we hear which links all plan by."""
        return goes_by_links(request.call) and self._adoption.must_wait(request.sequence)

    def _try(self, request: _Request, plan: AttemptPlan) -> None:
        """Make one attempt, which may come to nothing."""
        if hopeless := _hopeless(plan, request.call):
            self._give_up(plan, hopeless)
        attempt = self._attempt_of(plan, request.call, request.given)
        with self._changed:
            if self._plan is not plan:
                return
            self._attempt = attempt
        try:
            self._pump.carry_out(attempt)
        except Halted:
            return
        except BaseException as error:
            self._note_failure(plan, Fault.BROKEN, None, f"was interrupted: {error}")
            raise
        with self._changed:
            effects = self._survival.completed(time.monotonic(), plan.sequence, plan.attempt)
            if effects:
                self._plan = None
                self._kept = _Kept(plan.sequence, request.call, attempt.buffers)
            self._do(effects)
            self._settle_leavers()

    def _give_up(self, plan: AttemptPlan, reason: str) -> NoReturn:
        """Let this collective have no result here; all who get this plan do so, and the next one is like any other."""
        with self._changed:
            self._do(self._survival.completed(time.monotonic(), plan.sequence, plan.attempt))
            self._plan = None
        raise Unavailable(reason)

    def _attempt_of(self, plan: AttemptPlan, call: Call, given: Input, finished: Buffers | None = None) -> Attempt:
        members = tuple(member.rank for member in plan.members)
        place = members.index(self.rank)
        hand_on = None
        if plan.holder is not None:
            hand_on = HandOn(members.index(plan.holder), tuple(members.index(rank) for rank in plan.incomplete))
        made = self._plans.plan(call, members, place, hand_on, self._graph_for(plan, call))

        def prepare(weights: Sequence[float]) -> Work:
            if hand_on is not None:
                return self._plans.handing_on(made, call, given.vector, plan.sequence, finished)
            return self._plans.work(made, call, given, weights, plan.sequence)

        has_parts = call.operation.startswith("reduce_scatter")
        return Attempt(
            begin=Begin(plan.sequence, plan.attempt, made.digest, call, given.weight),
            parties=[Party(rank, self._group[rank]) for rank in members],
            place=place,
            prepare=prepare,
            # Of a root, or of an all-gather's owner of all there is, nobody else would be heard: it would run ahead.
            is_meeting=hand_on is None
            and (call.is_weighted or call.operation in ("barrier", "broadcast", "all_gather")),
            is_closing=hand_on is None and has_parts,
            on_failure=lambda failed: self._attempt_failed(plan, failed),
            on_given=lambda: self._has_given(plan),
        )

    def _graph_for(self, plan: AttemptPlan, call: Call) -> adoption.Graph | None:
        with self._changed:
            return self._adoption.at(plan.attempt, plan.sequence) if goes_by_links(call) else None

    def choice(self, call: Call) -> Choice:
        """Return how an all-reduce would go by the links as they are known now, and why. In any thread."""
        with self._changed:
            members, graph = self.members, self._adoption.newest
        return self._plans.choice(call, members, graph)

    def _attempt_failed(self, plan: AttemptPlan, attempt: Attempt) -> None:
        """Pass on what a thread of the pump found."""
        failure = attempt.failure
        if failure is not None:
            fault = Fault.DAMAGED if failure.trouble is Trouble.DAMAGED else Fault.BROKEN
            self._note_failure(plan, fault, failure.rank, failure.reason)

    def _note_failure(self, plan: AttemptPlan, fault: Fault, rank: int | None, reason: str) -> None:
        with self._changed:
            self._settle_leavers()
            self._do(self._survival.failed(time.monotonic(), plan.sequence, plan.attempt, fault, rank, reason))

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            raise Unavailable(f"the group has ended: {self._failure} Close it and open another.") from self._failure
        if self._survival.ended is not None:
            raise Unavailable(f"the group has ended for this rank: {self._survival.ended}. Close it and open another.")

    # ---- what is heard and seen -------------------------------------------------------------------------------

    def heard(self, rank: int, message: Message) -> None:
        """Note what a rank said about members."""
        with self._changed:
            self._do(self._survival.heard(time.monotonic(), rank, message))

    def heard_of_links(self, rank: int, message: adoption.Message) -> None:
        """Note what a rank said about links."""
        with self._changed:
            self._tell_all(self._adoption.heard(time.monotonic(), rank, message, self._survival.called))

    def accuse(self, rank: int, reason: str) -> None:
        """Note that what a rank said makes no sense. Who does so twice in a row is left out."""
        with self._changed:
            survival = self._survival
            if rank in survival.weights:
                now = time.monotonic()
                self._do(survival.failed(now, survival.called, survival.epoch, Fault.DAMAGED, rank, reason))

    def peer_up(self, rank: int) -> None:
        """Note that a rank is connected."""
        with self._changed:
            self._do(self._survival.peer_up(time.monotonic(), rank))

    def peer_down(self, rank: int, reason: str) -> None:
        """Note that a rank is not connected any more."""
        self._streams.drop(self._group[rank])
        with self._changed:
            self._do(self._survival.peer_down(time.monotonic(), rank, reason))

    def left(self, rank: int, done: int) -> None:
        """Note that a rank has left, and the last collective whose result it took along."""
        with self._changed:
            if self._attempt is not None and self._survival.is_settled and done > self._survival.done:
                self._leavers.add(rank)  # it has sent all that it owed; what is under way need not stop
            else:
                self._do(self._survival.left(time.monotonic(), rank))

    def _settle_leavers(self) -> None:
        leavers, self._leavers = self._leavers, set()
        for rank in leavers:
            self._do(self._survival.left(time.monotonic(), rank))

    @property
    def is_settled(self) -> bool:
        """Tell whether nothing is being decided: else our vote is still wanted."""
        return self._survival.is_settled or self._survival.ended is not None

    @property
    def epoch(self) -> int:
        """Return how many decisions on members were made."""
        return self._survival.epoch

    @property
    def is_new(self) -> bool:
        """Tell whether nothing was called or decided yet: a rank whose process is another one by now has missed nothing."""
        return self._survival.called == self._survival.epoch == 0 and self._survival.is_settled

    @property
    def done(self) -> int:
        """Return the last collective whose result is here."""
        return self._survival.done

    def watch(self) -> None:
        """Look whether the attempt moves; to be called a few times a second."""
        now = time.monotonic()
        for stuck in self._pump.attempts:
            if stuck.is_stopped and self._vigil.stands_for(stuck, now) > FREE_S:
                self._pump.free(stuck)
        row = self._own_row(now)
        with self._changed:
            self._do(self._survival.tick(now))
            if row is not None:
                self._tell_all(self._adoption.measured(now, row, self._survival.called))
            self._tell_all(self._adoption.tick(now, self._survival.called))
            self._complain(now)

    def _own_row(self, now: float) -> Row | None:
        if now < self._surveyed_at + SURVEY_S and self._adoption.newest is not None:
            return None
        self._surveyed_at = now
        return self._survey()

    def _complain(self, now: float) -> None:
        """Note who holds us up, if that is for too long."""
        plan, attempt, request = self._plan, self._attempt, self._request
        if plan is None:
            return
        late: Late | None = None
        if request is not None and plan is self._waiting and self._is_held(request):
            late = self._late_with_links(now, request)
        elif attempt is not None and self._is_of(attempt, plan) and attempt.is_stopped:
            late = self._late_with_reasons(now, attempt)
        elif attempt is not None and self._is_of(attempt, plan):
            give_up_at = math.inf if request is None else request.began_s + request.timeout_s
            late = self._vigil.late(
                attempt,
                now,
                lambda peer: plan.is_hand_on or self._streams.has_begun(peer, plan.sequence),
                give_up_at,
            )
        if late is not None:
            self._note_failure(plan, late.fault, late.rank, late.reason)

    def _late_with_links(self, now: float, request: _Request) -> Late | None:
        promised_at = self._adoption.promised_at
        if promised_at is None or now <= max(promised_at, request.began_s) + HELD_S:
            return None
        return Late(Fault.STALLED, self._adoption.leader, f"has not said for {HELD_S:g} s which links all plan by")

    def _late_with_reasons(self, now: float, attempt: Attempt) -> Late | None:
        """Return who said that it has stopped, or gone on, to us alone: nobody has raised the alarm."""
        party = attempt.waits_for
        if party is None or self._failure is not None or self._vigil.stands_for(attempt, now) <= UNEXPLAINED_S:
            return None
        return Late(Fault.BROKEN, party.rank, f"stopped an attempt and has not said why for {UNEXPLAINED_S:g} s")

    def _whom_we_wait_for(self) -> int | None:
        late = None if self._attempt is None else self._attempt.waits_for
        return None if late is None else late.rank

    # ---- effects ----------------------------------------------------------------------------------------------

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Tell(to, message):
                    self._tell(to, message)
                case Start(plan):
                    self._start(plan)
                case Stop():
                    self._plan = self._waiting = None
                    if self._attempt is not None:
                        self._attempt.stop()
                        self._streams.wake()
                case Deliver():
                    self._attempt = None
                case Lost(rank, reason):
                    self.lost[rank] = reason
                    _log.warning("context.lost", rank=rank, peer=self._group[rank], reason=reason)
                    self._streams.drop(self._group[rank])
                case Named(rank, reason):
                    _log.warning("context.at_fault", rank=rank, peer=self._group[rank], reason=reason)
                case Ended():
                    pass
        if effects:
            self._changed.notify_all()
        survival = self._survival
        if survival.epoch != self._adoption.epoch and survival.ended is None:
            now = time.monotonic()
            self._tell_all(self._adoption.decided(now, survival.epoch, self.members, survival.called))

    def _tell_all(self, effects: Sequence[adoption.Tell]) -> None:
        """Say what there is to say about links, and let who was held back look."""
        for effect in effects:
            self._tell(effect.to, effect.message)
        self._changed.notify_all()

    def _start(self, plan: AttemptPlan) -> None:
        self._plan = plan
        if plan.holder != self.rank:
            self._waiting = plan
            return
        kept = self._kept
        if kept is None or kept.sequence != plan.sequence or _hopeless(plan, kept.call):
            # Nobody waits for it: we gave it up, and by this plan so do the others.
            self._do(self._survival.completed(time.monotonic(), plan.sequence, plan.attempt))
            return
        nothing = Input(vector=np.empty(0, kept.call.dtype))
        self._attempt = self._attempt_of(plan, kept.call, nothing, kept.buffers)
        self._pump.give(self._attempt)

    def _has_given(self, plan: AttemptPlan) -> None:
        """Note that a result was handed on."""
        with self._changed:
            self._do(self._survival.completed(time.monotonic(), plan.sequence, plan.attempt))

    def _is_of(self, attempt: Attempt, plan: AttemptPlan) -> bool:
        return (attempt.begin.sequence, attempt.begin.epoch) == (plan.sequence, plan.attempt)

    # ---- the end ----------------------------------------------------------------------------------------------

    def end(self, failure: BarnraiseError) -> None:
        """Let the call under way and all later ones raise this."""
        with self._changed:
            if self._failure is None:
                self._failure = failure
            if self._attempt is not None:
                self._attempt.stop()
            self._streams.wake()
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads and the streams."""
        self.end(Unavailable("this context was closed. Open another."))
        self._pump.close()


def _hopeless(plan: AttemptPlan, call: Call) -> str:
    """Return why nothing can come of a plan, by what every member knows of it; "" if something can."""
    if call.operation == "broadcast" and call.root not in {member.rank for member in plan.members}:
        return f"rank {call.root}, whose tensor was to be sent to all, is lost"
    if plan.is_hand_on and call.operation.startswith("reduce_scatter"):
        return (
            "a rank was lost when others had their parts already, which nobody else has. What this rank brought in is as "
            "it was; agree with the others on tensors that all hold, and call it again"
        )
    return ""
