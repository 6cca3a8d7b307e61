"""One copy of the agreement that ships, with its disk and its timers: what drives it in a trial, as thin as can be.

It performs effects in order, is patient twice as long in each view as in the one before (as `swarm.pace` is), says
again what may have been lost, keeps what comes too early, and tells whoever lags what was decided. A crash takes all
but the record and the log, between any two effects.
"""

from collections.abc import Callable, Sequence
from typing import Final, assert_never

from barnraise.consensus.agreement import (
    Agreement,
    Ballot,
    Broadcast,
    Decided,
    Decision,
    Effect,
    Judge,
    Persist,
    Record,
    Scope,
    Send,
    decided,
)
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.sim.narration import in_words
from barnraise.sim.stage import RUN, Ear, Stage

PATIENCE_S: Final = 2.0
MAX_DOUBLINGS: Final = 6
REPEATS_PER_PATIENCE: Final = 2.0
MAX_REPEAT_S: Final = 20.0
LATE_S: Final = 1.0
"""Who speaks of a height that was decided so long ago has missed it."""
SLOW_TO_JUDGE: Final = 0.2
"""Chance that a value is not looked at at once."""
CHECKS_PER_COUNT: Final = 6
MAX_EARLY: Final = 256
"""Messages of later heights that are kept."""


class Replica:
    """A member, an onlooker, or one of the copies that a traitor runs.

    Args:
        stage: What is around it.
        index: Of the peer; a traitor's copies have the same.
        rate: Seconds of its clock a second.
        crashes: ``(number of the effect, seconds down)``, in order.
        passes: Which of its messages a traitor lets go where; None: it is honest, and the witness holds it to that.
        forgets: A crash takes its disk as well.
    """

    def __init__(
        self,
        stage: Stage,
        index: int,
        *,
        rate: float,
        crashes: Sequence[tuple[int, float]],
        passes: Callable[[int, Ballot], bool] | None = None,
        forgets: bool = False,
    ) -> None:
        self.index = index
        self.peer = stage.peers[index]
        self.members = stage.committees[0]
        self.height = 0
        self.view = 0
        self.is_up = False
        self.agreement: Agreement | None = None
        """None while it is down, and when all heights are decided."""
        self._last: Agreement | None = None
        """Of the height before; it goes on answering."""
        self._stage = stage
        self._is_honest = passes is None
        self._passes = passes
        self._patience_s = PATIENCE_S / rate
        self._crashes = list(crashes)
        self._forgets = forgets
        self._life = 0
        self._num_performed = 0
        self._epoch = 0
        self._first_view = 0
        self._record: Record | None = None
        self._log: list[tuple[float, Decided]] = []
        self._early: list[tuple[PeerId, Ballot]] = []
        self._told: dict[tuple[PeerId, int], float] = {}
        self._num_said = self._num_views = self._num_repetitions = self._num_answers = self._num_checks = 0

    @property
    def scope(self) -> Scope:
        """Return what it agrees on now."""
        return Scope(run=RUN, epoch=self._epoch, height=self.height)

    # ---- life and death ---------------------------------------------------------------------------------------

    def start(self, life: int = 0) -> None:
        """Begin, or come back with what is on the disk, unless that has happened already."""
        if life != self._life or self.is_up:
            return
        self._stage.tell(f"{self.peer} {'comes back' if life else 'begins'} at height {self.height}")
        self.is_up = True
        self._stage.down.discard(self.peer)
        if self.height < self._stage.schedule.num_heights:
            self._open()
            self._stage.later(self._repeat_s(), self._repeat, life)

    def grow_calm(self) -> None:
        """Come back now, if it is down, and crash no more."""
        self._crashes.clear()
        self.start(self._life)

    def _crash(self, down_s: float) -> None:
        self._stage.tell(f"{self.peer} crashes")
        self._life += 1
        self.is_up, self.agreement, self._last = False, None, None
        self._stage.down.add(self.peer)
        self._early.clear()
        if self._forgets:
            self._record = None
        self._stage.later(down_s, self.start, self._life)

    def _open(self) -> None:
        """Begin to decide the next height, with what came of it already."""
        stage = self._stage
        self._num_said = self._num_views = self._num_repetitions = self._num_answers = 0
        self.agreement = stage.kind.open(
            self.scope,
            self.members,
            self.peer,
            sign=stage.signers[self.peer],
            verify=stage.signatures.verify,
            record=self._record,
        )
        self._first_view = self.agreement.view if stage.kind.trusts_members else 0
        self._enter(self.agreement)
        self._lead(self.agreement)
        early = [(sender, message) for sender, message in self._early if message.height >= self.height]
        self._early = []
        for sender, message in early:
            self.hear(sender, message)

    # ---- what it hears ----------------------------------------------------------------------------------------

    def hear(self, sender: PeerId, message: Ballot) -> None:
        """Take in what a peer says."""
        agreement = self.agreement
        if agreement is None or message.height != self.height:
            self._hear_of_another_height(sender, message)
        else:
            self._perform(agreement, self._received(agreement, sender, message))

    def _received(self, agreement: Agreement, sender: PeerId, message: Ballot) -> Sequence[Effect]:
        if self._stage.is_told:
            self._stage.tell(f"{self.peer} hears from {sender}: {in_words(message)}")
        try:
            return agreement.receive(sender, message)
        except PeerError as error:
            self._stage.tell(f"{self.peer} refuses that: {error}")
            if self._is_honest:
                self._stage.witness.blamed(sender, self.peer, str(error))
            return ()

    def asked(self, by: PeerId, height: int) -> None:
        """Tell a peer that lags what was decided."""
        if self.is_up and height < self.height:
            self._send(by, self._log[height][1])

    def _hear_of_another_height(self, sender: PeerId, message: Ballot) -> None:
        if not self.is_up:
            return
        if message.height < self.height:
            self._hear_of_the_past(sender, message)
        elif message.height < self._stage.schedule.num_heights:
            if len(self._early) < MAX_EARLY:
                self._early.append((sender, message))
            self._stage.ask(self.peer, self.height, sender)

    def _hear_of_the_past(self, sender: PeerId, message: Ballot) -> None:
        """Let the last agreement answer, or tell what was decided."""
        if self._last is not None and message.height == self.height - 1:
            for effect in self._received(self._last, sender, message):
                assert isinstance(effect, Send)
                self._send(effect.to, effect.message)
        if not isinstance(message, Decided):
            self._tell_if_late(sender, message.height)

    def _tell_if_late(self, to: PeerId, height: int) -> None:
        decided_at, message = self._log[height]
        last = max(decided_at, self._told.get((to, height), 0.0))
        if self._stage.now >= last + LATE_S:
            self._told[to, height] = self._stage.now
            self._send(to, message)

    # ---- what it does -----------------------------------------------------------------------------------------

    def _perform(self, agreement: Agreement, effects: Sequence[Effect]) -> None:
        """Perform effects in order, unless a crash comes between; then go where they lead."""
        for effect in effects:
            if self._crashes and self._dies():
                return
            match effect:
                case Broadcast():
                    self._num_said += 1
                    self._say(effect.message)
                case Persist():
                    self._record = effect.record
                case Judge():
                    slow = self._stage.rng.random() < SLOW_TO_JUDGE
                    self._stage.later(self._stage.rng.random() if slow else 0.0, self._judge, agreement, effect)
                case Send():
                    self._num_answers += 1
                    self._send(effect.to, effect.message)
                case Decision():
                    self._append(agreement, effect)
                case _:
                    assert_never(effect)
        if agreement.decision is not None:
            self._go_on()
            return
        if agreement.view != self.view:
            self._enter(agreement)
        self._lead(agreement)

    def _dies(self) -> bool:
        """Tell whether it dies just before its next effect."""
        number, down_s = self._crashes[0]
        self._num_performed += 1
        if self._num_performed <= number:
            return False
        self._crashes.pop(0)
        self._crash(down_s)
        return True

    def _lead(self, agreement: Agreement) -> None:
        """Propose, where it may."""
        if agreement.may_propose:
            self._perform(agreement, agreement.propose(self._value()))

    def _value(self) -> bytes:
        values = self._stage.values
        if not self._is_honest:
            return values.tempt(self.index, self.height)
        spare = next((peer for peer in self._stage.peers if peer not in self.members), None)
        name = values.propose(self.index, self.height, self.members, spare)
        if self._stage.kind.trusts_members:  # a leader's word is good enough: nobody asks it to judge its own value
            self._stage.witness.approved(self.peer, name)
        return name

    def _judge(self, agreement: Agreement, asked: Judge) -> None:
        """Approve a value if it is valid, or look again when it is."""
        if agreement is not self.agreement:
            return
        value = self._stage.values.find(asked.value)
        if self._is_honest:
            if value is None or not value.is_valid:
                return
            if not value.is_valid_for(self.index, self._stage.now):
                self._stage.later(value.clear_s - self._stage.now, self._judge, agreement, asked)
                return
            self._stage.witness.approved(self.peer, asked.value)
        self._perform(agreement, agreement.approve(asked.view))

    def _append(self, agreement: Agreement, decision: Decision) -> None:
        """Write to the log what was decided; the next height's members follow from it."""
        stage, value = self._stage, self._stage.values.find(decision.value)
        if self._is_honest:
            stage.witness.decided(self.peer, decision, self.scope, self.members)
            self._check_bounds(agreement)
        if stage.is_told:
            stage.tell(f"{self.peer} decides height {self.height}: {decision.value.decode(errors='replace')}")
        self._log.append((stage.now, decided(self.height, decision)))
        self.height += 1
        if value is not None and value.joins is not None:
            self.members = tuple(value.joins if member == value.leaves else member for member in self.members)
            self._epoch += 1
        stage.note_scope(self.scope, self.members)
        if self._is_honest and self.height == stage.schedule.num_heights:
            stage.num_undecided -= 1

    def _go_on(self) -> None:
        """Begin with the next height, if there is one."""
        self._last, self.agreement = self.agreement, None
        if self.height < self._stage.schedule.num_heights:
            self._open()

    # ---- timers -----------------------------------------------------------------------------------------------

    def _enter(self, agreement: Agreement) -> None:
        """Begin to wait for the leader of a view."""
        self.view = agreement.view
        self._num_views += 1
        self._stage.later(self._wait_s(), self._doubt, agreement, self.view)

    def _doubt(self, agreement: Agreement, view: int) -> None:
        if agreement is not self.agreement or view != self.view:
            return
        self._check_bounds(agreement)
        self._stage.tell(f"{self.peer} loses patience with view {view}")
        self._perform(agreement, agreement.suspect(self._stage.seem_down()))
        if agreement is self.agreement and view == self.view:
            self._stage.later(self._wait_s(), self._doubt, agreement, view)

    def _repeat(self, life: int) -> None:
        agreement = self.agreement
        if life != self._life or agreement is None:
            return
        said = agreement.repeat()
        self._num_repetitions += 1
        if self._is_honest:
            self._stage.witness.repeated(self.peer, len(said))
        for message in said:
            self._say(message)
        if not said:
            self._stage.ask(self.peer, self.height, None)
        self._stage.later(self._repeat_s(), self._repeat, life)

    def _wait_s(self) -> float:
        wait_s = self._patience_s * 2.0 ** min(max(self.view - self._first_view, 0), MAX_DOUBLINGS)
        return wait_s * (1 + self._stage.rng.random()) if self._stage.kind.trusts_members else wait_s

    def _repeat_s(self) -> float:
        return min(self._wait_s() / REPEATS_PER_PATIENCE, MAX_REPEAT_S)

    # ---- what it says -----------------------------------------------------------------------------------------

    def _say(self, message: Ballot) -> None:
        stage = self._stage
        if self._is_honest:
            stage.witness.said(self.peer, message, stage.committees[message.height])
        self._carry(message, stage.others(self.peer))

    def _send(self, to: PeerId, message: Ballot) -> None:
        self._carry(message, self._stage.ears_of(to))

    def _carry(self, message: Ballot, targets: Sequence[Ear]) -> None:
        passes = self._passes
        if passes is not None:
            targets = [ear for ear in targets if passes(ear.index, message)]
        self._stage.carry(self.index, message, targets)

    def _check_bounds(self, agreement: Agreement) -> None:
        """Let the witness see how much it has said and, now and then since it takes long, how much it holds."""
        if self._is_honest:
            witness = self._stage.witness
            witness.check_messages(self.peer, self._num_said, views=self._num_views)
            turns = self._num_views + self._num_repetitions
            witness.check_answers(self.peer, self._num_answers, turns=turns, num_members=len(self.members))
            self._num_checks += 1
            if self._num_checks % CHECKS_PER_COUNT == 0:
                witness.check_memory(self.peer, agreement, self.members)
