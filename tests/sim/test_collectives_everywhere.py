"""Every rank dies, stops and sends damage at every step of every schedule; and some thousand seeds."""

import pytest

from .collective_worlds import SCHEDULES, fail_at_each_step, run_random_world

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(600)]


@pytest.mark.parametrize("world_size", [4, 5, 8])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_any_rank_may_fail_in_any_way_at_any_step(kind: str, world_size: int) -> None:
    assert fail_at_each_step(kind, world_size, range(world_size)) >= 6 * world_size


@pytest.mark.parametrize("block", range(20))
def test_whatever_a_seed_brings_nobody_hangs_and_nobody_has_another_result(block: int) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        run_random_world(seed)
