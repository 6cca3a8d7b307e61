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
    stopped   no decision for quorum_timeout_s        Ended

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

from barnraise.collective.survival_effects import (
    PATIENCE,
    AttemptPlan,
    Deliver,
    Effect,
    Ended,
    Lost,
    Named,
    Patience,
    Start,
    Stop,
    Tell,
)
from barnraise.collective.survival_lead import Lead
from barnraise.collective.survival_messages import (
    MAX_COMPLAINTS,
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
    Member,
    Message,
    Propose,
    Refuse,
    Report,
    Work,
)
from barnraise.errors import LocalError


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
        self.weights = dict(sorted(weights.items()))
        """Of the ranks that are in."""
        self.epoch = 0
        """Decisions made."""
        self.done = 0
        """The last collective that was delivered here."""
        self.called = 0
        """The last one that the user called."""
        self.ended: str | None = None
        """Why this rank takes part no more."""
        self._patience = patience
        self._ask_waits_for = waits_for
        self._group = frozenset(weights)
        self._weight = weights[rank]
        self._last: Decision | None = None
        self._running: AttemptPlan | None = None
        self._hand_on: AttemptPlan | None = None
        self._down: dict[int, str] = {}
        self._left: set[int] = set()
        self._excused: set[int] = set()
        self._times: dict[tuple[Fault, int], int] = {}
        self._forget_the_decision()

    def _forget_the_decision(self) -> None:
        """Forget what belonged to the decision that was just made."""
        self._stopped_at: float | None = None
        self._promised: Ballot | None = None
        self._accepted: Accepted | None = None
        self._complaints: dict[tuple[Fault, int], Complaint] = {}
        self._had = Work.NOTHING
        self._waits_for: int | None = None
        self._heard_leader_at = 0.0
        self._silent: set[int] = set()
        self._alarmed_by: set[int] = set()
        self._lead: Lead | None = None

    @property
    def is_settled(self) -> bool:
        """Tell whether nothing is being decided. A rank that leaves may only say so when it is settled."""
        return self._stopped_at is None

    @property
    def members(self) -> tuple[Member, ...]:
        """Return who is in, ascending."""
        return tuple(Member(rank, weight) for rank, weight in self.weights.items())

    # ---- what the user and the data plane do ------------------------------------------------------------------

    def entered(self, now: float, sequence: int, weight: int) -> list[Effect]:
        """Note that the user calls the next collective, and how much its vector weighs.

        A weight that the others do not know costs them an attempt: it is agreed like a failure, without a culprit.

        Raises:
            LocalError: the one before is not delivered, or was not called.
        """
        if self.ended is not None:
            return [Ended(self.ended)]
        if sequence != self.done + 1 or sequence == self.called:
            raise LocalError(f"collective {sequence} was called after {self.done} and {self.called}")
        self.called, self._weight = sequence, weight
        if self._stopped_at is not None:
            return self._report_again(now)
        if self._is_outdated:
            return self._alarm(now)
        return [] if self._running is not None else self._start_next()

    def completed(self, now: float, sequence: int, attempt: int) -> list[Effect]:
        """Note that an attempt came to its end here: the result is whole, or handed on. `Deliver` makes it the user's."""
        plan = self._running
        if plan is None or (plan.sequence, plan.attempt) != (sequence, attempt):
            return []  # Race 1: it was stopped, and reported as incomplete.
        self._running = None
        if plan.holder == self.rank:
            return self._start_next()
        self.done, self._hand_on = sequence, None
        if not plan.is_hand_on:
            self._times.clear()
        return [Deliver(sequence)]

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
        if self.ended is not None or self._stopped_at is not None or attempt != self.epoch or sequence > self.called:
            return []
        key = (fault, self.rank if rank is None else rank)
        self._times[key] = self._times.get(key, 0) + 1
        if len(self._complaints) < MAX_COMPLAINTS:
            self._complaints[key] = Complaint(fault, sequence, key[1], self._times[key], reason[:MAX_REASON_CHARS])
        return self._alarm(now)

    def _start_next(self) -> list[Effect]:
        """Start what the user waits for, if anything."""
        if self.called == self.done:
            return []
        if self._hand_on is not None and self._hand_on.sequence == self.called:
            self._running = self._hand_on
        else:
            self._running = AttemptPlan(sequence=self.called, attempt=self.epoch, members=self.members)
        return [Start(self._running)]

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
        if self.ended is not None or self._stopped_at is None or rank not in self.weights:
            return effects
        lead = self._lead
        if lead is None:
            return effects + ([Tell(rank, Alarm(epoch=self.epoch))] if rank == self._leader else [])
        if lead.proposed is None:
            return [*effects, Tell(rank, self._collect(lead))]
        if rank in lead.reporters:
            return [*effects, Tell(rank, self._proposal(lead, lead.proposed))]
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
        if self._stopped_at is None:
            is_busy = self._running is not None or self.called > self.done
            return self._alarm(now) if is_busy else []
        if self._lead is not None:
            self._lead.forget(rank)
            return self._report_again(now)  # To this rank itself: its own report of who is down counts, too.
        return self._report_again(now) + self._lead_if_due(now)

    # ---- stopping, and following a leader ---------------------------------------------------------------------

    @property
    def _leader(self) -> int:
        """Return whom this rank follows: whom it promised to, or the lowest one; but nobody who is down or silent."""
        lost = self._down.keys() | self._silent
        if self._promised is not None and self._promised.leader not in lost:
            return self._promised.leader
        return min(self.weights.keys() - lost)

    def _alarm(self, now: float) -> list[Effect]:
        """Stop, and tell everybody to stop."""
        told = [Tell(rank, Alarm(epoch=self.epoch)) for rank in self.weights if rank != self.rank]
        return [*self._stop(now), *told, *self._lead_if_due(now)]

    def _stop(self, now: float) -> list[Effect]:
        if self._stopped_at is not None:
            return []
        self._stopped_at = self._heard_leader_at = now
        plan = self._running
        if plan is None:
            return []
        self._had = Work.HAND_ON if plan.is_hand_on else Work.COLLECTIVE
        self._waits_for, self._running = self._ask_waits_for(), None
        return [Stop(plan.sequence, plan.attempt)]

    def _report(self, ballot: Ballot) -> Report:
        return Report(
            epoch=self.epoch,
            ballot=ballot,
            done=self.done,
            called=self.called,
            weight=self._weight,
            had=self._had,
            waits_for=self._waits_for,
            complaints=tuple(self._complaints.values()),
            down=tuple(sorted(self._down.keys() & self.weights.keys())),
            accepted=self._accepted,
        )

    def _report_again(self, now: float) -> list[Effect]:
        """Tell the leader what has changed since the promise."""
        if self._promised is None:
            return []
        return self._tell(now, self._promised.leader, self._report(self._promised))

    def _tell(self, now: float, to: int, message: Message) -> list[Effect]:
        """Send a message; one to this rank itself is heard at once."""
        return self.heard(now, to, message) if to == self.rank else [Tell(to, message)]

    def tick(self, now: float) -> list[Effect]:
        """Let time pass: to be called four times in ``report_timeout_s`` or more often."""
        if self.ended is not None or self._stopped_at is None:
            return []
        if now >= self._stopped_at + self._patience.quorum_timeout_s:
            return self._give_up()
        if self._lead is not None:
            return self._lead_on(now)
        if now >= self._heard_leader_at + self._patience.takeover_timeout_s and self._leader != self.rank:
            self._silent.add(self._leader)
            self._heard_leader_at = now
            if self._leader != self.rank:
                return [Tell(self._leader, Alarm(epoch=self.epoch))]
        return self._lead_if_due(now)

    def _give_up(self) -> list[Effect]:
        told = [Tell(rank, GaveUp(epoch=self.epoch)) for rank in self.weights if rank != self.rank]
        near = len(self.weights.keys() - self._down.keys())
        waited = f"{self._patience.quorum_timeout_s:g} s"
        return [*told, *self._end(f"no decision for {waited}: {near} of {len(self.weights)} ranks can be reached")]

    def _end(self, reason: str) -> list[Effect]:
        self.ended = reason
        self._lead = None
        return [Ended(reason)]

    # ---- hearing ----------------------------------------------------------------------------------------------

    def heard(self, now: float, sender: int, message: Message) -> list[Effect]:
        """Note what a rank of the group said."""
        if sender not in self._group:
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
                return self._consider(now)
            case Accept() if self._lead is not None and self._lead.ballot == message.ballot:
                decision = self._lead.proposed
                is_decided = self._lead.vote(sender, self._left)
                return self._decided(now, decision) if is_decided and decision is not None else []
            case Refuse() if self._promised is None or message.ballot > self._promised:
                self._promise(now, message.ballot)
        return []

    def _heard_alarm(self, now: float, sender: int) -> list[Effect]:
        self._alarmed_by.add(sender)
        was_settled = self.is_settled
        effects = [*self._stop(now), *self._lead_if_due(now)]
        if was_settled and self._leader not in (self.rank, sender):
            # Who raised the alarm may have no link to the leader.
            effects.append(Tell(self._leader, Alarm(epoch=self.epoch)))
        return effects

    def _heard_collect(self, now: float, message: Collect) -> list[Effect]:
        ballot = message.ballot
        if self._promised is not None and ballot < self._promised:
            return self._tell(now, ballot.leader, Refuse(epoch=self.epoch, ballot=self._promised))  # Race 2.
        effects = self._stop(now)
        self._promise(now, ballot)
        if message.is_patient:
            self._stopped_at = now
        return effects + self._tell(now, ballot.leader, self._report(ballot))

    def _promise(self, now: float, ballot: Ballot) -> None:
        self._promised, self._heard_leader_at = ballot, now
        self._silent.discard(ballot.leader)
        if ballot.leader != self.rank:
            self._lead = None

    def _heard_propose(self, now: float, message: Propose) -> list[Effect]:
        if self._promised != message.ballot:
            return []
        self._heard_leader_at = now
        self._accepted = Accepted(message.ballot, message.decision)
        return self._tell(now, message.ballot.leader, Accept(epoch=self.epoch, ballot=message.ballot))

    # ---- going on ---------------------------------------------------------------------------------------------

    def _decided(self, now: float, decision: Decision) -> list[Effect]:
        """Go: what was decided holds from here on."""
        if decision.number <= self.epoch or self.ended is not None:
            return []
        effects = self._stop(now)
        members = {member.rank: member.weight for member in decision.members}
        told = self.weights.keys() if self._lead is not None else self._alarmed_by - members.keys()
        effects += [Tell(rank, Decided(decision=decision)) for rank in sorted(told - {self.rank})]
        effects += [(Lost if v.is_out else Named)(v.rank, v.reason) for v in decision.verdicts]
        self.epoch, self._last, self.weights = decision.number, decision, members
        self._excused = set(decision.excused)
        self._forget_the_decision()
        if self.rank not in members:
            reason = next((v.reason for v in decision.verdicts if v.rank == self.rank), "it was not heard of")
            return effects + self._end(f"the others go on without this rank: {reason}")
        return effects + self._go(now, decision)

    def _go(self, now: float, decision: Decision) -> list[Effect]:
        hand_on, self._hand_on = decision.hand_on, None
        if self._is_outdated:
            return self._alarm(now)  # Race 4.
        if hand_on is None or self.rank not in (hand_on.holder, *hand_on.incomplete):
            return self._start_next()
        plan = AttemptPlan(
            sequence=hand_on.sequence,
            attempt=self.epoch,
            members=self.members,
            holder=hand_on.holder,
            incomplete=hand_on.incomplete,
        )
        if self.rank != hand_on.holder:
            self._hand_on = plan
            return self._start_next()
        self._running = plan
        return [Start(plan)]

    # ---- leading ----------------------------------------------------------------------------------------------

    def _lead_if_due(self, now: float) -> list[Effect]:
        return [] if self._lead is not None or self._leader != self.rank else self._new_ballot(now)

    def _new_ballot(self, now: float) -> list[Effect]:
        number = 1 if self._promised is None else self._promised.number + 1
        self._lead = Lead(Ballot(number, self.rank), self.epoch + 1, tuple(self.weights), self._patience, now)
        return self._ask(now, self._lead)

    def _ask(self, now: float, lead: Lead) -> list[Effect]:
        lead.asked_at = now
        message = self._collect(lead)
        asked: list[Effect] = [Tell(rank, message) for rank in self.weights if rank != self.rank]
        return asked + self._tell(now, self.rank, message)

    def _collect(self, lead: Lead) -> Collect:
        return Collect(epoch=self.epoch, ballot=lead.ballot, last=self._last, is_patient=lead.is_patient)

    def _proposal(self, lead: Lead, decision: Decision) -> Propose:
        return Propose(epoch=self.epoch, ballot=lead.ballot, decision=decision)

    def _lead_on(self, now: float) -> list[Effect]:
        lead = self._lead
        if lead is None:
            return []
        if lead.proposed is not None:
            is_late = now >= lead.asked_at + self._patience.report_timeout_s
            return self._new_ballot(now) if is_late else []
        lead.forget_silent(now)
        effects = self._consider(now)
        if self._lead is lead and lead.proposed is None and now >= lead.asked_at + self._patience.report_timeout_s / 2:
            effects += self._ask(now, lead)
        return effects

    def _consider(self, now: float) -> list[Effect]:
        """Propose, if enough is known."""
        lead = self._lead
        if lead is None:
            return []
        decision = lead.consider(now, self._down, self._left)
        if lead.is_patient and not lead.is_patience_over:
            self._stopped_at = now
        if decision is None:
            return []
        lead.proposed, lead.asked_at = decision, now
        message = self._proposal(lead, decision)
        told: list[Effect] = [Tell(rank, message) for rank in lead.reporters if rank != self.rank]
        return told + self._tell(now, self.rank, message)
