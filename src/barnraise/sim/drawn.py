"""Worlds whose faults and visitors are drawn from their seed."""

import random

from barnraise.sim.faults import draw, draw_visits
from barnraise.sim.world import Broken, World


def simulate(
    seed: int,
    *,
    num_peers: int = 4,
    rounds: int = 4,
    visits: bool = False,
    codec: str = "int8",
    seconds: float = 0.0,
) -> World:
    """Run one world with faults drawn from the seed, and visitors; raise `Broken` with the seed in its message."""
    rng = random.Random(seed)
    faults = draw(rng, num_peers=num_peers, num_rounds=rounds, horizon_s=20.0 * rounds)
    if visits:
        faults += draw_visits(rng, num_peers=num_peers, horizon_s=4.0 * rounds)
    world = World(seed=seed, num_peers=num_peers, rounds=rounds, faults=faults, codec=codec, seconds=seconds)
    try:
        world.run()
    except Broken as error:
        raise Broken(f"seed {seed}: {error}; faults {faults}") from error
    return world
