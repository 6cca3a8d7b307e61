"""A trainer that is replaced goes on bit for bit, with dropout on: what it needs is in the snapshot and in `Begin`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from barnraise.config import DataConfig, InnerConfig, ModelConfig, RunConfig
from barnraise.data.corpus import load
from barnraise.link.messages import Begin, Done, Initialise, Segment
from barnraise.train import vectors
from barnraise.train.device import choose
from barnraise.train.train import Trainer

STEPS, BATCH, ROUNDS = 3, 2, 4


class Quiet:
    """A session in which the peer says nothing of its own accord."""

    has_mail = False

    def send(self, message: object) -> None:
        """Nobody listens."""


def trainer(directory: Path, **changes: Any) -> Trainer:
    text = directory / "text.txt"
    text.write_text("".join(f"line {number}: to be or not to be\n" for number in range(200)))
    model = ModelConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        max_seq_len=12,
        dropout=changes.pop("dropout", 0.2),
    )
    inner = InnerConfig(
        optimizer=changes.pop("optimizer", "muon"),
        batch_size=BATCH,
        warmup_steps=2,
        precision=changes.pop("precision", "float32"),
    )
    config = RunConfig(model=model, data=DataConfig(source=str(text)), inner=inner, **changes)
    return Trainer(config, load(config.data, window=13), choose("cpu", inner.precision))


def rounds(trained: Trainer, directory: Path, first: int, last: int) -> list[bytes]:
    """Train rounds on files of a directory, as a peer alone in its run would have it; return all that was written."""
    found: list[bytes] = []
    for number in range(first, last):
        theta, update = directory / f"theta-{number}.f32", directory / f"update-{number}.f32"
        begin = Begin(
            round=number,
            fragment=0,
            order=number,
            theta_path=str(theta),
            update_path=str(update),
            segments=(Segment(100 * number, STEPS * BATCH),),
            steps=STEPS,
            first_step=STEPS * number,
            total_steps=STEPS * ROUNDS,
            seconds=0.0,
            num_members=1,
            snapshot_in=str(directory / f"state-{number}.safetensors") if number else "",
            snapshot_out=str(directory / f"state-{number + 1}.safetensors"),
            evaluate=Segment(0, 2),
        )
        done = trained.round(begin, Quiet())  # type: ignore[arg-type]
        assert isinstance(done, Done)
        size = trained.flat.values.numel()
        vectors.write(
            directory / f"theta-{number + 1}.f32",
            vectors.read(theta, size) - np.float32(0.9) * vectors.read(update, size),
        )
        found += [update.read_bytes(), Path(begin.snapshot_out).read_bytes(), repr(done.loss).encode()]
    return found


def begun(directory: Path, **changes: Any) -> Trainer:
    directory.mkdir(exist_ok=True)
    made = trainer(directory, **changes)
    made.answer(Initialise(path=str(directory / "theta-0.f32")), Quiet())  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_two_rounds_and_two_more_are_four(tmp_path: Path, optimizer: str) -> None:
    straight = rounds(begun(tmp_path / "straight", optimizer=optimizer), tmp_path / "straight", 0, ROUNDS)
    cut = rounds(begun(tmp_path / "cut", optimizer=optimizer), tmp_path / "cut", 0, 2)
    cut += rounds(trainer(tmp_path / "cut", optimizer=optimizer), tmp_path / "cut", 2, ROUNDS)
    assert cut == straight


def test_each_part_of_what_is_kept_matters(tmp_path: Path) -> None:
    straight = rounds(begun(tmp_path / "straight"), tmp_path / "straight", 0, 2)
    without_dropout = rounds(begun(tmp_path / "exact", dropout=0.0), tmp_path / "exact", 0, 2)
    assert without_dropout[0] != straight[0]
    cut = rounds(begun(tmp_path / "cut"), tmp_path / "cut", 0, 1)
    (tmp_path / "cut" / "state-1.safetensors").write_bytes(fresh_state(tmp_path / "cut"))
    cut += rounds(trainer(tmp_path / "cut"), tmp_path / "cut", 1, 2)
    assert cut[:3] == straight[:3]
    assert cut[3] != straight[3]


def fresh_state(directory: Path) -> bytes:
    from barnraise.train import snapshot

    made = trainer(directory)
    snapshot.save(made.inner.state(), directory / "fresh.safetensors")
    return (directory / "fresh.safetensors").read_bytes()


def test_federated_averaging_begins_each_round_afresh(tmp_path: Path) -> None:
    found = rounds(begun(tmp_path / "kept", strategy="fedavg"), tmp_path / "kept", 0, 2)
    again = rounds(begun(tmp_path / "lost", strategy="fedavg"), tmp_path / "lost", 0, 1)
    (tmp_path / "lost" / "state-1.safetensors").write_bytes(b"not looked at")
    again += rounds(trainer(tmp_path / "lost", strategy="fedavg"), tmp_path / "lost", 1, 2)
    assert again == found
    diloco = rounds(begun(tmp_path / "diloco"), tmp_path / "diloco", 0, 2)
    assert diloco[0] == found[0]
    assert diloco[3] != found[3]


def test_bfloat16_trains_to_nearly_the_same(tmp_path: Path) -> None:
    exact = rounds(begun(tmp_path / "float32", dropout=0.0), tmp_path / "float32", 0, 2)
    rough = rounds(begun(tmp_path / "bfloat16", dropout=0.0, precision="bfloat16"), tmp_path / "bfloat16", 0, 2)
    assert rough[0] != exact[0]
    assert float(rough[5]) == pytest.approx(float(exact[5]), rel=0.02)
