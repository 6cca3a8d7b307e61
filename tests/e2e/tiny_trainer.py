"""A trainer without torch: its update is a function of theta, the sample numbers and what it remembers, and of no more.

    python tiny_trainer.py [--size N] [--round-s S] [--broken NAME] --socket PATH

What it remembers stands for the inner optimiser's state: it is in the snapshot, and lost with it.
"""

import argparse
import contextlib
import os
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from barnraise.link.messages import (
    VERSION,
    Begin,
    Done,
    Failed,
    Finished,
    FromPeer,
    FromTrainer,
    Hello,
    Initialise,
    Initialised,
    Progress,
    Stop,
    Tensor,
    body_length,
    frame,
    from_peer,
)

Float32 = npt.NDArray[np.float32]


def initial(size: int) -> Float32:
    """Return the first parameters, float32[size]."""
    return np.sin(np.arange(size, dtype=np.float32))


def update_of(theta: Float32, memory: Float32, samples: Iterator[int]) -> tuple[Float32, Float32]:
    """Return ``(update, memory afterwards)``; every sample leaves its trace in both."""
    where = np.arange(len(theta), dtype=np.int64)
    for sample in samples:
        noise = ((where * 2654435761 + sample * 40503) % 1021 - 510).astype(np.float32) / np.float32(1 << 20)
        memory = np.float32(0.5) * memory + noise
    return np.float32(0.01) * theta + memory, memory


class Trainer:
    """One connection to the peer."""

    def __init__(self, connection: socket.socket, size: int, round_s: float, broken: str) -> None:
        self._connection = connection
        self._size, self._round_s, self._broken = size, round_s, broken

    def run(self) -> None:
        """Do what the peer asks until it goes."""
        layout = (Tensor("first", (self._size // 2,)), Tensor("second", (self._size - self._size // 2,)))
        self._tell(Hello(version=VERSION, pid=os.getpid(), layout=layout, data_digest=bytes(32), device="none"))
        work = self._receive()
        while work is not None and not isinstance(work, Stop | Finished):
            if isinstance(work, Initialise):
                self._initialise(work)
            else:
                self._train(work)
            work = self._receive()

    def _initialise(self, work: Initialise) -> None:
        first = initial(self._size)
        if self._broken == "nan-initial":
            first[3] = np.nan
        first.tofile(work.path)
        self._tell(Initialised())

    def _train(self, work: Begin) -> None:
        theta = np.fromfile(work.theta_path, np.float32)
        memory = np.fromfile(work.snapshot_in, np.float32) if work.snapshot_in else np.zeros_like(theta)
        samples = [segment.first + i for segment in work.segments for i in range(segment.count)]
        self._tell(Progress(round=work.round, step=1, loss=1.0))
        if self._broken == "failed" and work.round == 1:
            self._tell(Failed(round=1, reason="the loss is not finite"))
        # Stands for computing; a new order ends the wait and is done next, as the real trainer does.
        if select.select([self._connection], [], [], self._round_s)[0]:
            return
        update, memory = update_of(theta, memory, iter(samples))
        if self._broken == "nan-update" and work.round == 1:
            update[5] = np.nan
        memory.tofile(work.snapshot_out)
        update.tofile(work.update_path)
        self._tell(
            Done(
                round=work.round,
                order=work.order,
                steps=work.steps,
                samples=len(samples),
                tokens=10 * len(samples),
                loss=float(np.abs(theta).mean()),
                validation_nats=1.5 * work.evaluate.count,
                validation_tokens=work.evaluate.count,
                took_s=self._round_s,
            )
        )

    def _tell(self, message: FromTrainer) -> None:
        self._connection.sendall(frame(message))

    def _receive(self) -> FromPeer | None:
        prefix = self._exactly(4)
        return from_peer(self._exactly(body_length(prefix))) if prefix else None

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self._connection.recv(size - len(data))):
            data += more
        return data


def main() -> None:
    """Train for the peer at the socket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--round-s", type=float, default=0.1)
    parser.add_argument("--broken", default="")
    arguments = parser.parse_args()
    if arguments.broken == "dies":
        sys.exit("no memory left")
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.connect(str(arguments.socket))
        Trainer(connection, arguments.size, arguments.round_s, arguments.broken).run()


if __name__ == "__main__":
    main()
