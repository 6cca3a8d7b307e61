"""One rank's part in outliving failures of a collective: who is in, redo or hand on, go. No I/O, no clock, no tensors.

Theory of operation. The ranks of a group run collectives 1, 2, 3 ... As long as all is well this machine sends nothing:
a rank whose user calls starts, and a rank that has the whole result delivers it. No barrier comes before, no commit after.
So one rank may have a result, and be in the next collective already, while another fails; never more than one ahead, as
nobody completes a collective before all have called it. Each rank keeps its last result for that.

When something fails, the group makes one decision; decision 1, 2, 3 ... begins epoch 1, 2, 3 ... It says who is in from
here on, how much they weigh, and whether the newest result is handed on. Attempts are numbered by the epoch, so nothing
of an older one is taken for a new one. Who has called a collective that it has no result of starts it anew in the epoch;
who has not, when it does. If any member has the newest result, it stands, and those that lack it get it from the lowest
that has it; else nobody has delivered it, and it is redone among the members, with their weights.

A decision is one instance of Paxos (Lamport 1998) among the ranks that the decision before names:

    failed, or a link breaks   stop; Alarm to all; the lowest rank that is not down leads
    Alarm                      stop; pass it on to the leader, to which its sender may have no link
    Collect(ballot)            leader -> all: stop, promise to follow no older ballot, report
    Report(ballot)             all -> leader: the promise, what I have, what went wrong, what I have accepted
    Propose(ballot, decision)  leader -> who reported: what was accepted in the newest ballot, or a judgement of its own
    Accept(ballot)             member -> leader
    Decided(decision)          leader -> all; and anybody to a rank that speaks of an older epoch: go, or you are out

What a rank does (anything else is ignored):

    state     event                                   then
    settled   entered, nothing outdated               Start
    settled   completed the running attempt           Deliver; or Start the next, if it was only handing on
    settled   failed; link down while busy;           Stop, alarm; stopped
              entered with a link down or a new weight
    settled   Alarm, Collect                          Stop; stopped
    stopped   Collect(b), b >= promised               promised = b; report
    stopped   Propose(b, x), b = promised             accepted = (b, x); accept
    stopped   leader silent for takeover_timeout_s    the next rank leads, with a higher ballot
    stopped   Decided(x), we are in                   epoch = x.number; Start what x and the user ask for; settled
    any       Decided(x), we are not in               Ended
    stopped   no decision for quorum_timeout_s, or    Ended
              no quorum in reach for alone_timeout_s

Deadlines. The leader waits `report_timeout_s` for those that may be alive, and not at all for a rank to which nobody who
reported has a link. Those that report are then judged (`survival_blame`). A rank whose user has not called is no failure:
nothing is timed here before somebody complains, and if all that is wrong is that a user is late, the leader waits for it.

Four races, and what prevents them:

1. A result that comes after the promise. (a) B's thread completes 7; (b) before that is told here, Collect comes, and B
   reports that it lacks 7; (c) the decision is to redo 7 without the dead C; (d) B is told, and delivers the sum with C in
   it, while the others get one without. So a stop forgets the running attempt, `completed` is heard of that one only, and
   the user gets nothing before `Deliver`.
2. Two leaders. (a) A collects, stalls; (b) B takes over, collects from C and decides; (c) A wakes up and proposes another
   decision to C. C has promised B's higher ballot, so it refuses; a quorum that accepts A's shares a rank with B's.
3. A leader that dies while it says go. (a) A's decision is accepted by all, A tells B, and dies; (b) B starts; (c) C leads
   the next ballot without having heard. B or whoever accepted reports it, so C proposes that same one, though it names A.
4. A member that fails while it is decided that it is in: its link breaks after its report, or after an older leader's
   proposal. No event about it is still to come when the epoch begins. So who sees a member down that the decision does
   not excuse, or has a weight other than in it, raises the alarm again at once.
"""

from collections.abc import Callable, Mapping
from typing import Final

from barnraise.collective.survival_attempts import Attempts
from barnraise.collective.survival_blame import is_quorum
from barnraise.collective.survival_effects import (
    PATIENCE,
    Effect,
    Ended,
    Lost,
    Named,
    Patience,
    Tell,
)
from barnraise.collective.survival_lead import Lead
from barnraise.collective.survival_messages import (
    MAX_RANKS,
    MAX_REASON_CHARS,
    Accept,
    Accepted,
    Alarm,
    Ballot,
    Collect,
    Complaint,
    Decided,
    Decision,
    Fault,
    GaveUp,
    Message,
    Propose,
    Refuse,
    Report,
)
from barnraise.collective.survival_promise import Promise
from barnraise.errors import LocalError

MAX_WAIT_S: Final = 1e6
"""A user's patience, as it is told: one that is endless is as good as this."""

MAX_JUMP: Final = 1024
"""Ballots and decisions that a rank may have missed. What a peer says must not bring ours to the end of `Count`."""


class Survival:
    """One rank of one group.

    Args:
        rank: This one.
        weights: Of all ranks that form the group, this one among them.
        patience: Its deadlines.
        waits_for: Returns whose chunk is due in the attempt that runs; None: nobody's, as where a send is stuck.

    Every event returns effects, to be carried out in order. After `Ended` all events return nothing but answers to ranks
    that are behind.
    """

    def __init__(
        self,
        *,
        rank: int,
        weights: Mapping[int, int],
        patience: Patience = PATIENCE,
        waits_for: Callable[[], int | None] = lambda: None,
    ) -> None:
        if rank not in weights or not 0 <= min(weights) <= max(weights) < MAX_RANKS:
            raise LocalError(f"rank {rank} in a group of {sorted(weights)}: at most {MAX_RANKS} ranks, from 0")
        self.rank = rank
        self.ended: str | None = None
        """Why this rank takes part no more."""
        self._patience = patience
        self._waits_for = waits_for
        self._group = frozenset(weights)
        self._weight = weights[rank]
        self._waits_until: float | None = None
        """When the user is tired of waiting for others to call."""
        self._attempts = Attempts(rank, weights)
        self._last: Decision | None = None
        self._down: dict[int, str] = {}
        self._left: set[int] = set()
        self._excused: set[int] = set()
        self._promise = Promise()
        self._lead: Lead | None = None
        self._alone_since: float | None = None
        """Since when too few are in reach for any decision."""

    @property
    def weights(self) -> dict[int, int]:
        """Return the weights of the ranks that are in."""
        return self._attempts.weights

    @property
    def epoch(self) -> int:
        """Return how many decisions were made."""
        return self._attempts.epoch

    @property
    def done(self) -> int:
        """Return the last collective that was delivered here."""
        return self._attempts.done

    @property
    def called(self) -> int:
        """Return the last one that the user called."""
        return self._attempts.called

    @property
    def is_settled(self) -> bool:
        """Tell whether nothing is being decided. A rank that leaves may only say so when it is settled."""
        return self._promise.stopped_at is None

    # ---- what the user and the data plane do ------------------------------------------------------------------

    def entered(self, now: float, sequence: int, weight: int, user_timeout_s: float | None = None) -> list[Effect]:
        """Note that the user calls the next collective.

        A weight that the others do not know costs them an attempt: it is agreed like a failure, without a culprit.

        Args:
            now: Seconds.
            sequence: The collective.
            weight: How much the user's vector weighs.
            user_timeout_s: How long this user waits for those that have not called; None: as `Patience` says.

        Raises:
            LocalError: the one before is not delivered, or was not called.
        """
        if self.ended is not None:
            return [Ended(self.ended)]
        self._attempts.call(sequence)
        self._weight = weight
        self._waits_until = None if user_timeout_s is None else now + user_timeout_s
        if not self.is_settled:
            return self._report_again(now)
        if self._is_outdated:
            return self._alarm(now)
        return [] if self._attempts.running is not None else self._attempts.start()

    def completed(self, now: float, sequence: int, attempt: int) -> list[Effect]:
        """Note that an attempt came to its end here: the result is whole, or handed on. `Deliver` makes it the user's."""
        plan = self._attempts.running
        if plan is None or (plan.sequence, plan.attempt) != (sequence, attempt):
            return []  # Race 1: it was stopped, and reported as incomplete.
        return self._attempts.complete()

    def failed(
        self, now: float, sequence: int, attempt: int, fault: Fault, rank: int | None, reason: str
    ) -> list[Effect]:
        """Note that something in an attempt went wrong here.

        Args:
            now: Seconds.
            sequence: Of the attempt; perhaps one that is complete here and whose last sends broke.
            attempt: Of the attempt.
            fault: What it was.
            rank: Whose fault it seems: the other end of the stream, the chunk's sender, who is waited for. None: ours.
            reason: For the log.
        """
        if self.ended is not None or not self.is_settled or attempt != self.epoch or sequence > self.called:
            return []
        accused = self.rank if rank is None else rank
        times = self._attempts.count_fault(fault, accused)
        self._promise.complain(Complaint(fault, sequence, accused, times, reason[:MAX_REASON_CHARS]))
        return self._alarm(now)

    @property
    def _is_outdated(self) -> bool:
        """Tell whether the last decision did not know what is known here, so that there must be another."""
        return self._weight != self.weights[self.rank] or bool(self._down.keys() & self.weights.keys() - self._excused)

    # ---- who is there -----------------------------------------------------------------------------------------

    def peer_up(self, now: float, rank: int) -> list[Effect]:
        """Note that there is a control link to a rank again: it may have missed what was said meanwhile."""
        if rank not in self._left:
            self._down.pop(rank, None)
        self._excused.discard(rank)
        effects: list[Effect] = [] if self._last is None else [Tell(rank, Decided(decision=self._last))]
        if self.ended is not None or self.is_settled or rank not in self.weights:
            return effects
        lead = self._lead
        if lead is None:
            return effects + ([Tell(rank, Alarm(epoch=self.epoch))] if rank == self._leader else [])
        if lead.proposed is None:
            return [*effects, Tell(rank, lead.collect())]
        if rank in lead.reporters:
            return [*effects, Tell(rank, lead.proposal(lead.proposed))]
        return effects

    def peer_down(self, now: float, rank: int, reason: str = "") -> list[Effect]:
        """Note that the control link to a rank broke."""
        why = f"its control link is down: {reason}" if reason else "its control link is down"
        self._down.setdefault(rank, why[:MAX_REASON_CHARS])
        return self._missing(now, rank)

    def left(self, now: float, rank: int) -> list[Effect]:
        """Note that a rank, which was settled, has gone for good and will vote no more."""
        self._left.add(rank)
        self._down[rank] = "it has left"
        return self._missing(now, rank)

    def _missing(self, now: float, rank: int) -> list[Effect]:
        if self.ended is not None or rank not in self.weights:
            return []
        if self.is_settled:
            return self._alarm(now) if self._attempts.is_busy else []
        if self._lead is not None:
            self._lead.forget(rank)
            return self._report_again(now)  # To this rank itself: its own report of who is down counts, too.
        return self._report_again(now) + self._lead_if_due(now)

    # ---- stopping, and following a leader ---------------------------------------------------------------------

    @property
    def _leader(self) -> int:
        return self._promise.leader(self.weights.keys(), self._down.keys())

    def _alarm(self, now: float) -> list[Effect]:
        """Stop, and tell everybody to stop."""
        told = [Tell(rank, Alarm(epoch=self.epoch)) for rank in self.weights if rank != self.rank]
        return [*self._stop(now), *told, *self._lead_if_due(now)]

    def _stop(self, now: float) -> list[Effect]:
        if not self.is_settled:
            return []
        plan = self._attempts.running
        self._promise.stop(now, plan, None if plan is None else self._waits_for())
        return self._attempts.stop()

    def _report(self, now: float, ballot: Ballot) -> Report:
        until = self._waits_until if self._attempts.is_busy else None
        return Report(
            epoch=self.epoch,
            ballot=ballot,
            done=self.done,
            called=self.called,
            weight=self._weight,
            had=self._promise.had,
            waits_for=self._promise.waited_for,
            complaints=self._promise.complaints,
            down=tuple(sorted(self._down.keys() & self.weights.keys())),
            accepted=self._promise.accepted,
            waits_ms=None if until is None else round(1000 * min(max(0.0, until - now), MAX_WAIT_S)),
        )

    def _report_again(self, now: float) -> list[Effect]:
        """Tell the leader what has changed since the promise."""
        ballot = self._promise.ballot
        return [] if ballot is None else self._tell(now, ballot.leader, self._report(now, ballot))

    def _tell(self, now: float, to: int, message: Message) -> list[Effect]:
        """Send a message; one to this rank itself is heard at once."""
        return self.heard(now, to, message) if to == self.rank else [Tell(to, message)]

    def tick(self, now: float) -> list[Effect]:
        """Let time pass: to be called four times in ``report_timeout_s`` or more often."""
        stopped_at = self._promise.stopped_at
        if self.ended is not None or stopped_at is None:
            return []
        near = self.weights.keys() - self._down.keys()
        if is_quorum(self.weights.keys() - self._left, near):
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        is_alone = self._alone_since is not None and now >= self._alone_since + self._patience.alone_timeout_s
        if is_alone or now >= stopped_at + self._patience.quorum_timeout_s:
            return self._give_up(now - stopped_at)
        if self._lead is not None:
            return self._lead_on(now, self._lead)
        if now >= self._promise.heard_leader_at + self._patience.takeover_timeout_s and self._leader != self.rank:
            self._promise.give_up_on(now, self._leader)
            if self._leader != self.rank:
                return [Tell(self._leader, Alarm(epoch=self.epoch))]
        return self._lead_if_due(now)

    def _give_up(self, waited_s: float) -> list[Effect]:
        told = [Tell(rank, GaveUp(epoch=self.epoch)) for rank in self.weights if rank != self.rank]
        near = len(self.weights.keys() - self._down.keys())
        reached = f"{near} of {len(self.weights)} ranks, this one included, can be reached"
        return [*told, *self._end(f"no decision for {waited_s:.1f} s: {reached}")]

    def _end(self, reason: str) -> list[Effect]:
        self.ended = reason
        self._lead = None
        return [Ended(reason)]

    # ---- hearing ----------------------------------------------------------------------------------------------

    def heard(self, now: float, sender: int, message: Message) -> list[Effect]:
        """Note what a rank of the group said."""
        if sender not in self._group or self._is_wild(sender, message):
            return []
        if isinstance(message, Decided):
            return self._decided(now, message.decision)
        if isinstance(message, GaveUp):
            return self.peer_down(now, sender, "it gave up")
        if message.epoch < self.epoch:
            return [Tell(sender, Decided(decision=self._last))] if self._last is not None else []
        effects: list[Effect] = []
        if message.epoch > self.epoch:
            if not isinstance(message, Collect) or message.last is None or message.last.number != message.epoch:
                return [] if self.ended is not None else [Tell(sender, Alarm(epoch=self.epoch))]
            effects = self._decided(now, message.last)
        if self.ended is not None or sender not in self.weights:
            return effects
        return effects + self._heard_now(now, sender, message)

    def _is_wild(self, sender: int, message: Message) -> bool:
        """Tell whether somebody who is out would rule, or counts run away, of which ours must be one more."""
        decision = message.decision if isinstance(message, Decided) else None
        if isinstance(message, Collect):
            decision = message.last
        if decision is not None and decision.number > self.epoch:
            return sender not in self.weights or decision.number > self.epoch + MAX_JUMP
        promised = 0 if self._promise.ballot is None else self._promise.ballot.number
        return isinstance(message, Collect | Refuse) and message.ballot.number > promised + MAX_JUMP

    def _heard_now(self, now: float, sender: int, message: Message) -> list[Effect]:
        """Hear a member about the decision that comes next."""
        match message:
            case Alarm():
                return self._heard_alarm(now, sender)
            case Collect() if message.ballot.leader == sender:
                return self._heard_collect(now, message)
            case Propose() if message.ballot.leader == sender:
                return self._heard_propose(now, message)
            case Report() if self._lead is not None and self._lead.ballot == message.ballot:
                self._lead.report(now, sender, message)
                return self._consider(now, self._lead)
            case Accept() if self._lead is not None and self._lead.ballot == message.ballot:
                decision = self._lead.proposed
                is_decided = self._lead.vote(sender, self._left)
                return self._decided(now, decision) if is_decided and decision is not None else []
            case Refuse() if self._promise.ballot is None or message.ballot > self._promise.ballot:
                self._give_promise(now, message.ballot)
        return []

    def _heard_alarm(self, now: float, sender: int) -> list[Effect]:
        self._promise.alarmed_by.add(sender)
        was_settled = self.is_settled
        effects = [*self._stop(now), *self._lead_if_due(now)]
        if was_settled and self._leader not in (self.rank, sender):
            # Who raised the alarm may have no link to the leader.
            effects.append(Tell(self._leader, Alarm(epoch=self.epoch)))
        return effects

    def _heard_collect(self, now: float, message: Collect) -> list[Effect]:
        ballot, promised = message.ballot, self._promise.ballot
        if promised is not None and ballot < promised:
            return self._tell(now, ballot.leader, Refuse(epoch=self.epoch, ballot=promised))  # Race 2.
        effects = self._stop(now)
        self._give_promise(now, ballot)
        if message.is_patient:
            self._promise.stopped_at = now
        return effects + self._tell(now, ballot.leader, self._report(now, ballot))

    def _give_promise(self, now: float, ballot: Ballot) -> None:
        self._promise.give(now, ballot)
        if ballot.leader != self.rank:
            self._lead = None

    def _heard_propose(self, now: float, message: Propose) -> list[Effect]:
        if not self._promise.accept(now, Accepted(message.ballot, message.decision)):
            return []
        return self._tell(now, message.ballot.leader, Accept(epoch=self.epoch, ballot=message.ballot))

    # ---- going on ---------------------------------------------------------------------------------------------

    def _decided(self, now: float, decision: Decision) -> list[Effect]:
        """Go: what was decided holds from here on."""
        if decision.number <= self.epoch or self.ended is not None:
            return []
        effects = self._stop(now)
        members = {member.rank for member in decision.members}
        told = self.weights.keys() if self._lead is not None else self._promise.alarmed_by - members
        effects += [Tell(rank, Decided(decision=decision)) for rank in sorted(told - {self.rank})]
        effects += [(Lost if v.is_out else Named)(v.rank, v.reason) for v in decision.verdicts]
        self._attempts.decided(decision)
        self._last, self._excused = decision, set(decision.excused)
        self._promise, self._lead = Promise(), None
        if self.rank not in members:
            reason = next((v.reason for v in decision.verdicts if v.rank == self.rank), "it was not heard of")
            return effects + self._end(f"the others go on without this rank: {reason}")
        if self._is_outdated:
            return effects + self._alarm(now)  # Race 4.
        return effects + self._attempts.resume(decision)

    # ---- leading ----------------------------------------------------------------------------------------------

    def _lead_if_due(self, now: float) -> list[Effect]:
        return [] if self._lead is not None or self._leader != self.rank else self._new_ballot(now)

    def _new_ballot(self, now: float) -> list[Effect]:
        promised = self._promise.ballot
        number = 1 if promised is None else promised.number + 1
        self._lead = Lead(Ballot(number, self.rank), self.epoch, self._last, tuple(self.weights), self._patience, now)
        return self._ask(now, self._lead)

    def _ask(self, now: float, lead: Lead) -> list[Effect]:
        lead.asked_at = now
        message = lead.collect()
        asked: list[Effect] = [Tell(rank, message) for rank in self.weights if rank != self.rank]
        return asked + self._tell(now, self.rank, message)

    def _lead_on(self, now: float, lead: Lead) -> list[Effect]:
        if lead.proposed is not None:
            is_late = now >= lead.asked_at + self._patience.report_timeout_s
            return self._new_ballot(now) if is_late else []
        lead.forget_silent(now)
        effects = self._consider(now, lead)
        if self._lead is lead and lead.proposed is None and now >= lead.asked_at + self._patience.report_timeout_s / 2:
            effects += self._ask(now, lead)
        return effects

    def _consider(self, now: float, lead: Lead) -> list[Effect]:
        """Propose, if enough is known."""
        decision = lead.consider(now, self._down, self._left)
        if lead.is_patient and not lead.is_patience_over:
            self._promise.stopped_at = now
        if decision is None:
            return []
        lead.proposed, lead.asked_at = decision, now
        message = lead.proposal(decision)
        told: list[Effect] = [Tell(rank, message) for rank in lead.reporters if rank != self.rank]
        return told + self._tell(now, self.rank, message)
