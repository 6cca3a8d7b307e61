"""From updates to the grid's integers, and what is lost of them on the way: piece by piece, in one pass each; pure."""

import numpy as np

from barnraise.codec.grid import Float32, Int16
from barnraise.codec.kernels import KERNELS
from barnraise.errors import LocalError


def to_grid(update: Float32, residual: Float32, exponent: int, encoded: Int16) -> None:
    """Add the residual to the update, and round what that gives to the grid.

    Args:
        update: float32[n], finite, of one block; overwritten by ``update + residual``.
        residual: float32[n]
        exponent: The block's.
        encoded: int16[n], written.

    Raises:
        LocalError: a value is not finite.
    """
    assert len(update) == len(residual) == len(encoded)
    assert update.dtype == residual.dtype == np.float32
    assert all(array.flags.c_contiguous for array in (update, residual, encoded))
    if not KERNELS.to_grid(update, residual, exponent, encoded):
        raise LocalError("the update is not finite; the round is not sent")


def remainder(wanted: Float32, decoded: Int16, exponent: int, lost: Float32) -> None:
    """Write ``wanted - decoded * 2**-exponent`` to ``lost``.

    Exact wherever the grid alone rounded, up to 2**24 of its units, and wherever what was decoded lies between half of
    what was wanted and twice that (Sterbenz 1974); else off by its last bit at most.

    Args:
        wanted: float32[n]
        decoded: int16[n], grid integers of one block.
        exponent: The block's.
        lost: float32[n], written.
    """
    assert len(wanted) == len(decoded) == len(lost)
    assert wanted.dtype == lost.dtype == np.float32
    assert all(array.flags.c_contiguous for array in (wanted, decoded, lost))
    KERNELS.remainder(wanted, decoded, exponent, lost)
