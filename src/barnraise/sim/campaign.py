"""Many trials of agreement, in several processes: how many were run, how fast, and which broke a promise."""

import contextlib
import gc
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

from barnraise.consensus.agreement import Kind
from barnraise.consensus.protocols import protocol_of
from barnraise.sim.agreement import simulate
from barnraise.sim.mutants import MUTANTS
from barnraise.sim.witness import Violation

BLOCK: Final = 100
"""Trials that a process runs before it reports."""
MAX_FAILURES: Final = 20
"""Failures that are told one by one; more of them are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is tried.

    A trial that fails is replayed by `command`.
    """

    peers: int
    protocol: str = "pbft"
    mutant: str = ""
    """Name of a deliberate defect; empty: the code that ships."""
    traitors: int | None = None
    """Exactly so many; None: as many as the protocol bears, at most."""

    @property
    def kind(self) -> Kind:
        """Return the protocol under test."""
        return MUTANTS[self.mutant].kind if self.mutant else protocol_of(self.protocol)

    def command(self, seed: int) -> str:
        """Return what a user types to see one trial again."""
        words = ["barnraise simulate", f"--seed {seed}", f"--peers {self.peers}"]
        words += [f"--protocol {self.protocol}"] if self.protocol != "pbft" else []
        words += [f"--mutant {self.mutant}"] if self.mutant else []
        words += [f"--traitors {self.traitors}"] if self.traitors is not None else []
        return " ".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One trial that broke a promise."""

    seed: int
    what: str
    command: str
    """Replays it."""


@dataclass(kw_only=True, slots=True)
class Findings:
    """What some trials came to."""

    schedules: int = 0
    violations: int = 0
    events: int = 0
    messages: int = 0
    refused: int = 0
    """Messages of traitors that were refused as such."""
    cpu_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    """The first ones, by seed."""

    def add(self, other: "Findings") -> None:
        """Take in what another block of trials came to."""
        self.schedules += other.schedules
        self.violations += other.violations
        self.events += other.events
        self.messages += other.messages
        self.refused += other.refused
        self.cpu_s += other.cpu_s
        self.failures = sorted([*self.failures, *other.failures], key=lambda failure: failure.seed)[:MAX_FAILURES]


def explore(plan: Plan, seeds: range, *, stops: bool = False) -> Findings:
    """Run the trials of some seeds in this process.

    Args:
        plan: What is tried.
        seeds: Which.
        stops: End with the first one that breaks a promise.
    """
    gc.disable()  # trials are short and small; collecting among them takes 7 % of the time
    try:
        return _explored(plan, seeds, stops=stops)
    finally:
        gc.enable()


def _explored(plan: Plan, seeds: range, *, stops: bool) -> Findings:
    found = Findings()
    began_s = time.process_time()
    kind = plan.kind
    for seed in seeds:
        found.schedules += 1
        try:
            outcome = simulate(seed, plan.peers, kind, num_traitors=plan.traitors)
        except Violation as violation:
            found.violations += 1
            if len(found.failures) < MAX_FAILURES:
                found.failures.append(Failure(seed=seed, what=str(violation), command=plan.command(seed)))
            if stops:
                break
        else:
            found.events += outcome.num_events
            found.messages += outcome.num_messages
            found.refused += outcome.num_rejected
    found.cpu_s = time.process_time() - began_s
    return found


def campaign(plan: Plan, *, first: int, num_seeds: int | None, hours: float | None, jobs: int) -> Iterator[Findings]:
    """Run trials, block by block; yield what each block came to.

    Args:
        plan: What is tried.
        first: Seed of the first trial.
        num_seeds: How many trials; None: as many as there is time for.
        hours: How long; None: as long as it takes.
        jobs: Processes at once.
    """
    end_s = None if hours is None else time.monotonic() + hours * 3600
    blocks = _blocks(first, num_seeds, end_s)
    if jobs == 1:
        yield from (explore(plan, block) for block in blocks)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running: set[Future[Findings]] = set()
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: [future.cancel() for future in running])
            for block in blocks:
                running.add(pool.submit(explore, plan, block))
                if len(running) > jobs:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in running)


def _blocks(first: int, num_seeds: int | None, end_s: float | None) -> Iterator[range]:
    last = None if num_seeds is None else first + num_seeds
    for start in itertools.count(first, BLOCK):
        if (last is not None and start >= last) or (end_s is not None and time.monotonic() >= end_s):
            return
        yield range(start, start + BLOCK if last is None else min(start + BLOCK, last))


def hunt(plan: Plan, *, first: int, num_seeds: int, jobs: int) -> Findings:
    """Look for the first trial in which a defect shows; return what was found up to there."""
    total = Findings()
    for found in campaign(plan, first=first, num_seeds=num_seeds, hours=None, jobs=jobs):
        total.add(found)
        if total.violations:
            break
    return total
