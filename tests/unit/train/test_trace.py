"""Traces of rounds: which are written, and what is in them."""

import gzip
import json
from pathlib import Path

import torch

from barnraise.train.trace import TRACED_STEPS, Tracer


def work(tracer: Tracer, round_: int, steps: int = 1) -> None:
    tracer.begin(round_)
    for _ in range(steps):
        torch.ones(17, 19) @ torch.ones(19, 23)
        tracer.step()
    tracer.end()


def events(file: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return found


def test_rounds_are_traced_from_the_second_on(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "traces", 2)
    for round_ in range(7, 12):
        work(tracer, round_)
    assert sorted(file.name for file in (tmp_path / "traces").iterdir()) == ["round-0008.json.gz", "round-0009.json.gz"]
    products = [
        event for event in events(tmp_path / "traces" / "round-0008.json.gz") if event.get("name") == "aten::mm"
    ]
    assert len(products) == 1
    assert products[0]["args"]["Input Dims"][:2] == [[17, 19], [19, 23]]  # type: ignore[index]


def test_a_long_round_is_traced_in_part(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, 1)
    work(tracer, 0)
    work(tracer, 1, steps=TRACED_STEPS + 5)
    found = [event for event in events(tmp_path / "round-0001.json.gz") if event.get("name") == "aten::mm"]
    assert len(found) == TRACED_STEPS


def test_a_round_that_was_superseded_leaves_no_trace(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, 2)
    work(tracer, 0)
    tracer.begin(1)
    work(tracer, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["round-0002.json.gz"]


def test_nothing_is_traced_unless_asked_for(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path)
    for round_ in range(3):
        work(tracer, round_)
    assert list(tmp_path.iterdir()) == []
