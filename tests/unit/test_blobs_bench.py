"""bench/blobs.py with a few MB: real processes and sockets, donors that limit themselves; what its figures mean, not how large."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def test_a_blob_comes_from_one_donor_and_from_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    call = [
        "--mbytes",
        "12",
        "--mbit",
        "800",
        "--turns",
        "1",
        "--donors",
        "2",
        "--in-donor",
        "--json",
        str(tmp_path / "blobs.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["blobs.py", *call, "--dir", str(tmp_path)])
    assert importlib.import_module("blobs").main() == 0
    assert "2 donors / one" in capsys.readouterr().out
    figures = json.loads((tmp_path / "blobs.json").read_text())
    assert (figures["limited_by"], figures["mbytes"], figures["link_mbit"]) == ("donor", 12.0, 800.0)
    assert [turn["donors"] for turn in figures["turns"]] == [1, 2]
    one, two = figures["turns"]
    assert sum(one["shares"]) == pytest.approx(1.0, abs=0.01)
    assert sum(share > 0 for share in two["shares"]) > 1
    assert figures["speedup"] == pytest.approx(one["took_s"] / two["took_s"], rel=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["blobs.json"]
