"""A run's parameters as files, and a text continued by them, in this process."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import barnraise.model
from barnraise import config as configuration
from barnraise.config import ModelConfig, RunConfig
from barnraise.errors import ConfigError, LocalError
from barnraise.link.messages import Tensor
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.initialise import uniform
from barnraise.train import export, sample

TINY = ModelConfig(hidden_size=8, num_layers=2, num_heads=1, max_seq_len=8)
CUSTOM = RunConfig(model=ModelConfig(architecture="custom"))


def run(directory: Path) -> tuple[RunConfig, Path]:
    """Return a run's configuration and a file of its parameters."""
    config = RunConfig(model=TINY)
    size = flatten(build(config.model, 1)).values.numel()
    uniform(2, "all", (size,), 0.3).tofile(directory / "theta.f32")
    configuration.save(config, directory / "run.toml")
    return config, directory / "theta.f32"


def test_what_is_exported_computes_the_same(tmp_path: Path) -> None:
    config, theta = run(tmp_path)
    done = export.export(config, theta, tmp_path / "out")
    model = build(config.model, 1)
    flatten(model).load(np.fromfile(theta, dtype="<f4"))
    assert done.architecture == "lfm2"
    assert done.num_parameters == flatten(model).values.numel()
    assert set(done.files) == {file.name for file in (tmp_path / "out").iterdir()}
    tokens = torch.arange(8).view(1, 8)
    torch.testing.assert_close(barnraise.model.load(done.directory)(tokens), model(tokens), atol=1e-5, rtol=1e-5)


def test_a_model_of_the_users_own_needs_its_layout(tmp_path: Path) -> None:
    np.arange(10, dtype=np.float32).tofile(tmp_path / "theta.f32")
    for file in (None, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="no layout of it is on this machine"):
            export.export(CUSTOM, tmp_path / "theta.f32", tmp_path / "out", file)
    layout = (Tensor("body.weight", (2, 4)), Tensor("body.running_mean", (2,), True))
    (tmp_path / "layout").write_bytes(msgspec.msgpack.encode(layout))
    export.export(CUSTOM, tmp_path / "theta.f32", tmp_path / "out", tmp_path / "layout")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["body.weight"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found["body.running_mean"].tolist() == [8, 9]


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"\xc1", ConfigError, "is no layout"),
        (bytes(2 << 20), ConfigError, "the limit is"),
        (b"\x90", LocalError, "should hold 0 bytes"),
        (msgspec.msgpack.encode((Tensor("a", (3,)),)), LocalError, "should hold 12 bytes"),
    ],
)
def test_a_layout_that_does_not_fit_leaves_nothing(
    tmp_path: Path, content: bytes, kind: type[Exception], said: str
) -> None:
    np.arange(10, dtype=np.float32).tofile(tmp_path / "theta.f32")
    (tmp_path / "layout").write_bytes(content)
    with pytest.raises(kind, match=said):
        export.export(CUSTOM, tmp_path / "theta.f32", tmp_path / "out", tmp_path / "layout")
    assert not (tmp_path / "out").exists()


def call(monkeypatch: pytest.MonkeyPatch, module: Any, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["it", *map(str, words)])
    code: int = module.main()
    return code


def test_the_commands_speak_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, theta = run(tmp_path)
    where = ("--config", tmp_path / "run.toml", "--theta", theta)
    assert call(monkeypatch, export, *where, "--to", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["directory"] == str(tmp_path / "out")
    assert call(monkeypatch, export, *where, "--to", tmp_path / "out", "--json") == 2
    assert "holds something already" in capsys.readouterr().err

    options = ("--prompt=--to be", "--bytes", "30", "--seed", "3", "--json")
    assert call(monkeypatch, sample, *where, *options) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert text.startswith("--to be")
    assert len(text) > len("--to be")
    assert call(monkeypatch, sample, "--model", tmp_path / "out", *options) == 0
    assert json.loads(capsys.readouterr().out)["text"] == text
    assert call(monkeypatch, sample, "--model", tmp_path / "nowhere", *options) == 2
    assert "config.json is not there" in capsys.readouterr().err


def test_a_model_of_the_users_own_writes_nothing(tmp_path: Path) -> None:
    configuration.save(CUSTOM, tmp_path / "run.toml")
    with pytest.raises(ConfigError, match="only the program that began the run has the model"):
        sample.model_of_run(tmp_path / "run.toml", tmp_path / "theta.f32")
