"""The trainer's state on disk, and the command line that a peer starts it with."""

import sys
from pathlib import Path

import pytest
import torch

from barnraise import config as configuration
from barnraise.config import DataConfig, ModelConfig, RunConfig
from barnraise.errors import LocalError
from barnraise.train import __main__ as command
from barnraise.train import snapshot


def test_round_trip_keeps_bits_types_and_shapes(tmp_path: Path) -> None:
    state = {"a": torch.tensor([[1e-40, -0.0], [3.0, float("inf")]]), "count": torch.tensor([7])}
    snapshot.save(state, tmp_path / "state.safetensors")
    found = snapshot.load(tmp_path / "state.safetensors")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_save_that_was_cut_short_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    snapshot.save({"a": torch.ones(3)}, path)
    (tmp_path / "state.safetensors.partial").write_bytes(b"half")
    assert snapshot.load(path)["a"].tolist() == [1, 1, 1]
    snapshot.save({"a": torch.zeros(3)}, path)
    assert snapshot.load(path)["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04pickle", b"\xff" * 20])
def test_a_damaged_snapshot_says_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LocalError, match=r"cannot read the snapshot .*remove it"):
        snapshot.load(path)


@pytest.mark.parametrize(("source", "code", "text"), [("text.txt", 3, "start the peer"), ("no.txt", 2, "cannot read")])
def test_errors_are_one_line_and_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    code: int,
    text: str,
) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 50)
    model = ModelConfig(hidden_size=8, num_layers=1, num_heads=1, max_seq_len=8)
    run = RunConfig(model=model, data=DataConfig(source=str(tmp_path / source)))
    configuration.save(run, tmp_path / "run.toml")
    arguments = ["train", "--socket", str(tmp_path / "peer.sock"), "--config", str(tmp_path / "run.toml")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--device", "cpu"])
    assert command.main() == code
    written = capsys.readouterr().err
    assert text in written
    assert "Traceback" not in written
