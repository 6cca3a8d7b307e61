"""One height under thousands of random schedules: messages lost, doubled and reordered, crashes between any effects.

A schedule is a seed. Safety is checked all the time, liveness once the faults stop. The mutants at the end show
that the same schedules notice when a rule is left out.
"""

import itertools
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import pytest

from barnraise.consensus import agreement, voting
from barnraise.consensus.agreement import (
    MAX_VALUE_BYTES,
    Ballot,
    Broadcast,
    Decided,
    Decision,
    Judge,
    Persist,
    Scope,
    decided,
)
from barnraise.consensus.seniority import is_quorum
from barnraise.consensus.voting import HOME, Accept, Change, Persisted, Propose, Voting
from barnraise.ids import PeerId
from barnraise.swarm.records import digest

HEIGHT = 7
SCOPE = Scope(run=b"run", epoch=1, height=HEIGHT)
NUM_SCHEDULES = 300
NUM_STEPS = 70
NUM_CALM_ROUNDS = 40
CRASH_RATE = 0.04
"""Chance of dying before any one effect."""


class Disagreement(AssertionError):
    """Safety or liveness did not hold."""


def sign_as(peer: PeerId, context: str, message: bytes) -> bytes:
    return f"{peer} {context} ".encode() + message


def verify(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
    return signature == sign_as(peer, context, message)


@dataclass(kw_only=True)
class Process:
    """A member with its disk; ``voting`` is what a crash takes."""

    me: PeerId
    voting: Voting
    disk: Persisted | None = None
    to_approve: list[int] = field(default_factory=list)


class Cluster:
    """Some members, a seeded scheduler and a network that keeps nothing in order."""

    def __init__(self, kind: type[Voting], size: int, seed: int) -> None:
        self.kind = kind
        self.rng = random.Random(f"{size} {seed}")
        self.members = tuple(PeerId(f"peer-{number}") for number in range(size))
        self.processes = {peer: Process(me=peer, voting=self.fresh(peer)) for peer in self.members}
        self.flying: list[tuple[PeerId, PeerId, Ballot]] = []
        self.proposed: set[bytes] = set()
        self.decided: set[bytes] = set()
        self.numbers = itertools.count()
        self.calm = False

    def fresh(self, peer: PeerId) -> Voting:
        return self.kind(
            scope=SCOPE,
            members=self.members,
            me=peer,
            sign=lambda context, message: sign_as(peer, context, message),
            verify=verify,
        )

    def crash(self, process: Process) -> None:
        process.voting, process.to_approve = self.fresh(process.me), []
        if process.disk is not None:
            process.voting.restore(process.disk)

    def perform(self, process: Process, effects: list[agreement.Effect]) -> None:
        for effect in effects:
            if not self.calm and self.rng.random() < CRASH_RATE:
                self.crash(process)
                return
            match effect:
                case Persist():
                    process.disk = effect.record
                case Broadcast():
                    self.broadcast(process.me, effect.message)
                case Judge():
                    process.to_approve.append(effect.view)
                case Decision():
                    self.check(effect)

    def broadcast(self, sender: PeerId, message: Ballot) -> None:
        self.flying += [(sender, to, message) for to in self.members if to != sender]

    def check(self, decision: Decision) -> None:
        if decision.value not in self.proposed:
            raise Disagreement("a value was decided that nobody proposed")
        if not HOME.holds(decision, SCOPE, self.members, verify):
            raise Disagreement("the votes of a decision do not hold")
        self.decided.add(decision.value)
        if len(self.decided) > 1:
            raise Disagreement(f"{sorted(self.decided)} were decided")

    def deliver(self, place: int, *, keep: bool = False) -> None:
        sender, to, message = self.flying[place] if keep else self.flying.pop(place)
        process = self.processes[to]
        self.perform(process, process.voting.receive(sender, message))

    def propose(self, process: Process) -> None:
        if process.voting.may_propose:
            value = f"{process.me}, {next(self.numbers)}".encode()
            self.proposed.add(value)
            self.perform(process, process.voting.propose(value))

    def approve(self, process: Process) -> None:
        waiting, process.to_approve = process.to_approve, []
        for view in waiting:
            self.perform(process, process.voting.approve(view))

    def step(self) -> None:
        process = self.processes[self.rng.choice(self.members)]
        draw = self.rng.random()
        if draw < 0.55 and self.flying:
            self.deliver(self.rng.randrange(len(self.flying)), keep=self.rng.random() < 0.1)
        elif draw < 0.62 and self.flying:
            self.flying.pop(self.rng.randrange(len(self.flying)))
        elif draw < 0.75:
            self.propose(process)
        elif draw < 0.88:
            self.approve(process)
        elif draw < 0.95:
            self.perform(process, process.voting.suspect())
        elif draw < 0.97:
            self.crash(process)
        else:
            for message in process.voting.repeat():
                self.broadcast(process.me, message)

    def calm_round(self) -> None:
        """Everybody repeats itself, everything arrives, everybody does what it may."""
        for process in self.processes.values():
            for message in process.voting.repeat():
                self.broadcast(process.me, message)
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
            if all(process.voting.decision for process in self.processes.values()):
                return
            if turn % 3 == 2:
                for process in self.processes.values():
                    self.perform(process, process.voting.suspect())
        raise Disagreement("the faults are over and nothing is decided")


def explore(kind: type[Voting], size: int, num_schedules: int = NUM_SCHEDULES) -> None:
    for seed in range(num_schedules):
        try:
            Cluster(kind, size, seed).run()
        except Disagreement as error:
            raise Disagreement(f"{size} members, schedule {seed}: {error}") from error


def explore_sizes(kind: type[Voting]) -> None:
    for size in (4, 3, 2, 5):
        explore(kind, size, 2 * NUM_SCHEDULES)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_members_agree_and_finish_under_any_schedule(size: int) -> None:
    explore(Voting, size)


class ForgetsWhatItAccepted(Voting):
    """A change reports nothing."""

    def _promise(self, view: int) -> list[agreement.Effect]:
        accepted = self.accepted_view, self.accepted
        self.accepted_view, self.accepted = -1, b""
        effects = super()._promise(view)
        self.accepted_view, self.accepted = accepted
        return effects


class IgnoresReports(Voting):
    """A new leader proposes what it likes."""

    @property
    def bound_value(self) -> bytes:
        return b""


class ForgetsInACrash(Voting):
    """The disk is not read."""

    def restore(self, record: Persisted) -> None:
        return


class BreaksPromises(Voting):
    """Accepts proposals of views older than it promised."""

    def approve(self, view: int) -> list[agreement.Effect]:
        promised, self.promised = self.promised, view
        effects = super().approve(view)
        self.promised = max(promised, self.promised)
        return effects


class ProposesWithoutChanges(Voting):
    """A new leader does not wait for a quorum of reports."""

    @property
    def may_propose(self) -> bool:
        return not self.decision and self.leader == self.me and self.promised not in self._proposals


class LeadsAViewTwice(Voting):
    """After a crash it proposes afresh in a view in which it may have proposed already."""

    def restore(self, record: Persisted) -> None:
        super().restore(record)
        self._led_before = -1


class ProposesBeforeItIsOnDisk(Voting):
    """A proposal leaves nothing behind that a crash does not take."""

    def propose(self, value: bytes) -> list[agreement.Effect]:
        return [effect for effect in super().propose(value) if not isinstance(effect, Persist)]


@pytest.mark.parametrize(
    "mutant",
    [
        ForgetsWhatItAccepted,
        IgnoresReports,
        ForgetsInACrash,
        BreaksPromises,
        ProposesWithoutChanges,
        LeadsAViewTwice,
        ProposesBeforeItIsOnDisk,
    ],
)
def test_the_schedules_notice_a_rule_that_is_left_out(mutant: type[Voting]) -> None:
    with pytest.raises(Disagreement, match="were decided"):
        explore_sizes(mutant)


def test_the_schedules_notice_a_quorum_of_any_half(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_half(members: Sequence[PeerId], present: Collection[PeerId]) -> bool:
        return 2 * sum(member in present for member in members) >= len(members)

    monkeypatch.setattr(voting, "is_quorum", is_half)
    with pytest.raises(Disagreement, match="were decided"):
        explore(Voting, 2)


def voting_of(me: str, members: tuple[str, ...] = ("peer-0", "peer-1", "peer-2")) -> Voting:
    peer = PeerId(me)
    return Voting(
        scope=SCOPE,
        members=tuple(PeerId(member) for member in members),
        me=peer,
        sign=lambda context, message: sign_as(peer, context, message),
        verify=verify,
    )


def accept_of(peer: str, value: bytes, view: int = 0) -> Accept:
    name = digest(value)
    signature = sign_as(PeerId(peer), voting.VOTE_CONTEXT, SCOPE.statement(view, name))
    return Accept(height=HEIGHT, view=view, value=name, signature=signature)


def decision_of(*voters: str) -> Decision:
    votes = tuple((voter, accept_of(voter, b"value").signature) for voter in voters)
    return Decision(value=b"value", view=0, votes=votes)


def test_a_vote_is_on_disk_before_it_is_sent() -> None:
    member = voting_of("peer-1")
    member.receive(PeerId("peer-0"), Propose(height=HEIGHT, view=0, value=b"value"))
    persisted, sent = member.approve(0)
    assert persisted == Persist(record=Persisted(height=HEIGHT, promised=0, accepted_view=0, accepted=b"value"))
    assert sent == Broadcast(message=accept_of("peer-1", b"value"))


def test_a_restarted_member_repeats_the_vote_it_had_cast() -> None:
    member = voting_of("peer-1")
    member.restore(Persisted(height=HEIGHT, promised=0, accepted_view=0, accepted=b"value"))
    assert member.repeat() == [accept_of("peer-1", b"value")]


def test_a_restarted_leader_repeats_the_proposal_it_had_accepted_and_makes_no_other() -> None:
    leader = voting_of("peer-0")
    leader.restore(Persisted(height=HEIGHT, promised=0, accepted_view=0, accepted=b"value"))
    assert not leader.may_propose
    assert Propose(height=HEIGHT, view=0, value=b"value") in leader.repeat()


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        ("stranger", accept_of("stranger", b"value")),
        ("peer-2", accept_of("peer-1", b"value")),
        ("peer-1", Propose(height=HEIGHT, view=0, value=b"not the leader's")),
        ("peer-0", Propose(height=HEIGHT, view=0, value=bytes(MAX_VALUE_BYTES + 1))),
        ("peer-1", Change(height=HEIGHT, view=1, accepted_view=1, accepted=b"from the future")),
        ("peer-1", Change(height=HEIGHT, view=1, accepted_view=0, accepted=bytes(MAX_VALUE_BYTES + 1))),
        ("peer-1", Decided(height=HEIGHT, view=0, value=b"value", votes=decision_of("peer-1").votes)),
        ("peer-1", Decided(height=HEIGHT, view=1, value=b"value", votes=decision_of("peer-0", "peer-1").votes)),
    ],
)
def test_what_breaks_a_rule_is_ignored(sender: str, message: Ballot) -> None:
    member = voting_of("peer-2")
    assert member.receive(PeerId(sender), message) == []
    assert member.promised == 0
    assert member.decision is None


def test_an_onlooker_learns_and_does_not_vote() -> None:
    onlooker = voting_of("onlooker")
    onlooker.receive(PeerId("peer-0"), Propose(height=HEIGHT, view=0, value=b"value"))
    assert onlooker.approve(0) == []
    assert onlooker.suspect() == []
    assert onlooker.receive(PeerId("peer-1"), accept_of("peer-1", b"value")) == []
    assert onlooker.receive(PeerId("peer-0"), accept_of("peer-0", b"value")) == [decision_of("peer-0", "peer-1")]


def test_a_decision_can_be_checked_from_its_votes_alone() -> None:
    members = voting_of("peer-0").members
    assert is_quorum(members, members[:2])
    assert HOME.holds(decision_of("peer-0", "peer-2"), SCOPE, members, verify)
    assert not HOME.holds(decision_of("peer-0", "peer-2"), replace(SCOPE, height=HEIGHT + 1), members, verify)
    assert not HOME.holds(decision_of("peer-0", "peer-0", "stranger"), SCOPE, members, verify)
    late = voting_of("peer-1")
    told = decided(HEIGHT, decision_of("peer-0", "peer-2"))
    assert late.receive(PeerId("peer-2"), told) == [decision_of("peer-0", "peer-2")]


def test_suspicion_skips_leaders_that_are_down_and_joins_who_is_ahead() -> None:
    member = voting_of("peer-2")
    member.suspect(frozenset({PeerId("peer-1")}))
    assert member.promised == 2
    other = voting_of("peer-0")
    other.receive(PeerId("peer-1"), Change(height=HEIGHT, view=4, accepted_view=-1, accepted=b""))
    other.suspect()
    assert other.promised == 4
