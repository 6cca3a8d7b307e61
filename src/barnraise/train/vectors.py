"""Flat float32 vectors in files that peer and trainer both map."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from barnraise.errors import LocalError

_DTYPE = np.dtype("<f4")


def read(path: Path, size: int) -> NDArray[np.float32]:
    """Return a copy of the vector, float32[size], that ``path`` holds.

    Raises:
        LocalError: the file is missing, of another size, or holds a value that is not finite.
    """
    found = path.stat().st_size if path.is_file() else None
    if found != size * _DTYPE.itemsize:
        raise LocalError(f"{path} should hold {size * _DTYPE.itemsize} bytes and holds {found}: another model's theta?")
    vector = np.fromfile(path, dtype=_DTYPE)
    if not np.isfinite(vector).all():
        raise LocalError(f"{path} holds parameters that are not finite: go back to an earlier vertex")
    return vector


def write(path: Path, vector: NDArray[np.float32]) -> None:
    """Write the vector, float32[d], into ``path``.

    A file of the right size is written in place, never shortened: the peer may have it mapped, and a mapping of a
    shortened file kills the process that touches it.
    """
    in_place = path.is_file() and path.stat().st_size == vector.nbytes
    mapped = np.memmap(path, dtype=_DTYPE, mode="r+" if in_place else "w+", shape=vector.shape)
    mapped[:] = vector
