"""What agreeing costs: seconds and CPU a round by PBFT and by Raft, on real processes whose trainers sleep.

    python bench/agreement.py                       7 peers, 12 rounds each, some two minutes on two idle cores
    python bench/agreement.py --peers 4 --json agreement.json

METHODOLOGY.md says what each figure is and how it is taken.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import trio
from measure.report import report
from measure.swarm import Recorder, random_trainer, run_swarm

from barnraise.config import RoundConfig, RunConfig

PARAMETERS: Final = 100_000
"""So few that moving and adding them costs next to nothing."""
ROUND_PAUSE_S: Final = 2.0
ROUND_S: Final = 10.0
"""The round that the share of CPU time is of."""
MAX_AGREE_S: Final = 0.3
MAX_CPU_SHARE: Final = 0.05
Profile = Literal["home", "open"]
Figures = dict[str, float]


async def rounds_of(profile: Profile, num_peers: int, rounds: int, parent: Path) -> Figures:
    """Time the rounds of a swarm; the first one, which dials, is not counted."""

    async def watch(recorder: Recorder) -> None:
        await recorder.until(lambda: len(recorder.finished) == num_peers)

    config = RunConfig(profile=profile, round=RoundConfig(rounds=rounds + 1, steps=1))
    trainer = random_trainer(PARAMETERS, ROUND_PAUSE_S)
    recorder = await run_swarm(config, num_peers, parent, trainer=trainer, watch=watch)
    counted = [mark for number in range(1, rounds + 1) for mark in recorder.marks.get(number, {}).values()]
    first, last = recorder.marks[0], recorder.marks[rounds]
    cpu_s = [(last[peer].peer_cpu_s - first[peer].peer_cpu_s) / rounds for peer in first.keys() & last.keys()]
    return {
        "agree_s": statistics.median(mark.event.agree_s for mark in counted),
        "agree_slowest_s": max(mark.event.agree_s for mark in counted),
        "peer_cpu_s": statistics.mean(cpu_s),
        "marks": float(len(counted)),
    }


async def measure(num_peers: int, rounds: int, parent: Path) -> Figures:
    """Take the figures of both kinds of agreement, one after the other."""
    figures: Figures = {}
    for profile in ("home", "open"):
        found = await rounds_of(profile, num_peers, rounds, parent)
        figures |= {f"{profile}_{name}": value for name, value in found.items()}
    figures["open_cpu_share"] = figures["open_peer_cpu_s"] / ROUND_S
    return figures


def show(figures: Mapping[str, float]) -> None:
    """Print the table."""
    bounds = {"open_agree_s": MAX_AGREE_S, "open_cpu_share": MAX_CPU_SHARE}
    for name, value in figures.items():
        bound = bounds.get(name)
        verdict = "" if bound is None else f"<= {bound:g} {'holds' if value <= bound else 'DOES NOT HOLD'}"
        print(f"{name:28}{value:10.4f}  {verdict}".rstrip())


def main() -> int:
    """Measure, print, and write the figures; return 1 if the measurement failed, whatever the figures are 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"

    def measured() -> Figures:
        with tempfile.TemporaryDirectory(prefix="barnraise-bench-") as directory:
            return trio.run(measure, arguments.peers, arguments.rounds, Path(directory))

    return report("agreement", measured, show, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
