"""The closed forms agree with what the schedules do, transfer by transfer and in bytes."""

from collections import Counter
from fractions import Fraction

import pytest

from barnraise.collective.formulas import Cost, cost_of, counted
from barnraise.collective.kinds import FLAT, schedule_of
from barnraise.collective.program import program_of
from barnraise.collective.tree import broadcast
from barnraise.errors import LocalError

WORLD_SIZES = range(1, 18)


@pytest.mark.parametrize("kind", FLAT)
def test_formulas_agree_with_the_transfers(kind: str) -> None:
    for world_size in (*WORLD_SIZES, 31, 32, 33):
        said, found = cost_of(kind, world_size), counted(schedule_of(kind, world_size))
        assert (said.num_steps, said.sent, said.num_messages) == (found.num_steps, found.sent, found.num_messages)
        if kind == "tree":
            assert said.path / 2 <= found.path <= said.path
        else:
            assert said.path == found.path


@pytest.mark.parametrize("kind", FLAT)
def test_formulas_agree_with_the_bytes_of_real_programs(kind: str) -> None:
    for world_size in WORLD_SIZES:
        schedule = schedule_of(kind, world_size)
        size, chunk_elements = 12 * schedule.num_parts, 5
        sent: Counter[int] = Counter()
        for rank in range(world_size):
            sends = program_of(schedule, rank, size, chunk_elements).sends
            sent[rank] = sum(4 * (send.chunk.stop - send.chunk.start) for send in sends)
        assert max(sent.values()) == cost_of(kind, world_size).sent_bytes(4 * size)


@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("size", [1, 97, 1000])
def test_uneven_parts_cost_at_most_an_element_a_message_more(kind: str, size: int) -> None:
    for world_size in WORLD_SIZES:
        schedule, cost = schedule_of(kind, world_size), cost_of(kind, world_size)
        programs = [program_of(schedule, rank, size, size) for rank in range(world_size)]
        busiest = max(sum(send.chunk.stop - send.chunk.start for send in program.sends) for program in programs)
        assert abs(busiest - cost.sent * size) <= cost.num_messages


@pytest.mark.parametrize(
    ("kind", "num_steps", "path"),
    [
        ("ring", 14, Fraction(14, 8)),
        ("tree", 6, Fraction(6)),
        ("butterfly", 6, Fraction(14, 8)),
        ("shards", 2, Fraction(14, 8)),
        ("centralised", 2, Fraction(14)),
    ],
)
def test_the_textbooks_figures_for_eight(kind: str, num_steps: int, path: Fraction) -> None:
    cost = cost_of(kind, 8)
    assert (cost.num_steps, cost.path) == (num_steps, path)


def test_folding_costs_two_latencies_and_two_vectors() -> None:
    folded, whole = cost_of("butterfly", 11), cost_of("butterfly", 8)
    assert folded.num_steps == whole.num_steps + 2
    assert folded.path == whole.path + 2


def test_nobody_sends_more_than_one_vector_in_a_broadcast() -> None:
    for world_size in WORLD_SIZES:
        cost = counted(broadcast(world_size))
        assert cost.num_steps == (world_size - 1).bit_length()
        assert cost.sent == (world_size > 1)


def test_a_hierarchy_sends_little_between_the_groups() -> None:
    cost = counted(schedule_of("hierarchical", 8, groups=((0, 1, 2, 3), (4, 5, 6, 7)), inner="shards", outer="ring"))
    assert cost == Cost(num_steps=4, path=Fraction(7, 4), sent=Fraction(7, 4), num_messages=14)


@pytest.mark.parametrize(("kind", "world_size"), [("hierarchical", 4), ("star", 4), ("ring", 0)])
def test_no_formula(kind: str, world_size: int) -> None:
    with pytest.raises(LocalError, match="no formula"):
        cost_of(kind, world_size)
