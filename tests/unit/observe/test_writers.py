"""Curves elsewhere: one point a round, read back from the files that TensorBoard and wandb wrote."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from barnraise.errors import ConfigError
from barnraise.observe import writers
from barnraise.observe.vocabulary import PeerJoined, RoundCommitted

POINTS = {
    0: RoundCommitted(
        round=0, members=("a", "b"), contributors=("a",), train_loss=2.5, tokens=100, took_s=4.0, bytes_sent=7
    ),
    1: RoundCommitted(
        round=1,
        members=("a", "b"),
        contributors=("a", "b"),
        train_loss=2.0,
        val_bits_per_byte=3.5,
        tokens=100,
        train_s=1.0,
    ),
}


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self, fails_at: int = 100) -> None:
        self.points: list[tuple[int, Mapping[str, float]]] = []
        self.fails_at = fails_at

    def write(self, figures: Mapping[str, float], round_: int) -> None:
        if round_ == self.fails_at:
            raise OSError("no space left")
        self.points.append((round_, figures))

    def close(self) -> None:
        pass


def test_the_first_peer_that_tells_of_a_round_makes_its_point() -> None:
    kept = Kept()
    writer = writers.Writer({"it": kept})
    for event in (PeerJoined(other="x"), POINTS[0], POINTS[0], POINTS[1], POINTS[0]):
        writer.event(event)
    assert [round_ for round_, _ in kept.points] == [0, 1]
    first, second = (figures for _, figures in kept.points)
    assert first["loss/train_nats_per_token"] == 2.5
    assert first["speed/tokens_per_s"] == 25.0
    assert (first["round/members"], first["round/contributors"], first["bytes/sent"]) == (2.0, 1.0, 7.0)
    assert "loss/held_out_bits_per_byte" not in first
    assert second["loss/held_out_bits_per_byte"] == 3.5
    assert second["seconds/train"] == 1.0
    assert "speed/tokens_per_s" not in second


def test_who_cannot_write_is_told_once_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = Kept(fails_at=0), Kept()
    writer = writers.Writer({"bad": bad, "good": good})
    for event in POINTS.values():
        writer.event(event)
    assert (len(bad.points), len(good.points)) == (0, 2)
    assert capsys.readouterr().err == "barnraise: bad takes no more figures (no space left). The run goes on.\n"


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    with writers.opened(tensorboard=tmp_path / "curves", wandb=None, name="run") as writer:
        for event in POINTS.values():
            writer.event(event)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "curves"))
    found.Reload()
    points = [(point.step, point.tensor_proto.float_val[0]) for point in found.Tensors("loss/train_nats_per_token")]
    assert points == [(0, 2.5), (1, 2.0)]
    assert found.SummaryMetadata("round/members").plugin_data.plugin_name == "scalars"


def test_a_directory_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="--tensorboard"),
        writers.opened(tensorboard=tmp_path / "file" / "curves", wandb=None, name="run"),
    ):
        pass


WANDB = """
import sys
from barnraise.observe import writers
from barnraise.observe.vocabulary import RoundCommitted
with writers.opened(tensorboard=None, wandb="barnraise-tests", name="run") as writer:
    writer.event(RoundCommitted(round=3, train_loss=2.5))
"""


def test_wandb_keeps_a_run_on_this_machine(tmp_path: Path) -> None:
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", WANDB], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data = file.read_bytes()
    assert b"loss/train_nats_per_token" in data
    assert b"barnraise-tests" in data


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_a_package_that_is_not_there_is_told_with_its_extra(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == extra]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, extra, None)
    with (
        pytest.raises(ConfigError, match=rf"pip install 'barnraise\[{extra}\]'"),
        writers.opened(
            tensorboard=tmp_path if extra == "tensorboard" else None,
            wandb="x" if extra == "wandb" else None,
            name="run",
        ),
    ):
        pass


def test_who_writes_no_curves_loads_nothing_of_them() -> None:
    code = "import sys, barnraise.observe.writers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"tensorboard", "wandb", "torch", "numpy"}
