"""The processes that torchrun started as one peer: the first alone speaks with the swarm, the others do as it says.

Every method is a collective: all ranks call it, in the same order. With one process each costs nothing. What goes
between ranks travels over a gloo group of its own, so that a GPU is not waited for; nothing is pickled.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from barnraise.errors import Aborted, BarnraiseError, ConfigError, LocalError, Unavailable

ROUND_TIMEOUT: Final = timedelta(days=7)
"""The first rank waits for the swarm for as long as that takes, and the others for the first."""

T = TypeVar("T")
_KINDS: Final[tuple[type[BarnraiseError], ...]] = (LocalError, ConfigError, Unavailable, Aborted)


class _Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What the first rank's work came to: bytes for all, or an error, by its number in `_KINDS`."""

    data: bytes = b""
    kind: int = -1
    message: str = ""


class Ranks:
    """This process among those that form one peer."""

    def __init__(self) -> None:
        """Look for an initialised `torch.distributed`; without one this process is a peer by itself."""
        self.num_ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        """Processes of this peer."""
        self.rank = dist.get_rank() if self.num_ranks > 1 else 0
        self._group = dist.new_group(backend="gloo", timeout=ROUND_TIMEOUT) if self.num_ranks > 1 else None

    @property
    def is_first(self) -> bool:
        """Tell whether this process is the one that speaks with the swarm."""
        return self.rank == 0

    def first(self, work: Callable[[], bytes]) -> bytes:
        """Do ``work`` on the first rank; return its bytes on all.

        Raises:
            BarnraiseError, OSError: what ``work`` raised; on the other ranks a `BarnraiseError` that says the same.
        """
        if self._group is None:
            return work()
        raised: BarnraiseError | OSError | None = None
        outcome = _Outcome()
        if self.is_first:
            try:
                outcome = _Outcome(data=work())
            except (BarnraiseError, OSError) as error:
                raised, outcome = error, _told(error)
        heard = msgspec.msgpack.decode(self._from_first(msgspec.msgpack.encode(outcome)), type=_Outcome)
        if raised is not None:
            raise raised
        if heard.kind >= 0:
            raise _KINDS[heard.kind](heard.message)
        return heard.data

    def first_does(self, work: Callable[[], T]) -> T | None:
        """Do ``work`` on the first rank and return its result there, None elsewhere; raises on all what it raised."""
        found: list[T] = []

        def do() -> bytes:
            found.append(work())
            return b""

        self.first(do)
        return found[0] if found else None

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of the ranks' values, each on its own."""
        if self._group is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return [float(value) for value in total]

    def share(self, tensor: Tensor) -> Tensor:
        """Return the first rank's ``tensor``, on the CPU, which has the same shape and type everywhere."""
        if self._group is not None:
            tensor = tensor.contiguous()
            dist.broadcast(tensor, src=0, group=self._group)
        return tensor

    def _from_first(self, data: bytes) -> bytes:
        size = self.share(torch.tensor([len(data)]))
        body = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.is_first else None
        shared = self.share(torch.empty(int(size), dtype=torch.uint8) if body is None else body)
        return shared.numpy().tobytes()


def _told(error: BarnraiseError | OSError) -> _Outcome:
    kind = next((number for number, kind in enumerate(_KINDS) if isinstance(error, kind)), 0)
    return _Outcome(kind=kind, message=f"the first rank: {error}")
