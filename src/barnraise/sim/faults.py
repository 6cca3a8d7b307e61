"""What can go wrong in the simulated world, by name and moment, drawn from a seed."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Crash:
    """Peer ``peer`` dies right after performing an effect of the named kind for the n-th time in a round."""

    peer: int
    after: str
    """Name of an effect: ``PersistBallot``, ``Broadcast``, ``Transfer``, ``Step``, ``Append``, ``Commit`` ..."""
    round: int
    nth: int = 1
    restart_after_s: float | None = None
    """It comes back with what was on its disk; None: never."""
    loses_disk: bool = False
    """It comes back with its keys and nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """Peer ``peer`` stops (SIGSTOP) at ``at_s`` for ``for_s``: it hears nothing and says nothing, no connection drops."""

    peer: int
    at_s: float
    for_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutoff:
    """The link between two peers breaks at ``at_s`` for ``for_s``; what was under way is lost and both are told."""

    one: int
    other: int
    at_s: float
    for_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """A peer that is no founder comes at ``at_s``; it knows the run's configuration, and its tensors or not."""

    at_s: float
    is_hollow: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Depart:
    """Peer ``peer`` is asked at ``at_s`` to finish its round and leave."""

    peer: int
    at_s: float


Fault = Crash | Pause | Cutoff | Join | Depart

CRASH_POINTS = ("PersistBallot", "Broadcast", "Train", "Transfer", "Step", "Append", "Commit")


def draw_visits(rng: random.Random, *, num_peers: int, horizon_s: float) -> tuple[Fault, ...]:
    """Draw peers that come and go; half of them leave again, and so may a founder."""
    faults: list[Fault] = []
    for index in range(num_peers, num_peers + rng.randint(1, 4)):
        comes = rng.uniform(0, horizon_s)
        faults.append(Join(at_s=comes, is_hollow=rng.random() < 0.5))
        if rng.random() < 0.5:
            faults.append(Depart(peer=index, at_s=comes + rng.uniform(5.0, horizon_s)))
    if rng.random() < 0.5:
        faults.append(Depart(peer=rng.randrange(num_peers), at_s=rng.uniform(1.0, horizon_s)))
    return tuple(faults)


def draw(rng: random.Random, *, num_peers: int, num_rounds: int, horizon_s: float) -> tuple[Fault, ...]:
    """Draw faults that leave a quorum: at most one peer gone for good, anything else passes."""
    faults: list[Fault] = []
    if rng.random() < 0.7:
        faults.append(_crash(rng, num_peers, num_rounds, None))
    if rng.random() < 0.5:
        faults.append(
            _crash(rng, num_peers, num_rounds, rng.uniform(0.1, 30.0), loses_disk=rng.random() < 0.3 and num_peers > 2)
        )
    for _ in range(rng.randrange(3)):
        start, length = rng.uniform(0, horizon_s), rng.uniform(0.1, 20.0)
        if rng.random() < 0.5 or num_peers < 2:
            faults.append(Pause(peer=rng.randrange(num_peers), at_s=start, for_s=length))
        else:
            one, other = rng.sample(range(num_peers), 2)
            faults.append(Cutoff(one=one, other=other, at_s=start, for_s=length))
    return tuple(faults)


def _crash(
    rng: random.Random, num_peers: int, num_rounds: int, restart_after_s: float | None, *, loses_disk: bool = False
) -> Crash:
    return Crash(
        peer=rng.randrange(num_peers),
        after=rng.choice(CRASH_POINTS),
        round=rng.randrange(num_rounds),
        nth=rng.randint(1, 4),
        restart_after_s=restart_after_s,
        loses_disk=loses_disk,
    )
