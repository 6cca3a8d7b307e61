"""Where each value of a run's configuration comes from, and the verb as a whole with peers that play."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from barnraise.cli.conduct import conduct
from barnraise.cli.launch import Swarm
from barnraise.cli.train import resolve
from barnraise.config import PRESETS, RoundConfig, RunConfig, save
from barnraise.errors import ConfigError
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
