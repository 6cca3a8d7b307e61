"""A hundred simulated peers of whom some come and some go in every round, and what a round costs each of them.

`World` tries to break a few peers; a `Crowd` is the same world made large. The machine, the messages and their sizes
(ids and signatures as long as real ones), the exchange and the step are those that ship; the tensors are small, and
training is a function. Nothing is cut short but this: a message that goes to many is encoded and decoded once.

A member's crash and its leaving are drawn at the start of each round, at a moment of the round, for ``churn`` of the
members; as many peers come at such moments, half of them without tensors.

    votes        signed messages of an agreement; of the cut's and of the result's
    proposals    the value that is voted on
    decisions    what was decided, with its votes, for those who missed it
    commitments  signed promises of updates
    status       heartbeats
    other        requests for what is missing
"""

import gc
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from barnraise.consensus.agreement import Ballot, Decided, Decision
from barnraise.identity import MAX_PEER_ID_CHARS
from barnraise.ids import DIGEST_BYTES, PeerId
from barnraise.net.seam import MAX_MESSAGE_BYTES
from barnraise.sim.books import log_of
from barnraise.sim.faults import Crash, Join
from barnraise.sim.footprint import footprint_bytes
from barnraise.sim.node import Node
from barnraise.sim.world import World
from barnraise.swarm import effects, messages
from barnraise.swarm.effects import Effect
from barnraise.swarm.messages import Commit, Message, Status
from barnraise.swarm.records import Cut, Regroup, Result, Void

ROUND_S = 3.0
"""Comings and goings are spread over the first so many seconds of a round."""
KINDS = ("votes of the cut", "votes of the result", "proposals", "decisions", "commitments", "status", "other")


@dataclass(kw_only=True, slots=True)
class Flow:
    """What peers sent to each other of one kind; what was lost with its receiver is in it."""

    num_messages: int = 0
    size_bytes: int = 0
    """All peers together."""
    largest_bytes: int = 0
    """Of one message."""
    sent_bytes: dict[PeerId, int] = field(default_factory=lambda: defaultdict(int))
    got_bytes: dict[PeerId, int] = field(default_factory=lambda: defaultdict(int))

    def note(self, sender: PeerId, to: PeerId, size_bytes: int) -> None:
        """Note a message."""
        self.num_messages += 1
        self.size_bytes += size_bytes
        self.largest_bytes = max(self.largest_bytes, size_bytes)
        self.sent_bytes[sender] += size_bytes
        self.got_bytes[to] += size_bytes

    def add(self, other: "Flow") -> None:
        """Put another flow to this one."""
        self.num_messages += other.num_messages
        self.size_bytes += other.size_bytes
        self.largest_bytes = max(self.largest_bytes, other.largest_bytes)
        for mine, theirs in ((self.sent_bytes, other.sent_bytes), (self.got_bytes, other.got_bytes)):
            for peer, size_bytes in theirs.items():
                mine[peer] += size_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundFigures:
    """What one round came to."""

    round: int
    num_members: int
    num_joined: int
    num_left: int
    num_withheld: int
    """Messages too large to send: a decision with many votes. Who lacks it fetches the state."""
    num_voids: int
    num_passed_over: int
    """Leaders that were passed over before its entries were decided."""
    num_shards: int
    """Shards moved between peers, of updates and of aggregates."""
    simulated_s: float
    cpu_s: float
    """Of the whole simulation; divided by the members, an upper bound of a peer's own machine."""
    member_bytes: int
    """What one member's machine held in memory when it stepped, or when it committed if that was more."""
    flows: Mapping[str, Flow]
    """By kind, `KINDS`."""

    @property
    def votes(self) -> Flow:
        """Return both agreements' votes together."""
        both = Flow()
        for kind in KINDS[:2]:
            both.add(self.flows[kind])
        return both


@dataclass(kw_only=True, slots=True)
class _Mark:
    """The end of a round, as the first peer that committed it saw it."""

    cpu_s: float
    num_members: int
    height: int = 0
    now: float = 0.0
    member_bytes: int = 0
    num_shards: int = 0
    num_withheld: int = 0


class Crowd(World):
    """``num_peers`` founders and a seed. `run`, then ask for `figures`."""

    train_s = (0.5, 1.5)

    def __init__(
        self,
        *,
        seed: int,
        num_peers: int = 100,
        rounds: int = 3,
        churn: float = 0.05,
        profile: Literal["home", "federation", "open"] = "home",
    ) -> None:
        """Draw a crowd.

        Args:
            churn: This share of the members goes in each round, and as many peers come.
            profile: It says how they agree.
        """
        super().__init__(
            seed=seed, num_peers=num_peers, rounds=rounds, profile=profile, codec="grid16", horizon_s=120.0 * rounds
        )
        self.churn = churn
        self._quiet_after_s = math.inf
        self._by_peer = {node.peer: node for node in self.nodes}
        self._said: tuple[Message | None, bytes, Message | None] = None, b"", None
        self._flows: dict[tuple[str, int], Flow] = defaultdict(Flow)
        """Ballots by height, everything else by round."""
        self._views: dict[int, int] = {}
        self._num_shards = 0
        self._num_withheld = 0
        self._member_bytes = 0
        self._stepped_round = -1
        self._marks = [_Mark(cpu_s=time.process_time(), num_members=num_peers)]
        self._come_and_go(round_=0)

    def run(self) -> None:
        """Let the crowd go on until the run is over; raises like `World.run`."""
        was_enabled = gc.isenabled()
        gc.disable()  # nothing here is cyclic, and to look for what might be takes a fifth of the time
        try:
            super().run()
        finally:
            if was_enabled:
                gc.enable()

    def name_of(self, index: int) -> PeerId:
        """Return a peer's id, as long as a real one."""
        return PeerId(f"peer-{index:0{MAX_PEER_ID_CHARS - 5}d}")

    # ---- comings and goings -----------------------------------------------------------------------------------

    def _come_and_go(self, round_: int) -> None:
        """Draw who goes and who comes in a round; the last one is left in peace, so that all who stay end together."""
        self.nodes = [node for node in self.nodes if node.alive]
        if round_ >= self.config.round.rounds - 1:
            return
        members = [node for node in self.nodes if node.member.me in node.member.state.peers]
        going = self.rng.sample(members, round(self.churn * len(members)))
        for node in going:
            self._later(self.rng.uniform(0.0, ROUND_S), self._go, node, self.rng.random() < 0.5)
        for _ in going:
            self._later(self.rng.uniform(0.0, ROUND_S), self._come, self.rng.random() < 0.5)

    def _go(self, node: Node, crashes: bool) -> None:
        if crashes and node.alive:
            self._crash(node, Crash(peer=node.index, after="", round=0))
        else:
            self._event(node, lambda: node.member.leave(self.now))

    def _come(self, is_hollow: bool) -> None:
        node = self._visitor(len(self._by_peer), Join(at_s=self.now, is_hollow=is_hollow))
        self.nodes.append(node)
        self._by_peer[node.peer] = node
        self._arrive(node)

    # ---- counting ---------------------------------------------------------------------------------------------

    def _send(self, sender: Node, to: Node, message: Message) -> None:
        if not to.alive:
            return
        said, data, heard = self._said
        if said is not message or heard is None:
            data = messages.encode(message)
            heard = messages.decode(sender.peer, data)
            self._said = message, data, heard
        if len(data) > MAX_MESSAGE_BYTES:
            self._num_withheld += 1
            return
        self._flows[self._subject(message)].note(sender.peer, to.peer, len(data))
        self._deliver(sender, to, 0.0, lambda: self._hear(sender, to, heard))

    def _subject(self, message: Message) -> tuple[str, int]:
        if isinstance(message, Ballot):
            if isinstance(message, Decided):
                return "decisions", message.height
            value: bytes = getattr(message, "value", b"")
            return "votes" if len(value) <= DIGEST_BYTES else "proposals", message.height
        kind = "commitments" if isinstance(message, Commit) else "status" if isinstance(message, Status) else "other"
        return kind, len(self._marks) - 1

    def _perform(self, node: Node, effect: Effect) -> None:
        match effect:
            case effects.Transfer():
                self._num_shards += 1
            case effects.Step() if effect.round > self._stepped_round:
                self._stepped_round = effect.round
                self._weigh(node)
            case effects.Commit() if effect.state.round == len(self._marks):
                self._weigh(node)
                self._mark(effect)
                self._come_and_go(effect.state.round)
            case _:
                pass
        super()._perform(node, effect)

    def _agreed(self, height: int, decision: Decision) -> None:
        super()._agreed(height, decision)
        self._views[height] = min(decision.view, self._views.get(height, decision.view))

    def _weigh(self, node: Node) -> None:
        self._member_bytes = max(self._member_bytes, footprint_bytes(node.member, beside=[self.config]))

    def _mark(self, effect: effects.Commit) -> None:
        mark = _Mark(
            height=effect.height + 1,
            now=self.now,
            cpu_s=time.process_time(),
            member_bytes=self._member_bytes,
            num_shards=self._num_shards,
            num_withheld=self._num_withheld,
            num_members=len(effect.state.members),
        )
        self._marks.append(mark)
        self._member_bytes = 0

    def _by_id(self, peer: PeerId) -> Node:
        return self._by_peer[peer]

    # ---- figures ----------------------------------------------------------------------------------------------

    def figures(self) -> list[RoundFigures]:
        """Return what each round came to, in order; each is counted from the end of the one before."""
        return [self._round(number) for number in range(len(self._marks) - 1)]

    def _round(self, number: int) -> RoundFigures:
        before, after = self._marks[number : number + 2]
        entries = log_of(self)[before.height : after.height]
        changes = [entry for entry in entries if isinstance(entry, Regroup | Result)]
        flows: dict[str, Flow] = {kind: Flow() for kind in KINDS}
        for kind in ("commitments", "status", "other"):
            flows[kind].add(self._flows[kind, number])
        for height, entry in enumerate(entries, start=before.height):
            votes = "votes of the cut" if isinstance(entry, Cut | Regroup) else "votes of the result"
            for kind, subject in ((votes, "votes"), ("proposals", "proposals"), ("decisions", "decisions")):
                flows[kind].add(self._flows[subject, height])
        return RoundFigures(
            round=number,
            num_members=before.num_members,
            num_joined=sum(len(entry.joined) for entry in changes),
            num_left=sum(len(entry.left) for entry in changes),
            num_passed_over=sum(self._views[height] for height in range(before.height, after.height)),
            num_withheld=after.num_withheld - before.num_withheld,
            num_voids=sum(isinstance(entry, Void) for entry in entries),
            num_shards=after.num_shards - before.num_shards,
            simulated_s=after.now - before.now,
            cpu_s=after.cpu_s - before.cpu_s,
            member_bytes=after.member_bytes,
            flows=flows,
        )
