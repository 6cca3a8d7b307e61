"""Logs of many members, folded: the state is a function of the log alone, and as large as its members, not its past."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.consensus.agreement import Decision
from barnraise.errors import LocalError
from barnraise.identity import Identity
from barnraise.ids import PeerId
from barnraise.sim.footprint import footprint_bytes
from barnraise.sim.history import Growth, certify, draw_log, founded, names
from barnraise.sim.node import sign, verify
from barnraise.swarm import records
from barnraise.swarm.adopt import Adopted, adopt
from barnraise.swarm.records import Cut, Regroup, Result, Void
from barnraise.swarm.state import State, apply

NUM_FOUNDERS = 4


def log_of(seed: int, first: State, *, rounds: int, growth: Growth) -> list[Decision]:
    """Return a drawn log as its members store it, votes included."""
    before, log = first, list[Decision]()
    for event, after in draw_log(random.Random(seed), first, rounds=rounds, growth=growth):
        log.append(certify(before, event, sign))
        before = after
    return log


def folded(state: State, log: Sequence[Decision]) -> State:
    """Return the state after a log, from its bytes."""
    for decision in log:
        state = apply(state, records.decode_event.decode(decision.value))
    return state


def adopted_in_pieces(state: State, log: Sequence[Decision], cuts: Sequence[int]) -> Adopted:
    """Return what following the log piece by piece comes to, as one."""
    vertices, cuts_in, begin = list[records.Vertex](), list[Cut](), 0
    for end in [*sorted(cuts), len(log)]:
        piece = adopt(state, log[begin:end], verify)
        state, begin = piece.state, end
        vertices += piece.vertices
        cuts_in += piece.cuts
    return Adopted(state=state, vertices=tuple(vertices), cuts=tuple(cuts_in))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    target=st.integers(2, 12),
    rounds=st.integers(1, 8),
    where=st.lists(st.floats(0, 1), max_size=5),
)
def test_a_state_is_a_function_of_the_log_in_whatever_pieces_it_comes(
    seed: int, target: int, rounds: int, where: list[float]
) -> None:
    first = founded(names(NUM_FOUNDERS))
    log = log_of(seed, first, rounds=rounds, growth=Growth(target=target, joining=2, churn=0.3, mishaps=0.3))
    whole = adopt(first, log, verify)
    assert adopted_in_pieces(first, log, [round(share * len(log)) for share in where]) == whole
    assert folded(founded(names(NUM_FOUNDERS)), log) == whole.state


def test_a_drawn_log_has_every_kind_of_entry_that_a_round_is_made_of() -> None:
    growth = Growth(target=10, joining=3, churn=0.2, mishaps=0.3)
    log = log_of(1, founded(names(NUM_FOUNDERS)), rounds=20, growth=growth)
    assert {type(records.decode_event.decode(decision.value)) for decision in log} == {Cut, Result, Void, Regroup}


def test_a_state_is_as_large_as_its_members_and_not_as_its_past() -> None:
    first = founded(names(20))
    growth = Growth(target=20, churn=0.25)
    sizes = [
        footprint_bytes(state, beside=[state.config, state.agreement])
        for event, state in draw_log(random.Random(1), first, rounds=400, growth=growth)
        if isinstance(event, Result)
    ]
    early, late = max(sizes[:100]), max(sizes[-100:])
    assert late < 1.2 * early
    assert late < 4000 + 400 * len(first.members)


def test_more_than_a_thousand_members_join_leave_and_are_followed() -> None:
    first = founded(names(900))
    growth = Growth(target=1100, joining=100)
    log = log_of(3, first, rounds=6, growth=growth)
    state = adopt(first, log, verify).state
    assert len(state.members) == 1100
    assert len(set(state.peers) - set(first.peers)) > 200
    assert folded(first, log) == state


def test_a_log_is_followed_by_real_signatures_and_one_that_is_forged_ends_it() -> None:
    identities = {identity.peer_id: identity for identity in (Identity.generate() for _ in range(NUM_FOUNDERS))}

    def sign_as(peer: PeerId, context: str, message: bytes) -> bytes:
        return identities[peer].sign(context, message)

    def verify_of(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        return identities[peer].public.verify(context, message, signature)

    first = founded(list(identities))
    growth = Growth(target=NUM_FOUNDERS, churn=0.0, mishaps=0.0)
    before, log = first, list[Decision]()
    for event, after in draw_log(random.Random(1), first, rounds=2, growth=growth):
        log.append(certify(before, event, sign_as))
        before = after
    assert adopt(first, log, verify_of).state == before
    peer, signature = log[-1].votes[0]
    forged = Decision(value=log[-1].value, view=0, votes=((peer, bytes(len(signature))), *log[-1].votes[1:]))
    with pytest.raises(LocalError, match="no quorum"):
        adopt(first, [*log[:-1], forged], verify_of)
