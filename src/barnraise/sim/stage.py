"""What the peers of a trial of agreement have around them: one clock, one network, one pair of dice; no rules of theirs.

The clock jumps from one event of a heap to the next. Before the calm the network loses, doubles, delays and cuts as
the schedule says; in the calm everything arrives soon. Messages are objects that are handed over, and nothing is kept
in order.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, Final, Protocol

from barnraise.consensus.agreement import Ballot, Kind, Scope
from barnraise.ids import PeerId
from barnraise.sim.schedules import Schedule
from barnraise.sim.values import Values
from barnraise.sim.witness import Signatures, Witness

RUN: Final = b"trial"
CALM_DELAY_S: Final = 0.1
STRAGGLER: Final = 10.0
"""So many times as long takes a message that straggles."""
NOBODY: Final[frozenset[int]] = frozenset()

Tell = Callable[[str], None]


class Ear(Protocol):
    """Somebody who hears what is sent to a peer."""

    index: int
    peer: PeerId

    def hear(self, sender: PeerId, message: Ballot) -> None:
        """Take in what a peer says."""
        ...

    def asked(self, by: PeerId, height: int) -> None:
        """A peer wants to know what was decided at a height."""
        ...


class Stage:
    """One trial's clock, network and dice.

    Args:
        schedule: What the network and the clocks do.
        kind: The protocol under test.
        tell: Hears each event in plain words; None: nobody listens.
    """

    def __init__(self, schedule: Schedule, kind: Kind, tell: Tell | None) -> None:
        self.schedule = schedule
        self.kind = kind
        self.now = 0.0
        self.rng = random.Random(f"dice {schedule.num_members} {schedule.seed}")
        self.signatures = Signatures()
        self.values = Values(self.rng, schedule.num_peers, schedule.calm_s, schedule.contention)
        self.peers = tuple(PeerId(f"peer-{index}") for index in range(schedule.num_peers))
        self.signers = {peer: self.signatures.signer(peer) for peer in self.peers}
        self.committees = {0: self.peers[: schedule.num_members]}
        """Who votes, by height, as far as that is decided."""
        self.scopes = {0: Scope(run=RUN, epoch=0, height=0)}
        honest = [peer for index, peer in enumerate(self.peers) if index not in schedule.traitors]
        self.witness = Witness(kind, honest, self.signatures, self.values)
        self.num_events = 0
        self.num_messages = 0
        """Deliveries."""
        self.num_undecided = len(honest)
        """Honest peers that have not decided every height."""
        self.down: set[PeerId] = {self.peers[treason.member] for treason in schedule.treasons if treason.is_silent}
        self._tell = tell
        self._own: dict[PeerId, list[Ear]] = {peer: [] for peer in self.peers}
        self._others: dict[PeerId, list[Ear]] = {peer: [] for peer in self.peers}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._camp = NOBODY
        """Those who are cut off from all others now."""
        self._holes = {(hole.kind, hole.view): hole for hole in schedule.holes}
        for split in schedule.splits:
            self.later(split.from_s, self._split, split.camp)
            self.later(split.until_s, self._split, NOBODY)

    def note_scope(self, scope: Scope, members: tuple[PeerId, ...]) -> None:
        """Somebody begins with a height: it is clear who votes."""
        self.committees.setdefault(scope.height, members)
        self.scopes.setdefault(scope.height, scope)

    # ---- time -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Jump to the next event and let it happen."""
        self.now, _, act, arguments = heappop(self._heap)
        self.num_events += 1
        act(*arguments)

    def later(self, delay_s: float, act: Callable[..., None], *arguments: object) -> None:
        """Let something happen after a while."""
        heappush(self._heap, (self.now + delay_s, next(self._order), act, arguments))

    def seem_down(self) -> frozenset[PeerId]:
        """Return who seems to be down to somebody, now: often right, never sure."""
        rng = self.rng.random
        if not self.down or rng() < 0.5:
            return frozenset()
        if rng() < 0.2 and not self.is_calm:
            return frozenset({*self.down, self.peers[int(rng() * len(self.peers))]})
        return frozenset(self.down)

    @property
    def is_calm(self) -> bool:
        """Tell whether the network is kind by now."""
        return self.now >= self.schedule.calm_s

    # ---- the network ------------------------------------------------------------------------------------------

    def attach(self, ear: Ear) -> None:
        """Let somebody hear what is sent to its peer."""
        for peer in self.peers:
            (self._own if ear.peer == peer else self._others)[peer].append(ear)

    def carry(self, source: int, message: Ballot, targets: Sequence[Ear]) -> None:
        """Send a message on its way to some, as the network is now.

        Args:
            source: Index of the peer that sends it.
            message: Any.
            targets: Who shall hear it.
        """
        sender, rng, heap, now, order = self.peers[source], self.rng.random, self._heap, self.now, self._order
        if self.is_calm:
            for ear in targets:
                heappush(heap, (now + rng() * CALM_DELAY_S, next(order), ear.hear, (sender, message)))
            self.num_messages += len(targets)
            return
        camp, loss = self._camp, self.schedule.loss
        hole = self._holes.get((type(message).__name__, message.view))
        is_apart = source in camp
        for ear in targets:
            if is_apart is not (ear.index in camp) or rng() < loss:
                continue
            delay_s = self._delay_s()
            if hole is not None and ear.index in hole.deaf:
                if hole.late_s is None:
                    continue
                delay_s += rng() * hole.late_s
            heappush(heap, (now + delay_s, next(order), ear.hear, (sender, message)))
            self.num_messages += 1

    def others(self, peer: PeerId) -> list[Ear]:
        """Return everybody's ears but this peer's own."""
        return self._others[peer]

    def ears_of(self, peer: PeerId) -> list[Ear]:
        """Return whoever hears what is sent to a peer."""
        return self._own[peer]

    def ask(self, asker: PeerId, height: int, to: PeerId | None) -> None:
        """Ask a peer, or anybody, what was decided at a height."""
        ears = self.others(asker) if to is None else self.ears_of(to)
        if ears:
            ear = ears[int(self.rng.random() * len(ears))]
            self.later(self.rng.random() * CALM_DELAY_S, ear.asked, asker, height)

    def _delay_s(self) -> float:
        schedule, rng = self.schedule, self.rng.random
        delay_s = rng() * schedule.delay_s
        if schedule.straggling and rng() < schedule.straggling:
            delay_s *= STRAGGLER
        return delay_s

    def _split(self, camp: frozenset[int]) -> None:
        self._camp = camp

    # ---- telling ----------------------------------------------------------------------------------------------

    @property
    def is_told(self) -> bool:
        """Tell whether anybody listens; words cost time."""
        return self._tell is not None

    def tell(self, text: str) -> None:
        """Say what happens."""
        if self._tell is not None:
            self._tell(f"{self.now:9.3f} s  {text}")
