"""What a run begins with: drawn, or taken from a directory, and never anything else than was agreed."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from barnraise.config import ModelConfig, RunConfig
from barnraise.errors import ConfigError
from barnraise.model import pretrained
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.initialise import uniform
from barnraise.model.tensors import by_name
from barnraise.swarm.workspace import root_of
from barnraise.train import initial

TINY = ModelConfig(hidden_size=8, num_layers=2, num_heads=1, max_seq_len=8)


def exported(directory: Path, draw: int = 1) -> None:
    flat = flatten(build(TINY, 1))
    pretrained.write(directory, TINY, by_name(flat.layout, uniform(draw, "all", (flat.values.numel(),), 0.2)))


def test_parameters_are_drawn_unless_they_are_taken() -> None:
    config = RunConfig(model=TINY)
    assert np.array_equal(initial.first_parameters(config), flatten(build(TINY, config.seed)).numpy())


def test_parameters_are_taken_from_a_directory(tmp_path: Path) -> None:
    exported(tmp_path / "model")
    found = initial.initial(tmp_path / "model")
    assert found.model == dataclasses.replace(
        TINY, source=str(tmp_path / "model"), initial=root_of(found.parameters).hex()
    )
    taken = initial.first_parameters(RunConfig(model=dataclasses.replace(found.model, dropout=0.1)))
    assert root_of(taken).hex() == found.model.initial
    assert np.array_equal(taken, flatten(pretrained.read(tmp_path / "model")).numpy())


def test_another_model_in_its_place_is_refused(tmp_path: Path) -> None:
    exported(tmp_path / "model")
    exported(tmp_path / "other", draw=2)
    model = dataclasses.replace(initial.initial(tmp_path / "model").model, source=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="the run was begun with"):
        initial.first_parameters(RunConfig(model=model))


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    exported(tmp_path / "model")
    model = dataclasses.replace(initial.initial(tmp_path / "model").model, num_layers=3)
    with pytest.raises(ConfigError, match="the run was begun with"):
        initial.first_parameters(RunConfig(model=model))


def test_who_joins_draws_what_the_peer_tells_from_the_runs_own(tmp_path: Path) -> None:
    exported(tmp_path / "model")
    model = dataclasses.replace(initial.initial(tmp_path / "model").model, source="")
    drawn = initial.first_parameters(RunConfig(model=model))
    assert np.array_equal(drawn, initial.first_parameters(RunConfig(model=TINY)))
    assert root_of(drawn).hex() != model.initial


def test_the_command_prints_the_models_part_of_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["initial", str(tmp_path / "model"), "--json"])
    assert initial.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert ModelConfig(**found) == initial.initial(tmp_path / "model").model
    monkeypatch.setattr(sys, "argv", ["initial", str(tmp_path / "nothing"), "--json"])
    assert initial.main() == 2
    assert "config.json is not there" in capsys.readouterr().err
