"""What a swarm learns, beside one worker alone and beside data parallelism, on equal numbers of bytes per worker.

Simulated: K workers in one process, one after the other, with the library's own parts. METHODOLOGY.md says what the
cells are and what is counted. Some 20 minutes of one core for each seed; `--short` runs two seeds instead of three.

    python bench/learning.py --json learning.json --plot docs/images/learning.svg
    python bench/learning.py --short round.codec=grid16 outer.momentum=0.5
"""

import argparse
import copy
import dataclasses
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from curves import override
from measure import process
from measure.drawing import draw
from numpy.typing import NDArray
from torch import Tensor

from barnraise.codec.chain import codec_of
from barnraise.codec.grid import Blocks, Bytes
from barnraise.collective.exchange import Aggregate, Complete, Exchange, SendAggregate, SendUpdate
from barnraise.config import RunConfig
from barnraise.data.corpus import Corpus, load
from barnraise.data.samples import batch
from barnraise.ids import PeerId
from barnraise.model.build import build
from barnraise.model.flat import Flat, flatten
from barnraise.model.loss import loss
from barnraise.swarm.workspace import Part, Workspace
from barnraise.train.evaluate import evaluate
from barnraise.train.inner import Inner, lr_factor

INTERVALS: Final = (10, 30, 100)
STEPS: Final = 600
FLOAT32_BYTES: Final = 4
TARGETS: Final = (
    ("warm_h30", "warm_h1", 1.01, "loss"),
    ("h30", "h1", 1.08, "loss"),
    ("h30", "solo", 0.93, "loss"),
    ("h30", "h1", 0.01, "bytes_per_peer"),
)
"""``first <= limit x second``, of a figure."""

DEFAULTS: Final = ("round.codec=int8", "inner.batch_size=2", "outer.momentum=0.5")
"""Beside twice the steps of `barnraise train`, all that differs from its defaults; docs/LOG.md says why."""
NOTES: Final = (
    "simulated: workers in one process, one after the other",
    "loss: nats per byte of the held-out text",
    "seconds: CPU seconds of all workers together, of the cell's own half if it is warm, without measuring",
    "bytes_per_peer: sent, of the cell's own half if it is warm; with the half before: bytes_per_peer_whole",
    "bytes of h10, h30, h100: as encoded; of h1: 2 (K - 1) / K x 4 d a step, a ring all-reduce's in theory",
)

Vector = NDArray[np.float32]
Cell = dict[str, float]
Seeds = dict[int, dict[str, Cell]]


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Where training stands: the parameters, and the state of each worker's optimiser."""

    theta: Vector
    inners: tuple[dict[str, Tensor], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """What some steps came to."""

    end: State
    bytes_per_peer: float
    cpu_s: float


class Laboratory:
    """One seed's workers, which share a model object and take turns with it.

    Worker w sees the same samples at step t in every cell, so that cells differ in nothing but what is exchanged.
    """

    def __init__(self, config: RunConfig, corpus: Corpus, num_workers: int, num_steps: int) -> None:
        self.config, self.corpus, self.num_workers, self.num_steps = config, corpus, num_workers, num_steps
        self.model = build(config.model, config.seed)
        self.flat = flatten(self.model)
        self.blocks = blocks_of(self.flat)
        self.inner = Inner(self.flat, config.inner)
        self.begin = State(theta=self.flat.numpy(), inners=(self.inner.state(),) * num_workers)
        self.begin = dataclasses.replace(self.begin, inners=copy.deepcopy(self.begin.inners))

    def solo(self, start: State, first: int, stop: int) -> Phase:
        """Train worker 0 alone."""
        began = time.process_time()
        theta, inner = self.train(start.theta, start.inners[0], range(first, stop), workers=range(1))
        end = State(theta=theta, inners=(inner, *start.inners[1:]))
        return Phase(end=end, bytes_per_peer=0.0, cpu_s=time.process_time() - began)

    def data_parallel(self, start: State, first: int, stop: int) -> Phase:
        """Average gradients in every step: one step of all workers' batches. Bytes are a ring all-reduce's, in theory."""
        began = time.process_time()
        steps, workers = range(first, stop), range(self.num_workers)
        theta, inner = self.train(start.theta, start.inners[0], steps, workers)
        end = State(theta=theta, inners=(inner,) * self.num_workers)
        share = 2 * (self.num_workers - 1) / self.num_workers
        sent = share * FLOAT32_BYTES * len(theta) * len(steps)
        return Phase(end=end, bytes_per_peer=sent, cpu_s=time.process_time() - began)

    def swarm(self, start: State, first: int, stop: int, interval: int) -> Phase:
        """Train apart and exchange updates every so many steps; the last round may be shorter."""
        began = time.process_time()
        round_config = dataclasses.replace(self.config.round, steps=interval)
        peers = Peers(dataclasses.replace(self.config, round=round_config), self.blocks, start.theta, self.num_workers)
        inners = list(start.inners)
        for boundary in range(first, stop, interval):
            steps = range(boundary, min(stop, boundary + interval))
            updates = []
            for worker in range(self.num_workers):
                workers = range(worker, worker + 1)
                trained, inners[worker] = self.train(peers.theta, inners[worker], steps, workers)
                updates.append(peers.theta - trained)
            peers.exchange(updates)
        end = State(theta=peers.theta, inners=tuple(inners))
        sent = statistics.mean(peers.bytes_sent.values())
        return Phase(end=end, bytes_per_peer=sent, cpu_s=time.process_time() - began)

    def train(
        self, theta: Vector, inner: dict[str, Tensor], steps: range, workers: range
    ) -> tuple[Vector, dict[str, Tensor]]:
        """Take the steps on the joint batches of these workers; return parameters and optimiser state."""
        self.flat.load(theta)
        self.inner.load_state(inner)
        for step in steps:
            self.backward(step, workers)
            self.inner.step(lr_factor(step, self.num_steps, self.config.inner))
        return self.flat.numpy(), copy.deepcopy(self.inner.state())

    def backward(self, step: int, workers: range) -> None:
        """Leave the gradient of the workers' batches at a step in the flat vector."""
        size = self.config.inner.batch_size
        first = step * self.num_workers
        ids = np.arange((first + workers.start) * size, (first + workers.stop) * size)
        parts = batch(self.corpus.train, self.config.seed, ids, self.config.model.max_seq_len)
        x, y = (torch.from_numpy(part.astype(np.int64)) for part in parts)
        self.flat.gradients.zero_()
        loss(self.model, x, y).backward()  # type: ignore[no-untyped-call]

    def nats_per_byte(self, theta: Vector, windows: int | None) -> float:
        """Measure parameters on the held-out text, all of it or its first windows."""
        self.flat.load(theta)
        measured = evaluate(self.model, self.corpus.validation, self.config.model.max_seq_len, count=windows)
        return measured.nats / measured.tokens


class Peers:
    """The peers' side of a swarm: codec, exchange, aggregation and outer step are those of a real run."""

    def __init__(self, config: RunConfig, blocks: Blocks, theta: Vector, num_workers: int) -> None:
        self.config = config
        self.names = tuple(PeerId(f"peer-{index}") for index in range(num_workers))
        self.workspaces = {
            name: Workspace(
                blocks,
                theta.copy(),
                np.zeros_like(theta),
                np.zeros_like(theta),
                codec=codec_of(config.round.codec, np.int16),
            )
            for name in self.names
        }
        self.exponents = (config.round.grid_exponent,) * len(blocks)
        self.round = 0
        self.bytes_sent = dict.fromkeys(self.names, 0)
        """Payloads as encoded; headers, votes and hashes, some kilobytes a round, are not in it."""

    @property
    def theta(self) -> Vector:
        """Return the agreed parameters."""
        return self.workspaces[self.names[0]].theta

    def exchange(self, updates: list[Vector]) -> None:
        """Carry out one round with each worker's theta - w.

        Raises:
            RuntimeError: the peers came to different results.
        """
        for name, update in zip(self.names, updates, strict=True):
            self.workspaces[name].encode(update, self.exponents, self.round, len(self.names))
        self._all_to_all()
        roots = {
            workspace.step(0, self.exponents, self.config, self.round, len(self.names))
            for workspace in self.workspaces.values()
        }
        if len(roots) != 1:
            raise RuntimeError(f"round {self.round}: the peers came to {len(roots)} results")
        self.exponents = roots.pop().exponents
        for workspace in self.workspaces.values():
            workspace.commit(contributed=True)
        self.round += 1

    def _all_to_all(self) -> None:
        num_shards = len(self.names)
        weights = [(name, 1) for name in self.names]
        machines = {
            name: Exchange(contributors=self.names, members=self.names, num_shards=num_shards, me=name)
            for name in self.names
        }
        pending = deque((name, effect) for name in self.names for effect in machines[name].begin())
        while pending:
            me, effect = pending.popleft()
            mine = self.workspaces[me]
            match effect:
                case SendUpdate(shard=shard, to=to):
                    part = Part(self.round, shard, num_shards)
                    self.workspaces[to].keep_update(me, part, self._sent(me, mine.outgoing(part)))
                    pending.extend((to, after) for after in machines[to].update_arrived(me, shard))
                case Aggregate(shard=shard):
                    mine.aggregate(Part(self.round, shard, num_shards), 0, weights, me)
                    pending.extend((me, after) for after in machines[me].aggregated(shard))
                case SendAggregate(shard=shard, to=to):
                    part = Part(self.round, shard, num_shards)
                    data = self._sent(me, mine.aggregated(part, 0))
                    self.workspaces[to].keep_aggregate(part, 0, len(self.names), data)
                    machines[to].aggregate_arrived(shard)
                case Complete():
                    pass

    def _sent(self, sender: PeerId, payload: memoryview) -> Bytes:
        self.bytes_sent[sender] += payload.nbytes
        return np.array(payload)


def blocks_of(flat: Flat) -> Blocks:
    """Return where each tensor lies in the flat vector."""
    stops = np.cumsum([int(np.prod(tensor.shape)) for tensor in flat.layout]).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def cells_of(laboratory: Laboratory, intervals: tuple[int, ...], windows: int | None) -> Iterator[tuple[str, Cell]]:
    """Train one seed, yielding each cell as soon as it is there.

    The warm cells go on from the data-parallel run's middle. So ``warm_h1`` is that run's second half, and is not
    computed twice.
    """
    middle, stop = laboratory.num_steps // 2, laboratory.num_steps

    def cell(phase: Phase, before: Phase | None = None) -> Cell:
        whole = phase.bytes_per_peer + (before.bytes_per_peer if before else 0.0)
        return {
            "loss": laboratory.nats_per_byte(phase.end.theta, windows),
            "bytes_per_peer": phase.bytes_per_peer,
            "bytes_per_peer_whole": whole,
            "seconds": phase.cpu_s,
        }

    half = laboratory.data_parallel(laboratory.begin, 0, middle)
    rest = laboratory.data_parallel(half.end, middle, stop)
    warm_h1 = cell(rest, half)
    yield "warm_h1", warm_h1
    both = {"bytes_per_peer": warm_h1["bytes_per_peer_whole"], "seconds": half.cpu_s + rest.cpu_s}
    yield "h1", warm_h1 | both
    yield "solo", cell(laboratory.solo(laboratory.begin, 0, stop))
    yield "warm_solo", cell(laboratory.solo(half.end, middle, stop), half)
    for interval in intervals:
        yield f"h{interval}", cell(laboratory.swarm(laboratory.begin, 0, stop, interval))
        yield f"warm_h{interval}", cell(laboratory.swarm(half.end, middle, stop, interval), half)


def one_seed(laboratory: Laboratory, windows: int | None) -> dict[str, Cell]:
    """Train all cells of a seed, telling of each; return them with the warm ones last."""
    cells: dict[str, Cell] = {}
    for name, cell in cells_of(laboratory, INTERVALS, windows):
        cells[name] = cell
        print(f"seed {laboratory.config.seed} {name:12}{cell['loss']:8.4f}{cell['seconds']:8.1f} CPU s", flush=True)
    names = ["solo", "h1", *(f"h{interval}" for interval in INTERVALS)]
    return {name: cells[name] for name in (*names, *(f"warm_{name}" for name in names))}


def means(seeds: Seeds) -> dict[str, Cell]:
    """Return each figure's mean over the seeds."""
    first = next(iter(seeds.values()))
    return {
        name: {figure: statistics.mean(cells[name][figure] for cells in seeds.values()) for figure in first[name]}
        for name in first
    }


def settings_of(config: RunConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on, as JSON would give it back."""
    settings = {
        "workers": arguments.workers,
        "steps": arguments.steps,
        "windows": arguments.windows,
        "model": dataclasses.asdict(config.model),
        "inner": dataclasses.asdict(config.inner),
        "outer": dataclasses.asdict(config.outer),
        "codec": config.round.codec,
        "notes": NOTES,
    }
    back: dict[str, Any] = json.loads(json.dumps(settings))
    return back


def earlier(path: Path | None, settings: Mapping[str, Any]) -> Seeds:
    """Return the seeds that the file has, if it was written with the same settings."""
    if path is None or not path.is_file():
        return {}
    figures = json.loads(path.read_text(encoding="utf-8"))
    return {int(seed): cells for seed, cells in figures["seeds"].items()} if figures["settings"] == settings else {}


def report(settings: Mapping[str, Any], seeds: Seeds) -> dict[str, Any]:
    """Return what ``--json`` writes: each cell's means, then what they are means of and how they were taken."""
    cells = means(seeds)
    return {**cells, "targets": verdicts(cells), "seeds": seeds, "settings": settings, "machine": process.machine()}


def verdicts(cells: Mapping[str, Cell]) -> dict[str, dict[str, float | bool]]:
    """Return each target's ratio and whether it holds."""
    return {
        f"{figure}: {first} / {second}": {
            "ratio": (ratio := cells[first][figure] / cells[second][figure]),
            "at_most": limit,
            "holds": ratio <= limit,
        }
        for first, second, limit, figure in TARGETS
        if first in cells and second in cells
    }


def show(cells: Mapping[str, Cell]) -> None:
    """Print the table, and which targets hold."""
    print(f"{'cell':12}{'nats/byte':>10}{'bits/byte':>10}{'/ h1':>8}{'/ solo':>8}{'MB per peer':>13}{'CPU s':>8}")
    for name, cell in cells.items():
        warm = "warm_" if name.startswith("warm_") else ""
        ratios = "".join(f"{cell['loss'] / cells[warm + other]['loss']:8.3f}" for other in ("h1", "solo"))
        bits, megabytes = cell["loss"] / math.log(2.0), cell["bytes_per_peer"] / 1e6
        print(f"{name:12}{cell['loss']:10.4f}{bits:10.4f}{ratios}{megabytes:13.2f}{cell['seconds']:8.0f}")
    for name, verdict in verdicts(cells).items():
        word = "holds" if verdict["holds"] else "DOES NOT HOLD"
        print(f"{name:32}{verdict['ratio']:8.4f}  <= {verdict['at_most']:g} {word}")


def main() -> None:
    """Train, print, and write the figures; a target that is missed is no failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="two seeds instead of three")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=STEPS, help="per worker")
    parser.add_argument("--windows", type=int, help="validation windows; default: the whole text")
    parser.add_argument("--json", type=Path, help="write the figures here, and take from here the seeds it has already")
    parser.add_argument("--plot", type=Path, help="draw them into this file (needs matplotlib)")
    parser.add_argument("assignments", nargs="*", help="section.key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = override(RunConfig(), [*DEFAULTS, *arguments.assignments])
    settings = settings_of(config, arguments)
    seeds = earlier(arguments.json, settings)
    corpus = load(config.data, window=config.model.max_seq_len + 1)
    for seed in range(1, 3 if arguments.short else 4):
        if seed not in seeds:
            laboratory = Laboratory(dataclasses.replace(config, seed=seed), corpus, arguments.workers, arguments.steps)
            seeds[seed] = one_seed(laboratory, arguments.windows)
            if arguments.json:
                arguments.json.write_text(json.dumps(report(settings, seeds), indent=1) + "\n", encoding="utf-8")
    show(means(seeds))
    if arguments.plot:
        draw(seeds, arguments.plot)


if __name__ == "__main__":
    main()
