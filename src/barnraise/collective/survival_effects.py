"""What a rank's survival machine asks of its driver, the attempts it plans, and how long it waits; only data."""

from dataclasses import dataclass
from typing import Final

from barnraise.collective.survival_messages import Member, Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a rank waits, and for what."""

    report_timeout_s: float = 1.0
    """For the others' reports: who stays silent for longer is out."""
    takeover_timeout_s: float = 2.5
    """For a sign of the leader: then the next rank leads."""
    quorum_timeout_s: float = 20.0
    """For a decision; then this rank gives up."""
    alone_timeout_s: float = 2.0
    """For the control links without which no quorum can be: then this rank gives up, too."""
    user_timeout_s: float = 600.0
    """For a rank whose user has not called a collective that the others are in, once they have stopped, unless a user
    has said when it is tired of that (`Survival.entered`)."""


PATIENCE: Final = Patience()


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptPlan:
    """One attempt at one collective. Data frames carry ``(sequence, attempt)``."""

    sequence: int
    attempt: int
    """The epoch: how many decisions were made before. It never falls, and all later collectives have it, too."""
    members: tuple[Member, ...]
    """Ascending by rank. A mean's divisor is the sum of their weights."""
    holder: int | None = None
    """None: carry out the collective among the members. Else nothing is computed: this rank hands its result on, byte for
    byte, ..."""
    incomplete: tuple[int, ...] = ()
    """... to these."""

    @property
    def is_hand_on(self) -> bool:
        """Tell whether a result that stands is handed on."""
        return self.holder is not None


@dataclass(frozen=True, slots=True)
class Tell:
    """Effect: send this over the control plane, in order; nothing happens if there is no link."""

    to: int
    message: Message


@dataclass(frozen=True, slots=True)
class Stop:
    """Effect: give this attempt up. Nothing that it still does counts. Its streams may hold rests: the next has new ones."""

    sequence: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Start:
    """Effect: begin this attempt."""

    plan: AttemptPlan


@dataclass(frozen=True, slots=True)
class Deliver:
    """Effect: the result stands: give it to the user, and keep it until the next one is delivered."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Effect: this rank is out; for the user's log."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class Named:
    """Effect: this rank was at fault and stays for now; for the user's log."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Effect: this rank takes part in nothing any more; the user's call, and every later one, raises."""

    reason: str


Effect = Tell | Stop | Start | Deliver | Lost | Named | Ended
