"""Every decoder of a stranger's bytes against mutated input: it refuses, or it decodes; nothing else happens.

Some minutes of one core. Another number of cases for each decoder, of the same sequence and longer:

    BARNRAISE_FUZZ_CASES=10000000 pytest -m fuzz tests/fuzz
"""

import contextlib
import os
import random
import resource
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pytest
import torch

from barnraise.api.compressor import Compressor
from barnraise.codec.chain import codec_of
from barnraise.codec.codec import Malformed, Place
from barnraise.codec.delta import Applied, DeltaReceiver, DeltaSender, Gap
from barnraise.codec.grid import LIMIT

CASES: Final = int(os.environ.get("BARNRAISE_FUZZ_CASES", "200000"))
SPECS: Final = (
    *("fp16", "bf16", "int8", "int4", "int2"),
    *("topk:0.1", "topk:0.4+int2", "topkc:0.05+int4", "randomk:0.3", "powersgd:1"),
    *("zstd", "lz4", "snappy", "int8+zstd", "topk:0.1+int2+zstd", "powersgd:1+int8+snappy"),
)
PAIRS: Final = [
    (spec, dtype) for dtype in ("int16", "float32") for spec in ({"int16": "grid16"}.get(dtype, "fp32"), *SPECS)
]
SIZES: Final = (0, 1, 2, 13, 40, 200, 600)
MAX_GROWTH: Final = 24
INTERESTING: Final = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
MAX_GROWN_KB: Final = 128 << 10
"""Of the process's peak memory in a whole test, its bookkeeping included; a bomb would take more with one input."""

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(120 + CASES // 500)]


def mutated(valid: Sequence[bytes], seed: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Yield ``count`` inputs that were valid once, each with the number of the one that it came from."""
    source = random.Random(seed)
    pick, below = source.random, source.randrange
    for _ in range(count):
        number = int(pick() * len(valid))
        data = bytearray(valid[number])
        kind = pick()
        if kind < 0.45 and data:
            for _ in range(1 + int(pick() * 3)):
                data[int(pick() * len(data))] ^= 1 << int(pick() * 8)
        elif kind < 0.6 and data:
            place = int(pick() * min(len(data), 16)) if pick() < 0.7 else int(pick() * len(data))
            data[place] = INTERESTING[int(pick() * 6)]
        elif kind < 0.7 and data:
            del data[int(pick() * len(data)) :]
        elif kind < 0.8:
            place = int(pick() * (len(data) + 1))
            data[place:place] = source.randbytes(1 + int(pick() * MAX_GROWTH))
        elif kind < 0.92:
            other = valid[int(pick() * len(valid))]
            cut = int(pick() * (len(data) + 1))
            data[cut:] = other[int(pick() * (len(other) + 1)) if pick() < 0.5 else cut :]
        else:
            data = bytearray(source.randbytes(below(len(data) + 2)))
        yield number, bytes(data)


def peak_kb() -> int:
    """Return the most memory that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def valid(spec: str, dtype: str) -> list[tuple[int, bytes]]:
    """Return encodings of vectors of each size, some sparse, some dense, with the size."""
    codec, found = codec_of(spec, dtype), []
    generator = np.random.default_rng(zlib.crc32(spec.encode()))
    for size in SIZES:
        for density in (0.05, 1.0):
            values = np.rint(generator.standard_normal(size) * 500 * (generator.random(size) < density))
            out = np.empty(codec.bound_bytes(size), np.uint8)
            found.append((size, out[: codec.encode(values.astype(dtype), out, Place(1, 2))].tobytes()))
    return found


@pytest.mark.parametrize(("spec", "dtype"), PAIRS)
def test_codecs(spec: str, dtype: str) -> None:
    codec, pool = codec_of(spec, dtype), valid(spec, dtype)
    before, seed = peak_kb(), zlib.crc32(f"{spec} {dtype}".encode())
    outs = {size: np.empty(size, codec.dtype) for size in SIZES}
    bounds = {size: codec.bound_bytes(size) for size in SIZES}
    place, refused = Place(1, 2), 0
    for number, data in mutated([wire for _, wire in pool], seed, CASES):
        size = pool[number][0]
        if len(data) > bounds[size]:  # as whoever receives it does
            data = data[: bounds[size]]
        out = outs[size]
        try:
            codec.reader(np.frombuffer(data, np.uint8), size, place).read(0, size, out)
        except Malformed:
            refused += 1
            continue
        if size and dtype == "float32":
            assert np.isfinite(out).all(), data.hex()
        elif size:
            assert out.min() >= -LIMIT, data.hex()
    assert 0 < refused < CASES
    assert peak_kb() - before < MAX_GROWN_KB


@pytest.mark.parametrize(("spec", "dtype"), PAIRS)
def test_codecs_allocate_no_more_than_a_multiple_of_what_is_decoded(spec: str, dtype: str) -> None:
    codec, pool = codec_of(spec, dtype), valid(spec, dtype)
    most = 0
    out = np.empty(max(SIZES), codec.dtype)
    tracemalloc.start()
    try:
        for number, data in mutated([wire for _, wire in pool], 1, min(CASES, 3000)):
            size = pool[number][0]
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(Malformed):
                codec.reader(np.frombuffer(data, np.uint8), size, Place(1, 2)).read(0, size, out)
            most = max(most, tracemalloc.get_traced_memory()[1] - held - 64 * size)
    finally:
        tracemalloc.stop()
    assert most < 32 << 10, "an exception with its traceback, a few small arrays, 64 bytes an element"


def test_the_public_compressors_messages() -> None:
    compressor, generator = Compressor("int8"), np.random.default_rng(1)
    pool = [Compressor("int8").compress(torch.ones(3, 4))] + [
        Compressor(spec).compress(generator.standard_normal(shape).astype(dtype))
        for spec in ("topk:0.1", "int4+zstd", "powersgd:1", "randomk:0.5", "fp32")
        for shape, dtype in (((0,), "float32"), ((3, 5), "float64"), ((20, 20), "float16"), ((7, 2, 3), "float32"))
    ]
    before, refused = peak_kb(), 0
    for _, data in mutated(pool, 11, CASES):
        try:
            found = compressor.decompress(data, max_elements=10_000)
        except Malformed:
            refused += 1
            continue
        assert len(found.reshape(-1)) <= 10_000
    assert 0 < refused < CASES
    assert peak_kb() - before < MAX_GROWN_KB


def test_deltas() -> None:
    generator = np.random.default_rng(2)
    pool, receivers = [], []
    for spec in ("fp32+zstd", "int8", "topk:0.3+bf16"):
        values = generator.standard_normal(300).astype(np.float32)
        sender, receiver = DeltaSender(spec), DeltaReceiver(1000)
        first = sender.encode(values)
        applied = receiver.apply(first)
        assert isinstance(applied, Applied)
        sender.acknowledge(applied)
        values[::7] += 1
        pool += [first, sender.encode(values)]
        receivers += [receiver] * 2
    before, refused, gaps = peak_kb(), 0, 0
    for number, data in mutated(pool, 12, CASES):
        held = receivers[number].values
        try:
            answer = receivers[number].apply(data)
        except Malformed:
            refused += 1
            assert receivers[number].values is held
            continue
        gaps += isinstance(answer, Gap)
    assert refused + gaps > CASES // 2
    assert peak_kb() - before < MAX_GROWN_KB
