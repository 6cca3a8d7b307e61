"""One member of a run as a state machine without I/O: everything it hears goes in, what it wants done comes out.

Theory of operation. The log alternates between a round's cut and its result (`state.py`). `Ballots` proposes, judges and
votes on each height; this machine trains, commits, exchanges shards (`deliveries.py`), and moves on.

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
or for too long; a regroup once nobody who was given samples is left, or too few. Everybody else gives the leader that much time and `consensus.timeout_s` more, then votes it out.

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

from barnraise.consensus.agreement import Ballot, Decision, Record, Sign, Verify
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm import deliveries, effects, records, speech
from barnraise.swarm import round as rounds
from barnraise.swarm.abstention import Abstention
from barnraise.swarm.ballots import Ballots
from barnraise.swarm.donors import Donors
from barnraise.swarm.effects import Effect
from barnraise.swarm.mailbox import Mailbox
from barnraise.swarm.messages import Commit, Genesis, GenesisWanted, Links, Message, StateWanted, Status, Want
from barnraise.swarm.pace import Pace
from barnraise.swarm.petitions import Introduce, Petition, Pool
from barnraise.swarm.presence import Presence
from barnraise.swarm.records import Amend, Cut, Merge, Recover, Regroup, Result
from barnraise.swarm.replies import reply
from barnraise.swarm.round import Phase, Stepped, Trained
from barnraise.swarm.state import State, follow

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
        ballot: Record | None = None,
        recent: Sequence[Decision] = (),
        is_fresh: bool = False,
        is_hollow: bool = False,
        introduce: Introduce = lambda peer, keys: None,
    ) -> None:
        """Take up the run at ``state``, with the promise and the last decisions that were found on disk.

        ``is_fresh``: the disk held nothing of the run. ``is_hollow``: we do not have the tensors of ``state``.
        ``introduce``: takes the keys of whoever signed a petition.
        """
        self.me = me
        self.state = state
        self.phase = Phase.GATHER
        self.work = rounds.new_work(state)
        self.presence = Presence(me=me, timeout_s=peer_timeout_s, started_at=now)
        self.is_hollow = is_hollow
        self._leaves_after: int | None = None
        self._leaves_openly = False
        self._sign = sign
        self._verify = verify
        self._owed: Decision | None = None
        self._mailbox = Mailbox(state.height, recent)
        self._pace = Pace(
            rules=state.config.round,
            agree_timeout_s=state.config.consensus.timeout_s,
            phase_since=now,
            view_since=now,
        )
        self._pool = Pool(introduce)
        self._ballots = Ballots(
            state=state,
            work=self.work,
            presence=self.presence,
            pace=self._pace,
            mailbox=self._mailbox,
            abstention=Abstention(patience_s=peer_timeout_s, is_fresh=is_fresh),
            sign=sign,
            verify=verify,
            ballot=ballot,
            pool=self._pool,
        )
        self._next_heartbeat = now
        self._next_repeat = now + REPEAT_S
        self._waiting_reason = ""
        self._weighed: tuple[State | None, int] = None, 0
        self._donors = Donors(asked=me)
        self._has_begun = False

    # ---- events -----------------------------------------------------------------------------------------------

    def peer_up(self, now: float, peer: PeerId) -> list[Effect]:
        """Note an admitted peer; tell it what we said last, which it may have missed."""
        self.presence.up(peer, now)
        said = self._status(), *self._said(), *self._pool.said()
        again: list[Effect] = [effects.Send(to=peer, message=message) for message in said]
        again += self._exchanged(now, deliveries.peer_up(self.state, self.work, peer))
        return again + self._advance(now)

    def peer_down(self, now: float, peer: PeerId) -> list[Effect]:
        """Note that a peer's connection is gone."""
        self.presence.down(peer)
        return self._exchanged(now, deliveries.peer_down(self.state, self.work, peer)) + self._advance(now)

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
        self._next_repeat = now + REPEAT_S
        return [effects.Broadcast(message=message), *self._advance(now)]

    def update_arrived(self, now: float, round_: int, sender: PeerId, shard: int, leaf: bytes) -> list[Effect]:
        """A shard of a member's update is here; ``leaf`` is its hash, which its commitment must hold."""
        return self._exchanged(now, deliveries.update_arrived(self.state, self.work, round_, sender, shard, leaf))

    def aggregate_arrived(self, now: float, round_: int, attempt: int, shard: int) -> list[Effect]:
        """A finished shard is here."""
        return self._exchanged(now, deliveries.aggregate_arrived(self.state, self.work, round_, attempt, shard))

    def aggregated(self, now: float, round_: int, attempt: int, shard: int) -> list[Effect]:
        """A shard of ours is aggregated."""
        return self._exchanged(now, deliveries.aggregated(self.state, self.work, round_, attempt, shard))

    def stepped(self, now: float, stepped: Stepped) -> list[Effect]:
        """The copy has stepped."""
        if (stepped.round, stepped.attempt) != (self.state.round, self.state.attempt) or self.phase is Phase.OVER:
            return []
        self.work.stepped = stepped
        if self.phase is Phase.STEP:
            self._enter(Phase.RESULT, now)
        return self._advance(now)

    def petition(self, now: float, petition: Petition) -> list[Effect]:
        """Hand on what somebody asks the members for at this machine. Raises `PeerError` like `receive`."""
        return self._on_petition(now, self.me, petition) + self._advance(now)

    def caught_up(self, now: float, state: State) -> list[Effect]:
        """The driver holds ``state`` (from `adopt`) and its tensors, on disk."""
        if self.phase is Phase.OVER:
            return []  # we left while it was coming; it is on disk, for another day
        if state.height <= self.state.height and not self.is_hollow:
            self._resume(now)
            return self._advance(now)
        self.is_hollow = False
        self._ballots.abstain(now, state.height)
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
        num_changes = self.presence.num_changes
        self.presence.heard(sender, now)
        found: list[Effect] = []
        if self.phase is Phase.GATHER and not self.is_hollow and isinstance(message, Ballot | Commit):
            found = self._begin_round(now)  # others have begun
        try:
            found += self._heard(now, sender, message)
        except PeerError as error:
            if not found:
                raise
            found.append(effects.Complain(error=error))
        if isinstance(message, Status) and num_changes == self.presence.num_changes and not found:
            return []  # most of what a large swarm says: what it may have made possible, the next tick does
        return found + self._advance(now)

    # ---- what came in -----------------------------------------------------------------------------------------

    def _heard(self, now: float, sender: PeerId, message: Message) -> list[Effect]:
        match message:
            case Commit():
                return self._on_commit(sender, message)
            case Status():
                return self._on_status(now, sender, message)
            case Want() | GenesisWanted() | Genesis() | Links() | StateWanted():
                return reply(self.state, self.work, self._mailbox, self.presence, sender, message)
            case Petition():
                return self._on_petition(now, sender, message)
            case Ballot():
                return self._on_ballot(now, sender, message)
            case _:
                assert_never(message)

    def _on_commit(self, sender: PeerId, message: Commit) -> list[Effect]:
        round_ = rounds.round_of(sender, message)
        if round_ == self.state.round + 1:
            self._mailbox.keep(sender, message)
        if round_ != self.state.round or self.phase in (Phase.OVER, Phase.SHORT):
            return []
        if rounds.is_known(self.work, sender, message):
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
            speaks=message.speaks,
        )
        if self.is_hollow or self.phase is Phase.OVER:
            return []
        if (believed := self._height_believed(message.height)) > self.state.height:
            self._ballots.abstain(now, believed)
        behind = message.height - self.state.height
        if behind <= 0 or self._owed or self.phase is Phase.BEHIND or self._donors.is_shunned(sender, now):
            return []
        waited = self._pace.is_behind_long(now)
        if message.round > self.state.round and (behind > MAX_BEHIND or waited):
            return self._catch_up(now, sender)
        return [effects.Send(to=sender, message=Want(height=self.state.height, round=self.state.round, commitments=()))]

    def _on_petition(self, now: float, sender: PeerId, message: Petition) -> list[Effect]:
        """Pass on what is new; go on without the lost once most of the operators have signed for it."""
        if self.phase is Phase.OVER or not self._pool.receive(self.state, sender, message, self._verify):
            return []
        recovery = self._pool.recovery(self.state) if self._is_voting and not self.is_hollow else None
        decided: list[Effect | Decision] = [recovery] if recovery else []
        return [effects.Broadcast(message=message), *self._agree(now, decided)]

    def _height_believed(self, told: int) -> int:
        """Return how far others are for certain, one of whom has just told of a height: no single liar's word counts."""
        kind = self.state.agreement
        if kind.trusts_members:
            return told
        return self.presence.told_height(self.state.peers, kind.num_witnesses(self.state.peers))

    def _on_ballot(self, now: float, sender: PeerId, message: Ballot) -> list[Effect]:
        if self.phase is Phase.OVER and message.height >= self.state.height:
            return []
        return self._agree(now, self._ballots.receive(now, sender, message))

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
        self._ballots.stop_abstaining(now)
        found = self._start_exchange(now) + self._agree(now, self._ballots.judge(now))
        if self._is_voting:
            found += self._agree(now, self._ballots.propose(now, is_leaving=self._leaves_openly))
        if self._is_voting:
            found += self._agree(now, self._ballots.doubt(now))
        found += self._settle_owed(now)
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

    @property
    def _is_voting(self) -> bool:
        """Tell whether the next entry is open, and ours to vote on."""
        return self._owed is None and self.phase is not Phase.BEHIND

    def _start_exchange(self, now: float) -> list[Effect]:
        begun = deliveries.begin(self.state, self.work, self.me)
        if begun is None:
            return []
        self._enter(Phase.EXCHANGE, now)
        return self._exchanged(now, begun)

    def _exchanged(self, now: float, found: list[Effect]) -> list[Effect]:
        """Step, once the exchange asks for it."""
        if any(isinstance(effect, effects.Step) for effect in found):
            self._enter(Phase.STEP, now)
        return found

    # ---- agreement --------------------------------------------------------------------------------------------

    def _agree(self, now: float, voted: Sequence[Effect | Decision]) -> list[Effect]:
        """Do what our votes ask for, and what is decided by them."""
        found: list[Effect] = []
        for effect in voted:
            found += self._decided(now, effect) if isinstance(effect, Decision) else [effect]
        if any(isinstance(effect, effects.Broadcast) for effect in found):
            self._next_repeat = now + REPEAT_S
        return found

    def _decided(self, now: float, decision: Decision) -> list[Effect]:
        event = records.decode_event.decode(decision.value)
        height = self.state.height
        self._mailbox.remember(height, decision)
        if isinstance(event, Result):
            return self._conclude(now, decision)
        after, vertex = follow(self.state, event)
        append = effects.Append(height=height, event=event, decision=decision, vertex=vertex)
        if isinstance(event, Regroup | Recover | Merge):
            self._move_to(after, now)
            return [append, *self._begin_round(now), *self._replay_early(now)]
        self._move_to(after, now, keep_round=True)
        if isinstance(event, Amend):
            return [append, *self._replay_early(now)]
        self._pace.phase_since = now
        if isinstance(event, Cut):
            return [append, *self._start_exchange(now), *self._ask_for_missing(), *self._replay_early(now)]
        self._resume(now)
        fields: dict[str, object] = {"round": event.round, "attempt": event.attempt, "without": list(event.without)}
        return [append, effects.Report(event="round.void", fields=fields), *self._replay_early(now)]

    def _conclude(self, now: float, decision: Decision) -> list[Effect]:
        """Step, if our copy is what was agreed; otherwise give it time to become so."""
        commit = rounds.conclude(self.state, self.work, self.me, decision)
        if commit is None:
            if self._owed is None:
                self._owed, self._pace.view_since = decision, now
            return []
        self._owed = None
        self._move_to(commit.state, now)
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
        self._pace.rules, self._pace.agree_timeout_s = state.config.round, state.config.consensus.timeout_s
        self._pool.settle(state)
        self._ballots.next_entry(state, self.work)
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
        planned = effects.Report(event="round.planned", fields=speech.planned(self.work.plan))
        return [planned, effects.Train(plan=self.work.plan)]

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
        """Take in what came too early.

        1. an entry is decided, and is to be put on disk;  2. a liar's vote on the next one was kept, and is refused now;
        3. if that ended this call, the entry would never come to disk. So a refusal is one effect among the others.
        """
        found: list[Effect] = []
        for sender, message in self._mailbox.take():
            try:
                found += self._heard(now, sender, message)
            except PeerError as error:
                found.append(effects.Complain(error=error))
        return found

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
        said: list[Message] = list(self._ballots.repeat())
        if self.me in self.work.promises and self.state.cut is None:
            said.append(self.work.promises[self.me].message)
        return said

    def _ask_for_missing(self) -> list[Effect]:
        missing = speech.missing_commitments(self.state, self.work, self._ballots.proposed)
        if not missing:
            return []
        want = Want(height=self.state.height, round=self.state.round, commitments=missing)
        return [effects.Send(to=peer, message=want) for peer in self._donors.some(self.presence.connected)]

    def _say_if_waiting(self) -> list[Effect]:
        """Report once when too few members are reachable, and once when that is over."""
        known, self._weighed = self._weighed, (self.state, self.presence.num_changes)
        if known[0] is self.state and known[1] == self.presence.num_changes:
            return []
        reason = speech.why_waiting(self.state, self.me, self.presence)
        if reason == self._waiting_reason:
            return []
        self._waiting_reason = reason
        return [effects.Report(event="peer.waiting", fields={"reason": reason or "enough members are back"})]
