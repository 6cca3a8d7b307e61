"""The public compressor: what comes back, what is owed, and what strangers' bytes can do."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

import barnraise
from barnraise import Compressor
from barnraise.codec.codec import Malformed
from barnraise.errors import ConfigError


def test_its_docstring(run_docstring: Callable[..., None]) -> None:
    run_docstring(barnraise.Compressor, Compressor=Compressor, np=np)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 0, 2), (5, 4, 3)])
def test_arrays_come_back_in_shape_and_type(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    found = Compressor().decompress(Compressor("fp32+zstd").compress(array))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.allclose(found, array)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_come_back_in_shape_and_type(dtype: torch.dtype) -> None:
    tensor = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_().T
    found = Compressor().decompress(Compressor("fp32").compress(tensor))
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.allclose(found, tensor.detach().to(torch.float32).to(dtype))
    assert not found.requires_grad


@pytest.mark.parametrize("strategy", ["int8", "topk:0.1", "randomk:0.3", "powersgd:1", "topk:0.2+int2+zstd"])
def test_with_feedback_everything_arrives_in_the_end(strategy: str) -> None:
    compressor, generator = Compressor(strategy), np.random.default_rng(2)
    total, arrived, size = np.zeros(400), np.zeros(400), 0
    for round_ in range(80):
        update = generator.standard_normal(400) if round_ < 10 else np.zeros(400)
        message = compressor.compress(update.astype(np.float32))
        total += update
        arrived += compressor.decompress(message)
        size = max(size, len(message))
    assert np.abs(total - arrived).max() < 0.3
    assert size < 4 * 400


def test_without_feedback_nothing_is_kept() -> None:
    compressor, update = Compressor("topk:0.1", error_feedback=False), np.arange(1, 21, dtype=np.float32)
    first, second = (compressor.decompress(compressor.compress(update)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.flatnonzero(first).tolist() == [18, 19]


def test_rolled_back_it_is_as_if_the_last_had_not_been_sent() -> None:
    compressor, update = Compressor("topk:0.25+fp32"), np.array([8, 4, 2, 1], np.float32)
    assert compressor.decompress(compressor.compress(update)).tolist() == [8, 0, 0, 0]
    lost = compressor.decompress(compressor.compress(update))
    assert lost.tolist() == [0, 8, 0, 0] or lost.tolist() == [8, 0, 0, 0]
    compressor.rollback()
    assert compressor.decompress(compressor.compress(update)).tolist() == lost.tolist()
    compressor.rollback()
    compressor.rollback()
    assert compressor.decompress(compressor.compress(np.zeros(4, np.float32))).tolist() == [0, 4, 0, 0]


def test_each_name_has_a_residual_of_its_own() -> None:
    compressor = Compressor("topk:0.5+fp32")
    assert compressor.decompress(compressor.compress(np.array([3, 1], np.float32), "a")).tolist() == [3, 0]
    assert compressor.decompress(compressor.compress(np.array([0, 0, 9, 9], np.float32), "b")).tolist() == [0, 0, 9, 9]
    assert compressor.decompress(compressor.compress(np.zeros(2, np.float32), "a")).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="tensor 'a' has 3 elements and had 2"):
        compressor.compress(np.zeros(3, np.float32), "a")


@pytest.mark.parametrize(
    ("thing", "complaint"),
    [
        (np.arange(3), "not int64"),
        (torch.arange(3), "not int64"),
        (np.zeros(2, np.complex64), "not complex64"),
        ([1.0, 2.0], "not list"),
        (np.array([1.0, np.nan]), "not finite"),
        (np.array([1e300]), "not finite in float32"),
        (np.zeros((1,) * 17), "17 dimensions"),
    ],
)
def test_what_it_does_not_take(thing: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Compressor().compress(thing)


def test_a_strategy_that_is_none() -> None:
    with pytest.raises(ConfigError, match="no stage 'gzip'"):
        Compressor("gzip")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        (0, 9, "format 9"),
        (1, "gzip", "no stage 'gzip'"),
        (1, "int8+" * 40, "no message"),
        (2, [101], "at most 100 elements"),
        (2, [1 << 40, 1 << 40], "no message"),
        (2, [0, 1 << 31], "at most 100 elements"),
        (2, [-1], "no message"),
        (2, [1] * 17, "no message"),
        (3, "int64", "no message"),
        (3, "bfloat16", "numpy has no bfloat16"),
        (6, b"1", "instead of"),
        (6, bytes(500), "more than 5 elements"),
    ],
)
def test_a_message_that_no_compressor_made_is_refused(field: int, value: object, complaint: str) -> None:
    parts = msgspec.msgpack.decode(Compressor("int8").compress(np.zeros(5, np.float32)))
    parts[field] = value
    with pytest.raises(Malformed, match=complaint):
        Compressor().decompress(msgspec.msgpack.encode(parts), max_elements=100)


def test_more_bytes_than_the_elements_can_take_are_refused_unread() -> None:
    with pytest.raises(Malformed, match="Raise max_elements"):
        Compressor().decompress(bytes(10_000), max_elements=100)
