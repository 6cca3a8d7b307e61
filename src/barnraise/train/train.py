"""The training loop: what a trainer does between `Hello` and `Finished` or `Stop`, from top to bottom.

The trainer keeps nothing between rounds that is not in the snapshot, so a `Begin` given twice, to this process or to
the one that replaces it, gives the same bytes twice (same machine, same number of threads), unless a clock ends it.
"""

import logging
import math
import os
import time
from pathlib import Path

import blake3
import numpy as np
import torch
from numpy.typing import NDArray

from barnraise.config import RunConfig
from barnraise.data.corpus import Corpus, load
from barnraise.data.samples import batch
from barnraise.errors import LocalError
from barnraise.link.messages import (
    VERSION,
    Begin,
    Done,
    Failed,
    Finished,
    Hello,
    Initialise,
    Initialised,
    Progress,
    Stop,
)
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.loss import loss
from barnraise.outer.strategy import strategy_of
from barnraise.train import snapshot, vectors
from barnraise.train.device import Choice, choose
from barnraise.train.evaluate import evaluate
from barnraise.train.initial import first_parameters
from barnraise.train.inner import Diverged, Inner, lr_factor
from barnraise.train.session import PeerGone, Session
from barnraise.train.trace import Tracer

PROGRESS_INTERVAL_S = 1.0
log = logging.getLogger("barnraise.train")


def train(socket: Path, config: RunConfig, device: str, tracer: Tracer) -> None:
    """Serve the peer that listens at ``socket`` until it says `Finished` or `Stop`, or goes away.

    Raises:
        ConfigError: the data or the device cannot be used.
        Unavailable: nobody listens at ``socket``.
    """
    choice = choose(device, config.inner.precision)
    log.info("trainer.device device=%s dtype=%s reason=%r", choice.device, choice.dtype_name, choice.reason)
    corpus = load(config.data, window=config.model.max_seq_len + 1)
    trainer = Trainer(config, corpus, choice, tracer)
    with Session.connect(socket) as session:
        serve(trainer, session)


def serve(trainer: "Trainer", session: Session) -> None:
    """Answer the peer until it says `Finished` or `Stop`, or goes away."""
    try:
        session.send(trainer.hello())
        while not isinstance(message := newest(session), Finished | Stop):
            answer = trainer.answer(message, session)
            if answer is not None:
                session.send(answer)
    except PeerGone:
        log.info("trainer.peer_gone")


def newest(session: Session) -> Begin | Initialise | Finished | Stop:
    """Wait for work and take the newest: what a stopped trainer finds waiting is over, its parameters may be gone."""
    message = session.receive()
    while session.has_mail and not isinstance(message, Finished | Stop):
        message = session.receive()
    return message


class Trainer:
    """The model, its inner optimiser and the text."""

    def __init__(self, config: RunConfig, corpus: Corpus, choice: Choice, tracer: Tracer | None = None) -> None:
        self.config, self.corpus, self.choice = config, corpus, choice
        self.tracer = tracer or Tracer()
        self.model = build(config.model, config.seed).to(choice.device)
        self.flat = flatten(self.model)
        self.inner = Inner(self.flat, config.inner)

    def hello(self) -> Hello:
        """Say who is there and what it trains."""
        return Hello(
            version=VERSION,
            pid=os.getpid(),
            layout=self.flat.layout,
            data_digest=self.corpus.digest,
            device=str(self.choice.device),
            dtype=self.choice.dtype_name,
            reason=self.choice.reason,
        )

    def answer(self, message: Initialise | Begin, session: Session) -> Initialised | Done | Failed | None:
        """Do what the peer asks; None: it asked for something newer meanwhile."""
        if isinstance(message, Initialise):
            vectors.write(Path(message.path), first_parameters(self.config))
            return Initialised()
        try:
            return self.round(message, session)
        except Diverged as error:
            log.error("trainer.diverged round=%d reason=%r", message.round, str(error))
            return Failed(round=message.round, reason=str(error))

    def round(self, begin: Begin, session: Session) -> Done | None:
        """Train one round from ``begin.theta_path`` and leave the update and the snapshot.

        A round with a time ends with the step during which its time is over. A message that waits ends the round
        without either: the others have gone on, and its samples are given out again.

        Raises:
            Diverged: a loss, a gradient or the update is not finite; neither file was written.
        """
        began = time.monotonic()
        ends = began + begin.seconds if begin.seconds else math.inf
        batches = _batches(begin, self.config.inner.batch_size)
        theta = vectors.read(Path(begin.theta_path), self.flat.values.numel())
        self.flat.load(theta)
        length = self.config.model.max_seq_len
        with self.choice.autocast():
            measured = evaluate(self.model, self.corpus.validation, length, begin.evaluate.first, begin.evaluate.count)
        _finite(measured.nats, begin.first_step)
        self._restore(begin)
        self.tracer.begin(begin.round)

        losses: list[float] = []
        reported, reported_at = 0, began
        for step, ids in enumerate(batches, start=begin.first_step):
            if session.has_mail:
                log.info("trainer.superseded round=%d", begin.round)
                return None
            losses.append(self.step(ids, step, begin.total_steps))
            self.tracer.step()
            if (now := time.monotonic()) - reported_at >= PROGRESS_INTERVAL_S:
                session.send(Progress(round=begin.round, step=len(losses), loss=_mean(losses[reported:])))
                reported, reported_at = len(losses), now
            if now >= ends:
                break

        self.tracer.end()
        update = theta - self.flat.numpy()
        _finite(float(np.abs(update).max()), begin.first_step + len(losses))
        vectors.write(Path(begin.update_path), update)
        snapshot.save(self.inner.state(), Path(begin.snapshot_out))
        samples = len(losses) * self.config.inner.batch_size
        return Done(
            round=begin.round,
            order=begin.order,
            steps=len(losses),
            samples=samples,
            tokens=samples * length,
            loss=_mean(losses),
            validation_nats=measured.nats,
            validation_tokens=measured.tokens,
            took_s=time.monotonic() - began,
        )

    def step(self, sample_ids: NDArray[np.int64], step: int, total_steps: int) -> float:
        """Train on one batch, int64[batch] sample numbers, and return its loss in nats per token.

        Raises:
            Diverged: the loss or its gradient is not finite; the model was not changed.
        """
        inputs, targets = batch(self.corpus.train, self.config.seed, sample_ids, self.config.model.max_seq_len)
        self.flat.gradients.zero_()
        self.model.train()
        with self.choice.autocast():
            step_loss = loss(self.model, self._tokens(inputs), self._tokens(targets))
        step_loss.backward()  # type: ignore[no-untyped-call]
        found = _finite(float(step_loss.detach()), step)
        self.inner.step(lr_factor(step, total_steps, self.config.inner))
        return found

    def _restore(self, begin: Begin) -> None:
        """Set optimiser and random numbers to what they are at the round's start.

        torch's generator is seeded by the round and its first sample instead of being stored: dropout then differs
        between peers and rounds, and is the same when the round is done again.
        """
        self.inner.reset()
        if begin.snapshot_in and strategy_of(self.config).keeps_inner_state:
            self.inner.load_state(snapshot.load(Path(begin.snapshot_in)))
        text = f"{self.config.seed} {begin.round} {begin.segments[0].first}"
        torch.manual_seed(int.from_bytes(blake3.blake3(text.encode()).digest(length=7), "little"))

    def _tokens(self, text: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(text.astype(np.int64)).to(self.choice.device)


def _batches(begin: Begin, batch_size: int) -> list[NDArray[np.int64]]:
    if begin.steps < 1:
        raise LocalError(f"round {begin.round} asks for {begin.steps} steps; at least 1 is needed")
    parts = [np.arange(part.first, part.first + part.count, dtype=np.int64) for part in begin.segments]
    ids = np.concatenate([*parts, np.empty(0, dtype=np.int64)])
    if len(ids) != begin.steps * batch_size:
        raise LocalError(f"round {begin.round} has {len(ids)} samples for {begin.steps} steps of {batch_size}")
    return np.split(ids, begin.steps)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _finite(value: float, step: int) -> float:
    if not math.isfinite(value):
        raise Diverged(f"the loss or the update is {value} at step {step} of the run; lower inner.lr or inner.muon_lr")
    return value
