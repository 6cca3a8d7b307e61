"""What a simulated rank is made of: its machine, its attempt at a collective, what it was told; no behaviour."""

from collections import defaultdict
from dataclasses import dataclass, field

from barnraise.collective.program import Run
from barnraise.collective.survival import Survival
from barnraise.collective.survival_effects import AttemptPlan
from barnraise.sim.streams import Whole


@dataclass(frozen=True, slots=True)
class Result:
    """A weighted sum, and whose."""

    values: Whole
    members: tuple[int, ...]


@dataclass(slots=True)
class Attempt:
    """What the two data threads of a rank work at."""

    plan: AttemptPlan
    run: Run
    values: Whole
    members: tuple[int, ...]
    """Whose sum it will be; known to those that compute, told to those that are handed it."""
    progress_at: float
    ranks: tuple[int, ...]
    is_damaged: bool = False


@dataclass(slots=True)
class Rank:
    """One machine."""

    index: int
    machine: Survival
    weight: int
    is_alive: bool = True
    is_leaving: bool = False
    wakes_at: float = 0.0
    hangs: bool = False
    attempt: Attempt | None = None
    results: dict[int, Result] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    named: dict[int, str] = field(default_factory=dict)
    last_loss_at: float = 0.0
    ended: str | None = None
    num_told: int = 0
    num_ops: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    started: tuple[int, int] = (0, -1)

    @property
    def is_well(self) -> bool:
        """Tell whether it lives, and takes part."""
        return self.is_alive and self.ended is None
