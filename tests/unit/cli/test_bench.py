"""``barnraise bench allreduce``: who takes part, what is printed, what goes wrong; a fake measures."""

import json
from pathlib import Path
from typing import Any

import pytest

from barnraise import cli
from barnraise.cli import bench as verb
from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey
from barnraise.observe.measurements import Orders

HERE = Path(__file__).parent
QUICK = ("bench", "allreduce", "--mb", "1,25", "--codec", "int8", "--schedule", "ring", "--repetitions", "2")


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verb, "MEASURER", "fake_measurer")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.chdir(tmp_path)


def orders(**what: Any) -> Orders:
    settings = {"sizes_mb": (1.0,), "codecs": ("fp32",), "schedules": ("auto",), "repetitions": 7, "num_peers": 3}
    return Orders(**(settings | what))


def test_the_table_has_both_bandwidths(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(QUICK) == 0
    assert capsys.readouterr().out.splitlines() == [
        "raising 4 peers on this machine: 1, 25 MB; int8; ring; 2 turns of each",
        "rank 0 of 4: all are there",
        "MB  codec  schedule  median ms   MB/s  bus MB/s  CPU ms",
        " 1  int8   ring           10.0  100.0     150.0    20.0",
        "25  int8   ring          250.0  100.0     150.0   500.0",
    ]


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main((*QUICK, "--peers", "2", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["world_size"] == 2
    assert [row["mb"] for row in found["measured"]] == [1.0, 25.0]
    assert found["measured"][0] | {"mb": 1.0} == {
        "mb": 1.0,
        "codec": "int8",
        "schedule": "ring",
        "median_ms": 10.0,
        "mb_per_s": 100.0,
        "bus_mb_per_s": 100.0,
        "cpu_ms": 20.0,
        "turns_ms": [10.0, 10.0],
    }


def test_the_planners_choice_is_told_with_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main((*QUICK, "--name", "planner")) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "By the links as they were measured meanwhile, the planner would choose:",
        "  1 MB int8: shards. 4 hosts, all 25 ms from each other; 2 latencies",
    ]
    assert cli.main((*QUICK, "--name", "planner", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["planned"] == [
        {
            "mb": 1.0,
            "codec": "int8",
            "schedule": "shards",
            "predicted_ms": 62.5,
            "reasons": ["4 hosts, all 25 ms from each other", "2 latencies"],
        }
    ]


def test_peers_of_one_machine_have_ports_and_a_key_of_their_own() -> None:
    every = verb._orders_of_all(orders(), None, is_joining=False)
    assert [one.rank for one in every] == [0, 1, 2]
    assert len(set(every[0].addresses)) == 3
    assert {one.addresses for one in every} == {every[0].addresses}
    (key,) = {one.cluster_key for one in every}
    assert key is not None
    ClusterKey.from_text(key)


def test_on_a_list_of_machines_each_is_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--address", "a:1", "--address", "b:1", "--rank", "1"]
    assert cli.main((*QUICK, *words)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("rank 1 of 2, waiting for the others")
    assert said[1] == "rank 1 of 2: all are there"


def test_without_a_list_they_look_for_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main((*QUICK, "--join", "--peers", "3")) == 0
    assert capsys.readouterr().out.startswith("looking for 2 other peers on this network")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", "1"], "--rank goes with --address"),
        (["--address", "a:1"], "--rank: which of the 1 addresses"),
        (["--address", "a:1", "--rank", "0", "--join"], "one of the two"),
        (["--mb", "big"], "--mb big"),
        (["--mb", "0"], "--mb 0"),
        (["--codec", ","], "--codec"),
        (["--peers", "0"], "--peers 0"),
        (["--repetitions", "0"], "--repetitions 0"),
        (["--plot", "times.pdf"], ".svg or .png"),
        (["--cluster-key", "missing"], "missing"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(("bench", "allreduce", *words)) == 2
    heard = capsys.readouterr()
    assert said in heard.err
    assert heard.out == ""


def test_what_the_processes_could_not_do_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main((*QUICK, "--name", "nobody")) == 3
    assert "1 of 4 peers are here" in capsys.readouterr().err
    assert cli.main((*QUICK, "--name", "broken")) == 1
    assert "ended with code 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["times.svg", "times.png"])
def test_a_figure_is_drawn(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra")
    assert cli.main((*QUICK, "--plot", name)) == 0
    drawn = (tmp_path / name).read_bytes()
    assert drawn.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


def test_without_matplotlib_a_figure_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from barnraise.cli import curves

    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'barnraise\[plot\]'"):
        curves.check(Path("times.svg"))
