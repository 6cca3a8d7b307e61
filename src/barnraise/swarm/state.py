"""What all members agree on, as a fold over the log of rounds: `apply(state, event)` and nothing else changes it.

A round appends two entries: its cut (which updates are in), then its result (what they made of the parameters) or,
where the exchange failed, a void, after which the cut is taken again. A round that its members cannot train at all is
begun anew by others: that is a regroup. Before a cut the members may agree on a change of rules or keys that somebody
signed for (`petitions`), or on a declared merge. Where too many of them are gone for good to agree on anything, the
operators name those who go on: that is a recovery.

Rules, members and keys change at a round's end and nowhere else, with a result, a regroup or a recovery. An entry that
makes changes take effect names all of them by a hash, so that none can be left out on the way to a later set of members.
Nothing here knows a clock or a socket.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import assert_never

import blake3
import msgspec

from barnraise.config import RunConfig
from barnraise.consensus.agreement import Kind, Scope
from barnraise.consensus.protocols import protocol_of
from barnraise.errors import LocalError
from barnraise.ids import EMPTY_DIGEST, Digest, PeerId, RunId
from barnraise.outer.strategy import strategy_of
from barnraise.swarm import amendments, membership, records
from barnraise.swarm.membership import Member, Retired, Standing
from barnraise.swarm.records import (
    Amend,
    Change,
    Cut,
    LogEvent,
    Merge,
    Recover,
    Regroup,
    Result,
    Upgrade,
    Vertex,
    Void,
)
from barnraise.swarm.slots import Assignment, Segment, assign

MAX_SAMPLES = 1 << 30
"""The largest weight that an update may claim."""
MAX_PENDING = 8
"""Changes that one round waits for: each takes an agreement, and members who lie may ask for many."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The agreed state between two entries of the log.

    What follows from the members is found out once (hence no slots): a member asks for it at each message.
    """

    founded: RunConfig
    """What the run id is the hash of."""
    config: RunConfig
    """The rules in force: the founders', as far as no upgrade has changed them."""
    version: int
    """Of the records that are written now."""
    num_upgrades: int
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
    num_steps: int = 0
    """Inner steps that the run has behind it."""
    contributors: tuple[str, ...] = ()
    """Who made up the round before."""
    retired: tuple[Retired, ...] = ()
    pending: tuple[Change, ...] = ()
    """Changes that are agreed on and take effect at the end of the round."""

    @cached_property
    def peers(self) -> tuple[PeerId, ...]:
        """Return the members' ids in order of seniority."""
        return tuple(member.peer for member in self.members)

    @cached_property
    def counting(self) -> tuple[PeerId, ...]:
        """Return the members whose updates have a weight in this round, in order of seniority."""
        return tuple(member.peer for member in self.members if member.counts_from <= self.round)

    @cached_property
    def can_train(self) -> bool:
        """Tell whether the run's rules allow a round with so few members."""
        enough = len(self.members) >= self.agreement.min_members
        return enough and len(self.counting) >= self.config.round.min_peers

    @cached_property
    def agreement(self) -> Kind:
        """Return how the members agree."""
        return protocol_of(self.config.protocol)

    @cached_property
    def committee(self) -> tuple[PeerId, ...]:
        """Return the members that vote on the next entry, in order of seniority."""
        return self.agreement.committee(self.peers, self.config.consensus.max_committee)

    @property
    def scope(self) -> Scope:
        """Return what a vote on the next entry is bound to."""
        return Scope(run=self.run, epoch=self.epoch, height=self.height)

    @cached_property
    def standing(self) -> Standing:
        """Return the members, and what the log says of their keys."""
        return Standing(
            members=self.members, retired=self.retired, pending=self.pending, contributors=self.contributors
        )

    @cached_property
    def barred(self) -> frozenset[PeerId]:
        """Return the ids that nobody may be let in under."""
        return self.standing.barred

    @cached_property
    def taken(self) -> tuple[PeerId, ...]:
        """Return the ids that no newcomer has: the members', and those that are barred."""
        return (*self.peers, *sorted(self.barred))

    @property
    def changes(self) -> bytes:
        """Return what the entry that makes the pending changes take effect names them by; empty: there are none."""
        return changes_root(self.pending)

    @property
    def holds_momentum(self) -> bool:
        """Tell whether this round's step leaves the outer momentum alone: the cut lacks more than a quarter of those
        who made up the round before. What the momentum remembers is then of others than the update is (four of twelve
        that left at once made Prime's run unstable: Jaghouar et al. 2024, arXiv 2412.01152)."""
        return self.cut is not None and membership.lost(self.contributors, (c.member for c in self.cut.contributions))

    @property
    def is_over(self) -> bool:
        """Tell whether the last planned round is behind us."""
        return self.round >= self.config.round.rounds


def changes_root(pending: tuple[Change, ...]) -> bytes:
    """Return the hash of changes that take effect together; empty: of none."""
    return _hash("barnraise 1 changes", msgspec.msgpack.encode(pending)) if pending else b""


def genesis(config: RunConfig, num_blocks: int, theta_root: Digest, momentum_root: Digest) -> State:
    """Return the state before the first round; equal on every peer that has the same config and model."""
    run = config.run_id
    founders = sorted(config.founders)
    state = State(
        founded=config,
        config=config,
        version=records.VERSION,
        num_upgrades=0,
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
    parents = (bytes.fromhex(config.model.parent),) if config.model.parent else ()
    return replace(state, vertex=records.vertex_id(vertex_of(state, parents=parents, contributors=(), time=0)))


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
        case Amend():
            return replace(after, pending=(*state.pending, event.change)), None
        case Recover():
            return _recovered(after, event)
        case Merge():
            return _merged(after, event)
        case _:
            assert_never(event)


def check_follows(state: State, event: LogEvent) -> None:
    """Raise `LocalError` where an entry cannot come next."""
    expected = (state.version, state.run, state.epoch, state.round, state.attempt, state.head)
    found = (event.version, event.run, event.epoch, event.round, event.attempt, event.previous)
    if found != expected:
        raise LocalError(f"log entry {found} does not follow {expected}")
    if not isinstance(event, Recover) and isinstance(event, Result | Void) == (state.cut is None):
        raise LocalError(f"a {type(event).__name__} cannot come at height {state.height}")
    match event:
        case Cut():
            _check_cut(state, event)
        case Void():
            _check_is_of_cut(state, event)
        case Regroup():
            _check_coming_and_going(state, event)
        case Result():
            _check_coming_and_going(state, event)
            _check_is_of_cut(state, event)
        case Amend():
            _check_amend(state, event)
        case Recover():
            _check_recover(state, event)
        case Merge():
            _check_merge(state, event)
        case _:
            assert_never(event)


def _check_cut(state: State, event: Cut) -> None:
    members = set(state.peers)
    if not event.contributions or any(c.member not in members or c.samples < 1 for c in event.contributions):
        raise LocalError("a cut names a contributor that is not a member, or none at all")
    if len({c.member for c in event.contributions}) < len(event.contributions):
        raise LocalError("a cut names a contributor twice")


def _check_is_of_cut(state: State, event: Result | Void) -> None:
    if state.cut is not None and event.cut != records.digest(records.encode(state.cut)):
        raise LocalError("the result is for another cut")


def _check_coming_and_going(state: State, event: Regroup | Result) -> None:
    if not (set(state.peers) - set(event.left)) | set(event.joined):
        raise LocalError("nobody would be left")
    if len(set(event.joined)) < len(event.joined):
        raise LocalError("somebody joins twice")
    if not state.barred.isdisjoint(event.joined):
        raise LocalError("somebody joins under an id that was given up, or is about to be given a place")
    if event.changes != state.changes:
        raise LocalError("the changes that take effect with it are others than those agreed on")


def _check_amend(state: State, event: Amend) -> None:
    check_change(state, event.change)
    signers = [seal.signer for seal in event.seals]
    operators = state.founded.operator_ids
    if not all(amendments.may_sign(operators, event.change, signer) for signer in signers):
        raise LocalError("somebody signed a change whose word does not count for it")
    if signers != sorted(set(signers)):
        raise LocalError("signatures under a change are not in order, or there are two of the same peer")
    if not amendments.is_backed(operators, event.change, signers):
        raise LocalError(f"a change without enough signatures: {event.change!r:.200}")


def check_change(state: State, change: Change) -> None:
    """Raise `LocalError` where a change cannot be agreed on now, whoever signed for it."""
    if len(state.pending) >= MAX_PENDING:
        raise LocalError(f"{MAX_PENDING} changes wait for the end of the round; others come after it")
    if not isinstance(change, Upgrade):
        return membership.check(state.standing, change)
    if any(isinstance(other, Upgrade) for other in state.pending) or change.number != state.num_upgrades + 1:
        raise LocalError(f"upgrade {change.number} cannot follow upgrade {state.num_upgrades}")
    return amendments.check_upgrade(state.config, state.version, change)


def _check_recover(state: State, event: Recover) -> None:
    if event.vertex != state.vertex:
        raise LocalError("a recovery from another checkpoint than the newest")
    if list(event.members) != sorted(set(event.members)):
        raise LocalError("the members of a recovery are not in order, or one is named twice")
    if not state.barred.isdisjoint(event.members):
        raise LocalError("a recovery names an id that was given up, or is about to be given a place")
    if not set(state.peers).intersection(event.members):
        raise LocalError("a recovery names nobody who has the run's checkpoint")


def _check_merge(state: State, event: Merge) -> None:
    parents = [parent.vertex for parent in event.parents]
    if parents[0] != state.vertex or len(set(parents)) < len(parents):
        raise LocalError("a merge begins with the run's newest checkpoint and names each parent once")
    if len(event.exponents) != len(state.exponents):
        raise LocalError(f"a merge with {len(event.exponents)} blocks of parameters instead of {len(state.exponents)}")


def _apply_result(state: State, event: Result) -> tuple[State, Vertex]:
    cut = state.cut
    if cut is None:
        raise LocalError("a result without a cut")
    given = assignment(state)
    after = replace(
        state,
        round=state.round + 1,
        attempt=0,
        contributors=tuple(c.member for c in cut.contributions),
        num_steps=state.num_steps + strategy_of(state.config).steps(state.config),
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
    after = _turned(after, _members_after(state, cut, event), is_new_epoch=bool(event.joined or event.left))
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
    stayed = _all_counting(state, (member for member in state.members if member.peer not in event.left))
    members = membership.joined(stayed, event.joined, state.epoch + 1, state.round)
    after = replace(state, attempt=state.attempt + 1, without=frozenset())
    return _turned(after, members, is_new_epoch=True)


def _recovered(state: State, event: Recover) -> tuple[State, Vertex]:
    """Begin the round anew with whom the operators named, in a checkpoint of its own: the DAG shows it for ever."""
    stayed = _all_counting(state, (member for member in state.members if member.peer in event.members))
    members = membership.joined(stayed, event.members, state.epoch + 1, state.round)
    after = replace(
        state, epoch=state.epoch + 1, attempt=state.attempt + 1, without=frozenset(), cut=None, members=members
    )
    vertex = vertex_of(after, parents=(state.vertex,), contributors=(), time=0)
    return replace(after, vertex=records.vertex_id(vertex)), vertex


def _merged(state: State, event: Merge) -> tuple[State, Vertex]:
    """Begin the round anew from other parameters."""
    after = replace(
        state,
        attempt=state.attempt + 1,
        without=frozenset(),
        theta_root=Digest(event.theta_root),
        momentum_root=Digest(event.momentum_root),
        exponents=event.exponents,
    )
    vertex = vertex_of(after, parents=tuple(p.vertex for p in event.parents), contributors=(), time=0)
    return replace(after, vertex=records.vertex_id(vertex)), vertex


def _all_counting(state: State, members: Iterable[Member]) -> list[Member]:
    return [replace(member, counts_from=min(member.counts_from, state.round)) for member in members]


def _turned(state: State, members: tuple[Member, ...], *, is_new_epoch: bool) -> State:
    """Return a state at a round's beginning with other members, and with what was pending done: keys, then rules."""
    standing = membership.carried_out(replace(state.standing, members=members), state.round)
    after = replace(
        state,
        epoch=state.epoch + (is_new_epoch or standing.peers != state.peers),
        members=standing.members,
        retired=standing.retired,
        pending=standing.pending,
        contributors=standing.contributors,
    )
    upgrade = next((change for change in state.pending if isinstance(change, Upgrade)), None)
    if upgrade is None:
        return after
    config = amendments.amended(state.config, upgrade.rules)
    return replace(after, config=config, version=upgrade.version, num_upgrades=upgrade.number)


def _members_after(state: State, cut: Cut, event: Result) -> tuple[Member, ...]:
    contributed = {c.member for c in cut.contributions}
    stayed = [
        replace(member, missed=0 if member.peer in contributed else member.missed + 1)
        for member in state.members
        if member.peer not in event.left
    ]
    return membership.joined(stayed, event.joined, state.epoch + 1, state.round + 2)


def vertex_of(state: State, parents: tuple[bytes, ...], contributors: tuple[tuple[str, int], ...], time: int) -> Vertex:
    """Return the checkpoint that a state stands for."""
    return Vertex(
        version=state.version,
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
        rules=amendments.rules_root(state.config) if state.version >= records.RULES_VERSION else b"",
    )


def _hash(context: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context=context).digest()
