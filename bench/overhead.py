"""What the swarm costs: tokens/s beside bare training loops, an idle peer's CPU and memory, a 25 MB round, the help.

    python bench/overhead.py                        all of it, some five minutes on two idle cores
    python bench/overhead.py --only round --json overhead.json

METHODOLOGY.md says what each figure is and how it is taken.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from measure import process
from measure.loops import WARM_UP_ROUNDS
from measure.report import report
from measure.swarm import Mark, Recorder, random_trainer, run_swarm
from measure.turns import take_turns

from barnraise.config import DataConfig, RoundConfig, RunConfig
from barnraise.data import corpus

NUM_PEERS: Final = 4
UPDATE_PARAMETERS: Final = 6_250_000
"""25 MB of float32."""
IDLE_PARAMETERS: Final = 866_000
"""About as many as the preset `local` has."""
IDLE_S: Final = 15.0
SETTLE_S: Final = 3.0
"""After the last peer began its round and before its idleness is measured."""
ROUND_PAUSE_S: Final = 1.5
HELP_RUNS: Final = 5

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a figure should be; neither bound: it is there to explain another."""

    unit: str
    at_least: float | None = None
    at_most: float | None = None

    def verdict(self, value: float) -> str:
        """Return the target and whether it holds, in words."""
        if self.at_least is not None:
            return f">= {self.at_least:g} {'holds' if value >= self.at_least else 'DOES NOT HOLD'}"
        if self.at_most is not None:
            return f"<= {self.at_most:g} {'holds' if value <= self.at_most else 'DOES NOT HOLD'}"
        return ""


TARGETS: Final[Mapping[str, Target]] = {
    "tokens_ratio": Target(unit="", at_least=0.90),
    "tokens_ratio_net": Target(unit=""),
    "tokens_per_cpu_s_ratio": Target(unit=""),
    "swarm_tokens_per_s": Target(unit="1/s"),
    "loops_tokens_per_s": Target(unit="1/s"),
    "swarm_foreign_cores": Target(unit=""),
    "loops_foreign_cores": Target(unit=""),
    "training_cpu_percent": Target(unit="%"),
    "idle_cpu_percent": Target(unit="%", at_most=3.0),
    "peer_rss_mb": Target(unit="MB", at_most=250.0),
    "help_s": Target(unit="s", at_most=0.4),
    "round_25mb_s": Target(unit="s", at_most=1.0),
    "round_25mb_exchange_s": Target(unit="s"),
    "round_25mb_agree_s": Target(unit="s"),
    "round_25mb_apply_s": Target(unit="s"),
    "round_25mb_from_trained_s": Target(unit="s"),
    "round_25mb_peer_cpu_s": Target(unit="s"),
    "round_25mb_counted": Target(unit=""),
}


async def training(parent: Path, rounds: int, rounds_a_turn: int) -> Figures:
    """Compare a swarm's tokens/s with those of bare loops."""
    settings = RunConfig(round=RoundConfig(rounds=WARM_UP_ROUNDS + rounds))
    digest = corpus.load(settings.data, window=settings.model.max_seq_len + 1).digest.hex()
    settings = dataclasses.replace(settings, data=DataConfig(digest=digest))
    turns = await take_turns(settings, NUM_PEERS, rounds_a_turn, parent)
    share = settings.round.steps * settings.inner.batch_size * settings.model.max_seq_len
    swarm_speed, loops_speed = turns.speeds(share)
    swarm_foreign, loops_foreign = turns.foreign_cores()
    cores = os.cpu_count() or 1
    swarm_cpu_s = sum(turns.peer_cpu_s.values()) + turns.trainers_cpu_s
    return {
        "tokens_ratio": swarm_speed / loops_speed,
        "tokens_ratio_net": swarm_speed / loops_speed * (cores - loops_foreign) / (cores - swarm_foreign),
        "tokens_per_cpu_s_ratio": turns.loops_cpu_s / swarm_cpu_s,
        "swarm_tokens_per_s": swarm_speed,
        "loops_tokens_per_s": loops_speed,
        "swarm_foreign_cores": swarm_foreign,
        "loops_foreign_cores": loops_foreign,
        "training_cpu_percent": 100 * max(turns.peer_cpu_s.values()) / turns.swarm_s,
        "peer_rss_mb": turns.peak_rss_mb,
    }


async def idle(parent: Path) -> Figures:
    """Measure the CPU time of peers whose trainers sleep."""
    shares: list[float] = []

    async def watch(recorder: Recorder) -> None:
        await recorder.until(lambda: len(recorder.training) == NUM_PEERS)
        await trio.sleep(SETTLE_S)
        began, before = trio.current_time(), {pid: process.cpu_s(pid) for pid in recorder.pids.values()}
        await trio.sleep(IDLE_S)
        took_s = trio.current_time() - began
        shares.extend((process.cpu_s(pid) - cpu_s) / took_s for pid, cpu_s in before.items())

    trainer = random_trainer(IDLE_PARAMETERS, 10 * IDLE_S)
    await run_swarm(_one_step_rounds(1), NUM_PEERS, parent, trainer=trainer, watch=watch)
    return {"idle_cpu_percent": 100 * max(shares)}


async def large_round(parent: Path, rounds: int) -> Figures:
    """Time rounds of 25 MB; the first one, which dials, is not counted."""

    async def watch(recorder: Recorder) -> None:
        await recorder.until(lambda: len(recorder.finished) == NUM_PEERS)

    trainer = random_trainer(UPDATE_PARAMETERS, ROUND_PAUSE_S)
    recorder = await run_swarm(_one_step_rounds(rounds + 1), NUM_PEERS, parent, trainer=trainer, watch=watch)
    # A peer that was carried over a round by another's state did not do that round's work.
    whole = [list(recorder.marks[number].values()) for number in range(1, rounds + 1)]
    counted = [marks for marks in whole if len(marks) == NUM_PEERS]
    first, last = recorder.marks[0], recorder.marks[rounds]
    return {
        "round_25mb_s": _median_of_slowest(counted, lambda mark: sum(_parts(mark))),
        "round_25mb_exchange_s": _median_of_slowest(counted, lambda mark: mark.event.exchange_s),
        "round_25mb_agree_s": _median_of_slowest(counted, lambda mark: mark.event.agree_s),
        "round_25mb_apply_s": _median_of_slowest(counted, lambda mark: mark.event.apply_s),
        "round_25mb_from_trained_s": statistics.median(
            max(mark.event.time for mark in marks) - max(mark.trained_at for mark in marks) for marks in counted
        ),
        "round_25mb_peer_cpu_s": statistics.mean(
            (last[index].peer_cpu_s - first[index].peer_cpu_s) / rounds for index in first.keys() & last.keys()
        ),
        "round_25mb_counted": float(len(counted)),
    }


def _parts(mark: Mark) -> tuple[float, float, float]:
    return mark.event.exchange_s, mark.event.agree_s, mark.event.apply_s


def _median_of_slowest(rounds: list[list[Mark]], figure: Callable[[Mark], float]) -> float:
    return statistics.median(max(figure(mark) for mark in marks) for marks in rounds)


def _one_step_rounds(rounds: int) -> RunConfig:
    return RunConfig(round=RoundConfig(rounds=rounds, steps=1))


def help_s() -> Figures:
    """Time ``barnraise --help`` from its start to its end."""
    took: list[float] = []
    for _ in range(HELP_RUNS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-m", "barnraise", "--help"], check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - began)
    return {"help_s": statistics.median(took)}


async def measure(arguments: argparse.Namespace) -> Figures:
    """Take the figures asked for, one after the other: nothing else of ours runs meanwhile."""
    themes: set[str] = set(arguments.only or ("help", "idle", "round", "training"))
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="barnraise-bench-", dir=arguments.dir) as directory:
        parent = Path(directory)
        if "help" in themes:
            figures |= help_s()
        if "idle" in themes:
            figures |= await idle(parent)
        if "round" in themes:
            figures |= await large_round(parent, arguments.large_rounds)
        if "training" in themes:
            figures |= await training(parent, arguments.rounds, arguments.rounds_a_turn)
    return figures


def show(figures: Mapping[str, float]) -> None:
    """Print the table."""
    for name, target in TARGETS.items():
        if name in figures:
            print(f"{name:28}{figures[name]:12.3f} {target.unit:5}{target.verdict(figures[name])}".rstrip())


def main() -> int:
    """Measure, print, and write the figures; return 1 if the measurement failed, whatever the figures are 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=("help", "idle", "round", "training"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of training that count")
    parser.add_argument("--rounds-a-turn", type=int, default=1, help="after which the bare loops have their turn")
    parser.add_argument("--large-rounds", type=int, default=9, help="rounds of 25 MB that count")
    parser.add_argument("--dir", type=Path, help="where runs are kept meanwhile; default: the system's temporary files")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    return report("overhead", lambda: trio.run(measure, arguments), show, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
