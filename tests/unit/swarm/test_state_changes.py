"""What else a log may say: other rules, other keys, going on without the lost, forks and merges."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.config import ModelConfig
from barnraise.errors import LocalError
from barnraise.ids import EMPTY_DIGEST, PeerId
from barnraise.swarm import records, speech
from barnraise.swarm.amendments import AMENDABLE, rules_root
from barnraise.swarm.membership import AWAITED_ROUNDS
from barnraise.swarm.plan import plan
from barnraise.swarm.records import Change, LogEvent, Readmit, Revoke, Rotate, Upgrade
from barnraise.swarm.state import MAX_PENDING, State, apply, assignment, check_follows, follow, genesis

from .entries import (
    CONFIG,
    EVERYBODY,
    amend_of,
    cut_of,
    first_state,
    merge_of,
    recover_of,
    regroup_of,
    result_of,
    round_of,
    void_of,
)

A, B, C, D, E, F = EVERYBODY
OPERATORS = (A, B)
"""Two of the three founders: a majority."""


def amended(state: State, change: Change, signers: Sequence[str]) -> State:
    return apply(state, amend_of(state, change, signers))


def upgrade_of(*rules: tuple[str, str], number: int = 1, version: int = 2) -> Upgrade:
    return Upgrade(number=number, version=version, rules=rules)


def seniority_of(state: State) -> list[tuple[int, str]]:
    return [member.seniority for member in state.members]


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_a_rotated_key_has_the_old_ones_place_from_the_next_round_on() -> None:
    state = round_of(first_state(), joined=[D])
    before = seniority_of(state)
    state = amended(state, Rotate(old=A, new=F), [A, F])
    assert state.peers == (A, B, C, D)
    after = round_of(state)
    assert after.peers == (F, B, C, D)
    assert seniority_of(after) == before
    assert (after.epoch, state.epoch) == (2, 1)
    assert after.contributors == (F, B, C)
    assert after.pending == ()
    assert set(plan(after).slots) == {F, B, C, D}


def test_a_member_has_some_rounds_to_start_again_with_its_new_key() -> None:
    state = round_of(amended(first_state(), Rotate(old=A, new=F), [A, F]))
    assert [member.awaited_until for member in state.members] == [1 + AWAITED_ROUNDS, 0, 0]


def test_who_was_rotated_twice_still_has_its_place() -> None:
    state = first_state()
    for old, new in ((A, E), (E, F)):
        state = round_of(amended(state, Rotate(old=old, new=new), [old, new]))
    assert state.peers == (F, B, C)
    assert state.members[0].seat == A


@pytest.mark.parametrize("signers", [[A], [F], [B, C]])
def test_a_rotation_takes_the_old_key_and_the_new(signers: list[str]) -> None:
    with pytest.raises(LocalError):
        amended(first_state(), Rotate(old=A, new=F), signers)


@pytest.mark.parametrize("signers", [[C], [A, B]])
def test_a_revoked_key_is_out_and_nobody_comes_back_under_it(signers: list[str]) -> None:
    state = round_of(amended(first_state(), Revoke(peer=C), signers))
    assert state.peers == (A, B)
    cut = apply(state, cut_of(state, [A, B]))
    for event in (result_of(cut, joined=[C]), recover_of(cut, [A, C])):
        with pytest.raises(LocalError, match="given up"):
            apply(cut, event)
    with pytest.raises(LocalError, match="given up"):
        apply(state, regroup_of(state, joined=[C]))
    for change, by in ((Rotate(old=B, new=C), [B, C]), (Revoke(peer=C), [A, B])):
        with pytest.raises(LocalError):
            amended(state, change, by)


@pytest.mark.parametrize("signers", [[A], [D], [], [A, D]])
def test_one_operator_or_a_stranger_revokes_nobody_elses_key(signers: list[str]) -> None:
    with pytest.raises(LocalError):
        amended(first_state(), Revoke(peer=C), signers)


def test_operators_bar_somebody_who_is_no_member() -> None:
    state = round_of(amended(first_state(), Revoke(peer=F), OPERATORS))
    assert (state.epoch, F in state.barred) == (0, True)
    with pytest.raises(LocalError, match="no place"):
        amended(state, Readmit(lost=F, new=D), [*OPERATORS, D])


def test_the_owner_of_a_lost_key_comes_back_to_its_place_and_counts_a_round_later() -> None:
    state = round_of(amended(first_state(), Revoke(peer=A), [A]), joined=[D])
    state = round_of(amended(state, Readmit(lost=A, new=F), [B, C, F]))
    assert state.peers == (F, B, C, D)
    assert state.counting == (B, C, D)
    assert round_of(state).counting == (F, B, C, D)
    with pytest.raises(LocalError, match="no place"):
        amended(state, Readmit(lost=A, new=E), [B, C, E])


@pytest.mark.parametrize("signers", [[F], [B, C], [B, F]])
def test_coming_back_takes_the_new_key_and_most_operators(signers: list[str]) -> None:
    state = round_of(amended(first_state(), Revoke(peer=A), [A]))
    with pytest.raises(LocalError):
        amended(state, Readmit(lost=A, new=F), signers)


def test_a_key_that_is_about_to_come_in_comes_in_once() -> None:
    state = amended(first_state(), Rotate(old=A, new=F), [A, F])
    for change, signers in (
        (Rotate(old=B, new=F), [B, F]),
        (Rotate(old=A, new=E), [A, E]),
        (Revoke(peer=F), [A, B]),
        (Revoke(peer=A), [A]),
    ):
        with pytest.raises(LocalError):
            amended(state, change, signers)
    cut = apply(state, cut_of(state, [A, B]))
    with pytest.raises(LocalError, match="about to"):
        apply(cut, result_of(cut, joined=[F]))


def test_who_has_left_meanwhile_is_not_brought_back_by_a_new_key() -> None:
    state = amended(first_state(), Rotate(old=A, new=F), [A, F])
    state = round_of(state, left=[A])
    assert state.peers == (B, C)
    assert A in state.barred


def test_the_last_member_stays_until_somebody_else_is_there() -> None:
    state = round_of(first_state(), left=[B, C])
    state = round_of(amended(state, Revoke(peer=A), [A]))
    assert (state.peers, state.pending) == ((A,), (Revoke(peer=A),))
    state = round_of(state, joined=[D])
    assert (state.peers, state.pending) == ((D,), ())


def test_a_regroup_lets_changes_take_effect_as_well() -> None:
    state = amended(first_state(), Rotate(old=A, new=F), [A, F])
    state = apply(state, regroup_of(state, left=[B]))
    assert (state.peers, state.epoch, state.pending) == ((F, C), 1, ())


def test_an_entry_that_hides_a_change_is_refused() -> None:
    """Who follows only the entries that change members would be led to others than there are."""
    state = amended(first_state(), Revoke(peer=C), [C])
    with pytest.raises(LocalError, match="others than those agreed"):
        apply(state, msgspec.structs.replace(regroup_of(state, left=[B]), changes=b""))
    cut = apply(state, cut_of(state, [A, B]))
    for changes in (b"", bytes(32)):
        with pytest.raises(LocalError, match="others than those agreed"):
            apply(cut, msgspec.structs.replace(result_of(cut), changes=changes))
    plain = apply(first_state(), cut_of(first_state(), [A, B]))
    with pytest.raises(LocalError, match="others than those agreed"):
        apply(plain, msgspec.structs.replace(result_of(plain), changes=bytes(32)))


def test_so_many_changes_wait_for_a_rounds_end_and_no_more() -> None:
    state = first_state()
    for number in range(MAX_PENDING):
        state = amended(state, Revoke(peer=f"stranger-{number}"), OPERATORS)
    with pytest.raises(LocalError, match="wait for the end"):
        amended(state, Revoke(peer="another"), OPERATORS)
    assert amended(round_of(state), Revoke(peer="another"), OPERATORS).pending


@pytest.mark.parametrize(
    "seals", [(), ((A, B), (A, B)), ((B, A),), ((A, B, D),)], ids=["none", "twice", "out of order", "a stranger's too"]
)
def test_signatures_under_a_change_are_in_order_each_once_and_of_whose_word_counts(
    seals: tuple[tuple[str, ...], ...],
) -> None:
    state = first_state()
    signers = [signer for group in seals for signer in group]
    event = amend_of(state, Revoke(peer=C), signers)
    ordered = {seal.signer: seal for seal in event.seals}
    with pytest.raises(LocalError):
        apply(state, msgspec.structs.replace(event, seals=tuple(ordered[signer] for signer in signers)))


# ---- rules ---------------------------------------------------------------------------------------------------------


def test_rules_change_at_the_end_of_the_round_and_the_checkpoint_names_them() -> None:
    state = amended(first_state(), upgrade_of(("outer.lr", "0.5"), ("round.steps", "7")), OPERATORS)
    assert (state.config, state.version) == (CONFIG, 1)
    cut = apply(state, cut_of(state, EVERYBODY[:3]))
    after, vertex = follow(cut, result_of(cut))
    assert vertex is not None
    assert (after.config.outer.lr, after.config.round.steps, after.version) == (0.5, 7, 2)
    assert (vertex.version, vertex.rules) == (2, rules_root(after.config))
    assert (after.run, after.epoch, after.num_upgrades) == (CONFIG.run_id, 0, 1)
    assert {sum(s.count for s in slot) for slot in plan(after).slots.values()} == {14}
    assert (plan(after).first_step, plan(after).total_steps) == (3, 3 + 99 * 7)


def test_a_newcomer_is_told_the_rules_that_the_run_id_is_the_hash_of() -> None:
    before = speech.shared_config(first_state())
    state = round_of(amended(first_state(), upgrade_of(("outer.lr", "0.5")), OPERATORS))
    assert speech.shared_config(state) == before


def test_records_of_two_versions_are_in_one_run_and_each_in_its_place() -> None:
    old = round_of(amended(first_state(), upgrade_of(), OPERATORS))
    assert (old.version, old.config) == (2, CONFIG)
    new = round_of(old)
    early = msgspec.structs.replace(cut_of(new, [A, B]), version=1)
    with pytest.raises(LocalError, match="does not follow"):
        apply(new, early)
    with pytest.raises(LocalError, match="does not follow"):
        apply(first_state(), msgspec.structs.replace(cut_of(first_state(), [A, B]), version=2))


@pytest.mark.parametrize(
    "change",
    [
        upgrade_of(number=2),
        upgrade_of(number=0),
        upgrade_of(version=1),
        upgrade_of(version=0),
        upgrade_of(("outer.lr", "0.5"), version=1),
        upgrade_of(("round.steps", "7"), ("outer.lr", "0.5")),
        upgrade_of(("outer.lr", "0.5"), ("outer.lr", "0.5")),
        upgrade_of(("outer.lr", "much")),
        upgrade_of(("outer.lr", "nan")),
        upgrade_of(("outer.lr", "11")),
        upgrade_of(("round.steps", "2.5")),
        upgrade_of(("outer.speed", "1")),
        upgrade_of(("outer", "1")),
        upgrade_of(("seed", "2")),
        upgrade_of(("profile", "open")),
        upgrade_of(("model.num_layers", "9")),
        upgrade_of(("consensus.protocol", "raft")),
        upgrade_of(("round.codec", "int4")),
    ],
    ids=str,
)
def test_an_upgrade_that_cannot_be_is_refused(change: Upgrade) -> None:
    with pytest.raises(LocalError):
        amended(first_state(), change, OPERATORS)


def test_records_that_this_code_does_not_read_are_not_agreed_to() -> None:
    with pytest.raises(LocalError, match="Install a newer one"):
        amended(first_state(), upgrade_of(version=records.NEWEST + 1), OPERATORS)


def test_an_upgrade_is_made_once_and_not_again_over_a_later_one() -> None:
    first = upgrade_of(("outer.lr", "0.5"))
    state = amended(first_state(), first, OPERATORS)
    with pytest.raises(LocalError, match="cannot follow"):
        amended(state, upgrade_of(("outer.lr", "0.6"), number=2), OPERATORS)
    state = round_of(amended(round_of(state), upgrade_of(("outer.lr", "0.6"), number=2), OPERATORS))
    assert state.config.outer.lr == 0.6
    with pytest.raises(LocalError, match="cannot follow"):
        amended(state, first, OPERATORS)


@pytest.mark.parametrize("signers", [[], [A], [D, E, F]])
def test_an_upgrade_takes_more_than_half_of_the_operators(signers: list[str]) -> None:
    with pytest.raises(LocalError):
        amended(first_state(), upgrade_of(), signers)


def test_named_operators_take_the_founders_place() -> None:
    state = genesis(replace(CONFIG, operators=(D, E, F)), 2, EMPTY_DIGEST, EMPTY_DIGEST)
    with pytest.raises(LocalError):
        amended(state, upgrade_of(), [A, B, C])
    assert amended(state, upgrade_of(), [D, F]).pending


def test_too_many_founders_are_no_operators() -> None:
    many = tuple(f"founder-{number:02}" for number in range(14))
    state = genesis(replace(CONFIG, founders=many), 2, EMPTY_DIGEST, EMPTY_DIGEST)
    with pytest.raises(LocalError):
        amended(state, upgrade_of(), many[:8])


def test_every_rule_that_may_change_is_one_of_the_configurations() -> None:
    for key in AMENDABLE:
        table, _, name = key.partition(".")
        value = getattr(getattr(CONFIG, table), name)
        assert amended(first_state(), upgrade_of((key, str(value))), OPERATORS).pending


# ---- going on without the lost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_cut", [False, True])
def test_a_recovery_begins_the_round_anew_with_whom_it_names(has_cut: bool) -> None:
    state = round_of(first_state())
    state = apply(state, cut_of(state, [A, B])) if has_cut else state
    after, vertex = follow(state, recover_of(state, [C, F]))
    assert vertex is not None
    assert (after.peers, after.counting) == ((C, F), (C, F))
    assert (after.round, after.epoch, after.attempt, after.cut) == (1, 1, 1, None)
    assert (vertex.parents, vertex.model, vertex.contributors) == ((state.vertex,), state.theta_root, ())
    assert after.vertex == records.vertex_id(vertex) != state.vertex
    assert assignment(after).slots[C] == assignment(round_of(first_state())).slots[A]
    assert round_of(after).round == 2


def test_a_recovery_from_elsewhere_or_with_nobody_who_was_there_is_refused() -> None:
    state = round_of(first_state())
    good = recover_of(state, [C, F])
    check_follows(state, good)
    for changed in (
        msgspec.structs.replace(good, vertex=first_state().vertex),
        msgspec.structs.replace(good, previous=first_state().head),
        msgspec.structs.replace(good, members=(F,)),
        msgspec.structs.replace(good, members=(F, C)),
        msgspec.structs.replace(good, members=(C, C)),
        msgspec.structs.replace(good, run=bytes(32)),
    ):
        with pytest.raises(LocalError):
            apply(state, changed)
    with pytest.raises(LocalError):
        apply(apply(state, good), good)


# ---- forks and merges ----------------------------------------------------------------------------------------------


def test_a_fork_begins_at_another_runs_checkpoint() -> None:
    parent = round_of(first_state()).vertex
    model = ModelConfig(parent=parent.hex(), initial=EMPTY_DIGEST.hex())
    plain, fork = replace(CONFIG, model=replace(model, parent="")), replace(CONFIG, model=model)
    assert plain.run_id != fork.run_id
    states = [genesis(config, 2, EMPTY_DIGEST, EMPTY_DIGEST) for config in (plain, fork)]
    assert states[0].vertex != states[1].vertex


def test_a_merge_is_a_checkpoint_of_several_parents() -> None:
    state, other = round_of(first_state()), bytes([9]) * 32
    after, vertex = follow(state, merge_of(state, [other]))
    assert vertex is not None
    assert vertex.parents == (state.vertex, other)
    assert (vertex.model, vertex.outer, vertex.exponents) == (bytes([6]) * 32, bytes([7]) * 32, (11, 12))
    assert (after.round, after.attempt, after.vertex) == (1, 1, records.vertex_id(vertex))
    assert round_of(after).round == 2


def test_a_merge_that_leaves_out_the_newest_checkpoint_is_refused() -> None:
    state, other = round_of(first_state()), bytes([9]) * 32
    good = merge_of(state, [other])
    for changed in (
        msgspec.structs.replace(good, parents=good.parents[::-1]),
        msgspec.structs.replace(good, parents=(*good.parents, good.parents[1])),
        msgspec.structs.replace(good, exponents=(1,)),
    ):
        with pytest.raises(LocalError):
            apply(state, changed)
    cut = apply(state, cut_of(state, [A, B]))
    with pytest.raises(LocalError, match="cannot come"):
        apply(cut, merge_of(cut, [other]))


# ---- the outer momentum --------------------------------------------------------------------------------------------


def holds(before: Sequence[str], now: Sequence[str]) -> bool:
    config = replace(CONFIG, founders=tuple(f"peer-{number}" for number in range(12)))
    state = round_of(genesis(config, 2, EMPTY_DIGEST, EMPTY_DIGEST), before)
    assert not state.holds_momentum
    return apply(state, cut_of(state, now)).holds_momentum


def test_losing_more_than_a_quarter_at_once_holds_the_outer_momentum() -> None:
    twelve = [f"peer-{number}" for number in range(12)]
    assert not holds(twelve, twelve)
    assert not holds(twelve, twelve[3:])
    assert holds(twelve, twelve[4:])
    assert not holds(twelve[4:], twelve)
    assert holds(twelve[:8], twelve[4:])
    assert not holds(twelve[:4], twelve[1:])
    assert holds(twelve[:3], twelve[1:])


def test_the_first_round_and_the_round_after_a_loss_hold_nothing() -> None:
    state = first_state()
    assert not apply(state, cut_of(state, [A])).holds_momentum
    state = round_of(state, [A])
    assert not apply(state, cut_of(state, [A])).holds_momentum


def test_another_key_is_no_loss() -> None:
    state = round_of(first_state())
    state = round_of(amended(state, Rotate(old=A, new=F), [A, F]))
    assert not apply(state, cut_of(state, state.peers)).holds_momentum


# ---- any log -------------------------------------------------------------------------------------------------------

IDS = (*EVERYBODY, PeerId("peer-6"), PeerId("peer-7"))
Draw = st.DataObject


def some(data: Draw, peers: Sequence[str], least: int = 0) -> list[str]:
    return data.draw(st.lists(st.sampled_from(list(peers)), min_size=least, unique=True))


def change_of(data: Draw, state: State) -> Change:
    one, other = (data.draw(st.sampled_from(IDS)) for _ in range(2))
    return data.draw(
        st.sampled_from(
            [
                Rotate(old=one, new=other),
                Revoke(peer=one),
                Readmit(lost=one, new=other),
                upgrade_of(("outer.lr", "0.25"), number=state.num_upgrades + 1),
                upgrade_of(number=1),
            ]
        )
    )


EVENTS: dict[str, Callable[[Draw, State], LogEvent]] = {
    "amend": lambda data, state: amend_of(state, change_of(data, state), some(data, IDS)),
    "recover": lambda data, state: recover_of(state, some(data, IDS, 1)),
    "regroup": lambda data, state: regroup_of(state, some(data, IDS), some(data, state.peers)),
    "merge": lambda data, state: merge_of(state, [bytes([data.draw(st.integers(0, 3))]) * 32]),
    "cut": lambda data, state: cut_of(state, some(data, IDS, 1)),
    "void": lambda data, state: void_of(state),
    "result": lambda data, state: result_of(state, some(data, IDS), some(data, state.peers)),
}


def event_of(data: Draw, state: State) -> LogEvent:
    """Return an entry of this place in the log, which may well say what cannot be."""
    names = (
        ["recover", "void", "result", "result"] if state.cut else ["amend", "amend", "cut", "cut", "regroup", "merge"]
    )
    return EVENTS[data.draw(st.sampled_from(names))](data, state)


def check_state(before: State, after: State) -> None:
    assert len(set(after.peers)) == len(after.peers) > 0
    assert seniority_of(after) == sorted(seniority_of(after))
    assert after.barred.isdisjoint(after.peers)
    assert {retired.peer for retired in before.retired} <= {retired.peer for retired in after.retired}
    assert after.epoch - before.epoch in (0, 1)
    assert after.peers == before.peers or after.epoch > before.epoch
    assert (
        after.config == before.config and after.version == before.version
    ) or after.num_upgrades > before.num_upgrades


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_over_any_log_all_members_come_to_the_same_and_what_cannot_be_changes_nothing(data: Draw) -> None:
    state = other = first_state()
    for _ in range(data.draw(st.integers(5, 40), "entries")):
        event = event_of(data, state)
        try:
            after = apply(state, event)
        except LocalError:
            with pytest.raises(LocalError):
                apply(other, records.decode_event.decode(records.encode(event)))
            continue
        check_state(state, after)
        other = apply(other, records.decode_event.decode(records.encode(event)))
        assert other == after
        state = after
