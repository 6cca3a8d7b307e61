"""Following somebody else's log: every decision's votes are checked on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from barnraise.consensus.agreement import Decision, Verify
from barnraise.errors import LocalError
from barnraise.swarm import records
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
        if not state.agreement.holds(decision, state.scope, state.committee, verify):
            raise LocalError(f"the votes for height {state.height} are no quorum of its members")
        try:
            event = records.decode_event.decode(decision.value)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise LocalError(f"the entry at height {state.height} is malformed: {error}") from error
        if isinstance(event, Result) and state.cut:
            cuts.append(state.cut)
        state, vertex = follow(state, event)
        vertices += [vertex] if vertex else []
    return Adopted(state=state, vertices=tuple(vertices), cuts=tuple(cuts))
