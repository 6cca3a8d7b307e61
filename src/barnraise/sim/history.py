"""The log that a run leaves whose members come and go, drawn from a seed, for whoever folds it: no machines, no tensors.

Entries follow one another as agreement lets them: mostly a cut and a result, sometimes a void between two cuts, or a
regroup before the first. What they say of tensors is drawn.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from barnraise.config import RunConfig
from barnraise.consensus import quorum
from barnraise.consensus.agreement import Decision
from barnraise.consensus.pbft_messages import Commit
from barnraise.consensus.raft_messages import VOTE_CONTEXT
from barnraise.identity import MAX_PEER_ID_CHARS
from barnraise.ids import EMPTY_DIGEST, PeerId
from barnraise.swarm import records
from barnraise.swarm.records import Contribution, Cut, LogEvent, Metrics, Regroup, Result, Void
from barnraise.swarm.state import State, follow, genesis

NUM_BLOCKS: Final = 10
"""Tensors of the model, each with an exponent of its own."""
ABSENCE: Final = 0.05
"""Share of the members that are not in a cut."""
SAMPLES: Final = 200
"""What a member is given in a round by the default configuration: 25 steps of 8."""
VOTE_CONTEXTS: Final[Mapping[str, str]] = {"raft": VOTE_CONTEXT, "pbft": Commit.context}

Sign = Callable[[PeerId, str, bytes], bytes]
"""``(peer, context, message) -> signature``, with anybody's keys."""
Profile = Literal["home", "federation", "open"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """How many members a run has from round to round."""

    target: int
    """It grows to so many and stays there."""
    joining: int = 10
    """While it grows, so many come in a round."""
    churn: float = 0.05
    """Once it has grown, this share of the members goes in each round, and as many come."""
    mishaps: float = 0.05
    """Share of the rounds with a void, and of those with a regroup, which one member leaves and another joins."""


def founded(founders: Sequence[PeerId], *, profile: Profile = "home") -> State:
    """Return the state before the first round of a run."""
    config = RunConfig(profile=profile, founders=tuple(founders))
    return genesis(config, NUM_BLOCKS, EMPTY_DIGEST, EMPTY_DIGEST)


def names(count: int, *, since: int = 0) -> list[PeerId]:
    """Return ids, as long as real ones, of peers that nobody else is called like who came at another height."""
    return [PeerId(f"{since:09d}-{index:0{MAX_PEER_ID_CHARS - 10}d}") for index in range(count)]


def draw_log(rng: random.Random, state: State, *, rounds: int, growth: Growth) -> Iterator[tuple[LogEvent, State]]:
    """Draw so many rounds from ``state`` on; each entry comes with the state behind it."""
    for _ in range(rounds):
        for draw in _round(rng, growth.mishaps):
            event = draw(rng, state, growth)
            state = follow(state, event)[0]
            yield event, state


def certify(state: State, event: LogEvent, sign: Sign) -> Decision:
    """Return an entry with as many votes for it as a quorum takes, of the most senior members."""
    value, voters = records.encode(event), state.committee
    context = VOTE_CONTEXTS[state.agreement.name]
    signed = state.scope.statement(0, records.digest(value))
    enough = voters[: max(quorum.quorum(len(voters)), len(voters) // 2 + 1)]
    votes = tuple((peer, sign(peer, context, signed)) for peer in enough)
    return Decision(value=value, view=0, votes=votes)


_Draw = Callable[[random.Random, State, Growth], LogEvent]


def _round(rng: random.Random, mishaps: float) -> list[_Draw]:
    """Return what a round consists of."""
    before: list[_Draw] = [_regroup] if rng.random() < mishaps else []
    voided: list[_Draw] = [_cut, _void] if rng.random() < mishaps else []
    return [*before, *voided, _cut, _result]


def _cut(rng: random.Random, state: State, growth: Growth) -> Cut:
    there = [peer for peer in state.counting if rng.random() >= ABSENCE] or list(state.counting[:1])
    return Cut(
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        contributions=tuple(Contribution(peer, rng.randbytes(32), SAMPLES) for peer in there),
    )


def _void(rng: random.Random, state: State, growth: Growth) -> Void:
    return Void(
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        cut=_cut_digest(state),
        without=tuple(sorted(rng.sample(state.peers, 1))),
    )


def _regroup(rng: random.Random, state: State, growth: Growth) -> Regroup:
    return Regroup(
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        joined=tuple(names(1, since=state.height)),
        left=tuple(rng.sample(state.peers, 1)),
    )


def _result(rng: random.Random, state: State, growth: Growth) -> Result:
    num_left = round(growth.churn * len(state.peers)) if len(state.peers) >= growth.target else 0
    num_joined = max(0, min(growth.target - len(state.peers) + num_left, max(growth.joining, num_left)))
    draft = Result(
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        cut=_cut_digest(state),
        excluded=(),
        gram=EMPTY_DIGEST,
        aggregate_root=rng.randbytes(32),
        theta_root=rng.randbytes(32),
        momentum_root=rng.randbytes(32),
        exponents=tuple(rng.randrange(10, 20) for _ in range(NUM_BLOCKS)),
        metrics=Metrics(rng.randrange(1 << 22), rng.randrange(1 << 22), rng.randrange(1 << 22)),
        ledger=EMPTY_DIGEST,
        joined=tuple(names(num_joined, since=state.height)),
        left=tuple(sorted(rng.sample(state.peers, num_left))),
        time=1_700_000_000 + state.height,
        vertex=EMPTY_DIGEST,
    )
    return msgspec.structs.replace(draft, vertex=follow(state, draft)[0].vertex)


def _cut_digest(state: State) -> bytes:
    return records.digest(records.encode(state.cut)) if state.cut else EMPTY_DIGEST
