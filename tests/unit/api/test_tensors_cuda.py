"""Tensors on a GPU: copied through pinned memory, in order with what the user's stream does. Skipped without one."""

import numpy as np
import pytest
import torch

import barnraise
from barnraise.api.tensors import Tensors
from barnraise.identity import ClusterKey

from .machines import at_once, free_addresses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU with CUDA here")

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def doubled(tensors: Tensors, tensor: torch.Tensor) -> None:
    with tensors.flat(tensor) as vector:
        np.multiply(vector, 2, out=vector)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4)])
def test_tensors_of_any_shape_and_float_type(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.full(shape, 1.5, dtype=dtype, device="cuda")
    doubled(Tensors(), tensor)
    assert tensor.is_cuda
    assert (tensor == 3).all()


def test_a_view_is_changed_in_place_and_nothing_beside_it() -> None:
    tensor = torch.arange(12, dtype=torch.float32, device="cuda").reshape(3, 4)
    doubled(Tensors(), tensor[:, 1::2])
    assert tensor.tolist() == [[0, 2, 2, 6], [4, 10, 6, 14], [8, 18, 10, 22]]


def test_it_waits_for_the_users_stream_and_the_users_stream_for_it() -> None:
    tensors, factor = Tensors(), torch.eye(2048, device="cuda")
    for _ in range(20):
        tensor = torch.ones(2048, 2048, device="cuda")
        for _ in range(20):  # long enough for a copy that did not wait to read what was there before
            tensor = tensor @ factor
        tensor.add_(2.0)
        doubled(tensors, tensor)
        assert float((tensor + 1).max()) == float((tensor + 1).min()) == 7.0


def test_it_is_in_order_with_a_stream_that_is_not_the_default_one() -> None:
    tensors, stream = Tensors(), torch.cuda.Stream()
    tensor = torch.ones(1 << 24, device="cuda")
    with torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.default_stream())
        for _ in range(50):
            tensor.add_(1.0)
        doubled(tensors, tensor)
        total = tensor.sum(dtype=torch.float64)
    stream.synchronize()
    assert float(total) == 102 * (1 << 24)


def test_the_pinned_memory_is_kept_and_is_pinned() -> None:
    tensors, places = Tensors(), set()
    for size in (1000, 1000, 10):
        with tensors.flat(torch.ones(size, device="cuda")) as vector:
            places.add(vector.ctypes.data)
            assert torch.from_numpy(vector).is_pinned()
    assert len(places) == 1


def test_nothing_is_written_when_the_block_raises() -> None:
    tensor = torch.ones(100, device="cuda")
    with pytest.raises(RuntimeError, match="no peers"), Tensors().flat(tensor):
        raise RuntimeError("no peers")
    assert (tensor == 1).all()


@pytest.mark.parametrize("codec", ["fp32", "int8", "topk:0.1+int8"])
def test_two_ranks_with_a_gpu_add_up(codec: str) -> None:
    addresses, key = free_addresses(2), ClusterKey.generate()

    def work(rank: int) -> torch.Tensor:
        with barnraise.static_peers(addresses, rank=rank, cluster_key=key) as context:
            context.wait_for_peers()
            tensor = torch.linspace(-1, 1, 100_000, device="cuda") * (rank + 1)
            for _ in range(3):
                context.all_reduce(tensor, "mean", codec=codec)
            return tensor

    found = at_once(lambda: work(0), lambda: work(1))
    assert torch.equal(found[0], found[1])
    if codec != "topk:0.1+int8":
        assert torch.allclose(found[0], torch.linspace(-1.5, 1.5, 100_000, device="cuda"), atol=0.02)
