"""Following somebody else's log: every decision's votes are checked on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

from barnraise.consensus.agreement import Decision, Verify
from barnraise.errors import LocalError
from barnraise.swarm.certification import event_of, is_certified
from barnraise.swarm.records import Cut, Result, Vertex
from barnraise.swarm.state import State, follow


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopted:
    """What following a donor's log came to."""

    state: State
    vertices: tuple[Vertex, ...]
    cuts: tuple[Cut, ...]
    """The cuts that led to a result, in order."""


def adopt(state: State, log: Sequence[Decision], verify: Verify) -> Adopted:
    """Follow a log from ``state`` on.

    Raises:
        LocalError: a decision is malformed, does not follow, or its votes are no quorum.
    """
    cuts: list[Cut] = []
    vertices: list[Vertex] = []
    for decision in log:
        event = event_of(decision.value)
        if not is_certified(state, decision, event, verify):
            raise LocalError(f"the votes for height {state.height} are no quorum of its members")
        if isinstance(event, Result) and state.cut:
            cuts.append(state.cut)
        state, vertex = follow(state, event)
        vertices += [vertex] if vertex else []
    return Adopted(state=state, vertices=tuple(vertices), cuts=tuple(cuts))
