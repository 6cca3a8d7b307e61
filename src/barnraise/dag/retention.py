"""Which checkpoints keep their tensors on disk: a rule over rounds, and names that are in use meanwhile. No I/O.

The log and the vertices stay for ever, and with them what every checkpoint was called; tensors are large, so most go.
Deleted is what no kept vertex names, unless somebody reads or fetches it right now (`Holds`).
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from barnraise.errors import ConfigError
from barnraise.ids import Digest

MAX_KEPT: Final = 1_000_000


class Checkpoint(Protocol):
    """What the rule looks at: a `barnraise.swarm.records.Vertex`."""

    @property
    def round(self) -> int:
        """Return the number of rounds behind it."""
        ...

    @property
    def model(self) -> bytes:
        """Return the name of its parameters."""
        ...

    @property
    def outer(self) -> bytes:
        """Return the name of its outer optimiser's state."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """The newest ``newest`` checkpoints, and every one whose round is a multiple of ``every``; 0: no such ones."""

    newest: int = 2
    every: int = 0

    def __post_init__(self) -> None:
        """Check the rule. Raises `ConfigError`."""
        if not 1 <= self.newest <= MAX_KEPT:
            raise ConfigError(
                f"keep_checkpoints = {self.newest} is outside 1 .. {MAX_KEPT}: without the newest one nothing goes on. "
                "Change the value."
            )
        if not 0 <= self.every <= MAX_KEPT:
            raise ConfigError(f"keep_every = {self.every} is outside 0 .. {MAX_KEPT}. Change the value; 0 keeps none.")

    def keeps(self, round_: int, newest_round: int) -> bool:
        """Tell whether the checkpoint behind ``round_`` rounds keeps its tensors when the newest has ``newest_round``.

        What is dropped once is never wanted again: as the newest round grows, this turns from true to false, not back.
        """
        return round_ > newest_round - self.newest or (self.every > 0 and round_ % self.every == 0)

    def kept(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return those of a run's checkpoints, in any order, that keep their tensors."""
        newest = max((checkpoint.round for checkpoint in checkpoints), default=0)
        return [checkpoint for checkpoint in checkpoints if self.keeps(checkpoint.round, newest)]


def tensors_of(checkpoints: Iterable[Checkpoint]) -> frozenset[Digest]:
    """Return the names of all tensors of some checkpoints; two may share one."""
    return frozenset(Digest(name) for checkpoint in checkpoints for name in (checkpoint.model, checkpoint.outer))


class Holds:
    """Names that are in use: served, fetched, or mapped by a trainer. Counted; may be called from any thread."""

    def __init__(self) -> None:
        self._counts: Counter[Digest] = Counter()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def hold(self, names: Collection[Digest]) -> Iterator[None]:
        """Keep what has these names, if it is there, from being deleted in the block."""
        with self._lock:
            self._counts.update(names)
        try:
            yield
        finally:
            with self._lock:
                self._counts.subtract(names)
                self._counts = +self._counts

    @contextlib.contextmanager
    def unless_held(self, name: Digest) -> Iterator[bool]:
        """Tell whether nobody uses a name, and let nobody begin to in the block."""
        with self._lock:
            yield name not in self._counts
