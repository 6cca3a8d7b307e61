"""A few heights under thousands of random schedules: messages lost, doubled and reordered, members that crash between any
two effects, leave and join. A schedule is a seed. Safety is checked all the time, liveness once the faults stop. The
mutants at the end show that the same schedules notice when a rule is left out.
"""

import itertools
import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from barnraise.consensus import raft
from barnraise.consensus.agreement import (
    Ballot,
    Broadcast,
    Decision,
    Effect,
    Judge,
    Persist,
    Scope,
    Send,
    decided,
)
from barnraise.consensus.raft import Raft, Role
from barnraise.consensus.raft_kind import RAFT
from barnraise.consensus.raft_messages import Append, PreVote, RaftRecord, RequestVote
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm.records import digest

NUM_HEIGHTS = 3
NUM_SCHEDULES = 200
NUM_STEPS = 250
NUM_CALM_ROUNDS = 100
MAX_MEMBERS = 5
CRASH_RATE = 0.03
"""Chance of dying before any one effect."""


class Disagreement(AssertionError):
    """Safety or liveness did not hold."""


def sign_as(peer: PeerId, context: str, message: bytes) -> bytes:
    return digest(f"{peer} {context} ".encode() + message)


def verify(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
    return signature == sign_as(peer, context, message)


@dataclass(frozen=True)
class Place:
    """Where a log has come to."""

    height: int
    epoch: int
    members: tuple[PeerId, ...]

    @property
    def scope(self) -> Scope:
        return Scope(run=b"run", epoch=self.epoch, height=self.height)

    def after(self, value: bytes) -> "Place":
        """Return the place that an entry leads to; it names the members behind it."""
        members = tuple(PeerId(name) for name in value.decode().split("|")[-1].split(","))
        return Place(self.height + 1, self.epoch + (members != self.members), members)


@dataclass(kw_only=True)
class Process:
    """A peer with its disk; ``raft`` is what a crash takes."""

    me: PeerId
    place: Place
    raft: Raft
    log: list[Decision] = field(default_factory=list)
    record: RaftRecord | None = None
    to_approve: list[int] = field(default_factory=list)


class Cluster:
    """Some members, a seeded scheduler and a network that keeps nothing in order."""

    def __init__(self, machine: type[Raft], size: int, seed: int) -> None:
        self.machine = machine
        self.rng = random.Random(f"{size} {seed}")
        self.peers = tuple(PeerId(f"peer-{number}") for number in range(MAX_MEMBERS))
        first = Place(0, 0, self.peers[:size])
        self.processes = {peer: Process(me=peer, place=first, raft=self.opened(peer, first)) for peer in self.peers}
        self.flying: list[tuple[PeerId, PeerId, Ballot]] = []
        self.proposed: set[bytes] = set()
        self.decided: dict[int, bytes] = {}
        self.leaders: dict[tuple[int, int], PeerId] = {}
        self.numbers = itertools.count()
        self.calm = False

    def opened(self, peer: PeerId, place: Place, record: RaftRecord | None = None) -> Raft:
        def sign(context: str, message: bytes) -> bytes:
            return sign_as(peer, context, message)

        return self.machine(place.scope, place.members, peer, sign=sign, verify=verify, record=record)

    def open_again(self, process: Process) -> None:
        process.raft = self.opened(process.me, process.place, process.record)
        process.to_approve = []

    def perform(self, process: Process, effects: list[Effect]) -> None:
        for effect in effects:
            if not self.calm and self.rng.random() < CRASH_RATE:
                self.open_again(process)
                return
            match effect:
                case Persist():
                    assert isinstance(effect.record, RaftRecord)
                    process.record = effect.record
                case Broadcast():
                    self.broadcast(process, effect.message)
                case Send():
                    self.flying.append((process.me, effect.to, effect.message))
                case Judge():
                    process.to_approve.append(effect.view)
                case Decision():
                    self.check(process.place, effect)
                    process.log.append(effect)
                    process.place = process.place.after(effect.value)
                    self.open_again(process)

    def broadcast(self, process: Process, message: Ballot) -> None:
        if isinstance(message, Append):
            term = process.place.epoch, message.view
            if self.leaders.setdefault(term, process.me) != process.me:
                raise Disagreement(f"term {term} has two leaders")
        self.flying += [(process.me, to, message) for to in self.peers if to != process.me]

    def check(self, place: Place, decision: Decision) -> None:
        if decision.value not in self.proposed:
            raise Disagreement("a value was decided that nobody proposed")
        if not RAFT.holds(decision, place.scope, place.members, verify):
            raise Disagreement("the votes of a decision do not hold")
        if self.decided.setdefault(place.height, decision.value) != decision.value:
            raise Disagreement(f"{self.decided[place.height]!r} and {decision.value!r} were decided")

    def deliver(self, place: int, *, keep: bool = False) -> None:
        sender, to, message = self.flying[place] if keep else self.flying.pop(place)
        process = self.processes[to]
        if message.height == process.place.height:
            self.perform(process, self.received(process, sender, message))
        elif message.height < process.place.height and message.asks:
            self.tell(process, message.height, sender)

    def received(self, process: Process, sender: PeerId, message: Ballot) -> list[Effect]:
        try:
            return process.raft.receive(sender, message)
        except PeerError as error:
            raise Disagreement(f"what a member said was refused: {error}") from error

    def tell(self, process: Process, height: int, to: PeerId) -> None:
        self.flying.append((process.me, to, decided(height, process.log[height])))

    def propose(self, process: Process) -> None:
        if process.raft.may_propose and process.place.height < NUM_HEIGHTS:
            members: Collection[PeerId] = process.place.members
            if self.rng.random() < 0.4:
                members = self.rng.sample(self.peers, self.rng.randint(1, MAX_MEMBERS))
            value = f"{process.me}|{next(self.numbers)}|{','.join(sorted(members))}".encode()
            self.proposed.add(value)
            self.perform(process, process.raft.propose(value))

    def approve(self, process: Process) -> None:
        waiting, process.to_approve = process.to_approve, []
        height = process.place.height
        for view in waiting:
            if process.place.height == height:
                self.perform(process, process.raft.approve(view))

    def suspect(self) -> None:
        """Some lose patience at much the same time, as they do when their leader is gone."""
        down = frozenset(self.rng.sample(self.peers, self.rng.randrange(3)))
        for process in self.rng.sample(list(self.processes.values()), self.rng.randint(1, MAX_MEMBERS)):
            self.perform(process, process.raft.suspect(down))

    def repeat(self, process: Process) -> None:
        for message in process.raft.repeat():
            self.broadcast(process, message)

    def step(self) -> None:
        process = self.processes[self.rng.choice(self.peers)]
        draw = self.rng.random()
        if draw < 0.50 and self.flying:
            self.deliver(self.rng.randrange(len(self.flying)), keep=self.rng.random() < 0.1)
        elif draw < 0.57 and self.flying:
            self.flying.pop(self.rng.randrange(len(self.flying)))
        elif draw < 0.70:
            self.propose(process)
        elif draw < 0.83:
            self.approve(process)
        elif draw < 0.92:
            self.suspect()
        elif draw < 0.94:
            self.open_again(process)
        elif draw < 0.96 and process.log:
            self.tell(process, self.rng.randrange(len(process.log)), self.rng.choice(self.peers))
        else:
            self.repeat(process)

    def calm_round(self) -> None:
        """Everybody repeats itself, everything arrives, everybody does what it may, and who is behind is helped."""
        best = max(self.processes.values(), key=lambda process: process.place.height)
        for process in self.processes.values():
            if process.place.height < best.place.height:
                self.tell(best, process.place.height, process.me)
            self.repeat(process)
            self.propose(process)
        while self.flying:
            self.deliver(0)
        for process in self.processes.values():
            self.approve(process)

    def run(self) -> None:
        for _ in range(NUM_STEPS):
            self.step()
        self.calm = True
        for turn in range(NUM_CALM_ROUNDS):
            self.calm_round()
            if all(process.place.height == NUM_HEIGHTS for process in self.processes.values()):
                return
            if turn % 3 == 2:
                for process in self.processes.values():
                    self.perform(process, process.raft.suspect())
        raise Disagreement("the faults are over and nothing is decided")


def explore(machine: type[Raft], size: int, num_schedules: int = NUM_SCHEDULES) -> None:
    for seed in range(num_schedules):
        try:
            Cluster(machine, size, seed).run()
        except Disagreement as error:
            raise Disagreement(f"{size} members, schedule {seed}: {error}") from error


def explore_sizes(machine: type[Raft]) -> None:
    for size in (4, 3, 5, 2):
        explore(machine, size, 2 * NUM_SCHEDULES)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_members_agree_and_finish_under_any_schedule(size: int) -> None:
    explore(Raft, size)


# ---- the schedules can fail ---------------------------------------------------------------------------------------


class ForgetsInACrash(Raft):
    """The disk is not read."""

    def _restore(self, record: RaftRecord) -> None:
        return


class ForgetsItsTermAtTheNextEntry(Raft):
    """A vote of one height binds nobody at the next."""

    def _restore(self, record: RaftRecord) -> None:
        if record.height == self.scope.height:
            super()._restore(record)


class LeadsWhereOthersAreMembers(Raft):
    """A term lives on when the members change."""

    def __init__(self, scope: Scope, members: Sequence[PeerId], me: PeerId, **keys: Any) -> None:
        record = keys.pop("record")
        old = record and msgspec.structs.replace(record, epoch=scope.epoch)
        super().__init__(scope, members, me, record=old, **keys)


class VotesForAnyLog(Raft):
    """Whoever asks gets the vote, however old its log."""

    def _on_pre_vote(self, sender: PeerId, message: PreVote) -> list[Effect]:
        return super()._on_pre_vote(sender, msgspec.structs.replace(message, entry_term=message.view - 1))

    def _on_request_vote(self, sender: PeerId, message: RequestVote) -> list[Effect]:
        return super()._on_request_vote(sender, msgspec.structs.replace(message, entry_term=message.view - 1))


class VotesTwice(Raft):
    """A vote is forgotten as soon as it is cast."""

    def _on_request_vote(self, sender: PeerId, message: RequestVote) -> list[Effect]:
        if message.view == self.term and self.role is Role.FOLLOWER:
            self.vote = raft.NOBODY
        return super()._on_request_vote(sender, message)


class AcknowledgesAnOlderTerm(Raft):
    """Approves what a leader had proposed that was passed over since."""

    _older: bytes = b""

    def _enter(self, term: int, vote: PeerId) -> None:
        self._older = self._proposal or self._older
        super()._enter(term, vote)

    def approve(self, view: int) -> list[Effect]:
        if view >= self.term or not self._older or not self._is_member or self.decision:
            return super().approve(view)
        kept, (self.term, self._proposal) = (self.term, self._proposal), (view, self._older)
        effects = self._acknowledge()
        self.term, self._proposal = kept
        return effects


class ProposesOverItsSlot(Raft):
    """A new leader proposes what it likes."""

    @property
    def bound_value(self) -> bytes:
        return b""


class LeadsWithoutVotes(Raft):
    """Whoever is let stand leads."""

    def _stand(self) -> list[Effect]:
        effects = super()._stand()
        if self.role is Role.CANDIDATE:
            self._granted = set(self.members)
            return [*effects, *self._lead()]
        return effects


class ProposesBeforeItIsOnDisk(Raft):
    """What was proposed leaves nothing behind that a crash does not take."""

    def propose(self, value: bytes) -> list[Effect]:
        return [effect for effect in super().propose(value) if not isinstance(effect, Persist)]


class VotesBeforeItIsOnDisk(Raft):
    """A vote leaves nothing behind that a crash does not take."""

    def _on_request_vote(self, sender: PeerId, message: RequestVote) -> list[Effect]:
        return [effect for effect in super()._on_request_vote(sender, message) if not isinstance(effect, Persist)]


CAUGHT = "were decided|two leaders|was refused"
MUTANTS = [
    ForgetsInACrash,
    ForgetsItsTermAtTheNextEntry,
    LeadsWhereOthersAreMembers,
    VotesTwice,
    AcknowledgesAnOlderTerm,
    LeadsWithoutVotes,
    ProposesBeforeItIsOnDisk,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_schedules_notice_a_rule_that_is_left_out(mutant: type[Raft]) -> None:
    with pytest.raises(Disagreement, match=CAUGHT):
        explore_sizes(mutant)


def test_the_schedules_notice_a_quorum_of_any_half(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_half(members: Sequence[PeerId], present: Collection[PeerId]) -> bool:
        return 2 * sum(member in present for member in members) >= len(members)

    monkeypatch.setattr(raft, "is_quorum", is_half)
    with pytest.raises(Disagreement, match=CAUGHT):
        explore(Raft, 2)


# ---- what schedules find rarely, by hand: figure 8 of the paper, with one slot -----------------------------------


class CopiesUnderTheOldTerm(Raft):
    """Figure 8: an entry of an older leader is acknowledged again, and remains one of the older term."""

    def _acknowledge(self) -> list[Effect]:
        first = self.entry_term if self._proposal == self.entry else self.term
        effects = super()._acknowledge()
        self.entry_term = first
        return [self._persist() if isinstance(effect, Persist) else effect for effect in effects]


class Scene:
    """A few members of one height, and a test that says who hears whom."""

    def __init__(self, machine: type[Raft], size: int = 5) -> None:
        self.peers = tuple(PeerId(f"peer-{number}") for number in range(size))
        self.place = Place(0, 0, self.peers)
        self.machine = machine
        self.rafts: dict[PeerId, Raft] = {}
        self.records: dict[PeerId, RaftRecord] = {}
        self.decided: set[bytes] = set()
        for peer in self.peers:
            self.wake(peer)

    def wake(self, peer: PeerId) -> None:
        """Begin, again perhaps, with what is on the disk."""

        def sign(context: str, message: bytes) -> bytes:
            return sign_as(peer, context, message)

        record = self.records.get(peer)
        place = self.place
        self.rafts[peer] = self.machine(place.scope, place.members, peer, sign=sign, verify=verify, record=record)

    def say(self, peer: PeerId, effects: list[Effect], *hearers: PeerId) -> None:
        """Let these hear what follows from a call, and answer; nobody else hears anything."""
        waiting: deque[tuple[PeerId, Effect]] = deque((peer, effect) for effect in effects)
        while waiting:
            speaker, effect = waiting.popleft()
            match effect:
                case Persist():
                    assert isinstance(effect.record, RaftRecord)
                    self.records[speaker] = effect.record
                case Broadcast() | Send():
                    to = [effect.to] if isinstance(effect, Send) else [name for name in self.peers if name != speaker]
                    for name in to:
                        if {speaker, name} <= {peer, *hearers} and name in self.rafts:
                            found = self.rafts[name].receive(speaker, effect.message)
                            waiting.extend((name, following) for following in found)
                case Judge():
                    waiting.extend((speaker, following) for following in self.rafts[speaker].approve(effect.view))
                case Decision():
                    self.decided.add(effect.value)

    def elect(self, peer: PeerId, *voters: PeerId) -> bool:
        """Have these lose patience with all others until it is this one's turn; tell whether it leads a new term."""
        for voter in voters:  # what is said to one that has gone further tells of the term that it is in
            self.say(peer, [Send(to=voter, message=message) for message in self.rafts[peer].repeat()], voter)
            self.say(voter, self.rafts[voter].suspect())
        before = self.rafts[peer].term
        self.say(peer, self.rafts[peer].suspect(frozenset(self.peers) - {peer}), *voters)
        return self.rafts[peer].role is Role.LEADER and self.rafts[peer].term > before


def figure_8(machine: type[Raft]) -> set[bytes]:
    """Return what is decided where an old entry is copied on and a log that lies between them comes back."""
    scene = Scene(machine)
    one, two, three, four, five = scene.peers
    scene.say(one, scene.rafts[one].propose(b"x"), two)  # entry of term 0 at one and two
    assert scene.elect(five, three, four)
    scene.say(five, scene.rafts[five].propose(b"y"))  # entry of term 1 at five only
    scene.wake(one)
    scene.say(one, scene.rafts[one].propose(b""), three)  # is refused, and learns of term 1
    assert scene.elect(one, two, three)
    scene.say(one, scene.rafts[one].propose(b""), two, three)  # copied on in term 2, by a quorum
    for peer in (two, three, five):
        scene.wake(peer)
    if scene.elect(five, two, three, four):
        scene.say(five, scene.rafts[five].propose(b""), two, three, four)
    return scene.decided


def test_an_old_entry_that_is_proposed_again_is_one_of_the_new_term() -> None:
    assert figure_8(Raft) == {b"x"}


def test_figure_8_is_noticed_where_it_stays_one_of_the_old_term() -> None:
    assert figure_8(CopiesUnderTheOldTerm) == {b"x", b"y"}


# ---- and two shorter stories --------------------------------------------------------------------------------------


def succession(machine: type[Raft], heir: int) -> set[bytes]:
    """Return what is decided where the leader dies with the decision, which rests on its vote and the next member's."""
    scene = Scene(machine, 3)
    one, two, three = scene.peers
    scene.say(one, scene.rafts[one].propose(b"x"), two)
    scene.rafts.pop(one)
    scene.wake(two)
    new, other = (two, three) if heir == 1 else (three, two)
    if scene.elect(new, other):
        scene.say(new, scene.rafts[new].propose(b"y"), other)
    return scene.decided


@pytest.mark.parametrize("heir", [1, 2])
def test_what_a_dead_leader_had_decided_stays_decided(heir: int) -> None:
    assert succession(Raft, heir) == {b"x"}


@pytest.mark.parametrize(("mutant", "heir"), [(ProposesOverItsSlot, 1), (VotesForAnyLog, 2)])
def test_a_successor_that_overrides_it_is_noticed(mutant: type[Raft], heir: int) -> None:
    assert succession(mutant, heir) == {b"x", b"y"}


def rivals(machine: type[Raft]) -> list[PeerId]:
    """Return who leads term 1 where the voter that decides it crashes after it has voted, and is asked again."""
    scene = Scene(machine)
    one, two, three, four, five = scene.peers
    leaders = [two] if scene.elect(two, one, three) else []
    scene.wake(three)
    if scene.elect(four, three, five) and scene.rafts[four].term == 1:
        leaders.append(four)
    return leaders


def test_a_term_has_one_leader_though_its_voters_crash() -> None:
    assert rivals(Raft) == ["peer-1"]


def test_a_voter_that_forgets_its_vote_in_a_crash_is_noticed() -> None:
    assert rivals(VotesBeforeItIsOnDisk) == ["peer-1", "peer-3"]
