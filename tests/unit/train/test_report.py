"""Evaluation, the final report and the choice of a device."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from barnraise import config as configuration
from barnraise.config import DataConfig, ModelConfig, RunConfig
from barnraise.errors import ConfigError
from barnraise.model.flat import flatten
from barnraise.model.initialise import uniform
from barnraise.model.lfm2 import LFM2
from barnraise.train import report
from barnraise.train.device import choose
from barnraise.train.evaluate import evaluate


class Successor(nn.Module):
    """Gives the last byte plus 1 a probability of exactly a half."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(math.log(255.0)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logit * nn.functional.one_hot((tokens + 1) % 256, 256).float()


def test_a_half_costs_one_bit() -> None:
    text = np.arange(1001).astype(np.uint8)
    measured = evaluate(Successor(), text, 10)
    assert measured.tokens == 1000
    assert measured.bits_per_byte == pytest.approx(1.0)


def test_windows_do_not_depend_on_how_they_are_batched() -> None:
    text = np.random.default_rng(1).integers(0, 256, 40_001).astype(np.uint8)
    whole = evaluate(Successor(), text, 10)
    assert whole.tokens == 40_000
    parts = [evaluate(Successor(), text, 10, first, 500) for first in range(0, 4000, 500)]
    assert sum(part.nats for part in parts) == pytest.approx(whole.nats)


def test_dropout_is_off_while_measuring_and_on_again_afterwards() -> None:
    text = np.random.default_rng(1).integers(0, 256, 401).astype(np.uint8)
    model = LFM2(ModelConfig(hidden_size=8, num_layers=1, num_heads=1, max_seq_len=8, dropout=0.5), 1)
    flat = flatten(model)
    flat.load(uniform(2, "all", (flat.values.numel(),), 0.3))
    assert evaluate(model, text, 8).nats == evaluate(model, text, 8).nats
    assert model.training


def test_counting_is_done_once_for_a_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 300)
    model = ModelConfig(hidden_size=8, num_layers=1, num_heads=1, max_seq_len=8)
    config = RunConfig(model=model, data=DataConfig(source=str(tmp_path / "text.txt")))
    flatten(LFM2(model, 1)).numpy().tofile(tmp_path / "theta.f32")
    known = tmp_path / "baselines.json"
    first = report.report(config, tmp_path / "theta.f32", sample_bytes=1, known=known)
    remembered = json.loads(known.read_text())
    known.write_text(json.dumps(remembered | {"unigram": 7.5}))
    assert report.report(config, tmp_path / "theta.f32", sample_bytes=1, known=known).unigram_bits_per_byte == 7.5
    for damaged in ("nonsense", json.dumps(remembered | {"digest": "00", "unigram": 7.5})):
        known.write_text(damaged)
        again = report.report(config, tmp_path / "theta.f32", sample_bytes=1, known=known)
        assert again.unigram_bits_per_byte == first.unigram_bits_per_byte
        assert json.loads(known.read_text()) == remembered


def test_report_prints_the_figures_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 300)
    model = ModelConfig(hidden_size=8, num_layers=1, num_heads=1, max_seq_len=8)
    config = RunConfig(model=model, data=DataConfig(source=str(tmp_path / "text.txt")))
    configuration.save(config, tmp_path / "run.toml")
    flatten(LFM2(model, 1)).numpy().tofile(tmp_path / "theta.f32")
    arguments = ["report", "--config", str(tmp_path / "run.toml"), "--theta", str(tmp_path / "theta.f32"), "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert report.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val_bits_per_byte"] == pytest.approx(8.0, abs=1e-4)
    assert found["five_gram_bits_per_byte"] < found["unigram_bits_per_byte"] < 4
    assert found["num_parameters"] == flatten(LFM2(model, 1)).values.numel()
    assert found["sample"]

    np.zeros(3, dtype="<f4").tofile(tmp_path / "theta.f32")
    assert report.main() == 1
    assert "should hold" in capsys.readouterr().err


def test_auto_says_why() -> None:
    choice = choose("auto")
    assert choice.reason.startswith("auto: ")
    assert choose("cpu").device == torch.device("cpu")


def test_bfloat16_is_chosen_where_it_is_asked_for() -> None:
    choice = choose("cpu", "bfloat16")
    assert (choice.dtype_name, choice.reason) == ("bfloat16", "asked for; bfloat16: inner.precision asks for it")
    assert choose("cpu").dtype_name == "float32"
    with choice.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with choose("cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("wanted", ["gpu", "cuda:99x", "cpu:x", ""])
def test_unknown_devices_are_refused(wanted: str) -> None:
    with pytest.raises(ConfigError):
        choose(wanted)
