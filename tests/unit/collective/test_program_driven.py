"""All ranks' programs run together in memory, in any order and with links that hold one chunk: no deadlock, right sums."""

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.collective.alltoall import all_to_all
from barnraise.collective.kinds import FLAT, schedule_of
from barnraise.collective.program import Program, program_of
from barnraise.collective.schedule import Schedule, all_gather, reduce_scatter
from barnraise.collective.tree import broadcast, hand_on, tree

from .driver import GARBAGE, drive, programs_of

WORLD_SIZES = range(1, 18)
WAYS = 12
"""Random orders tried where one of them is to go wrong, or none."""
SOME_SIZES = (1, 2, 3, 5, 6, 8, 13, 17)
FACTOR = 3


def _inputs(random: Random, world_size: int, size: int) -> list[npt.NDArray[np.int64]]:
    """Return whole numbers times each rank's weight, so that the sum is the weighted one and exact."""
    numbers = np.random.default_rng(random.getrandbits(32))
    weights = numbers.integers(0, 1000, world_size)
    return [weight * numbers.integers(-1000, 1000, size) for weight in weights]


def _check_all_reduce(schedule: Schedule, size: int, chunk_elements: int, alignment: int, seed: int) -> None:
    random = Random(seed)
    inputs = _inputs(random, schedule.world_size, size)
    before = [given.copy() for given in inputs]
    programs = programs_of(schedule, size, chunk_elements, alignment)
    results = drive(programs, inputs, random, factor=FACTOR)
    for result in results:
        np.testing.assert_array_equal(result, FACTOR * sum(before))
    np.testing.assert_array_equal(inputs, before)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("kind", FLAT)
def test_every_kind_sums_exactly(kind: str, world_size: int) -> None:
    schedule = schedule_of(kind, world_size)
    sizes = (0, 1, world_size - 1, world_size + 1, 2 * world_size + 3)
    for seed, size in enumerate(sizes):
        _check_all_reduce(schedule, size, 1 + seed % 3, 1, seed)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(FLAT)),
    world_size=st.integers(1, 17),
    size=st.integers(0, 300),
    chunks=st.integers(1, 6),
    alignment=st.sampled_from([1, 2, 16, 64]),
    seed=st.integers(0, 2**32),
)
def test_any_size_in_any_chunks(kind: str, world_size: int, size: int, chunks: int, alignment: int, seed: int) -> None:
    schedule = schedule_of(kind, world_size)
    chunk_elements = 1 + size // (chunks * schedule.num_parts)
    _check_all_reduce(schedule, size, chunk_elements, alignment, seed)


@st.composite
def _groups(draw: st.DrawFn) -> list[list[int]]:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    ranks = iter(draw(st.permutations(range(sum(lengths)))))
    return [[next(ranks) for _ in range(length)] for length in lengths]


@settings(max_examples=25, deadline=None)
@given(
    groups=_groups(),
    inner=st.sampled_from(sorted(FLAT)),
    outer=st.sampled_from(sorted(FLAT)),
    size=st.integers(0, 200),
    seed=st.integers(0, 2**32),
)
def test_any_two_kinds_over_any_groups(groups: list[list[int]], inner: str, outer: str, size: int, seed: int) -> None:
    world_size = sum(len(group) for group in groups)
    schedule = schedule_of("hierarchical", world_size, groups=groups, inner=inner, outer=outer)
    _check_all_reduce(schedule, size, 1 + size // 40, 1, seed)


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=10).filter(any),
    size=st.integers(0, 200),
    seed=st.integers(0, 2**32),
)
def test_shards_of_unequal_length(weights: list[int], size: int, seed: int) -> None:
    _check_all_reduce(all_to_all(len(weights), weights), size, 1 + size // 30, 1, seed)


def test_any_root() -> None:
    for world_size in WORLD_SIZES:
        for root in range(0, world_size, 5):
            _check_all_reduce(tree(world_size, root), 9, 2, 1, root)


@pytest.mark.parametrize("kind", FLAT)
def test_all_ranks_have_the_same_bits(kind: str) -> None:
    for world_size in SOME_SIZES:
        random = Random(world_size)
        numbers = np.random.default_rng(world_size)
        size = 2 * world_size + 3
        inputs = [numbers.standard_normal(size).astype(np.float32) for _ in range(world_size)]
        programs = programs_of(schedule_of(kind, world_size), size, 2)
        results = drive(programs, inputs, random, capacity=2)
        assert {result.tobytes() for result in results} == {results[0].tobytes()}
        np.testing.assert_allclose(results[0], np.sum(inputs, axis=0, dtype=np.float64), atol=1e-5)
        again = drive(programs, inputs, Random(world_size + 1))
        assert again[0].tobytes() == results[0].tobytes()


@pytest.mark.parametrize("kind", FLAT)
def test_reduce_scatter_leaves_each_part_at_its_owner(kind: str) -> None:
    for world_size in SOME_SIZES:
        schedule = reduce_scatter(schedule_of(kind, world_size))
        random, size = Random(world_size), 2 * world_size + 1
        inputs = _inputs(random, world_size, size)
        results = drive(programs_of(schedule, size, 2), inputs, random, factor=FACTOR)
        for owner, (start, stop) in zip(schedule.owners, schedule.bounds(size), strict=True):
            np.testing.assert_array_equal(results[owner][start:stop], FACTOR * sum(inputs)[start:stop])


@pytest.mark.parametrize("kind", FLAT)
def test_all_gather_brings_each_owners_part_to_all(kind: str) -> None:
    for world_size in SOME_SIZES:
        schedule = all_gather(schedule_of(kind, world_size))
        random, size = Random(world_size), 2 * world_size + 1
        inputs = _inputs(random, world_size, size)
        bounds = zip(schedule.owners, schedule.bounds(size), strict=True)
        expected = np.concatenate([FACTOR * inputs[owner][start:stop] for owner, (start, stop) in bounds])
        for result in drive(programs_of(schedule, size, 2), inputs, random, factor=FACTOR):
            np.testing.assert_array_equal(result, expected)


def test_broadcast_and_hand_on() -> None:
    for world_size in WORLD_SIZES:
        random, size = Random(world_size), 11
        inputs = _inputs(random, world_size, size)
        for root in range(0, world_size, 4):
            for result in drive(programs_of(broadcast(world_size, root), size, 2), inputs, random):
                np.testing.assert_array_equal(result, inputs[root])
        to = random.sample(range(1, world_size), world_size // 2)
        results = drive(programs_of(hand_on(world_size, 0, to), size, 2), inputs, random)
        for rank, result in enumerate(results):
            np.testing.assert_array_equal(result, inputs[0] if rank in {0, *to} else np.full(size, GARBAGE))


def _outcome(programs: Sequence[Program], inputs: Sequence[npt.NDArray[Any]], expected: npt.NDArray[Any]) -> set[str]:
    """Return what goes wrong in some random orders."""
    found = set()
    for seed in range(WAYS):
        try:
            results = drive(programs, inputs, Random(seed))
        except AssertionError as error:
            found.add("deadlock" if "deadlock" in str(error) else "misuse")
        else:
            if any(result.tobytes() != expected.tobytes() for result in results):
                found.add("wrong")
    return found


@pytest.mark.parametrize("kind", FLAT)
def test_each_need_matters(kind: str) -> None:
    """Forget what a send or a receive needs: some order goes wrong. So the orders above can tell."""
    programs = programs_of(schedule_of(kind, 5), 20, 2)
    inputs = _inputs(Random(0), 5, 20)
    assert _outcome(programs, inputs, sum(inputs, np.zeros(20, np.int64))) == set()
    careless = [
        dataclasses.replace(program, sends=tuple(dataclasses.replace(send, needs=0) for send in program.sends))
        for program in programs
    ]
    assert _outcome(careless, inputs, sum(inputs, np.zeros(20, np.int64)))


@pytest.mark.parametrize("kind", FLAT)
def test_what_a_receive_needs_holds_by_itself_among_honest_ranks(kind: str) -> None:
    """A finished value has our sum in it, so our send is out before it comes: only a peer out of turn is held off."""
    programs = programs_of(schedule_of(kind, 6), 24, 2)
    assert any(due.needs for program in programs for due in program.receives)
    trusting = [
        dataclasses.replace(program, receives=tuple(dataclasses.replace(due, needs=0) for due in program.receives))
        for program in programs
    ]
    inputs = _inputs(Random(0), 6, 24)
    assert _outcome(trusting, inputs, sum(inputs, np.zeros(24, np.int64))) == set()


def test_an_order_of_a_ranks_own_deadlocks() -> None:
    """Let one rank hear all of rank 1 before any of rank 2: with room for one chunk a link they wait for each other."""
    programs = programs_of(schedule_of("shards", 3), 12, 1)
    stubborn = sorted(programs[0].receives, key=lambda due: due.sender)
    programs[0] = dataclasses.replace(programs[0], receives=tuple(stubborn))
    inputs = _inputs(Random(0), 3, 12)
    assert _outcome(programs, inputs, sum(inputs, np.zeros(12, np.int64))) == {"deadlock"}


def test_a_program_depends_on_nothing_but_its_arguments() -> None:
    for kind in FLAT:
        assert program_of(schedule_of(kind, 6), 3, 100, 7) == program_of(schedule_of(kind, 6), 3, 100, 7)
