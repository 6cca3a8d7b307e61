"""A group of machines as one object in the user's program: blocking collectives, from a thread of the user's.

`discover` finds the others on the local network, `static_peers` takes a list; both return the same `Context`. How
collectives are carried out is the `Backend`'s business, how tensors become vectors `tensors`'.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self, TypeVar

from barnraise.api import plans
from barnraise.api.backend import Backend
from barnraise.api.choice import Choice
from barnraise.api.plans import Input
from barnraise.api.pump import MIN_WEIGHT
from barnraise.api.streams import Call, Operation
from barnraise.api.tensors import Tensors
from barnraise.codec.feedback import Residual
from barnraise.codec.level import AUTO, DEFAULT, level_over
from barnraise.errors import ConfigError

if TYPE_CHECKING:
    from barnraise.identity import ClusterKey

T = TypeVar("T")

TIMEOUT_S: Final = 30.0
"""How long a collective waits for the other machines to call it as well."""


class Context:
    """Ranked peers that add up tensors. Made by `discover` or `static_peers`; use it in a ``with`` block.

    A machine that dies, stalls or sends rubbish in the middle of a collective is left out: the others finish it without
    that machine, and go on without it. `lost` says who and why. More than half of the machines, or half of them with the
    lowest rank, must be left; otherwise, and on a machine that was left out, everything raises `Unavailable` from then on.

    >>> with discover(cluster_key=key, name="doc", mdns=False) as context:
    ...     context.wait_for_peers(1)
    ...     context.all_reduce(np.ones(3, np.float32), op="sum")
    array([1., 1., 1.], dtype=float32)
    """

    def __init__(self, backend: Backend, compression_level: int = DEFAULT) -> None:
        """Take over what carries out the collectives, and the level that ``codec="auto"`` stands for."""
        self._backend = backend
        self._automatic = f"{AUTO}:{compression_level}"
        self._calling = threading.Lock()
        self._tensors = Tensors()

    @property
    def rank(self) -> int:
        """This machine's place, 0 .. world_size - 1; it never changes. Raises `ConfigError` before `wait_for_peers`."""
        return self._backend.rank

    @property
    def world_size(self) -> int:
        """Number of machines that formed the group. Raises `ConfigError` before `wait_for_peers`."""
        return self._backend.world_size

    @property
    def members(self) -> tuple[int, ...]:
        """Ranks that are in, ascending: all but the `lost` ones. Raises `ConfigError` before `wait_for_peers`."""
        return self._backend.members

    @property
    def lost(self) -> Mapping[int, str]:
        """Ranks that were left out of a collective and all that followed, and why."""
        return MappingProxyType(dict(self._backend.lost))

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

    def all_reduce(
        self,
        tensor: T,
        op: Literal["mean", "sum"] = "mean",
        *,
        weight: float | None = None,
        codec: str = "fp32",
        schedule: str = "auto",
        feedback: Residual | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> T:
        """Replace a tensor by its mean or sum over all ranks, in place; all ranks get the same bits.

        It is added up in float32 (float64 where the tensor is of that type), in an order that the schedule fixes.

        Args:
            tensor: a torch tensor on any device or a numpy array, of any shape and of a floating-point type; the same
                on every rank. One that is contiguous, on the CPU and of float32 or float64 is not copied on its way
                to the others.
            op: ``mean`` or ``sum``.
            weight: of this rank's tensor, over 0, such as its number of samples: a mean is then of the weighted
                tensors, over the weights of all members. Give one on all ranks or on none; None: they all count alike.
            codec: how values travel, such as ``fp32``, ``bf16``, ``int8`` or ``topk:0.016+int2+zstd``. ``auto``: the
                codec of the context's compression level, or of the one in ``auto:5``; of a higher level where links
                are slow, of a lower one where they are fast, and ``fp32`` where that takes about as long (`plan`).
                Until all machines have agreed on what the links are like, it is the level's own. Give ``feedback``.
            schedule: who sends what to whom, ``ring``, ``tree``, ``butterfly``, ``shards``, ``centralised`` or
                ``hierarchical`` (first among machines that are near each other, then between these places); ``auto``:
                what suits the size, the codec, and the links as they were measured (`plan`). Both of the last two go by
                the size alone until all machines have agreed on what the links are like.
            feedback: what codecs have lost of this tensor so far, made once for its number of elements and given each
                time: it is made good, whatever codec it is now, and what is lost now is kept in it.
            timeout_s: how long to wait for the other ranks to call this, in seconds. A rank that is later is lost.

        Returns:
            The same object. It is unchanged if anything is raised.

        Raises:
            Unavailable: this rank was left out, or too few are left.
            ConfigError: the tensor's type is none of these, a codec or schedule is unknown, the schedule is
                ``hierarchical`` and all machines are in one place, or the ranks did not call the same thing.
        """
        if op not in ("mean", "sum"):
            raise ConfigError(f"op={op!r}; it is 'mean' or 'sum'")
        if weight is not None and not MIN_WEIGHT <= weight <= 1 / MIN_WEIGHT:
            raise ConfigError(f"weight={weight}; it is 1e-12 to 1e12. Leave a rank out that has nothing to bring in.")
        self._carry_out(
            op, tensor, weight=weight, codec=codec, schedule=schedule, feedback=feedback, timeout_s=timeout_s
        )
        return tensor

    def reduce_scatter(
        self, tensor: T, op: Literal["mean", "sum"] = "mean", *, codec: str = "fp32", timeout_s: float = TIMEOUT_S
    ) -> T:
        """Replace this rank's part of a tensor by the mean or sum of that part over all ranks, in place.

        Which part that is, `part` says; the others keep their values. Arguments, result and errors as for `all_reduce`.
        """
        if op not in ("mean", "sum"):
            raise ConfigError(f"op={op!r}; it is 'mean' or 'sum'")
        self._carry_out(f"reduce_scatter {op}", tensor, codec=codec, timeout_s=timeout_s)
        return tensor

    def all_gather(self, tensor: T, *, codec: str = "fp32", timeout_s: float = TIMEOUT_S) -> T:
        """Replace each rank's part of a tensor, see `part`, by what that rank has there, in place on all ranks.

        The part of a rank that was lost is divided among the others. Arguments, result and errors as for `all_reduce`.
        """
        self._carry_out("all_gather", tensor, codec=codec, timeout_s=timeout_s)
        return tensor

    def broadcast(self, tensor: T, root: int = 0, *, codec: str = "fp32", timeout_s: float = TIMEOUT_S) -> T:
        """Replace a tensor by that of rank ``root``, in place; with a lossy codec on that rank as well.

        Arguments, result and errors as for `all_reduce`; `Unavailable` also where ``root`` is lost.
        """
        if not 0 <= root < self.world_size:
            raise ConfigError(f"root={root}; the ranks are 0 .. {self.world_size - 1}")
        self._carry_out("broadcast", tensor, root=root, codec=codec, timeout_s=timeout_s)
        return tensor

    def plan(self, num_elements: int, *, codec: str = "fp32", schedule: str = "auto") -> Choice:
        """Return how `all_reduce` would go about a float32 tensor of so many elements, and why; sends nothing.

        Args:
            num_elements: of the tensor.
            codec: as for `all_reduce`.
            schedule: as for `all_reduce`.

        Returns:
            Among others its ``kind``, ``codec``, ``predicted_s``, which is None as long as the links are not known, and ``reasons``.

        Raises:
            ConfigError: codec or schedule are none, do not suit each other or these machines; before `wait_for_peers`.
        """
        call = Call("mean", "float32", num_elements, self._named(codec), schedule)
        plans.check(call)
        return self._backend.choice(call)

    def part(self, n: int) -> tuple[int, int]:
        """Return ``(start, stop)`` of this rank's part of a tensor of ``n`` elements, flattened.

        The members share a tensor equally, so the parts are others when a rank was lost.
        """
        return plans.part_of(n, self.members.index(self.rank), len(self.members))

    def barrier(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until every member has come here. Raises `Unavailable` like `all_reduce`."""
        with self._one_call():
            nothing = self._tensors.nothing
            self._backend.carry_out(Call("barrier", "float32", 0), Input(vector=nothing), nothing, timeout_s)

    def close(self) -> None:
        """Leave the group; may be called twice."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _carry_out(
        self,
        operation: Operation | str,
        tensor: object,
        *,
        weight: float | None = None,
        codec: str = "fp32",
        schedule: str = "auto",
        root: int = 0,
        feedback: Residual | None = None,
        timeout_s: float,
    ) -> None:
        with self._one_call(), self._tensors.flat(tensor) as vector:
            call = Call(
                operation=operation,  # type: ignore[arg-type]  # made of the words that it takes
                dtype="float64" if vector.dtype.itemsize == 8 else "float32",
                size=len(vector),
                codec=self._named(codec),
                schedule=schedule,
                root=root,
                is_weighted=weight is not None,
            )
            plans.check(call)
            if feedback is not None and len(feedback.kept) != len(vector):
                raise ConfigError(f"feedback is of {len(feedback.kept)} elements and the tensor of {len(vector)}")
            given = Input(vector=vector, weight=1.0 if weight is None else weight, residual=feedback)
            self._backend.carry_out(call, given, vector, timeout_s)

    def _named(self, codec: str) -> str:
        """Return a codec as all ranks must ask for it: with the level that it stands for."""
        return self._automatic if codec == AUTO else codec

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
    compression_level: int = DEFAULT,
) -> Context:
    """Open a context whose machines find each other; `Context.wait_for_peers` gives them their ranks.

    Args:
        cluster_key: the key, its text, or its file; None: the key of this user's runs, made if there is none.
        name: machines of one cluster key and one name belong together.
        listen: ``address:port`` of this machine; ``lan:0`` is its address on its network, and a free port.
        bulk_port: where tensors come in; 0: a free port.
        bootstrap: multiaddresses of others (`Context.address`), for networks that mDNS does not cross.
        mdns: announce this machine on the local network, and look there for others.
        compression_level: what ``codec="auto"`` stands for, 1 (nothing is lost) to 9 (least is sent), the same on all
            machines; 3 is the default, 5 for machines of a cloud, 9 for phones and the like.

    Raises:
        ConfigError: the key, ``listen`` or ``bootstrap`` cannot be used, or there is no such level.

    >>> with discover(cluster_key=key, name="doc", mdns=False) as context:
    ...     context.wait_for_peers(1, timeout_s=10)
    ...     print(context.rank, context.world_size)
    0 1
    """
    from barnraise.api import networked

    level_over(compression_level, None)
    backend = networked.discovered(cluster_key, name, listen, bulk_port, bootstrap, mdns)
    return Context(backend, compression_level)


def static_peers(
    addresses: Sequence[str],
    rank: int,
    *,
    cluster_key: "ClusterKey | str | Path | None" = None,
    name: str = "default",
    listen: str | None = None,
    bulk_port: int = 0,
    compression_level: int = DEFAULT,
) -> Context:
    """Open a context whose machines are all on a list, the same list on every machine.

    Args:
        addresses: ``host:port`` of every machine, by rank.
        rank: which of them this is.
        cluster_key: the key, its text, or its file; None: the key of this user's runs, made if there is none.
        name: machines of one cluster key and one name belong together.
        listen: ``address:port`` to listen on where that is not the address on the list.
        bulk_port: where tensors come in; 0: a free port.
        compression_level: what ``codec="auto"`` stands for, as for `discover`.

    Raises:
        ConfigError: the list, the rank, the key or the level cannot be used, or the address is taken.

    >>> with static_peers([f"127.0.0.1:{port}"], rank=0, cluster_key=key) as context:
    ...     context.wait_for_peers(timeout_s=10)
    ...     context.barrier()
    """
    from barnraise.api import networked

    level_over(compression_level, None)
    return Context(networked.listed(addresses, rank, cluster_key, name, listen, bulk_port), compression_level)
