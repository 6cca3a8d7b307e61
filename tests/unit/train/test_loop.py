"""The training loop in this process: what the peer wrote waits in the socket, and the answers are read afterwards."""

import socket
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from barnraise.config import DataConfig, InnerConfig, ModelConfig, RunConfig
from barnraise.data.corpus import load
from barnraise.errors import LocalError
from barnraise.link import messages
from barnraise.link.messages import (
    Begin,
    Done,
    Failed,
    Finished,
    FromPeer,
    FromTrainer,
    Hello,
    Initialise,
    Progress,
    Segment,
    Stop,
)
from barnraise.train import vectors
from barnraise.train.device import choose
from barnraise.train.session import Session
from barnraise.train.train import Trainer, serve

MODEL = ModelConfig(hidden_size=8, num_layers=1, num_heads=1, max_seq_len=8)
STEPS, BATCH = 2, 2


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number}: to be or not to be\n" for number in range(100)))
    config = RunConfig(model=MODEL, data=DataConfig(source=str(text)), inner=InnerConfig(batch_size=BATCH))
    return Trainer(config, load(config.data), choose("cpu"))


def converse(trainer: Trainer, *said: FromPeer) -> list[FromTrainer]:
    """Say one thing after the other's answer, then hang up; return the answers after `Hello`."""
    ours, theirs = socket.socketpair()
    answers: list[FromTrainer] = []

    def speak() -> None:
        with ours.makefile("rb") as stream:
            for message in (None, *said):
                if message is not None:
                    ours.sendall(messages.frame(message))
                if isinstance(message, Finished | Stop) or not receive(stream, answers):
                    break
        ours.shutdown(socket.SHUT_RDWR)

    with ours:
        speaking = threading.Thread(target=speak)
        speaking.start()
        try:
            with Session(theirs) as session:
                serve(trainer, session)
        finally:
            speaking.join()
    assert isinstance(answers[0], Hello)
    return answers[1:]


def receive(stream: BinaryIO, answers: list[FromTrainer]) -> bool:
    """Read one answer, and how it goes until then, where that takes a second; False at the end."""
    while prefix := stream.read(4):
        answer = messages.from_trainer(stream.read(messages.body_length(prefix)))
        if not isinstance(answer, Progress):
            answers.append(answer)
            return True
    return False


def begin(directory: Path, theta: str = "theta.f32", **changes: Any) -> Begin:
    fields: dict[str, Any] = {
        "round": 0,
        "fragment": 0,
        "order": 1,
        "theta_path": str(directory / theta),
        "update_path": str(directory / "update.f32"),
        "segments": (Segment(0, STEPS * BATCH),),
        "steps": STEPS,
        "first_step": 0,
        "total_steps": 10,
        "seconds": 0.0,
        "num_members": 1,
        "snapshot_in": "",
        "snapshot_out": str(directory / "state.safetensors"),
        "evaluate": Segment(0, 0),
    }
    return Begin(**(fields | changes))


def test_stop_ends_the_conversation(trainer: Trainer, tmp_path: Path) -> None:
    initialise = Initialise(path=str(tmp_path / "theta.f32"))
    assert len(converse(trainer, initialise, Stop(), initialise)) == 1


def test_finished_ends_the_conversation(trainer: Trainer, tmp_path: Path) -> None:
    finished = Finished(round=3, theta_path=str(tmp_path / "theta.f32"))
    initialise = Initialise(path=str(tmp_path / "theta.f32"))
    assert len(converse(trainer, initialise, finished, initialise)) == 1


def test_hello_says_what_computes_and_why(trainer: Trainer) -> None:
    hello = trainer.hello()
    assert (hello.version, hello.device, hello.dtype, hello.reason) == (2, "cpu", "float32", "asked for")


def test_a_round_whose_time_is_over_ends_after_a_step(trainer: Trainer, tmp_path: Path) -> None:
    initialise = Initialise(path=str(tmp_path / "theta.f32"))
    whole = converse(trainer, initialise, begin(tmp_path, order=7))[1]
    short = converse(trainer, begin(tmp_path, order=8, seconds=1e-9))[0]
    patient = converse(trainer, begin(tmp_path, seconds=3600.0))[0]
    assert isinstance(whole, Done)
    assert isinstance(short, Done)
    assert isinstance(patient, Done)
    assert (whole.order, whole.steps, whole.samples, whole.tokens) == (7, STEPS, STEPS * BATCH, STEPS * BATCH * 8)
    assert (short.order, short.steps, short.samples, short.tokens) == (8, 1, BATCH, BATCH * 8)
    assert patient.steps == STEPS
    one = begin(tmp_path, steps=1, segments=(Segment(0, BATCH),), update_path=str(tmp_path / "one.f32"))
    converse(trainer, begin(tmp_path, seconds=1e-9), one)
    assert (tmp_path / "one.f32").read_bytes() == (tmp_path / "update.f32").read_bytes()


def test_newer_work_ends_older_work(trainer: Trainer, tmp_path: Path) -> None:
    converse(trainer, Initialise(path=str(tmp_path / "theta.f32")))
    ours, theirs = socket.socketpair()
    with ours, Session(theirs) as session:
        ours.sendall(
            b"".join(messages.frame(message) for message in (begin(tmp_path), begin(tmp_path, round=1), Stop()))
        )
        answers: list[FromTrainer] = []
        serve(trainer, session)
        theirs.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as stream:
            while receive(stream, answers):
                pass
    assert len(answers) == 1, "both rounds were ended by what waited behind them"


def test_update_is_before_minus_after(trainer: Trainer, tmp_path: Path) -> None:
    answers = converse(trainer, Initialise(path=str(tmp_path / "theta.f32")), begin(tmp_path))
    assert isinstance(answers[1], Done)
    assert answers[1].validation_tokens == 0
    theta, update = (vectors.read(tmp_path / name, trainer.flat.values.numel()) for name in ("theta.f32", "update.f32"))
    assert np.array_equal(update, theta - trainer.flat.numpy())
    assert update.any()


def test_theta_is_evaluated_before_training(trainer: Trainer, tmp_path: Path) -> None:
    answers = converse(trainer, Initialise(path=str(tmp_path / "theta.f32")), begin(tmp_path, evaluate=Segment(1, 3)))
    assert isinstance(answers[1], Done)
    assert answers[1].validation_tokens == 24
    assert answers[1].validation_nats == pytest.approx(24 * np.log(256), rel=1e-5)


def test_what_cannot_be_trained_is_said_and_the_next_round_goes_on(trainer: Trainer, tmp_path: Path) -> None:
    np.full(trainer.flat.values.numel(), 1e30, dtype="<f4").tofile(tmp_path / "wild.f32")
    wild = [begin(tmp_path, "wild.f32"), begin(tmp_path, "wild.f32", evaluate=Segment(0, 1))]
    for failed in converse(trainer, *wild):
        assert isinstance(failed, Failed)
        assert "lower inner.lr" in failed.reason
    assert not (tmp_path / "update.f32").exists()
    assert not (tmp_path / "state.safetensors").exists()
    good = converse(trainer, Initialise(path=str(tmp_path / "theta.f32")), begin(tmp_path))
    assert isinstance(good[1], Done)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"segments": (Segment(0, 3),)}, "3 samples for 2 steps of 2"),
        ({"segments": (), "steps": 0}, "asks for 0 steps"),
        ({"snapshot_in": "/nowhere/state.safetensors"}, "cannot read the snapshot"),
    ],
)
def test_a_peer_that_asks_for_nonsense_is_told_so(
    trainer: Trainer, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(LocalError, match=match):
        converse(trainer, Initialise(path=str(tmp_path / "theta.f32")), begin(tmp_path, **changes))


def test_an_update_in_place_never_shortens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "update.f32"
    vectors.write(path, np.arange(5, dtype=np.float32))
    with path.open("rb") as opened:
        vectors.write(path, np.ones(5, dtype=np.float32))
        assert np.frombuffer(opened.read(), dtype="<f4").tolist() == [1.0] * 5
    assert vectors.read(path, 5).tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("content", "match"), [(None, "holds None"), (bytes(12), "holds 12"), (b"\0\0\xc0\x7f" * 4, "finite")]
)
def test_a_theta_that_does_not_fit_is_refused(tmp_path: Path, content: bytes | None, match: str) -> None:
    path = tmp_path / "theta.f32"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LocalError, match=match):
        vectors.read(path, 4)
