"""What a compression level stands for: one number from 1, nothing is lost, to 9, least is sent; pure.

    level  codec                    bits  smaller  lost   owed   why
    1      grid16, or fp32            16     2.0      0      0   a run's updates are on the int16 grid anyway
    2      grid16+zstd:1, or bf16   11.2     2.9      0      0   the last that loses nothing; 20 times int8's CPU time
    3      int8                      8.0     4.0  0.009  0.001   the default: the least CPU time of all that round
    4      int8+zstd:1               6.8     4.7  0.009  0.001   the same values
    5      int4                      4.1     7.8   0.12  0.007   "cloud": half of int8, and hardly anything owed
    6      int2+zstd:3               1.9      17   0.36   0.04
    7      topk:0.1+int4+zstd:3     0.87      37   0.71   0.25   from here on much of an update arrives later
    8      topk:0.03+int4+zstd:3    0.31     102   0.87   0.53
    9      topk:0.016+int2+zstd:3   0.15     214   0.92   0.64   "edge": as small as it gets

Measured by bench/codecs.py on updates of the preset `local`, which Muon makes dense: bits an element; times smaller than
float32; what one update loses of its norm; and what is still owed of all after six rounds with error feedback. The
second name of the first two rows is for float32.
"""

from collections.abc import Sequence
from typing import Final, Literal

from barnraise.errors import ConfigError

AUTO: Final = "auto"
"""In a codec's place: that of the default level; ``auto:5``: that of another one. Links have a say in it."""
DEFAULT: Final = 3
CLOUD: Final = 5
EDGE: Final = 9
LEVELS: Final = 9

LOSSY: Final = (
    "int8",
    "int8+zstd:1",
    "int4",
    "int2+zstd:3",
    "topk:0.1+int4+zstd:3",
    "topk:0.03+int4+zstd:3",
    "topk:0.016+int2+zstd:3",
)
SPECS: Final = {
    "int16": ("grid16", "grid16+zstd:1", *LOSSY),
    "float32": ("fp32", "bf16", *LOSSY),
}
SHIFTS: Final[Sequence[tuple[float, int]]] = ((10.0, 2), (100.0, 1), (1_000.0, 0), (10_000.0, -1))
"""``(below so many Mbit/s, so many levels more)``; from the last one on, two levels less."""


def level_named(codec: str) -> int | None:
    """Return the level that stands in a codec's place, as in ``auto:5``; None: it is a codec.

    Raises:
        ConfigError: there is no such level.
    """
    name, colon, number = codec.partition(":")
    if name != AUTO:
        return None
    if not colon:
        return DEFAULT
    if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= LEVELS):
        raise ConfigError(f"codec={codec!r} names no level: 'auto:1' to 'auto:{LEVELS}', or 'auto' for {DEFAULT}")
    return int(number)


def level_over(level: int, megabits: float | None) -> int:
    """Return what a level comes to over a link.

    A level means what it says at 100 Mbit/s to 1 Gbit/s, and where the speed is not known. Slower links get one or two
    levels more and faster ones less, up to 9 and down to 1.

    Args:
        level: 1 to 9.
        megabits: the slowest link's bandwidth in Mbit/s; None: not known.

    Raises:
        ConfigError: there is no such level, or the bandwidth is not positive.
    """
    if not 1 <= level <= LEVELS:
        raise ConfigError(f"a compression level of {level} is outside 1 .. {LEVELS}. {DEFAULT} is the default.")
    if megabits is None:
        return level
    if not megabits > 0:
        raise ConfigError(f"a bandwidth of {megabits} Mbit/s carries nothing. Leave it out if it is not known.")
    shift = next((shift for below, shift in SHIFTS if megabits < below), -2)
    return min(LEVELS, max(1, level + shift))


def spec_of(level: int, megabits: float | None = None, dtype: Literal["int16", "float32"] = "int16") -> str:
    """Return the codec of a level.

    Args:
        level: 1 to 9.
        megabits: as for `level_over`.
        dtype: what is encoded, ``int16`` (a run's updates) or ``float32`` (collectives).

    Raises:
        ConfigError: as for `level_over`.
    """
    return SPECS[dtype][level_over(level, megabits) - 1]
