"""The swarm beside a loop that stays the user's: `join` before it, `Swarm.step` in it; no loop of its own.

    with barnraise.join(model, optimizer, sync_every=50) as swarm:
        for x, y in loader:
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            swarm.step(loss, samples=len(x))
            if swarm.is_over:
                break

A peer's process beside this one does all that has to do with other machines. Between two exchanges nothing happens but
a look at a socket. Under torchrun every rank runs the same code and together they are one peer (`ranks`).
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, default_collate

from barnraise.api import place as places
from barnraise.api.companion import START_S, Companion
from barnraise.api.conversation import Conversation, Tally
from barnraise.api.parameters import Float32, Parameters
from barnraise.api.place import MAX_ROUNDS, Place, Rules
from barnraise.api.ranks import Ranks
from barnraise.api.schedule import AgreedSchedule
from barnraise.api.snapshot import Stateful
from barnraise.config import RunConfig
from barnraise.data.samples import shuffled
from barnraise.errors import ConfigError, Unavailable
from barnraise.identity import ClusterKey
from barnraise.link.messages import Begin
from barnraise.runs.invitation import Invitation
from barnraise.swarm.workspace import root_of

VARIABLE: Final = "BARNRAISE_JOIN"
"""Environment variable with an invitation, for a program that would else found a run."""
PROGRESS_INTERVAL_S: Final = 1.0
_GO, _NEWS, _EXCHANGE = b"go", b"news", b"exchange"

log = logging.getLogger("barnraise")


def join(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    run: str | None = None,
    sync_every: int | str = 50,
    rounds: int | None = None,
    batch_size: int = 32,
    min_peers: int = 1,
    strategy: str = "diloco",
    stateful: Sequence[Stateful] = (),
    directory: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    peer: Mapping[str, Any] | None = None,
    leave_s: float = 300.0,
) -> "Swarm":
    """Found a run for this model, or join one, and return the swarm to train it in, as a context manager.

    Without an invitation, here or in the environment's ``BARNRAISE_JOIN``, a run is founded, and others join by
    `Swarm.invitation`; ``sync_every`` to ``config`` are its rules, which whoever joins takes as they are. A directory
    in which a run was begun is gone on with.

    Args:
        model: any module; its trainable parameters and floating-point buffers are what is agreed on. Every peer must
            bring the same frozen ones.
        optimizer: any; its state stays here.
        run: an invitation, or the path of a file that holds one.
        sync_every: calls of `Swarm.step` between two exchanges, or a time such as ``"30s"``.
        rounds: exchanges until the run is over; None: it goes on for as long as somebody trains.
        batch_size: samples of one step of one peer, for `Swarm.batches`.
        min_peers: train only while so many are there.
        strategy: ``diloco``, ``local_sgd``, ``fedavg`` or ``synchronous``.
        stateful: what else has a state that a restart must bring back: schedulers, a gradient scaler.
        directory: where to keep the run; None: a new one below ``runs``.
        config: other keys of the run's configuration, nested: ``{"outer": {"lr": 0.7}}``.
        peer: other keys of this peer's: ``{"listen": "/ip4/lan/tcp/52416", "bulk_listen": "lan:0"}``.
        leave_s: seconds that the peer is given, at the end, to finish the round with the others.

    Raises:
        ConfigError: a value is wrong, or the model cannot be trained in a swarm.
    """
    ranks = Ranks()
    parameters = Parameters(model, ranks)
    first = parameters.read()
    rules = Rules(
        sync_every=sync_every,
        rounds=rounds,
        batch_size=batch_size,
        min_peers=min_peers,
        strategy=strategy,
        overrides=config or {},
    )

    def begin() -> Companion:
        found = _place(parameters, first, rules, run, None if directory is None else Path(directory))
        return Companion(places.with_settings(found, **(peer or {})))

    conversation = Conversation(
        parameters=parameters,
        optimizer=optimizer,
        stateful=(optimizer, *stateful),
        ranks=ranks,
        companion=ranks.first_does(begin),
    )
    return Swarm(conversation, leave_s)


def _place(parameters: Parameters, first: Float32, rules: Rules, run: str | None, path: Path | None) -> Place:
    """Find, join or found the run."""
    if not np.isfinite(first).all():
        raise ConfigError("the model has parameters that are not finite. Initialise it before you join.")
    if path is not None and (begun := places.find(path)) is not None:
        return begun
    if run := run or os.environ.get(VARIABLE):
        return places.join(run, path=path, now=datetime.now())
    initial = root_of(first).hex()
    return places.found(rules, layout=parameters.digest, initial=initial, path=path, now=datetime.now())


class Swarm:
    """A model's place in a swarm; made by `join`. Of several ranks, all call the same methods in the same order."""

    def __init__(self, conversation: Conversation, leave_s: float) -> None:
        """Take what `join` has made."""
        self._with, self._leave_s = conversation, leave_s
        self._tally = Tally()
        self._told_at = 0.0
        self._schedules: list[AgreedSchedule] = []

    # ---- the life of it ---------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Call `start`."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave in order; where the loop failed, at once."""
        if kind is None:
            self.leave()
        else:
            self.abort()

    def start(self) -> None:
        """Meet the others and load the parameters that they agree on; waits until there is something to train.

        Raises:
            BarnraiseError: the run cannot be reached, is another model's, or the peer ended.
        """
        try:
            self._with.ranks.first_does(self._say_who_is_awaited)
            self._with.open()
            self._tally = Tally()
        except BaseException:
            self.abort()
            raise

    def leave(self) -> None:
        """Bring in what was trained since the last exchange, load what the round comes to, and leave the run.

        Raises:
            BarnraiseError: the peer ended instead.
        """
        try:
            if not self.is_over:
                self._with.say_goodbye(self._tally, self._leave_s)
            self._with.hang_up()
            self._with.ranks.first_does(lambda: self._with.peer.wait_for_end(self._leave_s))
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave at once; what was trained since the last exchange is lost to the run. Does nothing when it is over."""
        self._with.close()

    # ---- the loop ---------------------------------------------------------------------------------------------

    def step(self, loss: Tensor | float | None = None, samples: int | None = None) -> bool:
        """Count one step of the optimiser; every so often, exchange with the others.

        Call it once after each ``optimizer.step()``, with whatever accumulation before that.

        Args:
            loss: of the step, for the run's figures; nothing is computed from it.
            samples: that the step trained on, on this rank: the update's weight; None: the run's ``batch_size``.

        Returns:
            Whether the model was changed: it now has the parameters that the swarm agreed on.

        Raises:
            ConfigError: the model's parameters are not finite any more; nothing was sent.
            BarnraiseError: the peer ended.
        """
        if self.is_over:
            return False
        self._tally.add(loss, self.config.inner.batch_size if samples is None else samples)
        verdict = self._with.ranks.first(self._verdict)
        if verdict == _EXCHANGE:
            self._with.bring_in(self._tally)
        if verdict != _GO:
            self._with.take_up()
            self._tally = Tally()
        for schedule in self._schedules:
            schedule.follow()
        return verdict != _GO

    def batches(
        self,
        dataset: Dataset[Any],
        batch_size: int | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> Iterator[Any]:
        """Go through the samples that the run gives this peer, until the run is over; call `step` for each step.

        All peers must hold the same dataset. Over an epoch each of its samples goes to one peer, in an order of the
        run's own; those of a peer that is lost in a round are not given out again.

        Args:
            dataset: with a length and items by number.
            batch_size: samples of a batch, of all ranks together; None: the run's. A fraction of that, for
                accumulation.
            collate: makes a batch of a list of samples.

        Raises:
            ConfigError: rounds are by time alone, or there are more batches in a round than steps use up.
        """
        self._check_counted("swarm.batches")
        size = len(dataset)  # type: ignore[arg-type]  # torch's Dataset does not declare it, map-style ones have it
        batch_size = batch_size or self.config.inner.batch_size
        while not self.is_over:
            begin = self._with.work
            for ids in _cut(begin, batch_size):
                mine = np.array_split(ids, self._with.ranks.num_ranks)[self._with.ranks.rank]
                yield collate([dataset[int(number)] for number in shuffled(self.config.seed, mine, size)])
                if self._with.work is not begin or self.is_over:
                    break
            else:
                raise ConfigError(
                    f"round {begin.round} has {begin.steps} steps of {self.config.inner.batch_size} samples, and they are "
                    f"used up before swarm.step was called as often. Join with the batch_size of one optimizer step."
                )

    def scheduler(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int = 0,
        total_steps: int | None = None,
        final_fraction: float = 0.1,
    ) -> AgreedSchedule:
        """Return a schedule that follows the run's step, not this peer's: warm-up, then a cosine.

        Who joins late begins where the others are. `step` moves it on; to do so yourself does no harm.

        Args:
            optimizer: whose learning rate to set; what it has now is the highest.
            warmup_steps: of linear rise from 0.
            total_steps: at which the cosine ends; None: those of all the run's rounds.
            final_fraction: of the learning rate, at the end and after it.

        Raises:
            ConfigError: the run has no end, or rounds are by time alone.
        """
        self._check_counted("swarm.scheduler")
        if total_steps is None:
            if self.config.round.rounds >= MAX_ROUNDS:
                raise ConfigError(
                    "the run has no end to plan for. Name total_steps here, or rounds where it is founded."
                )
            total_steps = self._with.work.total_steps
        schedule = AgreedSchedule(optimizer, lambda: self.agreed_step, warmup_steps, total_steps, final_fraction)
        self._schedules.append(schedule)
        return schedule

    def wait_for_peers(self, num_peers: int, timeout_s: float = 300.0) -> None:
        """Wait until so many peers, this one among them, are connected; they count from the next exchange on.

        To keep a run from training before there are so many, found it with ``min_peers`` instead.

        Raises:
            Unavailable: they are not there in time, or the peer ended.
        """

        def wait() -> None:
            if not self._with.peer.wait(lambda: self._with.peer.num_connected >= num_peers, timeout_s):
                raise Unavailable(
                    f"{self._with.peer.num_connected} of {num_peers} peers are here after {timeout_s:.0f} s. "
                    "Give the others swarm.invitation, or wait for longer."
                )

        self._with.ranks.first_does(wait)

    # ---- what can be asked ------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the run has ended: the model has its last parameters, and `step` does nothing any more."""
        return self._with.is_over

    @property
    def config(self) -> RunConfig:
        """The run's configuration, once `start` has come through."""
        return self._with.config

    @property
    def round(self) -> int:
        """The round that is being trained, from 0."""
        return self._with.work.round

    @property
    def num_members(self) -> int:
        """Peers that the run counts in this round."""
        return self._with.work.num_members

    @property
    def first_step(self) -> int:
        """Steps that the run had behind it when this round began."""
        return self._with.work.first_step

    @property
    def agreed_step(self) -> int:
        """Steps that the run has behind it, as far as this peer is."""
        return self._with.work.first_step + self._tally.steps

    @property
    def peer_id(self) -> str:
        """This peer's name in the run; empty on ranks that are not the first."""
        return self._with.companion.peer_id if self._with.companion is not None else ""

    @property
    def invitation(self) -> str:
        """The word by which others join; it holds the cluster's secret. Empty on ranks that are not the first.

        Raises:
            BarnraiseError: the peer ended before it listened.
        """
        peer = self._with.companion
        if peer is None:
            return ""
        if not peer.wait(lambda: bool(peer.address), START_S):
            raise peer.why_it_ended()
        secret = ClusterKey.load(peer.place.settings.cluster_key_file).secret
        return Invitation(run=peer.run, addresses=(peer.address,), secret=secret).encode()

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures of the round that was agreed last, as in metrics.jsonl; empty before the first."""
        committed = None if self._with.companion is None else self._with.companion.committed
        return {} if committed is None else dict(msgspec.to_builtins(committed))

    # ---- small things -----------------------------------------------------------------------------------------

    def _verdict(self) -> bytes:
        """Decide, on the first rank, what a step leads to."""
        work, tally, now = self._with.work, self._tally, time.monotonic()
        if self._with.has_news:
            return _NEWS
        if tally.steps >= work.steps or 0 < work.seconds <= now - tally.began_at:
            return _EXCHANGE
        if now - self._told_at >= PROGRESS_INTERVAL_S:
            self._told_at = now
            self._with.report(tally.steps, float(tally.loss) / max(1, tally.num_losses))
        return _GO

    def _say_who_is_awaited(self) -> None:
        peer = self._with.companion
        if peer is not None and peer.place.founded and (wanted := peer.place.config.round.min_peers) > 1:
            log.warning("waiting until %d peers are here; others join with %s=%s", wanted, VARIABLE, self.invitation)

    def _check_counted(self, what: str) -> None:
        if self.config.round.steps >= MAX_ROUNDS:
            raise ConfigError(
                f"{what} needs rounds of a known number of steps, and sync_every is a time. Found the run with a number, "
                'or name the most steps as well: config={"round": {"steps": 500}}.'
            )


def _cut(begin: Begin, batch_size: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return the round's sample numbers, a batch at a time."""
    parts = [np.arange(part.first, part.first + part.count, dtype=np.int64) for part in begin.segments]
    ids = np.concatenate([*parts, np.empty(0, dtype=np.int64)])
    for start in range(0, len(ids), batch_size):
        yield ids[start : start + batch_size]
