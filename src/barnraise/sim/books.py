"""Follows the log that a world agreed on and counts its samples: each is trained on once, or waits to be."""

from collections.abc import Sequence

import numpy as np

from barnraise.ids import PeerId
from barnraise.sim.node import BLOCKS, SIZE
from barnraise.sim.world import Broken, World
from barnraise.swarm import records
from barnraise.swarm.records import LogEvent, Result
from barnraise.swarm.slots import Segment
from barnraise.swarm.state import apply, assignment, genesis
from barnraise.swarm.workspace import root_of


def log_of(world: World) -> list[LogEvent]:
    """Return what a world agreed on, in order."""
    return [records.decode_event.decode(world.decided[height]) for height in sorted(world.decided)]


def check_exactly_once(world: World) -> None:
    """Follow the log from the start; what was trained on and what waits must be every sample once.

    Raises:
        Broken: a sample was lost or trained on twice, or the log does not lead to where its members are.
    """
    theta = np.arange(SIZE, dtype=np.float32) / np.float32(SIZE)
    state = genesis(world.config, len(BLOCKS), root_of(theta), root_of(np.zeros(SIZE, np.float32)))
    states, trained = [state], list[int]()
    for event in log_of(world):
        if isinstance(event, Result) and state.cut:
            slots = assignment(state).slots
            for entry in state.cut.contributions:
                trained += samples_of(slots[PeerId(entry.member)])[: entry.samples]
        state = apply(state, event)
        if state.cut is None and sorted(trained + samples_of(state.requeued)) != list(range(state.cursor)):
            raise Broken(f"after height {state.height} not every sample was trained on once, or waits")
        states.append(state)
    for node in world.nodes:
        height = node.member.state.height
        if node.alive and (height >= len(states) or node.member.state != states[height]):
            raise Broken(f"peer {node.index} is at height {height}, where the log does not lead")


def samples_of(segments: Sequence[Segment]) -> list[int]:
    """Return the numbers of all samples."""
    return [sample for segment in segments for sample in range(segment.first, segment.first + segment.count)]
