"""Every kind of schedule keeps the rules for any number of ranks, and the rules have teeth."""

import dataclasses
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.collective.alltoall import all_to_all
from barnraise.collective.butterfly import butterfly
from barnraise.collective.hierarchical import hierarchical
from barnraise.collective.kinds import FLAT, KINDS, schedule_of
from barnraise.collective.ring import ring
from barnraise.collective.schedule import (
    Action,
    Schedule,
    Transfer,
    all_gather,
    check,
    equal_cuts,
    reduce_scatter,
    weighted_cuts,
)
from barnraise.collective.tree import broadcast, hand_on, tree
from barnraise.errors import ConfigError, LocalError

WORLD_SIZES = range(1, 18)
GROUPS = (
    ((0,),),
    ((0, 1), (2, 3)),
    ((0, 1, 2), (3, 4)),
    ((1,), (2,), (0,)),
    ((4, 0, 2), (1,), (3, 5, 6, 7, 8)),
    ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9, 10, 11), (12, 13), (14, 15, 16)),
)


def _reached(schedule: Schedule, part: int) -> set[int]:
    """Return the ranks that have a finished part in the end."""
    copies = [move for move in schedule.transfers if move.part == part and move.action is Action.COPY]
    return {schedule.owners[part]} | {move.receiver for move in copies}


def _is_everywhere(schedule: Schedule) -> bool:
    ranks = set(range(schedule.world_size))
    return all(_reached(schedule, part) == ranks for part in range(schedule.num_parts))


@pytest.mark.parametrize("kind", FLAT)
def test_every_kind_keeps_the_rules(kind: str) -> None:
    for world_size in WORLD_SIZES:
        schedule = schedule_of(kind, world_size)
        check(schedule)
        assert schedule.world_size == world_size
        assert _is_everywhere(schedule)
        assert len(set(schedule.transfers)) == len(schedule.transfers)


@pytest.mark.parametrize("kind", FLAT)
def test_the_halves_keep_the_rules(kind: str) -> None:
    for world_size in WORLD_SIZES:
        schedule = schedule_of(kind, world_size)
        first, second = reduce_scatter(schedule), all_gather(schedule)
        check(first)
        check(second)
        assert (*first.transfers, *second.transfers) == schedule.transfers
        assert _is_everywhere(second)


def test_no_rank_hears_a_finished_part_twice() -> None:
    for world_size in WORLD_SIZES:
        for kind in FLAT:
            copies = all_gather(schedule_of(kind, world_size)).transfers
            heard = [(move.receiver, move.part) for move in copies]
            assert len(set(heard)) == len(heard) == (world_size - 1) * schedule_of(kind, world_size).num_parts


@pytest.mark.parametrize("kind", ["ring", "shards"])
def test_rank_r_owns_part_r(kind: str) -> None:
    for world_size in WORLD_SIZES:
        assert schedule_of(kind, world_size).owners == tuple(range(world_size))


def test_a_ring_sends_to_the_next_rank_only() -> None:
    for world_size in WORLD_SIZES:
        assert all(move.receiver == (move.sender + 1) % world_size for move in ring(world_size).transfers)


def test_at_any_time_shards_send_one_transfer_to_each_rank() -> None:
    for world_size in WORLD_SIZES:
        moves = all_to_all(world_size).transfers
        for start in range(0, len(moves), world_size):
            at_once = moves[start : start + world_size]
            assert {move.sender for move in at_once} == {move.receiver for move in at_once} == set(range(world_size))


def test_a_butterfly_has_parts_for_the_largest_power_of_two() -> None:
    for world_size in WORLD_SIZES:
        parts = butterfly(world_size).num_parts
        assert parts <= world_size < 2 * parts
        assert parts & (parts - 1) == 0


def test_a_rank_has_children_in_one_tree_only() -> None:
    for world_size in WORLD_SIZES:
        for root in range(world_size):
            moves = broadcast(world_size, root).transfers
            parents = [{move.sender for move in moves if move.part == half} - {root} for half in (0, 1)]
            assert not parents[0] & parents[1]
            assert all(sum(move.sender == rank for move in moves) <= 2 for rank in range(world_size))


def test_a_broadcast_reaches_all_from_any_root() -> None:
    for world_size in WORLD_SIZES:
        for root in range(world_size):
            for schedule in (broadcast(world_size, root), tree(world_size, root)):
                check(schedule)
                assert set(schedule.owners) == {root}
                assert _is_everywhere(schedule)


@given(st.data())
def test_a_vector_is_handed_on_to_some_only(data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, 17))
    ranks = data.draw(st.permutations(range(world_size)))
    holder, *to = ranks[: data.draw(st.integers(1, world_size))]
    schedule = hand_on(world_size, holder, to)
    check(schedule)
    assert {rank for move in schedule.transfers for rank in (move.sender, move.receiver)} <= {holder, *to}
    assert _reached(schedule, 0) == _reached(schedule, 1) == {holder, *to}


@pytest.mark.parametrize(("holder", "to"), [(0, [0]), (0, [1, 1]), (0, [4]), (4, [0]), (-1, [0])])
def test_a_vector_is_not_handed_on_to_nobody(holder: int, to: list[int]) -> None:
    with pytest.raises(LocalError, match="cannot hand"):
        hand_on(4, holder, to)


@pytest.mark.parametrize("groups", GROUPS)
def test_any_two_kinds_compose(groups: tuple[tuple[int, ...], ...]) -> None:
    world_size = sum(len(group) for group in groups)
    for inner, outer in product(FLAT, FLAT):
        schedule = schedule_of("hierarchical", world_size, groups=groups, inner=inner, outer=outer)
        check(schedule)
        check(reduce_scatter(schedule))
        check(all_gather(schedule))
        assert _is_everywhere(schedule)


def test_all_members_share_the_way_between_groups() -> None:
    schedule = hierarchical(((0, 1, 2), (3, 4)), ring, all_to_all)
    assert schedule.cuts == tuple(Fraction(i, 12) for i in (0, 2, 4, 5, 6, 7, 8, 10, 12))
    lengths = [high - low for low, high in zip(schedule.cuts[:-1], schedule.cuts[1:], strict=True)]
    between = [move for move in schedule.transfers if (move.sender < 3) != (move.receiver < 3)]
    sent = {rank: sum(lengths[move.part] for move in between if move.sender == rank) for rank in range(5)}
    assert sent == {0: Fraction(1, 3), 1: Fraction(1, 3), 2: Fraction(1, 3), 3: Fraction(1, 2), 4: Fraction(1, 2)}


def test_a_hierarchy_of_three_levels() -> None:
    def region(world_size: int) -> Schedule:
        return hierarchical(((0, 1), tuple(range(2, world_size))), ring, all_to_all)

    schedule = hierarchical((tuple(range(5)), tuple(range(5, 11))), region, tree)
    check(schedule)
    assert _is_everywhere(schedule)


@pytest.mark.parametrize("groups", [((0, 1), (1, 2)), ((0,), (2,)), ((0, 1), ()), ((1, 2),)])
def test_groups_hold_each_rank_once(groups: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(LocalError, match="each rank once"):
        hierarchical(groups, ring, ring)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=17).filter(any))
def test_shards_in_proportion(weights: list[int]) -> None:
    schedule = schedule_of("shards", len(weights), weights=weights)
    check(schedule)
    bounds = schedule.bounds(7 * sum(weights))
    assert [stop - start for start, stop in bounds] == [7 * weight for weight in weights]


@pytest.mark.parametrize("weights", [[0, 0], [2, -1], [1], [1, 1, 1]])
def test_weights_that_cannot_be(weights: list[int]) -> None:
    with pytest.raises(LocalError):
        all_to_all(2, weights)


@given(size=st.integers(0, 10_000), alignment=st.sampled_from([1, 2, 7, 64]), data=st.data())
def test_parts_tile_the_vector_at_aligned_borders(size: int, alignment: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=17).filter(any))
    bounds = all_to_all(len(weights), weights).bounds(size, alignment)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert [start for start, _ in bounds[1:]] == [stop for _, stop in bounds[:-1]]
    assert all(start <= stop and (start % alignment == 0 or start == size) for start, stop in bounds)
    exact = weighted_cuts(weights)
    assert all(abs(start - cut * size) <= alignment for (start, _), cut in zip(bounds, exact, strict=False))


@pytest.mark.parametrize("kind", [*FLAT])
def test_a_kind_by_name(kind: str) -> None:
    assert schedule_of(kind, 5) == FLAT[kind](5)
    assert schedule_of(kind, 5).kind == kind


def test_the_names() -> None:
    assert set(KINDS) == {"ring", "tree", "butterfly", "shards", "hierarchical", "centralised"}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("star", {}, "ring, tree, butterfly, shards, centralised, hierarchical"),
        ("ring", {"world_size": 0}, "1 or more"),
        ("ring", {"weights": [1, 1, 1, 1]}, "choose 'shards'"),
        ("tree", {"groups": [[0, 1], [2, 3]]}, "choose 'hierarchical'"),
        ("hierarchical", {}, "takes the groups"),
        ("hierarchical", {"groups": [[0, 1]]}, "takes the groups"),
        ("hierarchical", {"groups": [[0, 1], [2, 3]], "inner": "hierarchical"}, "inside itself"),
        ("hierarchical", {"groups": [[0, 1], [2, 3]], "outer": "star"}, "unknown"),
    ],
)
def test_what_a_user_cannot_ask_for(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule_of(kind, **{"world_size": 4, **options})  # type: ignore[arg-type]


TWO = Schedule(
    kind="two",
    world_size=2,
    cuts=equal_cuts(2),
    owners=(0, 1),
    transfers=(
        Transfer(0, 0, 1, 1, Action.REDUCE),
        Transfer(0, 1, 0, 0, Action.REDUCE),
        Transfer(1, 0, 1, 0, Action.COPY),
        Transfer(1, 1, 0, 1, Action.COPY),
    ),
)


def _changed(number: int, **changes: object) -> Schedule:
    moves = list(TWO.transfers)
    moves[number] = dataclasses.replace(moves[number], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(TWO, transfers=tuple(moves))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (dataclasses.replace(TWO, cuts=equal_cuts(3)), "owners and the borders"),
        (dataclasses.replace(TWO, cuts=(Fraction(0), Fraction(2), Fraction(1))), "do not ascend"),
        (dataclasses.replace(TWO, cuts=(Fraction(0), Fraction(1, 2), Fraction(2))), "owners and the borders"),
        (dataclasses.replace(TWO, owners=(0, 2)), "none of 2 ranks"),
        (_changed(0, receiver=0), "from nowhere"),
        (_changed(0, receiver=2), "from nowhere"),
        (_changed(0, sender=-1), "from nowhere"),
        (_changed(0, part=2), "not there"),
        (_changed(0, step=3), "steps do not ascend"),
        (_changed(0, action=Action.COPY), "adds after values"),
        (_changed(1, part=1), "comes in the same step"),
        (_changed(1, part=1, step=1), "a second time"),
        (_changed(3, sender=0, receiver=1), "copies what is not finished"),
        (dataclasses.replace(TWO, transfers=TWO.transfers[:1]), "part 0 is not finished"),
        (dataclasses.replace(TWO, transfers=TWO.transfers[1:]), "not finished"),
    ],
)
def test_a_broken_schedule_is_refused(broken: Schedule, message: str) -> None:
    check(TWO)
    with pytest.raises(LocalError, match=message):
        check(broken)
