"""The context that users hold: tensors of all kinds, real sockets on loopback, and what it says when something is wrong."""

import io
import json
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import structlog
import torch

from barnraise.api import context as module
from barnraise.api import networked
from barnraise.api.backend import Backend
from barnraise.api.choice import Choice, choose
from barnraise.api.context import Context, discover, static_peers
from barnraise.api.networked import rank_identity, run_id
from barnraise.api.plans import Input
from barnraise.api.streams import Call
from barnraise.codec.feedback import Residual
from barnraise.collective.buffers import Vector
from barnraise.errors import ConfigError, Unavailable
from barnraise.identity import ClusterKey
from barnraise.runs import places

from .machines import at_once, free_addresses

KEY = ClusterKey.generate()


class Doubling:
    """A backend without any network: the sum over two ranks that hold the same."""

    rank, world_size, address, members = 0, 2, "nowhere", (0, 1)
    lost: Mapping[int, str] = MappingProxyType({})

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.given: list[Input] = []
        self.closed = False
        self.inside: Callable[[], None] = lambda: None
        self.error: Exception | None = None

    def wait_for_peers(self, count: int | None, timeout_s: float) -> None:
        self.inside()

    def carry_out(self, call: Call, given: Input, out: Vector, timeout_s: float) -> None:
        self.inside()
        self.calls.append(call)
        self.given.append(given)
        if self.error:
            raise self.error
        if call.operation == "sum":
            np.multiply(given.vector, 2, out=out)

    def choice(self, call: Call) -> Choice:
        self.calls.append(call)
        return choose(call, self.world_size, None)

    def close(self) -> None:
        self.closed = True


def doubling() -> tuple[Doubling, Context]:
    backend = Doubling()
    checked: Backend = backend
    return backend, Context(checked)


# ---- tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4)])
def test_numpy_arrays_of_any_shape_and_float_type(dtype: type, shape: tuple[int, ...]) -> None:
    backend, context = doubling()
    array = np.full(shape, 1.5, dtype)
    assert context.all_reduce(array, "sum") is array
    assert array.dtype == dtype
    assert array.shape == shape
    assert (array == 3).all()
    vector = backend.given[0].vector
    assert vector.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert vector.ndim == 1
    assert backend.calls[0] == Call("sum", vector.dtype.name, array.size)
    assert np.shares_memory(vector, array) == (dtype is not np.float16 and array.size > 0)


def test_a_view_is_changed_in_place_and_nothing_beside_it() -> None:
    _, context = doubling()
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    context.all_reduce(array[:, 1::2], "sum")
    assert array.tolist() == [[0, 2, 2, 6], [4, 10, 6, 14], [8, 18, 10, 22]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4)])
def test_torch_tensors_of_any_shape_and_float_type(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    backend, context = doubling()
    tensor = torch.full(shape, 1.5, dtype=dtype)
    assert context.all_reduce(tensor, "sum") is tensor
    assert tensor.dtype == dtype
    assert (tensor == 3).all()
    vector = backend.given[0].vector
    assert vector.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    is_as_it_is = dtype in (torch.float32, torch.float64)
    assert (vector.ctypes.data == tensor.data_ptr()) == is_as_it_is or not tensor.numel()


def test_a_parameter_that_needs_a_gradient_and_one_that_is_not_contiguous() -> None:
    _, context = doubling()
    layer = torch.nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    context.all_reduce(layer.weight, "sum")
    assert torch.equal(layer.weight, 2 * before)
    assert layer.weight.requires_grad
    turned = torch.arange(6.0).reshape(2, 3).T
    context.all_reduce(turned, "sum")
    assert turned.tolist() == [[0, 6], [2, 8], [4, 10]]


def test_nothing_changes_when_it_fails() -> None:
    backend, context = doubling()
    backend.error = Unavailable("rank 1 went away")
    array, tensor = np.ones(5, np.float32), torch.ones(5)
    for given in (array, tensor, array.astype(np.float64)):
        with pytest.raises(Unavailable):
            context.all_reduce(given)
        assert (given == 1).all()


@pytest.mark.parametrize(
    "given",
    [
        np.ones(3, np.int64),
        np.ones(3, np.complex64),
        torch.ones(3, dtype=torch.int32),
        torch.ones(3).to_sparse(),
        [1.0, 2.0],
        "text",
    ],
)
def test_what_cannot_be_added_up_is_refused(given: object) -> None:
    backend, context = doubling()
    with pytest.raises(ConfigError, match="all_reduce takes"):
        context.all_reduce(given)
    assert not backend.given


def test_a_read_only_array_and_an_unknown_operation_are_refused_before_anything_is_sent() -> None:
    backend, context = doubling()
    array = np.ones(3, np.float32)
    with pytest.raises(ConfigError, match="op='max'"):
        context.all_reduce(array, "max")  # type: ignore[arg-type]
    array.flags.writeable = False
    with pytest.raises(ConfigError, match="read-only"):
        context.all_reduce(array)
    assert not backend.given


def test_two_threads_cannot_call_at_once() -> None:
    backend, context = doubling()
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        leave.wait(20)

    backend.inside = wait
    thread = threading.Thread(target=context.barrier)
    thread.start()
    assert entered.wait(20)
    with pytest.raises(ConfigError, match="another thread"):
        context.all_reduce(np.ones(1, np.float32))
    leave.set()
    thread.join()
    context.all_reduce(np.ones(1, np.float32))


def test_what_else_is_asked_for_reaches_the_backend() -> None:
    backend, context = doubling()
    array, feedback = np.ones(10, np.float32), Residual(10)
    context.all_reduce(array, weight=3.0, codec="int8", schedule="tree", feedback=feedback)
    context.reduce_scatter(array, "sum", codec="bf16")
    context.all_gather(array)
    context.broadcast(array, root=1)
    context.barrier()
    assert backend.calls == [
        Call("mean", "float32", 10, codec="int8", schedule="tree", is_weighted=True),
        Call("reduce_scatter sum", "float32", 10, codec="bf16"),
        Call("all_gather", "float32", 10),
        Call("broadcast", "float32", 10, root=1),
        Call("barrier", "float32", 0),
    ]
    assert backend.given[0].weight == 3.0
    assert backend.given[0].residual is feedback
    assert context.part(1000) == (0, 512)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"weight": 0.0}, "weight=0.0"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"codec": "int9"}, "there is no stage 'int9'"),
        ({"schedule": "star"}, "schedule 'star' is unknown"),
        ({"feedback": Residual(4)}, "of 4 elements and the tensor of 3"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_sent(
    arguments: dict[str, Any], complaint: str
) -> None:
    backend, context = doubling()
    with pytest.raises(ConfigError, match=complaint):
        context.all_reduce(np.ones(3, np.float32), **arguments)
    with pytest.raises(ConfigError, match="float64 tensor travels as it is"):
        context.all_reduce(np.ones(3), codec="int8")
    with pytest.raises(ConfigError, match=r"the ranks are 0 .. 1"):
        context.broadcast(np.ones(3), root=2)
    assert not backend.calls


def test_what_it_would_choose_and_why() -> None:
    backend, context = doubling()
    choice = context.plan(1000, codec="int8")
    assert backend.calls == [Call("mean", "float32", 1000, "int8")]
    assert (choice.kind, choice.predicted_s) == ("shards", None)
    assert choice.reasons == ("the links have not been measured yet",)
    assert context.plan(1000, schedule="tree").reasons == ("as asked for",)
    with pytest.raises(ConfigError, match="loses too much"):
        context.plan(1000, codec="topk:0.016+int2", schedule="hierarchical")
    with pytest.raises(ConfigError, match="unknown"):
        context.plan(1000, schedule="star")


def test_a_level_is_the_contexts_unless_the_call_names_another() -> None:
    backend = Doubling()
    context, feedback = Context(backend, compression_level=5), Residual(10)
    context.all_reduce(np.ones(10, np.float32), codec="auto", feedback=feedback)
    context.all_reduce(np.ones(10, np.float32), codec="auto:9")
    choice = context.plan(1000, codec="auto")
    assert [call.codec for call in backend.calls] == ["auto:5", "auto:9", "auto:5"]
    assert backend.given[0].residual is feedback
    assert choice.codec == "int4"
    assert choice.reasons[-1] == "level 5 is int4 as long as the links are not known"
    with pytest.raises(ConfigError, match="'auto:1' to 'auto:9'"):
        context.all_reduce(np.ones(10, np.float32), codec="auto:12")
    with pytest.raises(ConfigError, match="broadcast has no feedback"):
        context.broadcast(np.ones(10, np.float32), codec="auto")


def test_what_is_no_level_is_refused_before_anything_is_opened() -> None:
    for level in (0, 10):
        with pytest.raises(ConfigError, match=f"a compression level of {level} is outside"):
            discover(cluster_key=KEY, mdns=False, compression_level=level)
        with pytest.raises(ConfigError, match=f"a compression level of {level} is outside"):
            static_peers(["127.0.0.1:1"], 0, cluster_key=KEY, compression_level=level)


def test_the_block_closes_it() -> None:
    backend, context = doubling()
    with context as same:
        assert same is context
        assert (context.rank, context.world_size, context.address) == (0, 2, "nowhere")
    assert backend.closed


# ---- machines ---------------------------------------------------------------------------------------------------


def train(context: Context, count: int) -> tuple[int, int, bytes, float]:
    """Do a machine's part, as a user would."""
    with context:
        context.wait_for_peers(count, timeout_s=30)
        tensor = torch.full((1000, 301), float(context.rank + 1))
        context.all_reduce(tensor)
        array = np.random.default_rng(context.rank).normal(0, 1, 5000).astype(np.float32)
        context.all_reduce(array, op="sum")
        context.barrier()
        return context.rank, context.world_size, array.tobytes(), float(tensor[-1, -1])


def test_machines_on_a_list_get_the_same_bits() -> None:
    addresses = free_addresses(3)
    works = [lambda rank=rank: train(static_peers(addresses, rank, cluster_key=KEY), 3) for rank in range(3)]
    found = at_once(*works)
    assert [result[:2] for result in found] == [(0, 3), (1, 3), (2, 3)]
    assert len({result[2] for result in found}) == 1
    assert [result[3] for result in found] == [2.0] * 3


def test_later_collectives_of_a_size_allocate_next_to_nothing() -> None:
    addresses, size = free_addresses(2), 12_500_000
    gate = threading.Barrier(2)

    def work(rank: int) -> int:
        with static_peers(addresses, rank, cluster_key=KEY) as context:
            context.wait_for_peers(timeout_s=30)
            tensor = torch.ones(size)
            for _ in range(2):  # two buffers take turns
                context.all_reduce(tensor)
            if gate.wait(30) == 0:
                tracemalloc.start()
            gate.wait(30)
            context.all_reduce(tensor)
            gate.wait(30)
            peak_bytes = tracemalloc.get_traced_memory()[1]
            if gate.wait(30) == 0:
                tracemalloc.stop()
            return peak_bytes

    assert max(at_once(lambda: work(0), lambda: work(1))) < 2_000_000


def test_machines_that_find_each_other_get_the_same_bits() -> None:
    first = discover(cluster_key=KEY, name="found", mdns=False)
    others = [discover(cluster_key=KEY, name="found", mdns=False, bootstrap=[first.address]) for _ in range(2)]
    found = at_once(*(lambda context=context: train(context, 3) for context in (first, *others)))
    assert sorted(result[:2] for result in found) == [(0, 3), (1, 3), (2, 3)]
    assert len({result[2] for result in found}) == 1


def test_machines_of_one_network_find_each_other_by_mdns() -> None:
    works = [lambda: train(discover(cluster_key=KEY, name="mdns"), 2) for _ in range(2)]
    found = at_once(*works)
    assert sorted(result[:2] for result in found) == [(0, 2), (1, 2)]
    assert len({result[2] for result in found}) == 1


def test_a_machine_that_closes_is_lost_and_the_others_go_on() -> None:
    addresses = free_addresses(2)

    def leave() -> None:
        with static_peers(addresses, 1, cluster_key=KEY) as context:
            context.wait_for_peers(timeout_s=30)

    def stay() -> dict[int, str]:
        with static_peers(addresses, 0, cluster_key=KEY) as context:
            context.wait_for_peers(timeout_s=30)
            tensor = torch.arange(10.0)
            assert torch.equal(context.all_reduce(tensor), torch.arange(10.0))
            context.barrier()
            assert (context.members, context.world_size) == ((0,), 2)
            return dict(context.lost)

    assert list(at_once(leave, stay)[1]) == [1]


def test_other_keys_and_names_stay_apart() -> None:
    with discover(cluster_key=KEY, name="one", mdns=False) as first:
        seen = [first.address]
        for key, name, why in ((KEY, "two", "in run"), (ClusterKey.generate(), "one", "in run")):
            other = discover(cluster_key=key, name=name, mdns=False, bootstrap=seen)
            with other, pytest.raises(Unavailable, match=why):
                other.wait_for_peers(2, timeout_s=2)


def test_a_closed_context_says_so() -> None:
    context = discover(cluster_key=KEY, mdns=False)
    context.close()
    context.close()
    with pytest.raises(Unavailable, match="was closed"):
        context.wait_for_peers(1)


def test_no_thread_outlives_a_context() -> None:
    before = threading.active_count()
    with discover(cluster_key=KEY, mdns=False) as context:
        context.wait_for_peers(1)
        assert threading.active_count() > before
    assert not [thread for thread in threading.enumerate() if thread.name == "barnraise context"]


def test_a_list_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rank 2 is not on the list, which has ranks 0 .. 1"):
        static_peers(["127.0.0.1:1", "127.0.0.1:2"], 2, cluster_key=KEY)
    with pytest.raises(ConfigError, match="twice"):
        static_peers(["127.0.0.1:1", "127.0.0.1:1"], 0, cluster_key=KEY)
    with pytest.raises(ConfigError, match="not host:port"):
        static_peers(["127.0.0.1"], 0, cluster_key=KEY)
    with pytest.raises(ConfigError, match="not known here"):
        static_peers(["no.such.host.invalid:4001"], 0, cluster_key=KEY)


def test_an_address_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="taken"):
            static_peers([address], 0, cluster_key=KEY)


def test_a_key_may_be_an_object_a_text_a_file_or_the_users_own(tmp_path: Path) -> None:
    KEY.save(tmp_path / "cluster.key")
    for given in (KEY, KEY.to_text(), tmp_path / "cluster.key", str(tmp_path / "cluster.key")):
        with discover(cluster_key=given, name="key", mdns=False) as context:
            context.wait_for_peers(1)
    assert not places.cluster_key_file().exists()
    with discover(mdns=False) as context:
        context.wait_for_peers(1)
    assert places.cluster_key_file().exists()
    with pytest.raises(ConfigError, match="neither a file nor a key"):
        discover(cluster_key=KEY.to_text()[:-1], mdns=False)


def test_ranks_and_runs_follow_from_key_and_name_alone() -> None:
    other = ClusterKey.generate()
    ids = {rank_identity(key, name, rank).peer_id for key in (KEY, other) for name in "ab" for rank in (0, 1)}
    assert len(ids) == 8
    assert rank_identity(KEY, "a", 1).peer_id == rank_identity(ClusterKey(KEY.secret), "a", 1).peer_id
    assert len({run_id(KEY, "a"), run_id(KEY, "b"), run_id(other, "a")}) == 3
    assert KEY.secret not in run_id(KEY, "a")


PROGRAM = """
import sys
from barnraise.api.context import static_peers
with static_peers(sys.argv[2:], int(sys.argv[1]), cluster_key=sys.stdin.read()) as context:
    context.wait_for_peers(timeout_s=30)
    import numpy
    print(context.all_reduce(numpy.full(2, float(context.rank)), op="sum").tolist())
"""


@pytest.mark.e2e
def test_a_users_program_has_its_output_for_itself_and_needs_no_torch_for_arrays() -> None:
    addresses = free_addresses(2)
    code = PROGRAM + "print('torch' in sys.modules)"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(KEY.to_text())
        process.stdin.close()
        process.stdin = None
    results = [process.communicate(timeout=50) for process in started]
    assert [json.loads(out.split("\n")[0]) for out, _ in results] == [[1.0, 1.0]] * 2
    assert [out.split("\n")[1:] for out, _ in results] == [["False", ""]] * 2
    assert [error for _, error in results] == ["", ""]


@pytest.mark.parametrize("thing", ["Context", "discover", "static_peers"])
def test_the_examples_in_docstrings_do_what_they_say(thing: str, run_docstring: Callable[..., None]) -> None:
    port = int(free_addresses(1)[0].rpartition(":")[2])
    run_docstring(getattr(module, thing), np=np, discover=discover, static_peers=static_peers, key=KEY, port=port)


def test_warnings_go_to_whatever_stderr_is_by_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(structlog, "is_configured", lambda: False)
    gone = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", gone)
        networked._keep_stdout_clean()
    gone.close()
    log = structlog.get_logger()
    log.warning("context.lost", rank=1)
    log.info("context.found", rank=2)
    captured = capsys.readouterr()
    assert "context.lost" in captured.err
    assert "context.found" not in captured.err
    assert captured.out == ""
