"""First parameters drawn from integers, the same bits on every machine; no floating-point random generator is asked."""

from typing import Final

import blake3
import numpy as np
from numpy.typing import NDArray

_BITS: Final = 24
"""A float32 holds integers of 24 bits exactly, so the draw is exact and the scale is the only rounding."""


def uniform(seed: int, name: str, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
    """Draw a tensor from the uniform distribution of mean zero.

    Args:
        seed: the run's.
        name: the parameter's; each name has a stream of its own.
        shape: of the result.
        deviation: standard deviation of the entries.

    Returns:
        float32 of ``shape``: ``k * 2**-24 * bound`` with integers ``k`` from BLAKE3's output and
        ``bound = sqrt(3) * deviation`` rounded to float32.
    """
    hasher = blake3.blake3(derive_key_context="barnraise 1 initial parameters")
    hasher.update(f"{seed} {name}".encode())
    words = np.frombuffer(hasher.digest(length=4 * int(np.prod(shape))), dtype="<u4")
    odd = (words >> np.uint32(32 - _BITS)).astype(np.int64) * 2 + 1 - (1 << _BITS)
    exact = odd.astype(np.float32) * np.float32(2.0**-_BITS)
    return np.asarray(exact * np.float32(3.0**0.5 * deviation), dtype=np.float32).reshape(shape)
