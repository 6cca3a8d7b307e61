"""A trainer without a model: writes random updates of a chosen size after a chosen pause, so that rounds can be timed.

python bench/measure/random_trainer.py --parameters 6250000 --pause-s 1 --socket PATH
"""

import argparse
import itertools
import os
import time
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from barnraise.link.messages import (
    VERSION,
    Begin,
    Done,
    Finished,
    FromPeer,
    Hello,
    Initialise,
    Initialised,
    Stop,
    Tensor,
)
from barnraise.train import vectors
from barnraise.train.session import PeerGone, Session

NUM_TENSORS: Final = 50
"""A model's parameters come in this many tensors, each with an exponent of its own on the grid."""
SCALE: Final = 0.01


def layout(num_parameters: int) -> tuple[Tensor, ...]:
    """Return the layout of a model of that many parameters."""
    edges = [num_parameters * i // NUM_TENSORS for i in range(NUM_TENSORS + 1)]
    sizes = [stop - start for start, stop in itertools.pairwise(edges)]
    return tuple(Tensor(f"tensor.{i}", (size,)) for i, size in enumerate(sizes))


def random_vector(num_parameters: int, *seed: int) -> NDArray[np.float32]:
    """Return float32[num_parameters], normal with deviation ``SCALE``."""
    vector = np.random.default_rng(seed).standard_normal(num_parameters, dtype=np.float32)
    vector *= np.float32(SCALE)
    return vector


def answer(message: FromPeer, num_parameters: int, pause_s: float) -> Initialised | Done:
    """Do what the peer asks, then idle for ``pause_s``: what it does in a round is done when the round is timed."""
    began = time.monotonic()
    if isinstance(message, Initialise):
        vectors.write(Path(message.path), random_vector(num_parameters, 0))
        return Initialised()
    assert isinstance(message, Begin)  # the caller took Stop
    first = message.segments[0].first
    vectors.write(Path(message.update_path), random_vector(num_parameters, 1, message.round, first))
    Path(message.snapshot_out).write_bytes(b"")
    time.sleep(pause_s)
    samples = sum(segment.count for segment in message.segments)
    return Done(
        round=message.round,
        order=message.order,
        steps=message.steps,
        samples=samples,
        tokens=samples,
        loss=1.0,
        validation_nats=0.0,
        validation_tokens=0,
        took_s=time.monotonic() - began,
    )


def main() -> None:
    """Serve the peer that listens at the socket until it says `Stop` or goes away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--pause-s", type=float, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    arguments = parser.parse_args()
    size, pause_s = arguments.parameters, arguments.pause_s
    with Session.connect(arguments.socket) as session:
        try:
            session.send(Hello(version=VERSION, pid=os.getpid(), layout=layout(size), data_digest=b"", device="none"))
            while not isinstance(message := session.receive(), Stop | Finished):
                session.send(answer(message, size, pause_s))
        except PeerGone:
            return


if __name__ == "__main__":
    main()
