"""Who does what in a round: a pure function of the agreed state, which every peer computes for itself."""

from dataclasses import dataclass

from barnraise.collective.shards import MAX_SHARDS
from barnraise.ids import PeerId
from barnraise.outer.strategy import strategy_of
from barnraise.swarm.slots import Segment
from barnraise.swarm.state import State, assignment

VALIDATION_WINDOWS = 16
"""Windows of held-out text that each member measures in a round; together the members cover more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPlan:
    """One round's assignments."""

    round: int
    members: tuple[PeerId, ...]
    slots: dict[PeerId, tuple[Segment, ...]]
    """Samples of each counting member; who entered last round has none yet."""
    num_shards: int
    steps: int
    first_step: int
    total_steps: int
    seconds: float
    """Training ends after so long; 0: after all steps."""
    evaluate: dict[PeerId, Segment]
    """Validation windows that each counting member measures the round's base on."""


def plan(state: State) -> RoundPlan:
    """Return the assignments of the state's round."""
    rules, steps = state.config.round, strategy_of(state.config).steps(state.config)
    slots = assignment(state).slots
    return RoundPlan(
        round=state.round,
        members=state.peers,
        slots=slots,
        num_shards=min(MAX_SHARDS, len(state.members)),
        steps=steps,
        first_step=state.num_steps,
        total_steps=state.num_steps + max(0, rules.rounds - state.round) * steps,
        seconds=rules.seconds,
        evaluate={
            peer: Segment((state.round * len(slots) + i) * VALIDATION_WINDOWS, VALIDATION_WINDOWS)
            for i, peer in enumerate(slots)
        },
    )
