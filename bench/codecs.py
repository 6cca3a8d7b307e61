"""What each codec makes of real updates: bytes on the wire, what is lost, CPU time; and which ones are of no use.

    python bench/codecs.py                          some two minutes of one core
    python bench/codecs.py --json codecs.json --rounds 8

The updates are those of the preset `local` on the bundled corpus: workers that train apart for a round's steps and then
average. `Row` says what the columns are.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from measure import process
from numpy.typing import NDArray

from barnraise.codec.chain import codec_of
from barnraise.codec.codec import PIECE, Codec, Place
from barnraise.codec.grid import HEADROOM_BITS, LIMIT
from barnraise.config import RunConfig
from barnraise.data.corpus import Corpus, load
from barnraise.data.samples import batch
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.loss import loss
from barnraise.train.inner import Inner, lr_factor

TIMED_PARAMETERS: Final = 6_250_000
"""25 MB of float32."""
REPEATS: Final = 5
SPECS: Final = (
    *("fp16", "bf16", "int8", "int8s", "int4", "int4s", "int2"),
    *("topk:0.1", "topk:0.01", "topk:0.1+int4", "topk:0.016+int2", "topkc:0.016+int2"),
    *("randomk:0.1", "randomk:0.016+int2", "powersgd:4", "powersgd:16", "powersgd:16+int8"),
    *("zstd:1", "zstd:3", "zstd:9", "lz4:1", "lz4:9", "snappy"),
    *("int8+zstd:1", "int8+zstd:9", "int8+lz4:1", "int4+zstd:1", "int2+zstd:3"),
    *("topk:0.1+int4+zstd:3", "topk:0.03+int4+zstd:3", "topk:0.016+int2+zstd:3"),
)

Vector = NDArray[np.float32]
Values = NDArray[np.float32] | NDArray[np.int16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One codec on one type."""

    codec: str
    dtype: str
    bits: float
    """Bytes of the last rounds' updates, in bits an element, all headers of the encoding included."""
    ratio: float
    """Times smaller than float32."""
    lost: float
    """|x - decoded| / |x|, of one update without feedback."""
    lost_fed_back: float
    """|sum of the rounds' updates - sum of what was decoded| / |sum|, with feedback: what is still owed at the end."""
    encode_ms: float
    """CPU time of 6.25 million elements."""
    decode_ms: float
    verdict: str
    """Which codec to take instead, or where it does not pay; ""."""


def updates_of(config: RunConfig, corpus: Corpus, num_workers: int, num_rounds: int) -> list[list[Vector]]:
    """Return each round's updates, theta - w, of all workers."""
    model = build(config.model, config.seed)
    flat = flatten(model)
    inners = [Inner(flat, config.inner) for _ in range(num_workers)]
    theta, steps, size = flat.numpy(), config.round.steps, config.inner.batch_size
    rounds = []
    for number in range(num_rounds):
        updates = []
        for worker, inner in enumerate(inners):
            flat.load(theta)
            for step in range(number * steps, (number + 1) * steps):
                first = (step * num_workers + worker) * size
                ids = np.arange(first, first + size)
                x, y = batch(corpus.train, config.seed, ids, config.model.max_seq_len)
                flat.gradients.zero_()
                value = loss(model, torch.from_numpy(x.astype(np.int64)), torch.from_numpy(y.astype(np.int64)))
                value.backward()  # type: ignore[no-untyped-call]
                inner.step(lr_factor(step, num_rounds * steps, config.inner))
            updates.append(theta - flat.numpy())
        theta = theta - np.mean(updates, axis=0, dtype=np.float32)
        rounds.append(updates)
        print(f"round {number + 1} of {num_rounds}: {len(theta)} parameters", flush=True)
    return rounds


def exponents_of(update: Vector, stops: Sequence[int]) -> list[int]:
    """Return each tensor's grid, as a run would have it after some rounds: its largest with `HEADROOM_BITS` to spare."""
    found, start = [], 0
    for stop in stops:
        peak = float(np.abs(update[start:stop]).max())
        found.append(15 - HEADROOM_BITS - int(np.frexp(peak)[1]) if peak else 16)
        start = stop
    return found


def gridded(update: Vector, exponents: Sequence[int], stops: Sequence[int]) -> NDArray[np.int16]:
    """Return an update on the grid."""
    found, start = np.empty(len(update), np.int16), 0
    for exponent, stop in zip(exponents, stops, strict=True):
        found[start:stop] = np.clip(np.rint(update[start:stop] * 2.0**exponent), -LIMIT, LIMIT)
        start = stop
    return found


def passed_through(codec: Codec, values: Values, place: Place) -> tuple[Values, int]:
    """Return what arrives of values, and the bytes it took."""
    data = np.empty(codec.bound_bytes(len(values)), np.uint8)
    used = codec.encode(values, data, place)
    return decoded(codec, data[:used], len(values), place), used


def decoded(codec: Codec, data: NDArray[np.uint8], count: int, place: Place) -> Values:
    """Decode piece by piece, as peers do."""
    reader, out = codec.reader(data, count, place), np.empty(count, codec.dtype)
    for start in range(0, count, PIECE):
        reader.read(start, min(start + PIECE, count), out[start : start + PIECE])
    return out


def fed_back(spec: str, rounds: Sequence[Values]) -> float:
    """Return what is owed after all rounds, relative to the sum of the updates, with error feedback in float32."""
    codec = codec_of(spec, np.float32)
    residual = np.zeros(len(rounds[0]), np.float32)
    for number, update in enumerate(rounds):
        wanted = update.astype(np.float32) + residual
        residual = wanted - passed_through(codec, wanted, Place(number, 0))[0]
    return norm(residual) / norm(np.sum(rounds, axis=0, dtype=np.float64))


def norm(values: NDArray[Any]) -> float:
    """Return the Euclidean norm."""
    return float(np.linalg.norm(values.astype(np.float64)))


def cpu_ms(work: Callable[[], object]) -> float:
    """Return the least CPU time of some calls."""
    taken = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken) * 1e3


def row_of(spec: str, rounds: Sequence[Values], many: Values) -> Row:
    """Measure one codec on one worker's updates; its time on ``many``, which do not repeat: a compressor would notice."""
    codec = codec_of(spec, rounds[0].dtype)
    sizes, losses = [], []
    for number, update in enumerate(rounds):
        found, used = passed_through(codec, update, Place(number, 0))
        sizes.append(8 * used / len(update))
        losses.append(norm(update.astype(np.float64) - found) / norm(update))
    data = np.empty(codec.bound_bytes(len(many)), np.uint8)
    used = codec.encode(many, data)
    lost_fed_back = fed_back(spec, rounds) if many.dtype == np.float32 and not codec.is_lossless else 0.0
    bits, lost = statistics.mean(sizes[len(sizes) // 2 :]), statistics.mean(losses[len(losses) // 2 :])
    return Row(
        codec=codec.name,
        dtype=str(many.dtype),
        bits=bits,
        ratio=32 / bits,
        lost=lost,
        lost_fed_back=lost_fed_back,
        encode_ms=cpu_ms(lambda: codec.encode(many, data)),
        decode_ms=cpu_ms(lambda: decoded(codec, data[:used], len(many), Place())),
        verdict="",
    )


def judged(rows: list[Row]) -> list[Row]:
    """Say of which rows nobody should make use, and up to which speed lossless compression is worth its time."""
    return [replace(row, verdict=worse_than(row, rows) or pays_below(row)) for row in rows]


def worse_than(row: Row, rows: list[Row]) -> str:
    """Name a codec that is as small, loses no more and takes no longer, one of the two clearly less; "" if there is none."""
    for other in rows:
        is_smaller = other.bits < 0.98 * row.bits and other.lost <= row.lost
        is_better = other.bits <= 1.02 * row.bits and other.lost < 0.98 * row.lost
        is_quick = other.encode_ms + other.decode_ms <= 1.5 * (row.encode_ms + row.decode_ms)
        if other.dtype == row.dtype and is_quick and (is_smaller or is_better):
            return f"of no use: {other.codec}"
    return ""


def pays_below(row: Row) -> str:
    """Return on which links lossless compression of values that are not rounded is quicker than sending them."""
    full_bits = 16 if row.dtype == "int16" else 32
    saved = 1 - row.bits / full_bits
    if row.lost or not saved > 0.001:
        return ""
    megabits = saved * full_bits * TIMED_PARAMETERS / (row.encode_ms + row.decode_ms) / 1e3
    return f"saves {saved:.0%}; costs more than it saves above {megabits:.0f} Mbit/s"


def copies() -> dict[str, float]:
    """Time int8 there and back beside two copies of the same 25 MB."""
    values = np.random.default_rng(1).standard_normal(TIMED_PARAMETERS).astype(np.float32)
    codec, other = codec_of("int8", np.float32), np.empty_like(values)
    data = np.empty(codec.bound_bytes(len(values)), np.uint8)

    def there_and_back() -> None:
        used = codec.encode(values, data)
        reader = codec.reader(data[:used], len(values))
        for start in range(0, len(values), PIECE):
            reader.read(start, min(start + PIECE, len(values)), other[start : start + PIECE])

    def twice() -> None:
        np.copyto(other, values)
        np.copyto(other, values)

    codec_ms, copy_ms = cpu_ms(there_and_back), cpu_ms(twice)
    return {"int8_ms": codec_ms, "two_copies_ms": copy_ms, "ratio": codec_ms / copy_ms}


def show(rows: Sequence[Row], beside: dict[str, float]) -> None:
    """Print the tables."""
    head = f"{'codec':28}{'type':8}{'bits':>8}{'ratio':>8}{'lost':>9}{'owed':>8}{'encode':>9}{'decode':>9}  verdict"
    print(f"\n{head}\n{'-' * len(head)}")
    for row in rows:
        owed = f"{row.lost_fed_back:8.3f}" if row.lost_fed_back else f"{'-':>8}"
        print(
            f"{row.codec:28}{row.dtype:8}{row.bits:8.3f}{row.ratio:8.1f}{row.lost:9.4f}{owed}"
            f"{row.encode_ms:7.1f}ms{row.decode_ms:7.1f}ms  {row.verdict}"
        )
    print(
        f"\nint8 of 25 MB there and back: {beside['int8_ms']:.1f} ms; two copies: {beside['two_copies_ms']:.1f} ms; "
        f"ratio {beside['ratio']:.2f} (at most 2)"
    )


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = RunConfig()
    corpus = load(config.data, window=config.model.max_seq_len + 1)
    stops = np.cumsum([int(np.prod(tensor.shape)) for tensor in flatten(build(config.model, 1)).layout]).tolist()
    rounds = updates_of(config, corpus, arguments.workers, arguments.rounds)
    floats = [updates[0] for updates in rounds]
    everything = [update for updates in rounds for update in updates]
    exponents = exponents_of(np.mean(rounds[-2], axis=0), stops)
    grid = [gridded(update, exponents, stops) for update in floats]
    many = np.resize(np.concatenate(everything), TIMED_PARAMETERS)
    many_grid = np.resize(
        np.concatenate([gridded(update, exponents, stops) for update in everything]), TIMED_PARAMETERS
    )
    rows = [row_of(spec, floats, many) for spec in ("fp32", *SPECS)]
    rows += [row_of(spec, grid, many_grid) for spec in ("grid16", *SPECS)]
    rows, beside = judged(rows), copies()
    show(rows, beside)
    if arguments.json:
        figures = {"codecs": [asdict(row) for row in rows], "copies": beside, "machine": process.machine()}
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
