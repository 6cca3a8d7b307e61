"""One member of a run as a state machine without I/O: everything it hears goes in, what it wants done comes out.

Theory of operation. The log alternates between a round's cut and its result (`state.py`). `Voting` decides each
height; this machine trains, commits, proposes what it may, judges what others propose, and moves on.

    phase      leaves it when                              to
    GATHER     every member was seen, or long enough       TRAIN, or SHORT of members
    SHORT      a regroup brings enough members             TRAIN
    TRAIN      our update is encoded                       COMMIT (our commitment is out)
    any        the cut is decided                          EXCHANGE
    EXCHANGE   every shard of the aggregate is here        STEP
    STEP       the copy has stepped                        RESULT
    any        the result is decided and we have stepped   TRAIN of the next round, or OVER
    any        the result is decided and we have not       BEHIND, unless we still make it in time
    any        a void is decided                           COMMIT of the next attempt
    any        a regroup is decided                        TRAIN, or SHORT of members
    BEHIND     a donor's log and tensors are here          TRAIN
    any        the round we wanted to finish is agreed     OVER

The leader proposes a cut once every member that is not down has committed, or the grace after a quorum of
commitments is over; a result once it has stepped itself; a void once the exchange waits for a member that is down
or for too long; a regroup once nobody who was given samples is left, or too few. Everybody else gives the leader that much time and `agree_timeout_s` more, then votes it out.

Two rules keep a crash from splitting the swarm: nothing is sent that rests on a promise not yet on disk
(`PersistBallot` comes before `Broadcast` in every list of effects), and nothing is applied that is not decided
(`Commit` is the only effect that changes the agreed tensors).

Who is not a member looks on: it follows the log, says that it wants in, and is let in by a result. It counts one round
later. A member that comes back with an empty disk may have voted for what it does not remember: it hears from all
how far they are, and abstains until the entry after that, or until it is clear that nothing is decided without it.

`now` is any clock that does not go backwards, in seconds.
"""

from collections.abc import Sequence
from typing import assert_never

import msgspec

from barnraise.collective import exchange
from barnraise.consensus import voting
from barnraise.consensus.seniority import is_quorum
from barnraise.consensus.voting import BallotMessage, Decision, Persisted, Sign, Verify, Voting
from barnraise.errors import LocalError, PeerError
from barnraise.ids import PeerId
from barnraise.swarm import effects, proposals, records, speech
from barnraise.swarm import round as rounds
from barnraise.swarm.abstention import Abstention
from barnraise.swarm.donors import Donors
from barnraise.swarm.effects import Effect
from barnraise.swarm.mailbox import Mailbox
from barnraise.swarm.messages import Commit, Genesis, GenesisWanted, Links, Message, StateWanted, Status, Want
from barnraise.swarm.pace import Pace
from barnraise.swarm.presence import Presence
from barnraise.swarm.records import Cut, Regroup, Result
from barnraise.swarm.round import Phase, Stepped, Trained
from barnraise.swarm.state import State, apply, check_follows, follow

HEARTBEAT_S = 1.0
MAX_BEHIND = 4
"""Log entries that others may be ahead and still be followed entry by entry."""
REPEAT_S = 2.0
"""What we said and nobody answered is said again this often."""


class Member:
    """The machine. Call the methods named like events; perform the effects they return, in order."""

    def __init__(
        self,
        *,
        me: PeerId,
        state: State,
        sign: Sign,
        verify: Verify,
        now: float,
        peer_timeout_s: float,
        ballot: Persisted | None = None,
        recent: Sequence[Decision] = (),
        is_fresh: bool = False,
        is_hollow: bool = False,
    ) -> None:
        """Take up the run at ``state``, with the promise and the last decisions that were found on disk.

        ``is_fresh``: the disk held nothing of the run. ``is_hollow``: we do not have the tensors of ``state``.
        """
        self.me = me
        self.state = state
        self.phase = Phase.GATHER
        self.work = rounds.new_work(state)
        self.presence = Presence(me=me, timeout_s=peer_timeout_s, started_at=now)
        self.is_hollow = is_hollow
        self._abstention = Abstention(patience_s=peer_timeout_s, is_fresh=is_fresh)
        self._leaves_after: int | None = None
        self._leaves_openly = False
        self._sign = sign
        self._verify = verify
        self._voting = self._new_voting(ballot)
        self._judging: tuple[int, bytes] | None = None
        self._owed: Decision | None = None
        self._mailbox = Mailbox(state.height, recent)
        self._view = 0
        self._pace = Pace(rules=state.config.round, phase_since=now, view_since=now)
        self._next_heartbeat = now
        self._next_repeat = now + REPEAT_S
        self._waiting_reason = ""
        self._donors = Donors(asked=me)
        self._has_begun = False

    # ---- events -----------------------------------------------------------------------------------------------

    def peer_up(self, now: float, peer: PeerId) -> list[Effect]:
        """Note an admitted peer; tell it what we said last, which it may have missed."""
        self.presence.up(peer, now)
        again: list[Effect] = [effects.Send(to=peer, message=message) for message in (self._status(), *self._said())]
        if self.work.exchange:
            again += self._transfers(now, self.work.exchange.peer_up(peer))
        return again + self._advance(now)

    def peer_down(self, now: float, peer: PeerId) -> list[Effect]:
        """Note that a peer's connection is gone."""
        self.presence.down(peer)
        found = self._transfers(now, self.work.exchange.peer_down(peer)) if self.work.exchange else []
        return found + self._advance(now)

    def leave(self, now: float, *, after_round: int | None = None) -> list[Effect]:
        """Finish the round, or ``after_round``, and go; at once where nothing is to be finished.

        Without ``after_round`` the others are told, and let us go with the round's result; with it they are not: the
        whole swarm pauses, and its members stay what they are.
        """
        self._leaves_openly = after_round is None
        self._leaves_after = self.state.round if after_round is None else after_round
        return [effects.Broadcast(message=self._status()), *self._advance(now)]

    def tick(self, now: float) -> list[Effect]:
        """Let time pass; call it a few times a second."""
        found: list[Effect] = []
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            found.append(effects.Broadcast(message=self._status()))
        if now >= self._next_repeat:
            self._next_repeat = now + REPEAT_S
            found += [effects.Broadcast(message=message) for message in self._said()]
            found += self._ask_for_missing()
        return found + self._advance(now)

    def trained(self, now: float, trained: Trained) -> list[Effect]:
        """Our update is encoded: commit to it. A round that is over by now is ignored."""
        if trained.round != self.state.round or self.phase is Phase.OVER or self.me in self.work.promises:
            return []
        self._pace.train_took_s = now - self._pace.phase_since
        message = rounds.commitment_of(self.state, self.me, trained, self._sign)
        self.work.promises[self.me] = rounds.check_commitment(self.state, self.work, self.me, message, self._verify)
        if self.phase is Phase.TRAIN:
            self._enter(Phase.COMMIT, now)
        return [effects.Broadcast(message=message), *self._advance(now)]

    def update_arrived(self, now: float, round_: int, sender: PeerId, shard: int, leaf: bytes) -> list[Effect]:
        """A shard of a member's update is here; ``leaf`` is its hash, which its commitment must hold."""
        if round_ != self.state.round:
            return []
        self.work.updates_arrived[sender, shard] = leaf
        return self._take_update(now, sender, shard)

    def _take_update(self, now: float, sender: PeerId, shard: int) -> list[Effect]:
        promise = self.work.promises.get(sender)
        if self.work.exchange is None or promise is None:
            return []
        if promise.message.leaves[shard] != self.work.updates_arrived[sender, shard]:
            reason = f"shard {shard} of round {self.state.round} is not what it committed to"
            return [effects.Report(event="peer.refused", fields={"peer": sender, "reason": reason})]
        return self._transfers(now, self.work.exchange.update_arrived(sender, shard))

    def aggregate_arrived(self, now: float, round_: int, attempt: int, shard: int) -> list[Effect]:
        """A finished shard is here."""
        if round_ != self.state.round or attempt < self.state.attempt:
            return []
        self.work.aggregates_arrived.add((attempt, shard))
        if self.work.exchange is None or attempt != self.state.attempt:
            return []
        return self._transfers(now, self.work.exchange.aggregate_arrived(shard))

    def aggregated(self, now: float, round_: int, attempt: int, shard: int) -> list[Effect]:
        """A shard of ours is aggregated."""
        if self.work.exchange is None or (round_, attempt) != (self.state.round, self.state.attempt):
            return []
        return self._transfers(now, self.work.exchange.aggregated(shard))

    def stepped(self, now: float, stepped: Stepped) -> list[Effect]:
        """The copy has stepped."""
        if (stepped.round, stepped.attempt) != (self.state.round, self.state.attempt) or self.phase is Phase.OVER:
            return []
        self.work.stepped = stepped
        if self.phase is Phase.STEP:
            self._enter(Phase.RESULT, now)
        return self._advance(now)

    def caught_up(self, now: float, state: State) -> list[Effect]:
        """The driver holds ``state`` (from `adopt`) and its tensors, on disk."""
        if self.phase is Phase.OVER:
            return []  # we left while it was coming; it is on disk, for another day
        if state.height <= self.state.height and not self.is_hollow:
            self._resume(now)
            return self._advance(now)
        self.is_hollow = False
        self._abstain(now, state.height)
        self._move_to(state, now)
        found = self._begin_round(now) + self._ask_for_missing()
        # Said at once: the members let us in while we are this far, and the next heartbeat may come rounds later.
        found.append(effects.Broadcast(message=self._status()))
        return found + self._advance(now)

    def catch_up_failed(self, now: float) -> list[Effect]:
        """The donor did not deliver; another is asked when the next message shows that we are behind."""
        self._donors.failed(now)
        if self.phase is Phase.OVER:
            return []
        if self.is_hollow:
            self._enter(Phase.GATHER, now)
            return []
        if not self._has_begun:
            return self._begin_round(now)
        self._resume(now)
        self._pace.view_since = now
        return []

    def receive(self, now: float, sender: PeerId, message: Message) -> list[Effect]:
        """Take in a message.

        Raises:
            PeerError: it breaks the protocol; nothing changed.
        """
        self.presence.heard(sender, now)
        found: list[Effect] = []
        if self.phase is Phase.GATHER and not self.is_hollow and isinstance(message, BallotMessage | Commit):
            found = self._begin_round(now)  # others have begun
        match message:
            case Commit():
                found += self._on_commit(sender, message)
            case Status():
                found += self._on_status(now, sender, message)
            case Want():
                found += self._on_want(sender, message)
            case GenesisWanted():
                found.append(effects.Send(to=sender, message=Genesis(config=speech.shared_config(self.state))))
            case Genesis():
                pass  # only who does not know the run yet asks for it, and asks without this machine
            case Links():
                self._on_links(sender, message)
            case StateWanted():
                found.append(effects.SendState(to=sender, height=message.height, is_hollow=message.is_hollow))
            case voting.Propose() | voting.Accept() | voting.Change() | voting.Decided():
                found += self._on_ballot(now, sender, message)
            case _:
                assert_never(message)
        return found + self._advance(now)

    # ---- what came in -----------------------------------------------------------------------------------------

    def _on_commit(self, sender: PeerId, message: Commit) -> list[Effect]:
        round_ = _round_of(sender, message)
        if round_ == self.state.round + 1:
            self._mailbox.keep(sender, message)
        if round_ != self.state.round or self.phase in (Phase.OVER, Phase.SHORT):
            return []
        promise = rounds.check_commitment(self.state, self.work, sender, message, self._verify)
        member = PeerId(promise.commitment.member)
        if member == self.me:
            return []  # from before a crash of ours: it counts again only once we have trained again
        if member not in self.work.promises or (sender == member and self.state.cut is None):
            # A member that crashed after committing may commit to other bytes; its newest word counts until the cut.
            self.work.promises[member] = promise
        return []

    def _on_status(self, now: float, sender: PeerId, message: Status) -> list[Effect]:
        self.presence.note(
            sender,
            height=message.height,
            wants_in=message.wants_in,
            wants_out=message.wants_out,
            is_hollow=message.is_hollow,
        )
        if self.is_hollow or self.phase is Phase.OVER:
            return []
        if message.height > self.state.height:
            self._abstain(now, message.height)
        behind = message.height - self.state.height
        if behind <= 0 or self._owed or self.phase is Phase.BEHIND or self._donors.is_shunned(sender, now):
            return []
        if behind > MAX_BEHIND and message.round > self.state.round:
            return self._catch_up(now, sender)
        return [effects.Send(to=sender, message=Want(height=self.state.height, round=self.state.round, commitments=()))]

    def _on_links(self, sender: PeerId, message: Links) -> None:
        """Note what a member says of its links, if it is about the members that we know: if not, it is told again."""
        if message.epoch != self.state.epoch or sender not in self.state.peers:
            return
        counts = len(message.row.latencies_us), len(message.row.bandwidths_kb_s)
        if counts != (len(self.state.members),) * 2:
            said = (
                f"told {counts[0]} latencies and {counts[1]} bandwidths of links to {len(self.state.members)} members"
            )
            raise PeerError(sender, said)
        self.presence.note_links(sender, message.epoch, message.row)

    def _on_want(self, sender: PeerId, message: Want) -> list[Effect]:
        found: list[Effect] = []
        decided = self._mailbox.decided(message.height)
        if decided:
            found.append(effects.Send(to=sender, message=decided))
        if message.round == self.state.round:
            asked = set(message.commitments)
            known = [promise.message for peer, promise in sorted(self.work.promises.items()) if peer in asked]
            found += [effects.Send(to=sender, message=commit) for commit in known]
        return found

    def _on_ballot(self, now: float, sender: PeerId, message: BallotMessage) -> list[Effect]:
        if self.phase is Phase.OVER and message.height >= self.state.height:
            return []
        if message.height > self.state.height:
            if sender in self.state.peers:  # who has joined since says it again
                self._mailbox.keep(sender, message)
            return []
        if message.height < self.state.height:
            decided = self._mailbox.decided(message.height)
            is_late = not isinstance(message, voting.Decided | voting.Accept)
            return [effects.Send(to=sender, message=decided)] if decided and is_late else []
        return self._vote(now, self._voting.receive(sender, message))

    # ---- moving on --------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[Effect]:
        """Do whatever has become possible."""
        if self.phase is Phase.OVER:
            return []
        if departed := self._depart(now):
            return departed
        if self.is_hollow:
            return self._fill(now)
        if self.phase is Phase.GATHER:
            return self._gather(now)
        if self._abstention.is_over(self.state.height, now):
            self._voting = self._new_voting(None)
        found = self._start_exchange(now) + self._judge(now)
        found += self._propose(now) + self._impatience(now) + self._settle_owed(now)
        return found + self._say_if_waiting()

    def _gather(self, now: float) -> list[Effect]:
        """Wait for the others before the first round; a run that has begun needs no waiting."""
        waited_enough = now >= self.presence.started_at + self.presence.timeout_s
        if self.presence.is_starting(self.state.peers) and not waited_enough and not self.state.height:
            return []
        return self._begin_round(now)

    def _fill(self, now: float) -> list[Effect]:
        """Fetch the tensors that everything else needs."""
        willing = [peer for peer in self.presence.donors() if not self._donors.is_shunned(peer, now)]
        return self._catch_up(now, willing[0]) if willing and self.phase is not Phase.BEHIND else []

    def _propose(self, now: float) -> list[Effect]:
        if self._owed or self.phase is Phase.BEHIND:
            return []
        if self.state.cut is None:
            self._pace.note_enough(now, proposals.is_enough(self.state, self.work, self.presence, now))
        if not self._voting.may_propose:
            return []
        if self._voting.bound_value:
            return self._vote(now, self._voting.propose(b""))
        event = proposals.due(self.state, self.work, self.presence, self._pace, now, is_leaving=self._leaves_openly)
        return self._vote(now, self._voting.propose(records.encode(event))) if event else []

    def _judge(self, now: float) -> list[Effect]:
        """Approve the value that is up for a vote, once we can see that it is right."""
        if self._judging is None:
            return []
        view, value = self._judging
        try:
            event = records.decode_event.decode(value)
            check_follows(self.state, event)
        except (msgspec.DecodeError, msgspec.ValidationError, LocalError):
            self._judging = None
            return []
        if not proposals.agrees(self.state, self.work, event):
            return []
        self._judging = None
        return self._vote(now, self._voting.approve(view))

    def _impatience(self, now: float) -> list[Effect]:
        """Vote out a leader that is down or overdue."""
        if self._owed or self.phase is Phase.BEHIND or self.me not in self.state.peers:
            return []
        down = self.presence.down_among(self.state.peers, now)
        view, has_cut = self._voting.promised, self.state.cut is not None
        if self._voting.leader not in down and not self._pace.leader_is_overdue(now, view, has_cut=has_cut):
            return []
        if not is_quorum(self.state.peers, set(self.state.peers) - down):
            return []
        return self._vote(now, self._voting.suspect(down))

    def _start_exchange(self, now: float) -> list[Effect]:
        cut = self.state.cut
        if cut is None or self.work.exchange or rounds.unknown_contributions(self.work, cut):
            return []
        self.work.exchange = exchange.Exchange(
            contributors=[PeerId(entry.member) for entry in cut.contributions],
            members=self.state.peers,
            num_shards=self.work.plan.num_shards,
            me=self.me,
        )
        self._enter(Phase.EXCHANGE, now)
        found = self._transfers(now, self.work.exchange.begin())
        for sender, shard in sorted(self.work.updates_arrived):
            found += self._take_update(now, sender, shard)
        for attempt, shard in sorted(self.work.aggregates_arrived):
            if attempt == self.state.attempt:
                found += self._transfers(now, self.work.exchange.aggregate_arrived(shard))
        return found

    def _transfers(self, now: float, steps: Sequence[exchange.Effect]) -> list[Effect]:
        found: list[Effect] = []
        for step in steps:
            if isinstance(step, exchange.Complete):
                self._enter(Phase.STEP, now)
                found.append(effects.Step(round=self.state.round, attempt=self.state.attempt))
            else:
                found.append(effects.Transfer(round=self.state.round, attempt=self.state.attempt, step=step))
        return found

    # ---- agreement --------------------------------------------------------------------------------------------

    def _vote(self, now: float, asked: Sequence[voting.Effect]) -> list[Effect]:
        found: list[Effect] = []
        if self._voting.promised != self._view:
            self._view, self._pace.view_since = self._voting.promised, now
        for effect in asked:
            match effect:
                case voting.Broadcast():
                    found.append(effects.Broadcast(message=effect.message))
                case voting.Persist():
                    self._abstention.voted()
                    found.append(effects.PersistBallot(record=effect.record))
                case voting.Judge():
                    self._judging = (effect.view, effect.value)
                    found += self._judge(now)
                case Decision():
                    found += self._decided(now, effect)
                case _:
                    assert_never(effect)
        return found

    def _decided(self, now: float, decision: Decision) -> list[Effect]:
        event = records.decode_event.decode(decision.value)
        height = self.state.height
        self._mailbox.remember(height, decision)
        if isinstance(event, Result):
            return self._conclude(now, decision)
        append = effects.Append(height=height, event=event, decision=decision)
        if isinstance(event, Regroup):
            self._move_to(apply(self.state, event), now)
            return [append, *self._begin_round(now), *self._replay_early(now)]
        self._move_to(apply(self.state, event), now, keep_round=True)
        self._pace.phase_since = now
        if isinstance(event, Cut):
            return [append, *self._start_exchange(now), *self._ask_for_missing(), *self._replay_early(now)]
        self._resume(now)
        fields: dict[str, object] = {"round": event.round, "attempt": event.attempt, "without": list(event.without)}
        return [append, effects.Report(event="round.void", fields=fields), *self._replay_early(now)]

    def _conclude(self, now: float, decision: Decision) -> list[Effect]:
        """Step, if our copy is what was agreed; otherwise give it time to become so."""
        event = records.decode_event.decode(decision.value)
        stepped, cut = self.work.stepped, self.state.cut
        if not isinstance(event, Result) or cut is None:
            raise LocalError("a round was concluded without its cut")
        if stepped is None or stepped.attempt != event.attempt or stepped.theta_root != event.theta_root:
            if self._owed is None:
                self._owed, self._pace.view_since = decision, now
            return []
        self._owed = None
        after, vertex = follow(self.state, event)
        if vertex is None:
            raise LocalError("a result certified no vertex")
        commit = effects.Commit(
            height=self.state.height,
            event=event,
            decision=decision,
            state=after,
            vertex=vertex,
            contributed=self.me in {entry.member for entry in cut.contributions},
        )
        self._move_to(after, now)
        return [commit, *(self._depart(now) or [*self._begin_round(now), *self._replay_early(now)])]

    def _settle_owed(self, now: float) -> list[Effect]:
        """Finish a round that was decided without us, or fetch what it made."""
        if self._owed is None or self.phase is Phase.BEHIND:
            return []
        concluded = self._conclude(now, self._owed)
        if concluded:
            return concluded
        if not self._pace.is_owed_long(now):
            return []
        return self._catch_up(now, self._donor(now))

    def _donor(self, now: float) -> PeerId:
        """Return whom to fetch the state from: those known to be ahead in turn, else a voter."""
        down = self.presence.down_among(self.state.peers, now)
        voters = [PeerId(voter) for voter, _ in self._owed.votes if voter != self.me] if self._owed else []
        return self._donors.choose(now, self.presence.ahead_of(self.state.height), voters or self.state.peers, down)

    def _catch_up(self, now: float, donor: PeerId) -> list[Effect]:
        self._enter(Phase.BEHIND, now)
        self._donors.ask(donor)
        fields: dict[str, object] = {
            "round": self.state.round,
            "donor": donor,
            "reason": speech.why_behind(self.state, self.work),
        }
        return [
            effects.Report(event="peer.catching_up", fields=fields),
            effects.CatchUp(donor=donor, height=self.state.height),
        ]

    def _move_to(self, state: State, now: float, *, keep_round: bool = False) -> None:
        same_round = keep_round and state.round == self.state.round
        if same_round:
            self.work.exchange = None
            self.work.stepped = None
        else:
            self.work = rounds.new_work(state)
        self.state = state
        self._voting = self._new_voting(None)
        self._view = 0
        self._judging = None
        self._owed = None
        self._pace.next_entry(now)

    def _begin_round(self, now: float) -> list[Effect]:
        self._has_begun = True
        if self.state.is_over:
            self._enter(Phase.OVER, now)
            return [effects.Finish(is_over=True)]
        if not self.state.can_train:
            self._enter(Phase.SHORT, now)
            return []
        self._enter(Phase.TRAIN, now)
        plan = self.work.plan
        fields: dict[str, object] = {
            "round": plan.round,
            "members": list(plan.members),
            "first_sample": min((s.first for slot in plan.slots.values() for s in slot), default=0),
            "samples": sum(s.count for slot in plan.slots.values() for s in slot),
        }
        return [effects.Report(event="round.planned", fields=fields), effects.Train(plan=plan)]

    def _depart(self, now: float) -> list[Effect]:
        """Go, if we want to and there is nothing left for us to finish."""
        if self._leaves_after is None or self.phase is Phase.OVER:
            return []
        idle = self.me not in self.state.peers or self.phase in (Phase.GATHER, Phase.SHORT) or self.is_hollow
        if not idle and self.state.round <= self._leaves_after and not self._waiting_reason:
            return []
        self._enter(Phase.OVER, now)
        return [effects.Finish(is_over=False, reason=speech.why_leaving(self.state, self.me))]

    def _replay_early(self, now: float) -> list[Effect]:
        found: list[Effect] = []
        for sender, message in self._mailbox.take():
            if isinstance(message, Commit):
                try:
                    found += self._on_commit(sender, message)
                except PeerError as error:
                    fields: dict[str, object] = {"peer": sender, "reason": str(error)}
                    found.append(effects.Report(event="peer.refused", fields=fields))
            elif isinstance(message, BallotMessage):
                found += self._on_ballot(now, sender, message)
        return found

    def _new_voting(self, ballot: Persisted | None) -> Voting:
        fresh = Voting(
            height=self.state.height,
            members=self.state.peers,
            me=PeerId("") if self._abstention.covers(self.state.height) else self.me,
            sign=self._sign,
            verify=self._verify,
        )
        if ballot and ballot.height == self.state.height:
            fresh.restore(ballot)
        return fresh

    def _abstain(self, now: float, height: int) -> None:
        """Cast no vote up to this height, if our disk may have forgotten one."""
        if self.me in self.state.peers and self._abstention.heard(height, now):
            self._voting = self._new_voting(None)

    def _resume(self, now: float) -> None:
        """Take up the round where its books say it is."""
        if self.work.stepped:
            self._enter(Phase.RESULT, now)
        elif self.work.exchange:
            self._enter(Phase.STEP if self.work.exchange.is_complete else Phase.EXCHANGE, now)
        elif not self.state.can_train:
            self._enter(Phase.SHORT, now)
        else:
            self._enter(Phase.COMMIT if self.me in self.work.promises else Phase.TRAIN, now)

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self._pace.phase_since = now

    # ---- what we say ------------------------------------------------------------------------------------------

    def _status(self) -> Status:
        is_leaving = self._leaves_after is not None
        is_behind = self.phase is Phase.BEHIND or self.is_hollow
        return Status(
            height=self.state.height,
            round=self.state.round,
            wants_in=self.me not in self.state.peers and not is_behind and not is_leaving,
            wants_out=self._leaves_openly,
            is_hollow=self.is_hollow,
        )

    def _said(self) -> list[Message]:
        """Return what we said last, for those that may have missed it."""
        if self.phase is Phase.OVER:
            return []
        said: list[Message] = list(self._voting.repeat())
        if self.me in self.work.promises and self.state.cut is None:
            said.append(self.work.promises[self.me].message)
        return said

    def _ask_for_missing(self) -> list[Effect]:
        missing = speech.missing_commitments(self.state, self.work, self._judging[1] if self._judging else b"")
        if not missing:
            return []
        want = Want(height=self.state.height, round=self.state.round, commitments=missing)
        return [effects.Broadcast(message=want)]

    def _say_if_waiting(self) -> list[Effect]:
        """Report once when too few members are reachable, and once when that is over."""
        reason = speech.why_waiting(self.state, self.me, self.presence)
        if reason == self._waiting_reason:
            return []
        self._waiting_reason = reason
        return [effects.Report(event="peer.waiting", fields={"reason": reason or "enough members are back"})]


def _round_of(sender: PeerId, message: Commit) -> int:
    try:
        return records.decode_commitment.decode(message.commitment.record).round
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise PeerError(sender, f"sent a malformed commitment: {error}", message.commitment.record) from error
