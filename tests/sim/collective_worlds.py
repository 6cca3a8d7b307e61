"""Simulated worlds of collectives for tests: every schedule, every fault at a step, and what must hold afterwards."""

import functools
import random
from collections.abc import Callable, Iterable, Sequence

from barnraise.collective.kinds import FLAT, schedule_of
from barnraise.collective.schedule import Schedule
from barnraise.sim.collectives import Broken, World
from barnraise.sim.mishaps import Corrupt, Cut, Kill, Mishap, Stop, draw

ScheduleOf = Callable[[int], Schedule]


def hierarchical(world_size: int) -> Schedule:
    if world_size < 2:
        return schedule_of("ring", world_size)
    half = (world_size + 1) // 2
    return schedule_of("hierarchical", world_size, groups=(range(half), range(half, world_size)))


SCHEDULES: dict[str, ScheduleOf] = {
    **{kind: functools.partial(schedule_of, kind) for kind in FLAT},
    "hierarchical": hierarchical,
}
WEIGHTS = (3, 1, 4, 1, 5, 9, 2, 6)
FAULTS: tuple[Callable[[int, int], Mishap], ...] = (
    lambda rank, step: Kill(rank=rank, sequence=1, step=step),
    lambda rank, step: Stop(rank=rank, sequence=1, step=step, for_s=12.0 if step % 2 else None),
    lambda rank, step: Corrupt(rank=rank, sequence=1, step=step),
)


def world_of(kind: str, world_size: int, *mishaps: Mishap, seed: int = 1, num_collectives: int = 2) -> World:
    world = World(
        seed=seed,
        schedule_of=SCHEDULES[kind],
        weights=WEIGHTS[:world_size],
        mishaps=mishaps,
        num_collectives=num_collectives,
    )
    world.run()
    return world


def ended_with(world: World, sequence: int) -> Sequence[int]:
    (members,) = {rank.results[sequence].members for rank in world.survivors}
    return members


def lost_in(world: World) -> set[int]:
    return {culprit for rank in world.survivors for culprit in rank.lost}


def fail_at_each_step(kind: str, world_size: int, victims: Iterable[int]) -> int:
    """Let each victim fail, in each way, before each of its sends and receives; return the number of worlds."""
    undisturbed, everybody, count = world_of(kind, world_size), tuple(range(world_size)), 0
    for victim in victims:
        others = tuple(rank for rank in everybody if rank != victim)
        num_steps = undisturbed.ranks[victim].num_ops[1]
        assert num_steps >= 2
        for step in range(num_steps):
            for number, fault in enumerate(FAULTS):
                mishap = fault(victim, step)
                check(world_of(kind, world_size, mishap, seed=100 * step + number), mishap, victim, everybody, others)
                count += 1
    return count


def check(world: World, mishap: Mishap, victim: int, everybody: tuple[int, ...], others: tuple[int, ...]) -> None:
    """The guilty one is named and nobody else; who is left goes on, with a result of exactly all or all others."""
    alive = tuple(rank.index for rank in world.survivors)
    assert ended_with(world, 1) in (everybody, others), mishap
    assert world.now < 60.0, mishap
    if isinstance(mishap, Corrupt):
        named = {culprit for rank in world.survivors for culprit in (*rank.named, *rank.lost)}
        assert named == ({victim} if world.struck else set()), mishap
        return
    assert world.struck, mishap
    assert alive == others, mishap
    assert all(set(rank.lost) == {victim} for rank in world.survivors), mishap
    assert ended_with(world, 2) == others, mishap
    if isinstance(mishap, Stop) and mishap.for_s is not None:
        assert (world.ranks[victim].ended or "").startswith("the others go on without this rank"), mishap


def random_world(seed: int) -> World:
    rng = random.Random(seed)
    world_size = rng.choice((2, 3, 4, 5, 6, 8))
    return World(
        seed=seed,
        schedule_of=SCHEDULES[rng.choice(list(SCHEDULES))],
        weights=[rng.randint(1, 9) for _ in range(world_size)],
        num_collectives=3,
        mishaps=draw(rng, world_size, 3, 0.4),
        chunk_elements=rng.choice((2, 8, 24)),
    )


def run_random_world(seed: int) -> None:
    """Let a world go on to its end; a failure names the seed."""
    world = random_world(seed)
    try:
        world.run()
    except Broken as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    touched = {rank for mishap in world.mishaps for rank in _ranks_of(mishap)}
    if 2 * len(touched) < len(world.ranks):
        assert world.survivors, f"seed {seed}: most ranks are well and nobody went on"


def _ranks_of(mishap: Mishap) -> set[int]:
    return {mishap.one, mishap.other} if isinstance(mishap, Cut) else {mishap.rank}
