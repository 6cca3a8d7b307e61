"""``barnraise config`` writes files that mean what the defaults mean; ``presets`` says what the names stand for."""

import ast
import inspect
import json
import re
import typing
from pathlib import Path

import pytest

from barnraise import cli, formats
from barnraise import config as config_module
from barnraise.cli.config import Preset, template
from barnraise.cli.fields import tables
from barnraise.config import (
    PEER_PRESETS,
    PRESETS,
    PeerConfig,
    RoundConfig,
    RunConfig,
    load_peer_table,
    load_run_config,
)
from barnraise.runs import places

NAMES: tuple[Preset, ...] = typing.get_args(Preset)
REQUIRED = {"data_dir": "/data", "cluster_key_file": "/key"}


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".yml"])
@pytest.mark.parametrize("preset", NAMES)
def test_a_written_file_is_the_preset(
    preset: Preset, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"mine{suffix}"
    assert cli.main(["config", "--preset", preset, "-o", str(path)]) == 0
    assert f"barnraise start -c {path}" in capsys.readouterr().out
    codec = {"cloud": "int4", "edge": "topk:0.016+int2+zstd:3"}.get(preset, "int8")
    assert load_run_config(path) == RunConfig(
        model=PRESETS.get(preset, PRESETS["local"]), round=RoundConfig(codec=codec)
    )
    expected = {**REQUIRED, **PEER_PRESETS.get(preset, PEER_PRESETS["local"])}
    peer = load_peer_table(path, REQUIRED)
    assert peer == PeerConfig(**{**expected, "data_dir": Path("/data"), "cluster_key_file": Path("/key")})


def test_the_names_are_those_of_the_presets() -> None:
    assert set(NAMES) == PRESETS.keys() | PEER_PRESETS.keys()


@pytest.mark.parametrize("is_yaml", [True, False])
def test_every_key_is_there_and_what_must_be_chosen_is_commented_out(is_yaml: bool, tmp_path: Path) -> None:
    path = tmp_path / ("a.yaml" if is_yaml else "a.toml")
    text = template("local", is_yaml=is_yaml)
    path.write_text(text)
    found = formats.read(path)
    for table in tables(RunConfig):
        there = found[table.name] if table.name else found
        assert {key.name for key in table.keys} <= there.keys()
    (peer,) = tables(PeerConfig)
    assert {key.name for key in peer.keys} - REQUIRED.keys() == found["peer"].keys()
    assert str(places.cluster_key_file()) in text


def test_every_word_of_the_source_is_in_the_file() -> None:
    text = " ".join(re.sub(r"^\s*# ?", "", template("local", is_yaml=False), flags=re.MULTILINE).split())
    classes = [node for node in ast.parse(inspect.getsource(config_module)).body if isinstance(node, ast.ClassDef)]
    count = 0
    for kind in classes:
        for node in kind.body[1:]:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                count += 1
                assert " ".join(str(node.value.value).replace("``", "`").split()) in text
    assert count > 40


def test_a_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("precious")
    assert cli.main(["config", "-o", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert cli.main(["config", "-o", str(tmp_path / "nowhere" / "mine.toml")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_without_a_file_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--preset", "small"]) == 0
    assert capsys.readouterr().out == template("small", is_yaml=False)


def test_presets_are_told_with_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"small +6 x 256 +4\.9M +256 bytes", out)
    assert re.search(r"distributed +/ip4/lan/tcp/52415 +lan:52416 +invitation, and mDNS", out)
    assert re.search(r"cloud +/ip4/lan/tcp/9000 +lan:9001 +invitation", out)
    assert cli.main(["presets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found] == [*PRESETS, *PEER_PRESETS]
    assert found[0]["num_parameters"] == 857_088
