"""What happens in one trial of agreement, drawn from a seed: the network, clocks, crashes and traitors; nothing runs here.

Until ``calm_s`` the network does what it likes: it delays, reorders, doubles and loses messages, splits the members
into camps and leaves holes. From then on every message between honest members arrives soon, and whoever crashed is
back: the global stabilisation time of Dwork, Lynch and Stockmeyer (1988), after which agreement must come to an end.
"""

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_VIEW_OF_A_HOLE: Final = 3
KINDS: Final = {
    "pbft": ("PrePrepare", "Prepare", "Commit", "ViewChange"),
    "raft": ("Append", "Ack", "RequestVote", "VoteReply"),
}
"""Names of the messages that get lost together, by protocol."""
RATES: Final = (0.7, 1.5)
"""A member's clock runs between these, as seconds of its own a second."""


class Habit(StrEnum):
    """What a traitor does; it has one or several."""

    SILENT = "silent"
    """It says nothing at all."""
    TWINS = "twins"
    """Two copies of one identity run the code that ships, each with values of its own (Bano et al. 2022)."""
    TWO_FACED = "two-faced"
    """Two copies as well, and each camp hears one of them only."""
    WITHHOLDING = "withholding"
    """Some kinds of its messages never reach some members."""
    AMNESIAC = "amnesiac"
    """It crashes and comes back with an empty disk."""
    DOUBLE_VOTING = "double voting"
    """It votes for everything that it hears of, and for inventions of its own."""
    LYING = "lying"
    """Its view changes claim what it has no certificate for, or conceal what it has, another to each member."""
    FORGING = "forging"
    """It proposes where it does not lead, names view changes that nobody sent, and signs in others' names."""
    REPLAYING = "replaying"
    """It sends again what it heard from anybody."""
    BABBLING = "babbling"
    """Its messages make no sense: wrong lengths, far views, empty or enormous fields."""
    FLOODING = "flooding"
    """It votes in many views for what nobody proposed."""


PUPPETS: Final = {Habit.TWINS: 2, Habit.TWO_FACED: 2, Habit.WITHHOLDING: 1, Habit.AMNESIAC: 1}
"""How many copies of the code that ships a traitor runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Treason:
    """What one traitor does."""

    member: int
    habits: frozenset[Habit]
    camp: frozenset[int]
    """Of the two halves that it tells different things, the members of one."""

    @property
    def is_silent(self) -> bool:
        """Tell whether it says nothing."""
        return Habit.SILENT in self.habits

    @property
    def num_puppets(self) -> int:
        """Return how many copies of the code that ships it runs."""
        if self.is_silent:
            return 0
        return max((PUPPETS.get(habit, 0) for habit in self.habits), default=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """For a while, nothing passes between the members of one camp and all others."""

    from_s: float
    until_s: float
    camp: frozenset[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hole:
    """Before the calm, some members do not hear one kind of message of one view, or hear it late."""

    kind: str
    view: int
    deaf: frozenset[int]
    late_s: float | None
    """So late at most; None: never."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crash:
    """A member dies just before it performs its n-th effect, and comes back with what was on its disk."""

    member: int
    effect: int
    down_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """A member's own time."""

    rate: float
    offset_s: float
    """It begins so much later than the first one could."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """One trial, but for the dice that it casts on its way, which have the same seed."""

    seed: int
    num_members: int
    num_spares: int
    """Peers that are no members at first; entries of the log may let them in, each for somebody else."""
    num_heights: int
    calm_s: float
    delay_s: float
    """Before the calm a message takes up to this long."""
    straggling: float
    """Chance that it takes ten times as long."""
    loss: float
    duplication: float
    contention: float
    """Chance that a value is not found valid by some members until the calm."""
    splits: tuple[Split, ...]
    holes: tuple[Hole, ...]
    crashes: tuple[Crash, ...]
    clocks: tuple[Clock, ...]
    treasons: tuple[Treason, ...]

    @property
    def num_peers(self) -> int:
        """Return how many peers there are, members or not."""
        return self.num_members + self.num_spares

    @property
    def traitors(self) -> frozenset[int]:
        """Return who is not honest."""
        return frozenset(treason.member for treason in self.treasons)


def num_faulty(num_members: int) -> int:
    """Return how many of the members may lie: fewer than a third."""
    return (num_members - 1) // 3


def draw(seed: int, num_members: int, *, num_traitors: int | None = None, trusts_members: bool = False) -> Schedule:
    """Draw a trial.

    Args:
        seed: The same one gives the same trial.
        num_members: Who votes at the first height.
        num_traitors: Exactly so many, all of them active. Default: as many as can be borne, now and then fewer.
        trusts_members: Nobody lies; instead fewer than half of the members may never say anything.
    """
    rng = random.Random(f"{num_members} {seed}")
    num_heights = rng.choice((1, 1, 1, 1, 1, 1, 2, 3))
    num_spares = 1 if num_heights > 1 and rng.random() < 0.7 else 0
    calm_s = rng.choice((0.0, 3.0, 6.0, 12.0))
    num_peers = num_members + num_spares
    treasons = _treasons(rng, num_members, num_traitors, trusts_members=trusts_members)
    wild = calm_s > 0
    return Schedule(
        seed=seed,
        num_members=num_members,
        num_spares=num_spares,
        num_heights=num_heights,
        calm_s=calm_s,
        delay_s=rng.choice((0.05, 0.3, 1.0, 3.0)),
        straggling=rng.choice((0.0, 0.0, 0.1)),
        loss=rng.choice((0.0, 0.0, 0.05, 0.2, 0.4)),
        duplication=rng.choice((0.0, 0.0, 0.1)),
        contention=rng.choice((0.0, 0.1, 0.5)),
        splits=_splits(rng, num_peers, calm_s) if wild else (),
        holes=_holes(rng, num_peers, KINDS["raft" if trusts_members else "pbft"]) if wild else (),
        crashes=_crashes(rng, num_peers) if wild else (),
        clocks=tuple(Clock(rate=rng.uniform(*RATES), offset_s=rng.random()) for _ in range(num_peers)),
        treasons=treasons,
    )


def _treasons(
    rng: random.Random, num_members: int, num_traitors: int | None, *, trusts_members: bool
) -> tuple[Treason, ...]:
    if trusts_members:
        num_dead = rng.choice((0, 0, (num_members - 1) // 2))
        return tuple(
            Treason(member=member, habits=frozenset({Habit.SILENT}), camp=frozenset())
            for member in rng.sample(range(num_members), num_dead)
        )
    most = num_faulty(num_members)
    exact = num_traitors is not None
    count = num_traitors if num_traitors is not None else rng.choice((most, most, most, max(0, most - 1)))
    members = rng.sample(range(num_members), count)
    honest = [member for member in range(num_members) if member not in members]
    camp = frozenset(rng.sample(honest, max(1, len(honest) // 2))) if exact else _some(rng, num_members)
    return tuple(
        Treason(
            member=member,
            habits=_habits(rng, active=exact),
            camp=camp if exact or rng.random() < 0.7 else _some(rng, num_members),
        )
        for member in members
    )


def _habits(rng: random.Random, *, active: bool) -> frozenset[Habit]:
    if active:
        return frozenset({Habit.TWO_FACED, Habit.DOUBLE_VOTING})
    if rng.random() < 0.1:
        return frozenset({Habit.SILENT})
    others = [habit for habit in Habit if habit is not Habit.SILENT]
    return frozenset(rng.sample(others, rng.choice((1, 2, 2, 3))))


def _some(rng: random.Random, num: int) -> frozenset[int]:
    """Return neither nobody nor everybody, of at least two."""
    return frozenset(rng.sample(range(num), rng.randint(1, max(1, num - 1))))


def _splits(rng: random.Random, num_peers: int, calm_s: float) -> tuple[Split, ...]:
    splits = []
    start = 0.0
    while rng.random() < 0.4 and start < calm_s:
        start += rng.choice((0.0, rng.uniform(0, 1.0)))
        until = min(calm_s, start + rng.uniform(0.1, 6.0))
        splits.append(Split(from_s=start, until_s=until, camp=_some(rng, num_peers)))
        start = until
    return tuple(splits)


def _holes(rng: random.Random, num_peers: int, kinds: tuple[str, ...]) -> tuple[Hole, ...]:
    count = rng.choice((0, 1, 2, 4, 6))
    return tuple(
        Hole(
            kind=rng.choice(kinds),
            view=rng.randrange(MAX_VIEW_OF_A_HOLE),
            deaf=_some(rng, num_peers),
            late_s=rng.choice((None, None, 6.0, 12.0)),
        )
        for _ in range(count)
    )


def _crashes(rng: random.Random, num_peers: int) -> tuple[Crash, ...]:
    count = rng.choice((0, 0, 0, 1, 2, num_peers))
    return tuple(
        Crash(member=rng.randrange(num_peers), effect=rng.randint(0, 12), down_s=rng.choice((0.0, rng.uniform(0, 4.0))))
        for _ in range(count)
    )
