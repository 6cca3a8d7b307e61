"""The trainer's process for real, killed and replaced, with this test as its peer at the other end of the socket."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from barnraise import config as configuration
from barnraise.config import DataConfig, InnerConfig, ModelConfig, RunConfig
from barnraise.link import messages
from barnraise.link.messages import Begin, Done, Hello, Initialise, Initialised, Progress, Segment
from barnraise.train.__main__ import main

MODEL = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, max_seq_len=12)
STEPS, BATCH = 3, 2


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number}: to be or not to be\n" for number in range(200)))
    data = DataConfig(source=str(text))
    run = RunConfig(model=MODEL, data=data, inner=InnerConfig(batch_size=BATCH, warmup_steps=2))
    configuration.save(run, tmp_path / "run.toml")
    return run


class FakePeer:
    """Listens, speaks the protocol with one trainer at a time, and keeps the files in one directory."""

    def __init__(self, directory: Path, connection: socket.socket) -> None:
        self.directory = directory
        self.connection = connection
        self.stream = connection.makefile("rb")

    def send(self, message: messages.FromPeer) -> None:
        self.connection.sendall(messages.frame(message))

    def receive(self) -> messages.FromTrainer:
        while isinstance(message := self._next(), Progress):
            pass
        return message

    def _next(self) -> messages.FromTrainer:
        return messages.from_trainer(self.stream.read(messages.body_length(self.stream.read(4))))

    def begin(self, number: int, theta: str, **changes: Any) -> Begin:
        samples = STEPS * BATCH
        fields: dict[str, Any] = {
            "round": number,
            "fragment": 0,
            "order": number,
            "theta_path": str(self.directory / theta),
            "update_path": str(self.directory / f"update-{number}.f32"),
            "segments": (Segment(100 * number, samples - 1), Segment(100 * number + 50, 1)),
            "steps": STEPS,
            "first_step": STEPS * number,
            "total_steps": STEPS * 4,
            "seconds": 0.0,
            "num_members": 1,
            "snapshot_in": str(self.directory / f"state-{number - 1}.safetensors") if number else "",
            "snapshot_out": str(self.directory / f"state-{number}.safetensors"),
            "evaluate": Segment(3, 2),
        }
        return Begin(**(fields | changes))

    def round(self, begin: Begin) -> tuple[Done, bytes, bytes]:
        """Return what the trainer says and writes: the answer, the update, the snapshot."""
        self.send(begin)
        done = self.receive()
        assert isinstance(done, Done), done
        return done, Path(begin.update_path).read_bytes(), Path(begin.snapshot_out).read_bytes()

    def theta(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.fromfile(self.directory / name, dtype="<f4")

    def apply(self, theta: str, update: bytes, result: str) -> None:
        (self.theta(theta) - np.frombuffer(update, dtype="<f4")).tofile(self.directory / result)


@contextmanager
def listening(directory: Path) -> Iterator[socket.socket]:
    """Listen where the trainer looks for its peer."""
    path = directory / "peer.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0.5)
        yield listener


def options(directory: Path) -> list[str]:
    return ["--socket", str(directory / "peer.sock"), "--config", str(directory / "run.toml"), "--device", "cpu"]


def greeted(directory: Path, connection: socket.socket) -> tuple[FakePeer, Hello]:
    connection.settimeout(50)
    peer = FakePeer(directory, connection)
    hello = peer.receive()
    assert isinstance(hello, Hello), hello
    return peer, hello


def accept(listener: socket.socket, process: subprocess.Popen[bytes]) -> socket.socket:
    """Wait for the trainer's connection; if it ends before that, fail with what it wrote."""
    while True:
        try:
            return listener.accept()[0]
        except TimeoutError:
            assert process.poll() is None, process.communicate()


@contextmanager
def trainer_process(directory: Path) -> Iterator[tuple[FakePeer, Hello, subprocess.Popen[bytes]]]:
    """Start a trainer's process and accept its connection; kill it afterwards."""
    source = str(Path(configuration.__file__).parents[1])
    command = [sys.executable, "-m", "barnraise.train", *options(directory)]
    with (
        listening(directory) as listener,
        subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source}, stderr=subprocess.PIPE) as process,
    ):
        try:
            with accept(listener, process) as connection:
                peer, hello = greeted(directory, connection)
                yield peer, hello, process
                peer.stream.close()
        finally:
            process.kill()
            process.communicate(timeout=20)


@contextmanager
def replacement(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakePeer, Hello]]:
    """Run what the trainer's process runs in a thread of this one, whose torch is loaded; hang up to end it."""
    monkeypatch.setattr(sys, "argv", ["barnraise.train", *options(directory)])
    codes: list[int] = []
    with listening(directory) as listener:
        thread = threading.Thread(target=lambda: codes.append(main()), daemon=True)
        thread.start()
        listener.settimeout(50)
        connection = listener.accept()[0]
        with connection:
            peer, hello = greeted(directory, connection)
            try:
                yield peer, hello
            finally:
                peer.stream.close()
                connection.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=20)
    assert codes == [0]


@pytest.mark.usefixtures("run")
def test_rounds_are_done_again_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trainer_process(tmp_path) as (peer, hello, process):
        assert hello.version == messages.VERSION
        assert hello.pid == process.pid
        assert hello.layout[0].shape == (256, 16)
        peer.send(Initialise(path=str(tmp_path / "theta-0.f32")))
        assert peer.receive() == Initialised()
        assert peer.theta("theta-0.f32").shape == (num_parameters(hello),)

        first = peer.round(peer.begin(0, "theta-0.f32"))
        done = first[0]
        assert (done.round, done.steps, done.samples, done.tokens) == (0, 3, 6, 72)
        assert done.validation_tokens == 24
        # The head starts at zero: theta guesses uniformly, and training improves on that at once.
        assert done.validation_nats == pytest.approx(24 * np.log(256), rel=1e-5)
        assert done.loss < np.log(256)
        peer.apply("theta-0.f32", first[1], "theta-1.f32")
        second = peer.round(peer.begin(1, "theta-1.f32"))
        assert second[1] != first[1]

        again = peer.round(peer.begin(0, "theta-0.f32"))
        assert again[1:] == first[1:]
        other_samples = peer.round(peer.begin(0, "theta-0.f32", segments=(Segment(7, STEPS * BATCH),)))
        assert other_samples[1] != first[1]

        peer.round(peer.begin(0, "theta-0.f32"))
        process.kill()
    with replacement(tmp_path, monkeypatch) as (peer, restarted):
        assert (restarted.layout, restarted.data_digest) == (hello.layout, hello.data_digest)
        assert peer.round(peer.begin(1, "theta-1.f32"))[1:] == second[1:]


def num_parameters(hello: Hello) -> int:
    return sum(int(np.prod(tensor.shape)) for tensor in hello.layout)
