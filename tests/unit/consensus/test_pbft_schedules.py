"""PBFT under random schedules: loss, repetition, disorder, crashes between any two effects, and f members that lie."""

import itertools
import random
from dataclasses import dataclass, field

import pytest

from barnraise.consensus.agreement import Ballot, Broadcast, Decision, Effect, Judge, Persist, Send
from barnraise.consensus.pbft import Pbft
from barnraise.consensus.pbft_kind import PBFT
from barnraise.consensus.pbft_messages import PbftRecord, PrePrepare
from barnraise.consensus.quorum import num_faulty
from barnraise.errors import PeerError
from barnraise.ids import PeerId

from .pbft_cast import SCOPE, Author, member, peers, verify

NUM_SCHEDULES = 60
NUM_STEPS = 90
NUM_CALM_ROUNDS = 60
PATIENCE = 4
"""Calm rounds before a primary is suspected."""
CRASH_RATE = 0.03
"""Chance of dying before any one effect."""
LIES = 0.25
"""Chance that a step is a liar's."""


class Disagreement(AssertionError):
    """Safety or liveness did not hold."""


@dataclass(kw_only=True)
class Process:
    """A member with its disk; ``agreement`` is what a crash takes."""

    place: int
    agreement: Pbft
    disk: PbftRecord | None = None
    to_approve: list[int] = field(default_factory=list)
    waited: int = 0
    view: int = 0


class Cluster:
    """A committee of which the last f lie, a seeded scheduler, and a network that keeps nothing in order."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.rng = random.Random(f"{size} {seed}")
        self.peers = peers(size)
        honest = size - num_faulty(size)
        self.liars = [Author(place) for place in self.rng.sample(range(size), size - honest)]
        lying = {liar.peer for liar in self.liars}
        self.processes = {
            peer: Process(place=place, agreement=member(place, size))
            for place, peer in enumerate(self.peers)
            if peer not in lying
        }
        self.flying: list[tuple[PeerId, PeerId, Ballot]] = []
        self.values: list[bytes] = [b"what a liar would like"]
        self.decided: set[bytes] = set()
        self.numbers = itertools.count()
        self.calm = False

    def crash(self, process: Process) -> None:
        process.agreement, process.to_approve = member(process.place, self.size, process.disk), []

    def perform(self, process: Process, effects: list[Effect]) -> None:
        me = self.peers[process.place]
        for effect in effects:
            if not self.calm and self.rng.random() < CRASH_RATE:
                self.crash(process)
                return
            match effect:
                case Persist():
                    assert isinstance(effect.record, PbftRecord)
                    process.disk = effect.record
                case Broadcast():
                    self.broadcast(me, effect.message)
                case Send():
                    self.flying.append((me, effect.to, effect.message))
                case Judge():
                    process.to_approve.append(effect.view)
                case Decision():
                    self.check(effect)

    def broadcast(self, sender: PeerId, message: Ballot) -> None:
        self.flying += [(sender, to, message) for to in self.processes if to != sender]

    def check(self, decision: Decision) -> None:
        if decision.value not in self.values:
            raise Disagreement("a value was decided that nobody proposed")
        if not PBFT.holds(decision, SCOPE, self.peers, verify):
            raise Disagreement("the votes of a decision do not hold")
        self.decided.add(decision.value)
        if len(self.decided) > 1:
            raise Disagreement(f"{sorted(self.decided)} were decided")

    def deliver(self, place: int, *, keep: bool = False) -> None:
        sender, to, message = self.flying[place] if keep else self.flying.pop(place)
        if to not in self.processes:
            return
        process = self.processes[to]
        try:
            self.perform(process, process.agreement.receive(sender, message))
        except PeerError as error:
            if sender in self.processes:
                raise Disagreement(f"an honest member is blamed: {error}") from error

    def propose(self, process: Process) -> None:
        if process.agreement.may_propose:
            value = f"{process.place}, {next(self.numbers)}".encode()
            self.values.append(value)
            self.perform(process, process.agreement.propose(value))

    def approve(self, process: Process) -> None:
        waiting, process.to_approve = process.to_approve, []
        for view in waiting:
            self.perform(process, process.agreement.approve(view))

    def lie(self) -> None:
        """A liar says something to everybody, or different things to each."""
        liar, view = self.rng.choice(self.liars), self.rng.randrange(4)
        for to in self.processes:
            value, prepared = self.rng.choice(self.values), self.rng.randrange(-1, view + 1)
            message: Ballot = self.rng.choice(
                (
                    liar.pre_prepare(view, value, prepared),
                    liar.prepare(view, value),
                    liar.commit(view, value),
                    liar.change(view, prepared, value),
                )
            )
            if not isinstance(message, PrePrepare) or self.peers[view % self.size] == liar.peer:
                self.flying.append((liar.peer, to, message))

    def step(self) -> None:
        process = self.processes[self.rng.choice(list(self.processes))]
        draw = self.rng.random()
        if self.liars and self.rng.random() < LIES:
            self.lie()
        if draw < 0.6 and self.flying:
            self.deliver(self.rng.randrange(len(self.flying)), keep=self.rng.random() < 0.1)
        elif draw < 0.66 and self.flying:
            self.flying.pop(self.rng.randrange(len(self.flying)))
        elif draw < 0.76:
            self.propose(process)
        elif draw < 0.88:
            self.approve(process)
        elif draw < 0.95:
            self.perform(process, process.agreement.suspect())
        elif draw < 0.97:
            self.crash(process)
        else:
            for message in process.agreement.repeat():
                self.broadcast(self.peers[process.place], message)

    def calm_round(self) -> None:
        """Everybody repeats itself, everything arrives, everybody does what it may and is patient for a while."""
        for peer, process in self.processes.items():
            for message in process.agreement.repeat():
                self.broadcast(peer, message)
            self.propose(process)
        while self.flying:
            self.deliver(0)
        for process in self.processes.values():
            self.approve(process)
            process.waited = process.waited + 1 if process.view == process.agreement.view else 0
            process.view = process.agreement.view
            if process.waited > PATIENCE:
                self.perform(process, process.agreement.suspect())

    def run(self) -> None:
        for _ in range(NUM_STEPS * self.size // 4):
            self.step()
        self.calm = True
        for _ in range(NUM_CALM_ROUNDS):
            self.calm_round()
            if all(process.agreement.decision for process in self.processes.values()):
                return
        raise Disagreement("the faults are over and nothing is decided")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 10])
def test_honest_members_agree_and_finish_under_any_schedule(size: int) -> None:
    for seed in range(NUM_SCHEDULES):
        try:
            Cluster(size, seed).run()
        except Disagreement as error:
            raise Disagreement(f"{size} members, schedule {seed}: {error}") from error
