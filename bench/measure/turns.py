"""A swarm and bare training loops on one machine in turn, so that whatever else the machine does hits both alike.

The loops' trainers stand still (SIGSTOP) while the swarm trains, the swarm's trainers while the loops do. The swarm's
turn ends when its last peer has committed; the loops then get as many seconds. Each side's clock runs in its own turns.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import trio
from measure.loops import WARM_UP_ROUNDS, Loop, open_loops
from measure.process import cpu_s, machine_cpu_s, pause, resume
from measure.swarm import Recorder, run_swarm

from barnraise.config import RunConfig


@dataclass(kw_only=True)
class Turns:
    """What each side did in its turns."""

    num_peers: int
    rounds: int
    """That count; as many were done by each of the loops."""
    swarm_s: float = 0.0
    peer_cpu_s: dict[int, float] = field(default_factory=dict)
    """CPU seconds of each peer in the swarm's turns, by index."""
    trainers_cpu_s: float = 0.0
    """CPU seconds of the swarm's trainers."""
    swarm_machine_cpu_s: float = 0.0
    """CPU seconds of everything on the machine in the swarm's turns."""
    loops_turns_s: float = 0.0
    loops_machine_cpu_s: float = 0.0
    """CPU seconds of everything on the machine in the loops' turns."""
    loops_s: list[float] = field(default_factory=list)
    """Seconds that each loop needed for all of it."""
    loops_cpu_s: float = 0.0
    peak_rss_mb: float = 0.0

    def foreign_cores(self) -> tuple[float, float]:
        """Return how many cores others kept busy in the swarm's turns and in the loops' turns."""
        swarm_cpu_s = self.trainers_cpu_s + sum(self.peer_cpu_s.values())
        return (
            (self.swarm_machine_cpu_s - swarm_cpu_s) / self.swarm_s,
            (self.loops_machine_cpu_s - self.loops_cpu_s) / self.loops_turns_s,
        )

    def speeds(self, tokens_a_round: int) -> tuple[float, float]:
        """Return tokens/s of the swarm and of the loops, each the sum over peers; a peer has so many a round."""
        tokens = tokens_a_round * self.rounds
        return self.num_peers * tokens / self.swarm_s, sum(tokens / took_s for took_s in self.loops_s)


async def take_turns(config: RunConfig, num_peers: int, rounds_a_turn: int, parent: Path) -> Turns:
    """Train the run's rounds, but the first, on both sides, ``rounds_a_turn`` at a time."""
    turns = Turns(num_peers=num_peers, rounds=config.round.rounds - WARM_UP_ROUNDS)
    async with open_loops(config, num_peers, parent) as loops:
        pause(loop.pid for loop in loops)
        match_ = _Match(turns, loops, rounds_a_turn)
        await run_swarm(config, num_peers, parent, watch=match_.play)
    return turns


class _Match:
    def __init__(self, turns: Turns, loops: list[Loop], rounds_a_turn: int) -> None:
        self._turns, self._loops, self._rounds_a_turn = turns, loops, rounds_a_turn
        self._turn_began: float | None = None
        self._running = len(loops)
        self._idle = trio.Event()

    async def play(self, recorder: Recorder) -> None:
        """Let both sides train in turn until each has done all rounds."""
        last = WARM_UP_ROUNDS + self._turns.rounds
        await self._committed(recorder, WARM_UP_ROUNDS - 1)
        pause(recorder.trainer_pids.values())
        async with trio.open_nursery() as nursery:
            for loop in self._loops:
                nursery.start_soon(self._finish, loop)
            for done in range(WARM_UP_ROUNDS, last, self._rounds_a_turn):
                took_s = await self._swarm_turn(recorder, min(last, done + self._rounds_a_turn) - 1)
                await self._loops_turn(took_s)
            await self._loops_turn(float("inf"))

    async def _swarm_turn(self, recorder: Recorder, until: int) -> float:
        """Let the swarm train until everybody has committed a round; return how long that took."""
        trainers, peers, turns = list(recorder.trainer_pids.values()), recorder.pids, self._turns
        began, before = trio.current_time(), {pid: cpu_s(pid) for pid in (*trainers, *peers.values())}
        machine_before_s = machine_cpu_s()
        resume(trainers)
        await self._committed(recorder, until)
        took_s = trio.current_time() - began
        pause(trainers)
        turns.swarm_s += took_s
        turns.swarm_machine_cpu_s += machine_cpu_s() - machine_before_s
        turns.trainers_cpu_s += sum(cpu_s(pid) - before[pid] for pid in trainers)
        for index, pid in peers.items():
            turns.peer_cpu_s[index] = turns.peer_cpu_s.get(index, 0.0) + cpu_s(pid) - before[pid]
        turns.peak_rss_mb = max(mark.peak_rss_mb for mark in recorder.marks[until].values())
        return took_s

    async def _loops_turn(self, took_s: float) -> None:
        """Let the loops train for so long, or until they are done."""
        if not self._running:
            return
        before, machine_before_s = sum(cpu_s(loop.pid) for loop in self._loops), machine_cpu_s()
        self._turn_began = trio.current_time()
        resume(loop.pid for loop in self._loops)
        with trio.move_on_after(took_s):
            await self._idle.wait()
        pause(loop.pid for loop in self._loops)
        self._turns.loops_machine_cpu_s += machine_cpu_s() - machine_before_s
        self._turns.loops_turns_s += trio.current_time() - self._turn_began
        self._turn_began = None
        self._turns.loops_cpu_s += sum(cpu_s(loop.pid) for loop in self._loops) - before

    async def _finish(self, loop: Loop) -> None:
        """Let one loop do all its work, and note its clock."""
        await loop.train(WARM_UP_ROUNDS, self._turns.rounds)
        turn_s = 0.0 if self._turn_began is None else trio.current_time() - self._turn_began
        self._turns.loops_s.append(self._turns.loops_turns_s + turn_s)
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def _committed(self, recorder: Recorder, round_: int) -> None:
        num_peers = self._turns.num_peers
        await recorder.until(functools.partial(_is_committed, recorder, round_, num_peers))


def _is_committed(recorder: Recorder, round_: int, num_peers: int) -> bool:
    return len(recorder.marks.get(round_, {})) == num_peers
