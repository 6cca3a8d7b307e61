"""Whole numbers that all peers draw alike from a seed: SplitMix64, written out; pure.

NumPy promises its bit generators for ever, but not what `Generator.choice` or `Generator.integers` make of them, and
peers of different versions must draw the same. So the few lines are here. SplitMix64 (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators") hashes a counter: each number by itself, no state, whole arrays at once.
It is fair, and anybody can predict it.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

GOLDEN: Final = 0x9E3779B97F4A7C15
MASK: Final = (1 << 64) - 1


def draw(seed: int, stream: int, count: int) -> Words:
    """Return uint64[count], the first numbers of one of the seed's streams."""
    start = mixed(mixed(seed) ^ stream)
    counters = np.arange(1, count + 1, dtype=np.uint64)
    words = counters * np.uint64(GOLDEN) + np.uint64(start)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def below(words: Words, limits: Words) -> Words:
    """Return each word as a number below its limit, which is at most 2**32; the bias is below limit / 2**32."""
    return (words >> np.uint64(32)) * limits >> np.uint64(32)


def mixed(word: int) -> int:
    """Return SplitMix64's hash of one number, taken modulo 2**64."""
    word = (word + GOLDEN) & MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)
