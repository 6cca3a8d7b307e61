"""One rank of bench/allreduce.py: does what lines of JSON on stdin tell it, and answers each with a line on stdout.

Both sides of a comparison live in this process and work on the same vector in turn.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import blake3
import msgspec
import numpy as np
from measure.probe import Probe
from measure.sides import Ours, Side, open_side

from barnraise.errors import ConfigError


class Desk:
    """What the orders mean."""

    def __init__(self) -> None:
        self._sides: dict[str, Side] = {}
        self._source = np.zeros(0, np.float32)
        self._vector = np.zeros(0, np.float32)
        self._expected: np.ndarray[Any, Any] | None = None
        self._cpu_s = 0.0
        self._checked = True
        self.probe = Probe()

    def open(self, side: str, rank: int, **where: Any) -> dict[str, Any]:
        """Connect one side with its like on the other ranks."""
        self._sides[side] = open_side(side, rank, **where)
        return {}

    def close(self, side: str) -> dict[str, Any]:
        """Leave them."""
        self._sides.pop(side).close()
        return {}

    def fill(self, elements: int, seed: int) -> dict[str, Any]:
        """Make the vector to be added up: normal numbers, other ones on every rank."""
        self._source = np.random.default_rng(seed).standard_normal(elements, np.float32)
        self._vector = np.empty_like(self._source)
        self._expected = None
        return {}

    def expect(self) -> dict[str, Any]:
        """Take the last result for the right one."""
        self._expected = self._vector.copy()
        return {}

    def reduce(self, side: str, at: float, how: dict[str, Any]) -> dict[str, Any]:
        """Add up at an instant; say when it was done, and who was lost meanwhile."""
        checked = how.pop("checked", False)
        self._checked = checked
        np.copyto(self._vector, self._source)
        time.sleep(max(0.0, at - time.monotonic()))
        self._cpu_s = time.process_time()
        said = self._sides[side].reduce(self._vector, **how)
        return {"ended": time.monotonic(), **said}

    def planned(self, how: dict[str, Any]) -> dict[str, Any]:
        """Say how our side would add up the vector."""
        side = self._sides["ours"]
        assert isinstance(side, Ours)
        return side.planned(len(self._vector), **how)

    def used(self) -> dict[str, Any]:
        """Say what the last collective cost up to now, and what came of it if that was to be checked."""
        cpu_s = time.process_time() - self._cpu_s
        if not self._checked:
            return {"cpu_s": cpu_s, "digest": "", "error": 0.0}
        digest = blake3.blake3(self._vector.tobytes()).hexdigest(8)
        return {"cpu_s": cpu_s, "digest": digest, "error": self._error()}

    def _error(self) -> float:
        if self._expected is None:
            return 0.0
        return float(np.linalg.norm(self._vector - self._expected) / np.linalg.norm(self._expected))


def main() -> int:
    """Answer orders until there are no more."""
    output = _own_stdout()
    desk = Desk()
    named = {name: getattr(desk, name) for name in ("open", "close", "fill", "expect", "reduce", "planned", "used")}
    named |= {name: getattr(desk.probe, name) for name in ("listen", "round_trip", "pour", "congestion")}
    _say(output, {"pid": os.getpid()})
    for line in sys.stdin.buffer:
        _say(output, _done(named, msgspec.json.decode(line)))
    os._exit(0)  # threads of either side may be waiting for peers that are gone


def _done(named: dict[str, Callable[..., dict[str, Any]]], what: dict[str, Any]) -> dict[str, Any]:
    try:
        return named[what.pop("order")](**what)
    except Exception as error:  # the parent decides what it means
        refused = isinstance(error, ConfigError)
        return {"failed": f"{type(error).__name__}: {error}", "is_refused": refused, "at": time.monotonic()}


def _own_stdout() -> BinaryIO:
    """Return stdout, and let everybody else in this process write to stderr instead."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return output


def _say(output: BinaryIO, what: dict[str, Any]) -> None:
    output.write(msgspec.json.encode(what) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
