"""bench/learning.py with a tiny model: its cells, what it counts as sent, and that a second call trains nothing again."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
TINY = (
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_heads=1",
    "model.max_seq_len=16",
    "inner.batch_size=2",
    "inner.warmup_steps=1",
)
STEPS = 4
CELLS = {f"{start}{name}" for start in ("", "warm_") for name in ("solo", "h1", "h10", "h30", "h100")}


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("learning")


def run(learning: ModuleType, monkeypatch: pytest.MonkeyPatch, path: Path, *more: str) -> dict[str, Any]:
    call = ["learning.py", "--short", "--steps", str(STEPS), "--windows", "4", "--json", str(path), *TINY, *more]
    monkeypatch.setattr(sys, "argv", call)
    learning.main()
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def test_cells_and_bytes(learning: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = run(learning, monkeypatch, tmp_path / "first.json")
    assert figures.keys() >= CELLS
    assert figures["settings"]["codec"] == "int8"
    assert set(figures["seeds"]) == {"1", "2"}
    assert figures["solo"]["bytes_per_peer"] == 0
    assert figures["warm_h1"]["loss"] == figures["h1"]["loss"]
    size = 2 * 256 * 16 + 4 * 16 + 4 * 16 * 16 + 3 * 16 * 48  # embedding and head; taps and matrices; feed-forward
    ring = 2 * 3 / 4
    assert figures["h1"]["bytes_per_peer"] == pytest.approx(STEPS * ring * 4 * size)
    assert figures["warm_h1"]["bytes_per_peer_whole"] == figures["h1"]["bytes_per_peer"]
    for name in ("h30", "warm_h30"):  # one round each, of a byte an element and a little for scales
        assert ring * size < figures[name]["bytes_per_peer"] < 1.01 * ring * size
    for name in CELLS - {"warm_h1", "h30", "h100", "warm_h30", "warm_h100"}:
        assert len({cells[name]["loss"] for cells in figures["seeds"].values()}) == 2


def test_a_shorter_interval_sends_more(learning: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(learning, "INTERVALS", (2, 4))
    figures = run(learning, monkeypatch, tmp_path / "intervals.json")
    assert figures["h2"]["bytes_per_peer"] == 2 * figures["h4"]["bytes_per_peer"]
    assert figures["h2"]["loss"] != figures["h4"]["loss"]


def test_known_seeds_are_not_trained_again(
    learning: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "figures.json"
    first = run(learning, monkeypatch, path)

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(learning, "one_seed", refuse)
    assert run(learning, monkeypatch, path) == first
    with pytest.raises(AssertionError, match="trained again"):
        run(learning, monkeypatch, path, "outer.momentum=0.7")
