"""What the trainer is told to do, and which of its answers still count; the files that it reads and writes."""

from pathlib import Path
from typing import Final

from barnraise.ids import PeerId
from barnraise.link.messages import Begin, Segment
from barnraise.swarm.plan import RoundPlan

KEPT_SNAPSHOTS: Final = 2
"""The newest from before the round that begins, and one more."""


class Orders:
    """Numbered orders to one trainer: what an older one made is not what is wanted now.

    Args:
        directory: of this peer alone; in memory, where the peer seals what it keeps on disk.
    """

    def __init__(self, directory: Path) -> None:
        self.update_file = directory / "update.f32"
        """Where the trainer leaves its update: float32[d]."""
        self._snapshots = directory / "trainer"
        self._snapshots.mkdir(parents=True, exist_ok=True)
        self._newest = 0
        self._taken_up = 0

    def give(self, plan: RoundPlan, me: PeerId, theta: Path) -> Begin | None:
        """Return the order to train our part of a round; None: we have none, and what was ordered before is void."""
        self._newest += 1
        slot = plan.slots.get(me)
        if slot is None:
            return None
        return Begin(
            round=plan.round,
            fragment=0,
            order=self._newest,
            theta_path=str(theta),
            update_path=str(self.update_file),
            segments=slot,
            steps=plan.steps,
            first_step=plan.first_step,
            total_steps=plan.total_steps,
            seconds=plan.seconds,
            num_members=len(plan.members),
            snapshot_in=self._snapshot_before(plan.round),
            snapshot_out=str(self._snapshot_file(plan.round + 1)),
            evaluate=plan.evaluate.get(me, Segment(0, 0)),
        )

    def is_newest(self, order: int) -> bool:
        """Tell whether an order is the last that was given."""
        return order == self._newest

    def is_news(self, order: int) -> bool:
        """Tell, once, that what the newest order asked for is done."""
        if not self.is_newest(order) or order == self._taken_up:
            return False
        self._taken_up = order
        return True

    def _snapshot_file(self, round_: int) -> Path:
        return self._snapshots / f"round-{round_:08d}.safetensors"

    def _snapshot_before(self, round_: int) -> str:
        """Return the newest snapshot of the trainer's state not newer than a round's start; "" if there is none."""
        latest = self._snapshot_file(round_)
        found = sorted(file for file in self._snapshots.glob("round-*.safetensors") if file <= latest)
        for old in found[:-KEPT_SNAPSHOTS]:
            old.unlink(missing_ok=True)
        return str(found[-1]) if found else ""
