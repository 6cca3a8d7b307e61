"""A group of machines as one object in the user's program: blocking collectives, from a thread of the user's.

`discover` finds the others on the local network, `static_peers` takes a list; both return the same `Context`. How
collectives are carried out is the `Backend`'s business; this file knows tensors and users.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import numpy as np

from barnraise.api.backend import Backend, Operation, Vector
from barnraise.errors import ConfigError

if TYPE_CHECKING:
    from barnraise.identity import ClusterKey

T = TypeVar("T")

TIMEOUT_S: Final = 30.0
"""How long a collective may take, the wait for the slowest rank included."""


class Context:
    """Ranked peers that add up tensors. Made by `discover` or `static_peers`; use it in a ``with`` block.

    After a collective has raised `Unavailable`, all later ones do so at once, on every rank: some ranks may have
    finished it and others not. Go back to parameters that all hold, and open another context.

    >>> with discover(cluster_key=key, name="doc", mdns=False) as context:
    ...     context.wait_for_peers(1)
    ...     context.all_reduce(np.ones(3, np.float32), op="sum")
    array([1., 1., 1.], dtype=float32)
    """

    def __init__(self, backend: Backend) -> None:
        """Take over what carries out the collectives."""
        self._backend = backend
        self._calling = threading.Lock()

    @property
    def rank(self) -> int:
        """This machine's place, 0 .. world_size - 1. Raises `ConfigError` before `wait_for_peers`."""
        return self._backend.rank

    @property
    def world_size(self) -> int:
        """Number of machines in the group. Raises `ConfigError` before `wait_for_peers`."""
        return self._backend.world_size

    @property
    def address(self) -> str:
        """Where others reach this machine: a multiaddress that `discover` takes in ``bootstrap``."""
        return self._backend.address

    def wait_for_peers(self, n: int | None = None, timeout_s: float = 60.0) -> None:
        """Wait until ``n`` machines, this one included, are connected.

        Args:
            n: how many; None: all on the list of `static_peers`.
            timeout_s: how long, in seconds.

        Raises:
            Unavailable: they did not come in time; may be called again.
            ConfigError: ``n`` is impossible or differs between machines, or two claim one rank.
        """
        with self._one_call():
            self._backend.wait_for_peers(n, timeout_s)

    def all_reduce(self, tensor: T, op: Operation = "mean", timeout_s: float = TIMEOUT_S) -> T:
        """Replace a tensor by its mean or sum over all ranks, in place; all ranks get the same bits.

        It is added up in float32 (float64 where the tensor is of that type), in the order of ranks.

        Args:
            tensor: a torch tensor on any device or a numpy array, of any shape and of a floating-point type; the same
                on every rank.
            op: ``mean`` or ``sum``.
            timeout_s: how long it may take, in seconds, the wait for the slowest rank included.

        Returns:
            The same object. It is unchanged if anything is raised.

        Raises:
            Unavailable: a peer is gone or too slow; the message names it.
            ConfigError: the tensor's type is none of these, or the ranks did not call the same thing.
        """
        if op not in ("mean", "sum"):
            raise ConfigError(f"op={op!r}; it is 'mean' or 'sum'")
        with self._one_call():
            if isinstance(tensor, np.ndarray):
                tensor[...] = self._backend.all_reduce(_from_array(tensor), op, timeout_s).reshape(tensor.shape)
            else:
                _to_tensor(self._backend.all_reduce(_from_tensor(tensor), op, timeout_s), tensor)
        return tensor

    def barrier(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until every rank has come here. Raises `Unavailable` like `all_reduce`."""
        with self._one_call():
            self._backend.barrier(timeout_s)

    def close(self) -> None:
        """Leave the group; may be called twice."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _one_call(self) -> "_OneCall":
        return _OneCall(self._calling)


class _OneCall:
    """Collectives have an order; calls from two threads at once have none."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise ConfigError("another thread is in a call of this context. Make all calls from one thread.")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def discover(
    *,
    cluster_key: "ClusterKey | str | Path | None" = None,
    name: str = "default",
    listen: str = "127.0.0.1:0",
    bulk_port: int = 0,
    bootstrap: Sequence[str] = (),
    mdns: bool = True,
) -> Context:
    """Open a context whose machines find each other; `Context.wait_for_peers` gives them their ranks.

    Args:
        cluster_key: the key, its text, or its file; None: the key of this user's runs, made if there is none.
        name: machines of one cluster key and one name belong together.
        listen: ``address:port`` of this machine; ``lan:0`` is its address on its network, and a free port.
        bulk_port: where tensors come in; 0: a free port.
        bootstrap: multiaddresses of others (`Context.address`), for networks that mDNS does not cross.
        mdns: announce this machine on the local network, and look there for others.

    Raises:
        ConfigError: the key, ``listen`` or ``bootstrap`` cannot be used.

    >>> with discover(cluster_key=key, name="doc", mdns=False) as context:
    ...     context.wait_for_peers(1, timeout_s=10)
    ...     print(context.rank, context.world_size)
    0 1
    """
    from barnraise.api import networked

    return Context(networked.discovered(cluster_key, name, listen, bulk_port, bootstrap, mdns))


def static_peers(
    addresses: Sequence[str],
    rank: int,
    *,
    cluster_key: "ClusterKey | str | Path | None" = None,
    name: str = "default",
    listen: str | None = None,
    bulk_port: int = 0,
) -> Context:
    """Open a context whose machines are all on a list, the same list on every machine.

    Args:
        addresses: ``host:port`` of every machine, by rank.
        rank: which of them this is.
        cluster_key: the key, its text, or its file; None: the key of this user's runs, made if there is none.
        name: machines of one cluster key and one name belong together.
        listen: ``address:port`` to listen on where that is not the address on the list.
        bulk_port: where tensors come in; 0: a free port.

    Raises:
        ConfigError: the list, the rank or the key cannot be used, or the address is taken.

    >>> with static_peers([f"127.0.0.1:{port}"], rank=0, cluster_key=key) as context:
    ...     context.wait_for_peers(timeout_s=10)
    ...     context.barrier()
    """
    from barnraise.api import networked

    return Context(networked.listed(addresses, rank, cluster_key, name, listen, bulk_port))


def _from_array(array: np.ndarray[Any, Any]) -> Vector:
    """Return a flat copy of an array, float32[d] or float64[d]."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ConfigError(f"all_reduce takes float16, float32 and float64, this array is {array.dtype}. Convert it.")
    if not array.flags.writeable:
        raise ConfigError("all_reduce writes its result into the array, and this one is read-only. Copy it.")
    return array.astype(np.float64).ravel() if array.dtype.itemsize == 8 else array.astype(np.float32).ravel()


def _from_tensor(tensor: Any) -> Vector:
    """Return a flat copy of a torch tensor in the CPU's memory, float32[d] or float64[d]."""
    import torch

    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tensor.layout != torch.strided:
        what = getattr(tensor, "dtype", type(tensor).__name__)
        raise ConfigError(f"all_reduce takes dense floating-point torch tensors and numpy arrays, not {what}.")
    wire = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    vector: Vector = tensor.detach().to("cpu", wire, copy=True).reshape(-1).numpy()
    return vector


def _to_tensor(vector: Vector, tensor: Any) -> None:
    import torch

    with torch.no_grad():
        tensor.detach().copy_(torch.from_numpy(vector).view(tensor.shape))
