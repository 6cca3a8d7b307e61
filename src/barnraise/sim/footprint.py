"""How much memory objects hold: the sum of what can be reached from them, each object once. An estimate for pure Python."""

import gc
import sys
import types
from collections.abc import Iterable

SHARED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.CellType)
"""Code, and what a closure holds: it is there once, however many peers a process simulates."""


def footprint_bytes(*roots: object, beside: Iterable[object] = ()) -> int:
    """Return the bytes of everything that can be reached from ``roots``.

    Args:
        roots: Objects; what several of them hold is counted once.
        beside: Objects that do not count, nor does what can be reached only through them.
    """
    seen = {id(item) for item in beside}
    waiting, total = list(roots), 0
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, SHARED):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        waiting += gc.get_referents(item)
    return total
