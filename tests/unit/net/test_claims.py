"""Arbitration between connections: every order of two simultaneous dials leaves exactly one."""

import itertools

import pytest

from barnraise.ids import PeerId
from barnraise.net import claims as claims_module
from barnraise.net.claims import DUPLICATE, STALE_CLAIM_S, Claims, same_key

ALICE, BOB = PeerId("alice"), PeerId("bob")
ONE, TWO = b"1" * 16, b"2" * 16


def test_only_the_smaller_id_has_the_last_word() -> None:
    assert Claims(ALICE).is_arbiter(BOB)
    assert not Claims(BOB).is_arbiter(ALICE)


@pytest.mark.parametrize("order", tuple(itertools.permutations(["A1", "A2", "B1", "B2"])), ids="".join)
def test_two_simultaneous_dials_leave_one_connection_that_both_know(order: tuple[str, ...]) -> None:
    """``A1`` is Alice's decision on connection 1, ``B2`` Bob's turn on connection 2: he follows what Alice decided."""
    alice, bob = Claims(ALICE), Claims(BOB)
    waiting = list(order)
    accepted: dict[str, bool] = {}
    bobs = {}
    while waiting:
        step = next(step for step in waiting if step[0] == "A" or step[1] in accepted)
        waiting.remove(step)
        who, connection = step[0], step[1]
        if who == "A":
            accepted[connection] = not alice.objection(BOB, ONE, 0.0)
            if accepted[connection]:
                alice.take(BOB, ONE, 0.0)
        elif accepted[connection]:
            assert bob.objection(ALICE, ONE, 0.0) == ""
            bobs[connection] = bob.take(ALICE, ONE, 0.0)
    assert sorted(accepted.values()) == [False, True]
    assert [accepted[connection] for connection in bobs] == [True]
    assert all(bob.holds(claim) for claim in bobs.values())


def test_a_new_process_is_taken_at_once_and_the_old_claim_is_over() -> None:
    claims = Claims(ALICE)
    old = claims.take(BOB, ONE, 0.0)
    assert claims.objection(BOB, ONE, 1.0) == DUPLICATE
    assert claims.objection(BOB, TWO, 1.0) == ""
    new = claims.take(BOB, TWO, 1.0)
    claims.release(old)
    assert claims.holds(new)
    assert not claims.holds(old)
    claims.release(new)
    assert claims.objection(BOB, TWO, 1.0) == ""


def test_the_same_process_is_taken_again_once_it_must_have_lost_its_link() -> None:
    claims = Claims(ALICE)
    claims.take(BOB, ONE, 100.0)
    assert claims.objection(BOB, ONE, 100.0 + STALE_CLAIM_S - 0.1) == DUPLICATE
    assert claims.objection(BOB, ONE, 100.0 + STALE_CLAIM_S) == ""


def take(claims: Claims, instance: bytes, now: float = 0.0) -> bool:
    """Let a process come; return whether it was taken."""
    if claims.objection(BOB, instance, now):
        return False
    claims.take(BOB, instance, now)
    return True


@pytest.mark.parametrize("local", [ALICE, PeerId("carol")], ids=["arbiter", "not the arbiter"])
@pytest.mark.parametrize("first", [ONE, TWO])
def test_two_live_processes_of_one_peer_come_to_rest_with_the_same_one(local: PeerId, first: bytes) -> None:
    claims = Claims(local)
    coming = [first, TWO if first == ONE else ONE] * 4
    stayed = []
    for instance in coming:
        take(claims, instance)
        stayed.append(claims._held[BOB].instance)
    assert stayed[:2] == coming[:2]
    assert set(stayed[2:]) == {ONE}
    assert claims.objection(BOB, TWO, 0.0) == same_key(BOB)
    assert claims.objection(BOB, ONE, 0.0) != same_key(BOB)


def test_a_process_that_restarts_again_and_again_is_always_taken() -> None:
    claims = Claims(ALICE)
    assert all(take(claims, bytes([number]) * 16) for number in range(20, 0, -1))
    assert all(take(claims, bytes([number]) * 16) for number in range(21, 40))


def test_who_stood_back_is_taken_once_the_other_is_gone() -> None:
    claims = Claims(ALICE)
    for instance in (ONE, TWO, ONE):
        held = claims.take(BOB, instance, 0.0)
    assert not take(claims, TWO)
    claims.release(held)
    assert take(claims, TWO)


def test_the_processes_that_are_remembered_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "MAX_REMEMBERED_PEERS", 2)
    claims = Claims(ALICE)
    for number in range(5):
        peer = PeerId(f"peer{number}")
        for instance in range(10):
            claims.take(peer, bytes([instance]) * 16, 0.0)
    assert len(claims._replaced) == 2
    assert all(len(replaced) <= claims_module.MAX_REPLACED for replaced in claims._replaced.values())
