"""The sides of a comparison, each an all-reduce of one float32 vector in place: torch's Gloo, PCCL and ours."""

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from barnraise import static_peers
from barnraise.errors import ConfigError, Unavailable
from barnraise.identity import ClusterKey
from barnraise.net import congestion

Vector = NDArray[np.float32]
TIMEOUT_S: Final = 300.0
"""No link here is so slow."""
JOIN_S: Final = 60.0
ABSENT: Final = "absent"
"""A congestion control that no kernel has: what we would ask for is refused, as where bbr is not there or not allowed."""
KEY_SECRET: Final = bytes(range(32))


class Side(Protocol):
    """One rank's end of a group."""

    def reduce(self, vector: Vector, **how: Any) -> dict[str, Any]:
        """Replace the vector by the sum over all ranks; return what else there is to tell."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class Gloo:
    """`torch.distributed` with its Gloo backend: plaintext over TCP, one thread of torch."""

    def __init__(self, rank: int, addresses: list[str], interface: str) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        self._torch, self._dist = torch, dist
        where = f"tcp://{addresses[0]}"
        timeout = timedelta(seconds=TIMEOUT_S)
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=len(addresses), timeout=timeout)

    def reduce(self, vector: Vector, **how: Any) -> dict[str, Any]:
        """Add up with `torch.distributed.all_reduce`."""
        self._dist.all_reduce(self._torch.from_numpy(vector))
        return {}

    def close(self) -> None:
        """Destroy the group."""
        self._dist.destroy_process_group()


class Ours:
    """`barnraise.Context`, encrypted, its peers on a list."""

    def __init__(self, rank: int, addresses: list[str], interface: str, without_bbr: bool = False) -> None:
        del interface
        if without_bbr:
            congestion.PACED = ABSENT  # type: ignore[misc]
        _watch_events()
        self._context = static_peers(addresses, rank, cluster_key=ClusterKey(KEY_SECRET), name="bench")
        self._context.wait_for_peers(timeout_s=JOIN_S)

    def reduce(self, vector: Vector, codec: str = "fp32", schedule: str = "auto", **_: Any) -> dict[str, Any]:
        """Add up with `Context.all_reduce`."""
        EVENTS.clear()
        self._context.all_reduce(vector, op="sum", codec=codec, schedule=schedule, timeout_s=TIMEOUT_S)
        return {"events": list(EVENTS)}

    def planned(self, elements: int, codec: str = "fp32", schedule: str = "auto") -> dict[str, Any]:
        """Say how it would add up so many elements now, and whether it knows the links."""
        choice = self._context.plan(elements, codec=codec, schedule=schedule)
        return {"kind": choice.kind, "is_by_links": choice.predicted_s is not None}

    def close(self) -> None:
        """Close the context."""
        self._context.close()


class Pccl:
    """Prime's PCCL, plaintext: written after its Python interface of 1.0; `addresses[0]` is its master's."""

    def __init__(self, rank: int, addresses: list[str], interface: str) -> None:
        del rank, interface
        import pccl

        self._pccl = pccl
        self._communicator = pccl.Communicator(addresses[0])
        self._communicator.connect()
        deadline = time.monotonic() + JOIN_S
        while self._communicator.get_attribute(pccl.Attribute.GLOBAL_WORLD_SIZE) < len(addresses):
            if time.monotonic() > deadline:
                raise Unavailable(f"PCCL's group of {len(addresses)} was not there after {JOIN_S:g} s")
            if self._communicator.are_peers_pending():
                self._communicator.update_topology()
            time.sleep(0.01)
        self._sum = np.zeros(0, np.float32)

    def reduce(self, vector: Vector, **how: Any) -> dict[str, Any]:
        """Add up into a vector of our own, as it wants, and copy."""
        if len(self._sum) != len(vector):
            self._sum = np.empty_like(vector)
        self._communicator.all_reduce(vector, self._sum, op=self._pccl.ReduceOp.SUM)
        np.copyto(vector, self._sum)
        return {}

    def close(self) -> None:
        """Leave the master."""
        del self._communicator


EVENTS: list[dict[str, Any]] = []
"""What our side logged since the last collective began."""


def _watch_events() -> None:
    """Keep events of the context, with the machine's one clock, instead of printing them."""

    def keep(_logger: Any, _method: str, event: Any) -> Any:
        EVENTS.append({"event": event.get("event", ""), "at": time.monotonic(), "told": str(event)[:300]})
        raise structlog.DropEvent

    structlog.configure(processors=[keep])


_SIDES: Final[Mapping[str, type[Side]]] = {"gloo": Gloo, "ours": Ours, "pccl": Pccl}


def open_side(side: str, rank: int, addresses: list[str], interface: str, **more: Any) -> Side:
    """Open one of the sides by its name."""
    if side not in _SIDES:
        raise ConfigError(f"side {side!r}: it is one of {', '.join(_SIDES)}")
    return _SIDES[side](rank, addresses, interface, **more)  # type: ignore[call-arg]
