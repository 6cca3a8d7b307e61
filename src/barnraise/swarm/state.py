"""What all members agree on, as a fold over the log of rounds: `apply(state, event)` and nothing else changes it.

A round appends two entries: its cut (which updates are in), then its result (what they made of the parameters) or,
where the exchange failed, a void, after which the cut is taken again. A round that its members cannot train at all is
begun anew by others: that is a regroup. Nothing here knows a clock or a socket.
"""

from dataclasses import dataclass, replace
from typing import assert_never

import blake3
import msgspec

from barnraise.config import RunConfig
from barnraise.consensus.agreement import Kind, Scope
from barnraise.consensus.protocols import protocol_of
from barnraise.errors import LocalError
from barnraise.ids import EMPTY_DIGEST, Digest, PeerId, RunId
from barnraise.outer.strategy import strategy_of
from barnraise.swarm import records
from barnraise.swarm.records import Cut, LogEvent, Regroup, Result, Vertex, Void
from barnraise.swarm.slots import Assignment, Segment, assign

MAX_SAMPLES = 1 << 30
"""The largest weight that an update may claim."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A peer of the agreed set."""

    peer: PeerId
    joined_epoch: int
    counts_from: int
    """First round in which its update has a weight: one after the round it entered in (founders: the first)."""
    missed: int = 0
    """Cuts in a row that it was not in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The agreed state between two entries of the log."""

    config: RunConfig
    run: RunId
    epoch: int
    """Version of the member set."""
    height: int
    """Number of log entries behind this state."""
    head: Digest
    """Digest of the newest entry."""
    round: int
    attempt: int
    members: tuple[Member, ...]
    """In order of seniority."""
    without: frozenset[str]
    """Members that this round no longer waits for."""
    cut: Cut | None
    """The round's cut, once agreed."""
    vertex: Digest
    theta_root: Digest
    momentum_root: Digest
    exponents: tuple[int, ...]
    seed: bytes
    cursor: int
    requeued: tuple[Segment, ...]
    total_samples: int
    metrics: records.Metrics

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Return the members' ids in order of seniority."""
        return tuple(member.peer for member in self.members)

    @property
    def counting(self) -> tuple[PeerId, ...]:
        """Return the members whose updates have a weight in this round, in order of seniority."""
        return tuple(member.peer for member in self.members if member.counts_from <= self.round)

    @property
    def can_train(self) -> bool:
        """Tell whether the run's rules allow a round with so few members."""
        enough = len(self.members) >= self.agreement.min_members
        return enough and len(self.counting) >= self.config.round.min_peers

    @property
    def agreement(self) -> Kind:
        """Return how the members agree."""
        return protocol_of(self.config.protocol)

    @property
    def committee(self) -> tuple[PeerId, ...]:
        """Return the members that vote on the next entry, in order of seniority."""
        return self.agreement.committee(self.peers, self.config.consensus.max_committee)

    @property
    def scope(self) -> Scope:
        """Return what a vote on the next entry is bound to."""
        return Scope(run=self.run, epoch=self.epoch, height=self.height)

    @property
    def is_over(self) -> bool:
        """Tell whether the last planned round is behind us."""
        return self.round >= self.config.round.rounds


def genesis(config: RunConfig, num_blocks: int, theta_root: Digest, momentum_root: Digest) -> State:
    """Return the state before the first round; equal on every peer that has the same config and model."""
    run = config.run_id
    founders = sorted(config.founders)
    state = State(
        config=config,
        run=run,
        epoch=0,
        height=0,
        head=Digest(bytes(run)),
        round=0,
        attempt=0,
        members=tuple(Member(peer=PeerId(peer), joined_epoch=0, counts_from=0) for peer in founders),
        without=frozenset(),
        cut=None,
        vertex=EMPTY_DIGEST,
        theta_root=theta_root,
        momentum_root=momentum_root,
        exponents=(config.round.grid_exponent,) * num_blocks,
        seed=_hash("barnraise 1 genesis seed", run),
        cursor=0,
        requeued=(),
        total_samples=0,
        metrics=records.Metrics(0, -1, 0),
    )
    return replace(state, vertex=records.vertex_id(vertex_of(state, parents=(), contributors=(), time=0)))


def assignment(state: State) -> Assignment:
    """Return which samples the state's round gives to whom."""
    if not state.can_train:
        return assign(state.requeued, state.cursor, (), 0)
    count = strategy_of(state.config).steps(state.config) * state.config.inner.batch_size
    return assign(state.requeued, state.cursor, state.counting, count)


def apply(state: State, event: LogEvent) -> State:
    """Return the state after one more entry.

    Raises:
        LocalError: the entry does not follow this state; agreement never decides such a one.
    """
    return follow(state, event)[0]


def follow(state: State, event: LogEvent) -> tuple[State, Vertex | None]:
    """Return the state after one more entry, and the vertex that the entry certifies, if any. Raises like `apply`."""
    check_follows(state, event)
    entry = records.digest(records.encode(event))
    after = replace(state, height=state.height + 1, head=entry)
    match event:
        case Cut():
            return replace(after, cut=event), None
        case Void():
            return replace(after, cut=None, attempt=state.attempt + 1, without=frozenset(event.without)), None
        case Regroup():
            return _regrouped(after, event), None
        case Result():
            return _apply_result(after, event)
        case _:
            assert_never(event)


def check_follows(state: State, event: LogEvent) -> None:
    """Raise `LocalError` where an entry cannot come next."""
    expected = (state.run, state.epoch, state.round, state.attempt, state.head)
    found = (event.run, event.epoch, event.round, event.attempt, event.previous)
    if found != expected:
        raise LocalError(f"log entry {found} does not follow {expected}")
    if isinstance(event, Cut | Regroup) != (state.cut is None):
        raise LocalError(f"a {type(event).__name__} cannot come at height {state.height}")
    if isinstance(event, Cut):
        members = set(state.peers)
        if not event.contributions or any(c.member not in members or c.samples < 1 for c in event.contributions):
            raise LocalError("a cut names a contributor that is not a member, or none at all")
        if len({c.member for c in event.contributions}) < len(event.contributions):
            raise LocalError("a cut names a contributor twice")
        return
    if isinstance(event, Regroup | Result):
        if not (set(state.peers) - set(event.left)) | set(event.joined):
            raise LocalError("nobody would be left")
        if len(set(event.joined)) < len(event.joined):
            raise LocalError("somebody joins twice")
    if isinstance(event, Regroup):
        return
    if state.cut is not None and event.cut != records.digest(records.encode(state.cut)):
        raise LocalError("the result is for another cut")


def _apply_result(state: State, event: Result) -> tuple[State, Vertex]:
    cut = state.cut
    if cut is None:
        raise LocalError("a result without a cut")
    given = assignment(state)
    after = replace(
        state,
        epoch=state.epoch + bool(event.joined or event.left),
        round=state.round + 1,
        attempt=0,
        members=_members_after(state, cut, event),
        without=frozenset(),
        cut=None,
        theta_root=Digest(event.theta_root),
        momentum_root=Digest(event.momentum_root),
        exponents=event.exponents,
        seed=_next_seed(state, cut, event.aggregate_root),
        cursor=given.cursor,
        requeued=given.rest(_used(state, cut)),
        total_samples=state.total_samples + sum(c.samples for c in cut.contributions),
        metrics=event.metrics,
    )
    contributors = tuple((c.member, c.samples) for c in cut.contributions)
    vertex = vertex_of(after, parents=(state.vertex,), contributors=contributors, time=event.time)
    return replace(after, vertex=records.vertex_id(vertex)), vertex


def _next_seed(state: State, cut: Cut, aggregate_root: bytes) -> bytes:
    """Return the next round's seed: of who contributed and what came of it, and of nothing that one peer may choose.

    The entries' own digests would let a proposer choose by its clock.
    """
    contributors = msgspec.msgpack.encode([(entry.member, entry.samples) for entry in cut.contributions])
    return _hash("barnraise 1 seed", state.seed + aggregate_root + contributors)


def _used(state: State, cut: Cut) -> dict[str, int]:
    """Return how many samples of its slot each contributor has used; of data of its own nothing comes back."""
    if state.config.data.kind == "own":
        return {entry.member: MAX_SAMPLES for entry in cut.contributions}
    return {entry.member: entry.samples for entry in cut.contributions}


def _regrouped(state: State, event: Regroup) -> State:
    """Begin the round anew with other members, all of whom count.

    The attempt goes on counting: what is still under way for an older one must not be taken for this one's.
    """
    stayed = [
        replace(member, counts_from=min(member.counts_from, state.round))
        for member in state.members
        if member.peer not in event.left
    ]
    joined = [
        Member(peer=PeerId(peer), joined_epoch=state.epoch + 1, counts_from=state.round)
        for peer in sorted(event.joined)
        if peer not in state.peers
    ]
    return replace(
        state, epoch=state.epoch + 1, attempt=state.attempt + 1, without=frozenset(), members=tuple(stayed + joined)
    )


def _members_after(state: State, cut: Cut, event: Result) -> tuple[Member, ...]:
    contributed = {c.member for c in cut.contributions}
    stayed = [
        replace(member, missed=0 if member.peer in contributed else member.missed + 1)
        for member in state.members
        if member.peer not in event.left
    ]
    joined = [
        Member(peer=PeerId(peer), joined_epoch=state.epoch + 1, counts_from=state.round + 2)
        for peer in sorted(event.joined)
        if peer not in state.peers
    ]
    return tuple(stayed + joined)


def vertex_of(state: State, parents: tuple[bytes, ...], contributors: tuple[tuple[str, int], ...], time: int) -> Vertex:
    """Return the checkpoint that a state stands for."""
    return Vertex(
        run=state.run,
        parents=parents,
        round=state.round,
        model=state.theta_root,
        outer=state.momentum_root,
        random=state.seed,
        cursor=state.cursor,
        requeued=tuple((segment.first, segment.count) for segment in state.requeued),
        exponents=state.exponents,
        time=time,
        contributors=contributors,
        total_samples=state.total_samples,
        train_loss=state.metrics.train_loss,
        validation_loss=state.metrics.validation_loss,
    )


def _hash(context: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context=context).digest()
