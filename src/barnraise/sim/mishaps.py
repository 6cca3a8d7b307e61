"""What can go wrong while simulated ranks run collectives, by name and moment, drawn from a seed."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """The rank dies before its n-th send or receive of a collective."""

    rank: int
    sequence: int
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """The rank stops (SIGSTOP) before its n-th send or receive: it hears and says nothing, and wakes up later or never."""

    rank: int
    sequence: int
    step: int
    for_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hang:
    """The rank sends and receives no data any more, from its n-th send or receive on; its control plane goes on."""

    rank: int
    sequence: int
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrupt:
    """The rank's first chunk from its n-th send or receive on is damaged on its way, or one in each attempt."""

    rank: int
    sequence: int
    step: int
    is_lasting: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class KillSpeaker:
    """The rank dies right after it has sent its n-th message over the control plane."""

    rank: int
    nth: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Late:
    """The rank's user calls a collective this much later."""

    rank: int
    sequence: int
    for_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Two ranks lose the streams between them for a while, or the control link, or both."""

    one: int
    other: int
    at_s: float
    for_s: float
    has_data: bool = True
    has_control: bool = True


Strike = Kill | Stop | Hang
"""Just before one send or receive."""
Mishap = Strike | Corrupt | KillSpeaker | Late | Cut


def draw(rng: random.Random, world_size: int, num_collectives: int, span_s: float) -> tuple[Mishap, ...]:
    """Return one to three mishaps, most of them where others meet them half-way."""
    return tuple(_one(rng, world_size, num_collectives, span_s) for _ in range(rng.choice((1, 1, 2, 2, 3))))


def _one(rng: random.Random, world_size: int, num_collectives: int, span_s: float) -> Mishap:
    rank, sequence, step = rng.randrange(world_size), rng.randint(1, num_collectives), rng.randrange(3 * world_size)
    match rng.randrange(8):
        case 0:
            return Kill(rank=rank, sequence=sequence, step=step)
        case 1:
            return Stop(rank=rank, sequence=sequence, step=step, for_s=rng.choice((None, 0.3, 1.5, 4.0, 12.0, 40.0)))
        case 2:
            return Hang(rank=rank, sequence=sequence, step=step)
        case 3:
            return Corrupt(rank=rank, sequence=sequence, step=step, is_lasting=rng.random() < 0.5)
        case 4 | 5:
            return KillSpeaker(rank=rng.choice((0, 0, 1, rank)), nth=rng.randint(1, 6 * world_size))
        case 6:
            return Late(rank=rank, sequence=sequence, for_s=rng.choice((0.5, 5.0, 60.0)))
        case _:
            other = (rank + rng.randint(1, world_size - 1)) % world_size
            data, control = rng.choice(((True, True), (True, False), (False, True)))
            return Cut(
                one=rank,
                other=other,
                at_s=rng.uniform(0, span_s),
                for_s=rng.choice((0.01, 0.5, 3.0, 1000.0)),
                has_data=data,
                has_control=control,
            )
