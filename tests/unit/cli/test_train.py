"""Where each value of a run's configuration comes from, and the verb as a whole with peers that play."""

import json
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from barnraise import cli
from barnraise.cli import launch
from barnraise.cli.conduct import conduct
from barnraise.cli.launch import Swarm
from barnraise.cli.train import resolve
from barnraise.config import PRESETS, RoundConfig, RunConfig, save
from barnraise.errors import ConfigError
from barnraise.observe.view import View, apply
from barnraise.observe.vocabulary import AnyEvent, RoundPlanned
from barnraise.runs import directory as rundir

NO_FLAGS: dict[str, Any] = {"rounds": None, "steps": None, "seed": None, "data": None, "preset": None}
TEXT = "A barn is raised by neighbours in one day, and each of them owns a barn of their own. " * 100
FAKE_PEER = Path(__file__).with_name("fake_peer.py")
FAKE_REPORT = (
    "import json; print(json.dumps(dict(val_bits_per_byte=2.0, unigram_bits_per_byte=4.5, five_gram_bits_per_byte=3.0,"
    " sample='Once more', num_parameters=1000)))"
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def write(path: Path, toml: str) -> Path:
    path.write_text(toml)
    return path


def test_file_gives_way_to_environment_and_that_to_flags(tmp_path: Path, text: Path) -> None:
    file = write(tmp_path / "run.toml", "seed = 2\n[round]\nrounds = 20\nsteps = 21\n")
    environment = {"BARNRAISE_RUN_ROUND__ROUNDS": "30", "BARNRAISE_RUN_ROUND__STEPS": "31"}
    config = resolve(file, NO_FLAGS | {"steps": 41, "data": str(text)}, environment)
    assert (config.seed, config.round.rounds, config.round.steps) == (2, 30, 41)


def test_without_a_file_the_environment_still_counts(text: Path) -> None:
    config = resolve(None, NO_FLAGS | {"data": str(text)}, {"BARNRAISE_RUN_SEED": "9"})
    assert config.seed == 9


def test_a_preset_replaces_the_model(text: Path) -> None:
    assert resolve(None, NO_FLAGS | {"data": str(text), "preset": "small"}, {}).model == PRESETS["small"]


def test_a_compression_level_is_a_codec_unless_one_was_named(tmp_path: Path, text: Path) -> None:
    flags = NO_FLAGS | {"data": str(text), "compression_level": 9}
    assert resolve(None, NO_FLAGS | {"data": str(text)}, {}).round.codec == "int8"
    assert resolve(None, flags, {}).round.codec == "topk:0.016+int2+zstd:3"
    assert resolve(None, flags, {"BARNRAISE_RUN_ROUND__CODEC": "int4"}).round.codec == "int4"
    assert resolve(write(tmp_path / "named.toml", '[round]\ncodec = "int8"\n'), flags, {}).round.codec == "int8"
    assert resolve(write(tmp_path / "other.toml", "[round]\nsteps = 3\n"), flags, {}).round.codec.startswith("topk")
    with pytest.raises(ConfigError, match=r"compression level of 12 is outside 1 \.\. 9"):
        resolve(None, flags | {"compression_level": 12}, {})


@pytest.mark.parametrize(
    ("link_mbit", "codec"), [(5, "int4"), (50, "int8+zstd:1"), (500, "int8"), (5000, "grid16+zstd:1")]
)
def test_a_level_counts_as_more_over_a_slow_link(text: Path, link_mbit: float, codec: str) -> None:
    flags = NO_FLAGS | {"data": str(text), "link_mbit": link_mbit}
    assert resolve(None, flags, {}).round.codec == codec
    assert resolve(None, flags | {"compression_level": 3}, {}).round.codec == codec
    assert resolve(None, flags | {"compression_level": 9}, {}).round.codec.startswith("topk")
    assert resolve(None, flags, {"BARNRAISE_RUN_ROUND__CODEC": "int2"}).round.codec == "int2"


def test_a_link_that_carries_nothing_is_refused(text: Path) -> None:
    with pytest.raises(ConfigError, match=r"bandwidth of 0\.0 Mbit/s carries nothing"):
        resolve(None, NO_FLAGS | {"data": str(text), "link_mbit": 0.0}, {})


def test_the_digest_of_the_text_is_filled_in_and_its_path_made_absolute(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text.parent)
    config = resolve(None, NO_FLAGS | {"data": text.name}, {})
    assert len(bytes.fromhex(config.data.digest)) == 32
    assert config.data.source == str(text.resolve())


def test_a_saved_run_refuses_another_text(tmp_path: Path, text: Path) -> None:
    file = tmp_path / "run.toml"
    save(resolve(None, NO_FLAGS | {"data": str(text)}, {}), file)
    assert resolve(file, NO_FLAGS, {}).data.source == str(text)
    text.write_text(TEXT.upper())
    with pytest.raises(ConfigError, match="use the same text"):
        resolve(file, NO_FLAGS, {})
    assert resolve(file, NO_FLAGS | {"data": str(text)}, {}).data.digest


def test_an_unknown_key_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    file = write(tmp_path / "run.toml", "[round]\nruonds = 3\n")
    with pytest.raises(ConfigError, match=r"unknown key 'round.ruonds'\. Known here: .*rounds"):
        resolve(file, NO_FLAGS, {})


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no text"):
        resolve(None, NO_FLAGS | {"data": str(write(tmp_path / "empty.txt", ""))}, {})


def play(tmp_path: Path, *, json: bool) -> None:
    """Carry out a run of two peers that only play their part."""
    made = rundir.create(RunConfig(round=RoundConfig(rounds=3, steps=5)), 2, tmp_path / "run", datetime(2026, 1, 2))
    swarm = Swarm(directory=made, command=(sys.executable, str(FAKE_PEER), "well"))
    conduct(swarm, json=json, report_command=(sys.executable, "-c", FAKE_REPORT))


def test_json_ends_with_the_figures_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play(tmp_path, json=True)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["event"], last["source"]) == ("run.finished", "launcher")
    assert last["wall_s"] > 0
    expected = {
        "val_bits_per_byte": 2.0,
        "tokens": 300,
        "rounds": 3,
        "bytes_sent_per_peer": 1000,
        "ddp_bytes_per_peer": 2 * 1 * 4 * 1000 * 15 // 2,
        "vertex": "v",
    }
    assert {key: last[key] for key in expected} == expected


def test_without_a_terminal_each_round_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play(tmp_path, json=False)
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("round ")] == ["0", "1", "2"]
    assert "2.000 bits per byte (1.386 nats); 5-gram 3.000, unigram 4.500" in out
    assert "Once more" in out
    assert "round.rounds=3" in out


# ---- a run that is left, and gone on with ---------------------------------------------------------------------------


def press_at_once(tmp_path: Path, mode: str, *, json: bool, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Carry out a run whose peers are asked to leave as soon as both are in round 1; return its directory."""
    made = rundir.create(RunConfig(round=RoundConfig(rounds=3, steps=5)), 2, tmp_path / "run", datetime(2026, 1, 2))
    begun: set[int] = set()

    def watched(view: View, source: int, event: AnyEvent) -> View:
        after = apply(view, source, event)
        if isinstance(event, RoundPlanned) and event.round == 1 and source not in begun:
            begun.add(source)
            if begun == {0, 1}:
                os.kill(os.getpid(), signal.SIGINT)
        return after

    monkeypatch.setattr(launch, "apply", watched)
    swarm = Swarm(
        directory=made,
        command=(sys.executable, str(FAKE_PEER), mode),
        resume_command=f"barnraise train --resume --dir {made.path}",
    )
    conduct(
        swarm, json=json, report_command=(sys.executable, "-c", "raise SystemExit('no report of a run that was left')")
    )
    return made.path


def test_a_run_that_was_left_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = press_at_once(tmp_path, "heed", json=False, monkeypatch=monkeypatch)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"left after 2 rounds; go on with them: barnraise train --resume --dir {path}"


def test_with_json_the_peers_own_words_are_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    press_at_once(tmp_path, "heed", json=True, monkeypatch=monkeypatch)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for source in (0, 1):
        assert [event["event"] for event in events if event["source"] == source][-2:] == ["run.left", "peer.exited"]
    assert [event["rounds"] for event in events if event["event"] == "run.left"] == [2, 2]
    assert not any(event["event"] == "run.finished" for event in events)


def test_the_invitation_is_told_to_people_and_never_to_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for as_json in (False, True):
        (tmp_path / str(as_json)).mkdir()
        play(tmp_path / str(as_json), json=as_json)
        told = capsys.readouterr()
        word = (tmp_path / str(as_json) / "run" / "invitation").read_text().strip()
        assert (word in told.out) is not as_json
        assert word not in told.err
        if as_json:
            assert f"barnraise join {tmp_path / 'True' / 'run' / 'invitation'}" in told.err
    assert word not in (tmp_path / "True" / "run" / "events.jsonl").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds", "20"],
        ["--steps", "3"],
        ["--seconds", "3"],
        ["--min-peers", "2"],
        ["--strategy", "fedavg"],
        ["--seed", "0"],
        ["--data", "text.txt"],
        ["--preset", "small"],
        ["--init", "model"],
        ["--config", "run.toml"],
    ],
)
def test_resuming_refuses_what_would_make_it_another_run(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rundir.create(RunConfig(), 2, tmp_path / "run", datetime(2026, 1, 2))
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["train", "--resume", "--dir", str(tmp_path / "run"), *words]) == 2
    assert f"{words[0]} would change it" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_resuming_what_is_no_run_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--resume", "--dir", str(tmp_path)]) == 2
    assert f"{tmp_path}: holds no run" in capsys.readouterr().err


def test_a_fault_that_is_misspelt_leaves_no_run_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--kill", "peer:9@round:1"]) == 2
    assert "there is no peer 9" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_flags_of_a_round_reach_the_run(text: Path) -> None:
    flags = {"seconds": 2.5, "min_peers": 3, "strategy": "synchronous", "seed": 0, "data": str(text)}
    config = resolve(None, NO_FLAGS | flags, {})
    assert (config.round.seconds, config.round.min_peers) == (2.5, 3)
    assert (config.strategy, config.seed) == ("synchronous", 0)
