"""bench/codecs.py with a tiny model: what it measures, and which codecs it calls useless."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from barnraise.config import InnerConfig, ModelConfig, RoundConfig, RunConfig
from barnraise.data.corpus import load

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script under another name: `codecs` is the standard library's."""
    monkeypatch.syspath_prepend(BENCH)
    spec = importlib.util.spec_from_file_location("codecs_bench", BENCH / "codecs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "codecs_bench", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TIMED_PARAMETERS", 5000)
    monkeypatch.setattr(module, "REPEATS", 1)
    return module


def row(bench: ModuleType, codec: str, bits: float, lost: float, took_ms: float = 1.0) -> Any:
    figures = {"ratio": 32 / bits, "lost_fed_back": 0.0, "encode_ms": took_ms, "decode_ms": took_ms, "verdict": ""}
    return bench.Row(codec=codec, dtype="float32", bits=bits, lost=lost, **figures)


def test_real_updates_on_the_grid(bench: ModuleType) -> None:
    model = ModelConfig(hidden_size=16, num_layers=1, num_heads=1, max_seq_len=16)
    config = RunConfig(model=model, round=RoundConfig(steps=2), inner=InnerConfig(batch_size=2, warmup_steps=1))
    rounds = bench.updates_of(config, load(config.data, window=17), 2, 2)
    assert [len(updates) for updates in rounds] == [2, 2]
    update = rounds[1][0]
    assert np.abs(update).max() > 0
    stops = [1000, len(update)]
    exponents = bench.exponents_of(update, stops)
    grid = bench.gridded(update, exponents, stops)
    for exponent, start, stop in zip(exponents, [0, 1000], stops, strict=True):
        assert 2**11 <= np.abs(grid[start:stop].astype(int)).max() <= 2**12
        assert np.abs(grid[start:stop] * 2.0**-exponent - update[start:stop]).max() <= 2.0 ** -(exponent + 1)
    for values in ([updates[0] for updates in rounds], [grid, grid]):
        measured = bench.row_of("int8", values, values[0])
        assert 8 < measured.bits < 8.3
        assert 0 < measured.lost < 0.02
    assert bench.row_of("fp32", [update], update).lost == 0
    assert bench.row_of("topk:0.01", [update, update], update).lost_fed_back > 0.1


def test_who_is_useless(bench: ModuleType) -> None:
    good, small = row(bench, "good", 8, 0.1), row(bench, "small", 2, 0.4)
    worse, slow = row(bench, "worse", 8, 0.2), row(bench, "slow", 4, 0.1, took_ms=9)
    plain, packed = row(bench, "plain", 32, 0), row(bench, "packed", 24, 0, took_ms=5)
    found = {each.codec: each.verdict for each in bench.judged([good, small, worse, slow, plain, packed])}
    assert found == {
        "good": "",
        "small": "",
        "worse": "of no use: good",
        "slow": "",
        "plain": "",
        "packed": "saves 25%; costs more than it saves above 4 Mbit/s",
    }
