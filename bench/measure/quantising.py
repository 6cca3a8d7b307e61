"""The theme codec: quantise and dequantise 25 MB as int8, beside two copies of the same 25 MB in memory."""

import statistics
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from measure.themes import Bound, Report, Settings

from barnraise.codec.chain import codec_of
from barnraise.codec.codec import PIECE

ELEMENTS: Final = 6_250_000
"""25 MB of float32."""
NAMES: Final = ("int8", "bf16", "fp16", "int4")


def codec(settings: Settings, report: Report) -> None:
    """Time each codec and the copies in turn, by CPU seconds of this thread."""
    values = np.random.default_rng(1).standard_normal(ELEMENTS, np.float32)
    copied = np.empty_like(values)

    def copy_twice() -> None:
        np.copyto(copied, values)
        np.copyto(copied, values)

    works = {"copies": copy_twice} | {name: _round_trip(name, values) for name in NAMES}
    times_s: dict[str, list[float]] = {name: [] for name in works}
    for number in range(settings.repetitions + 1):
        for name, work in works.items():
            took_s = _cpu_s(work)
            if number:  # the first touches the memory
                times_s[name].append(took_s)
    medians = {name: statistics.median(taken) for name, taken in times_s.items()}
    report.say(f"two copies of 25 MB: {1e3 * medians['copies']:.2f} ms")
    report.figures["codec"] = {
        name: {
            "over_two_copies": report.figure(
                f"{name}: encode and decode / two copies",
                medians[name] / medians["copies"],
                "x",
                Bound(at_most=2.0) if name == "int8" else None,
            ),
            "ms": round(1e3 * medians[name], 3),
        }
        for name in NAMES
    } | {"copies_ms": round(1e3 * medians["copies"], 3)}


def _round_trip(name: str, values: np.ndarray) -> Callable[[], None]:
    """Return the work of encoding all values and reading them back, piece by piece as collectives do."""
    chosen = codec_of(name, np.float32)
    encoded = np.empty(chosen.bound_bytes(PIECE), np.uint8)
    decoded = np.empty_like(values)

    def work() -> None:
        for start in range(0, len(values), PIECE):
            piece = values[start : start + PIECE]
            used = chosen.encode(piece, encoded)
            chosen.reader(encoded[:used], len(piece)).read(0, len(piece), decoded[start : start + PIECE])

    return work


def _cpu_s(work: Callable[[], None]) -> float:
    began_s = time.thread_time()
    work()
    return time.thread_time() - began_s
