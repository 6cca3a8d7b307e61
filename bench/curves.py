"""Loss curves of a simulated swarm: K workers in one process, one after the other, with the library's own parts.

Rounding, codec, aggregation and outer step are those of a real swarm; time is not. DDP is one worker with the swarm's
batch:

    python bench/curves.py --workers 4 round.rounds=8 round.codec=int8 inner.optimizer=adamw outer.momentum=0.5
    python bench/curves.py --workers 4 strategy=local_sgd
    python bench/curves.py --workers 1 inner.batch_size=32
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from barnraise.codec.chain import codec_of
from barnraise.config import RunConfig
from barnraise.data.corpus import Corpus, load
from barnraise.data.samples import batch
from barnraise.ids import PeerId
from barnraise.model.build import build
from barnraise.model.flat import Flat, flatten
from barnraise.model.loss import loss
from barnraise.outer.strategy import strategy_of
from barnraise.swarm.workspace import Part, Workspace
from barnraise.train.evaluate import evaluate
from barnraise.train.inner import Inner, lr_factor

Vector = NDArray[np.float32]


class Swarm:
    """K workers that share one model object and take turns with it."""

    def __init__(self, config: RunConfig, corpus: Corpus, workers: int) -> None:
        self.config, self.corpus = config, corpus
        self.model = build(config.model, config.seed)
        self.flat = flatten(self.model)
        self.inners = [Inner(self.flat, config.inner) for _ in range(workers)]
        self.steps = strategy_of(config).steps(config)
        self.peers = Peers(config, self.flat, workers)

    @property
    def theta(self) -> Vector:
        """Return the agreed parameters, float32[d]."""
        return self.peers.spaces[0].theta

    def train(self, inner: Inner, first_step: int, first_sample: int) -> Vector:
        """Return one worker's update, theta - w, after a round's steps."""
        self.flat.load(self.theta)
        if not strategy_of(self.config).keeps_inner_state:
            inner.reset()
        total = self.config.round.rounds * self.steps
        size = self.config.inner.batch_size
        for step in range(self.steps):
            self.backward(first_sample + step * size, size)
            inner.step(lr_factor(first_step + step, total, self.config.inner))
        return self.theta - self.flat.numpy()

    def backward(self, first_sample: int, count: int) -> None:
        """Leave the gradient of a batch in the flat vector."""
        ids = np.arange(first_sample, first_sample + count)
        x, y = batch(self.corpus.train, self.config.seed, ids, self.config.model.max_seq_len)
        self.flat.gradients.zero_()
        value = loss(self.model, torch.from_numpy(x.astype(np.int64)), torch.from_numpy(y.astype(np.int64)))
        value.backward()  # type: ignore[no-untyped-call]

    def rounds(self) -> Iterator[int]:
        """Run the configured rounds, yielding the number of each."""
        per_worker = self.steps * self.config.inner.batch_size
        for number in range(self.config.round.rounds):
            first = number * per_worker * len(self.inners)
            step = number * self.steps
            updates = [self.train(inner, step, first + k * per_worker) for k, inner in enumerate(self.inners)]
            self.peers.exchange(updates, number)
            yield number


class Peers:
    """The workers' own tensors, and what a round does with them; everything is whole and on time."""

    def __init__(self, config: RunConfig, flat: Flat, workers: int) -> None:
        self.config = config
        stops = np.cumsum([int(np.prod(tensor.shape)) for tensor in flat.layout]).tolist()
        blocks = list(zip([0, *stops[:-1]], stops, strict=True))
        theta = flat.numpy()
        zeros = np.zeros_like(theta)
        self.names = [PeerId(f"peer-{number}") for number in range(workers)]
        # A codec each: that of PowerSGD begins where its own last one ended.
        codecs = [codec_of(config.round.codec, np.int16) for _ in self.names]
        self.spaces = [Workspace(blocks, theta, zeros, zeros, codec=codec) for codec in codecs]
        self.exponents = (config.round.grid_exponent,) * len(blocks)

    def exchange(self, updates: Sequence[Vector], round_: int) -> None:
        """Bring the workers' updates, theta - w, together, and step. All that differs between peers is their residual."""
        first, count = self.spaces[0], len(self.spaces)
        for space, update in zip(self.spaces, updates, strict=True):
            space.encode(update, self.exponents, round_, count)
        for shard in range(count):
            part = Part(round_, shard, count)
            for name, space in zip(self.names[1:], self.spaces[1:], strict=True):
                first.keep_update(name, part, np.array(space.outgoing(part)))
            first.aggregate(part, 0, [(name, 1) for name in self.names], self.names[0])
        self.exponents = first.step(0, self.exponents, self.config, round_, count).exponents
        theta, momentum = first.pending()
        for space in self.spaces:
            space.replace(theta, momentum, space.residual_behind(contributed=True))


def override(config: Any, assignments: list[str]) -> Any:
    """Return the config with ``section.key=value`` and ``key=value`` assignments applied."""
    for assignment in assignments:
        path, text = assignment.split("=")
        section, _, key = path.rpartition(".")
        part = getattr(config, section) if section else config
        current = getattr(part, key)
        part = dataclasses.replace(part, **{key: text if isinstance(current, str) else type(current)(float(text))})
        config = dataclasses.replace(config, **{section: part}) if section else part
    return config


def measure(swarm: Swarm, every: int, windows: int) -> Iterator[dict[str, float]]:
    """Run the swarm, yielding figures every so many rounds; the last are of the whole validation text."""
    config, validation = swarm.config, swarm.corpus.validation
    began, measuring = time.process_time(), 0.0
    for number in swarm.rounds():
        last = number + 1 == config.round.rounds
        if not last and (number + 1) % every:
            continue
        paused = time.process_time()
        swarm.flat.load(swarm.theta)
        measured = evaluate(swarm.model, validation, config.model.max_seq_len, count=None if last else windows)
        steps = (number + 1) * swarm.steps * len(swarm.inners)
        cpu_s = paused - began - measuring
        yield {
            "round": number + 1,
            "bits_per_byte": round(measured.bits_per_byte, 4),
            "cpu_s": round(cpu_s, 1),
            "ms_per_step": round(1000 * cpu_s / steps, 1),
            "tokens": steps * config.inner.batch_size * config.model.max_seq_len,
        }
        measuring += time.process_time() - paused


def main() -> None:
    """Print the curve of one run as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--every", type=int, default=4, help="rounds between measurements")
    parser.add_argument("--windows", type=int, default=400, help="validation windows of each measurement but the last")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("assignments", nargs="*", help="section.key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = override(RunConfig(), arguments.assignments)
    corpus = load(config.data, window=config.model.max_seq_len + 1)
    print(f"{arguments.workers} workers {' '.join(arguments.assignments)}")
    curve = []
    for figures in measure(Swarm(config, corpus, arguments.workers), arguments.every, arguments.windows):
        curve.append(figures)
        print("  ".join(f"{name} {value:>10}" for name, value in figures.items()), flush=True)
    if arguments.json:
        settings = {"workers": arguments.workers, "assignments": arguments.assignments, "simulated": True}
        arguments.json.write_text(json.dumps(settings | {"curve": curve}, indent=1) + "\n")


if __name__ == "__main__":
    main()
