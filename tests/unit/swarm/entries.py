"""Entries that follow a state, with nothing behind them but what the fold looks at; and petitions for changes."""

from collections.abc import Mapping, Sequence

from barnraise.config import InnerConfig, RoundConfig, RunConfig
from barnraise.ids import EMPTY_DIGEST, Digest, PeerId
from barnraise.swarm import records
from barnraise.swarm.records import (
    Amend,
    Change,
    Contribution,
    Cut,
    Merge,
    Metrics,
    Parent,
    Recover,
    Regroup,
    Result,
    Seal,
    Void,
)
from barnraise.swarm.state import State, apply, genesis

EVERYBODY = tuple(PeerId(f"peer-{number}") for number in range(6))
CONFIG = RunConfig(
    founders=EVERYBODY[:3],
    inner=InnerConfig(batch_size=2),
    round=RoundConfig(rounds=100, steps=3),
)
SAMPLES = 6


def first_state() -> State:
    return genesis(CONFIG, 2, Digest(bytes([1]) * 32), Digest(bytes([2]) * 32))


def cut_of(state: State, contributors: Sequence[str], samples: Mapping[str, int] | None = None) -> Cut:
    """Return a cut; ``samples``: what contributors claim, if not all that they were given."""
    used = samples or {}
    return Cut(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        contributions=tuple(Contribution(peer, EMPTY_DIGEST, used.get(peer, SAMPLES)) for peer in contributors),
    )


def digest_of_cut(state: State) -> Digest:
    assert state.cut is not None
    return records.digest(records.encode(state.cut))


def void_of(state: State, without: Sequence[str] = ()) -> Void:
    return Void(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        cut=digest_of_cut(state),
        without=tuple(without),
    )


def regroup_of(state: State, joined: Sequence[str] = (), left: Sequence[str] = ()) -> Regroup:
    return Regroup(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        joined=tuple(joined),
        left=tuple(left),
        changes=state.changes,
    )


def result_of(state: State, joined: Sequence[str] = (), left: Sequence[str] = ()) -> Result:
    return Result(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        cut=digest_of_cut(state),
        excluded=(),
        gram=EMPTY_DIGEST,
        aggregate_root=bytes([3]) * 32,
        theta_root=bytes([4]) * 32,
        momentum_root=bytes([5]) * 32,
        exponents=(17, 15),
        metrics=Metrics(1_500_000, 1_400_000, 768),
        ledger=EMPTY_DIGEST,
        joined=tuple(joined),
        left=tuple(left),
        time=1_800_000_000,
        vertex=EMPTY_DIGEST,
        changes=state.changes,
    )


def amend_of(state: State, change: Change, signers: Sequence[str]) -> Amend:
    return Amend(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        change=change,
        seals=tuple(Seal(signer, b"signature") for signer in sorted(signers)),
    )


def recover_of(state: State, members: Sequence[str]) -> Recover:
    return Recover(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        vertex=state.vertex,
        members=tuple(sorted(members)),
    )


def merge_of(state: State, others: Sequence[bytes]) -> Merge:
    return Merge(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        parents=(Parent(state.vertex, 3), *(Parent(other, 1) for other in others)),
        theta_root=bytes([6]) * 32,
        momentum_root=bytes([7]) * 32,
        exponents=(11, 12),
        vertex=EMPTY_DIGEST,
    )


def round_of(state: State, contributors: Sequence[str] = (), **changes: Sequence[str]) -> State:
    """Return the state after a whole round; ``changes``: who joined, who left."""
    state = apply(state, cut_of(state, contributors or state.counting))
    return apply(state, result_of(state, **changes))
