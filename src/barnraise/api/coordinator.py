"""A whole swarm's rounds in one process, for scripts and research: the same core as a run, without network or clock.

    coordinator = Coordinator(theta, ["ada", "bob", "eve"], config)
    while not coordinator.is_over:
        plan = coordinator.schedule_round()
        updates = {peer: (my_training(coordinator.theta, plan.slots[peer]), 16) for peer in plan.slots}
        coordinator.aggregate_updates(updates)
        coordinator.create_checkpoint()

Peers have a name and an error-feedback residual, nothing else; votes and signatures are left out, since one process
agrees with itself. Plans, codec, mean, strategy, log, checkpoints and data cursor are those of a run, to the last bit.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from barnraise.codec import grid
from barnraise.codec.chain import codec_of
from barnraise.codec.codec import PIECE, Codec
from barnraise.codec.grid import Blocks, Float32
from barnraise.collective import shards
from barnraise.config import RunConfig
from barnraise.consensus.seniority import is_quorum
from barnraise.errors import ConfigError, PeerError
from barnraise.ids import PeerId
from barnraise.swarm import records
from barnraise.swarm import round as rounds
from barnraise.swarm.plan import RoundPlan, plan
from barnraise.swarm.records import LogEvent, Vertex
from barnraise.swarm.round import Stepped, Trained
from barnraise.swarm.state import State, follow, genesis
from barnraise.swarm.workspace import Part, Workspace, root_of

NOBODY = PeerId("")
"""Whose update is never at hand already: the process plays all peers."""


class Coordinator:
    """Plans rounds, aggregates what the peers bring, keeps the log and the checkpoints of a simulated run.

    >>> coordinator = Coordinator(np.zeros(4, np.float32), ["ada", "bob"], config)
    >>> update, samples = np.full(4, 0.25, np.float32), coordinator.samples_of("ada")
    >>> coordinator.aggregate_updates({"ada": (update, samples), "bob": (update, samples)})
    array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """

    _cut: records.Cut | None
    _stepped: Stepped | None

    def __init__(
        self,
        theta: Float32,
        peers: Sequence[str],
        config: RunConfig | None = None,
        *,
        blocks: Blocks | None = None,
        num_parameters: int | None = None,
    ) -> None:
        """Begin a run.

        Args:
            theta: float32[d], the first parameters; copied.
            peers: names of the founders.
            config: the run's rules; None: the defaults. Its founders are ``peers``.
            blocks: where each tensor of the model lies in the vector, ``(start, stop)``; each has a grid of its own.
                None: it is one tensor.
            num_parameters: so many elements are parameters, the rest buffers; None: all.

        Raises:
            ConfigError: there are no peers, a name comes twice, or theta is not a finite vector.
        """
        theta = np.array(theta, np.float32)
        if theta.ndim != 1 or not len(theta) or not np.isfinite(theta).all():
            raise ConfigError(f"theta has shape {theta.shape}; it is one finite vector of at least one element")
        if not peers or len(set(peers)) < len(peers):
            raise ConfigError(f"peers = {list(peers)}; name at least one, and none twice")
        config = dataclasses.replace(config or RunConfig(), founders=tuple(sorted(peers)))
        zeros = np.zeros_like(theta)
        blocks = ((0, len(theta)),) if blocks is None else blocks
        codec = codec_of(config.round.codec, np.int16)
        self._workspace = Workspace(blocks, theta, zeros, zeros.copy(), codec=codec, num_parameters=num_parameters)
        self._codecs: dict[PeerId, Codec] = {}
        """Each peer's own: one that begins where it ended the round before is not to begin with another's."""
        self._state = genesis(config, len(self._workspace.blocks), root_of(theta), root_of(zeros))
        self._residuals = dict.fromkeys(self._state.peers, zeros)
        self._log: list[LogEvent] = []
        self._vertices: list[Vertex] = []
        self._begin_books()

    # ---- what is agreed ---------------------------------------------------------------------------------------

    @property
    def theta(self) -> Float32:
        """The agreed parameters, float32[d], read-only."""
        view = self._workspace.theta.view()
        view.flags.writeable = False
        return view

    @property
    def state(self) -> State:
        """The agreed state: members, round, data cursor, grid, hashes."""
        return self._state

    @property
    def log(self) -> tuple[LogEvent, ...]:
        """All entries so far, two a round; `barnraise.swarm.state.apply` folds them to `state`."""
        return tuple(self._log)

    @property
    def vertices(self) -> tuple[Vertex, ...]:
        """The checkpoints so far, each naming the one before."""
        return tuple(self._vertices)

    @property
    def is_over(self) -> bool:
        """The last planned round is behind us."""
        return self._state.is_over

    def residual(self, peer: str) -> Float32:
        """Return what rounding has left of a peer's updates, float32[d]."""
        return self._residuals[PeerId(peer)]

    # ---- a round ----------------------------------------------------------------------------------------------

    def schedule_round(self) -> RoundPlan:
        """Return who trains on which samples in the round at hand.

        Raises:
            ConfigError: the last round is over, or there are fewer members than the run's ``min_peers``.
        """
        if self._state.is_over:
            raise ConfigError(f"all {self._state.config.round.rounds} rounds are over. Raise round.rounds for more.")
        if not self._state.can_train:
            raise ConfigError(
                f"{len(self._state.counting)} members count in round {self._state.round}, and min_peers is "
                f"{self._state.config.round.min_peers}. Let more join, or lower it."
            )
        return plan(self._state)

    def samples_of(self, peer: str) -> int:
        """Return how many samples the round gives a peer: the weight of its update."""
        return sum(segment.count for segment in self.schedule_round().slots.get(PeerId(peer), ()))

    def aggregate_updates(
        self, updates: Mapping[str, tuple[Float32, int]], losses: Mapping[str, float] | None = None
    ) -> Float32:
        """Take what peers bring through codec, weighted mean and the strategy's step, on a copy of the parameters.

        May be called again with other updates, until `create_checkpoint`.

        Args:
            updates: by peer ``(theta - w, samples)``: float32[d] and the weight. Who is not in it missed the round.
            losses: by peer the mean training loss, nats a token, for the checkpoint's figures.

        Returns:
            float32[d], the aggregate as every peer decodes it.

        Raises:
            ConfigError: too few updates for a quorum, one of a stranger, of another size or not finite, or a weight
                that is not what the plan gave.
            LocalError: the step leads to parameters that are not finite.
        """
        self._begin_books()
        assigned = self.schedule_round()
        contributors = [peer for peer in self._state.peers if peer in updates]
        self._check(assigned, updates, contributors)
        for peer in contributors:
            update, samples = updates[peer]
            self._promise(peer, np.array(update, np.float32), samples, (losses or {}).get(peer, 0.0))
        cut = rounds.build_cut(self._state, self._work, contributors)
        weights = [(PeerId(entry.member), entry.samples) for entry in cut.contributions]
        num_shards = assigned.num_shards
        for shard in range(num_shards):
            self._workspace.aggregate(self._part(shard), self._state.attempt, weights, NOBODY)
        self._step(num_shards)
        self._cut = cut
        return self._decoded(num_shards)

    def create_checkpoint(self, *, joined: Collection[str] = (), left: Collection[str] = (), time: int = 0) -> Vertex:
        """Agree on the aggregate: it becomes the parameters, and the round is over.

        Args:
            joined: peers that enter now; their updates count from the round after the next on.
            left: members that leave now.
            time: Unix seconds to note down; no clock is read here.

        Returns:
            The checkpoint.

        Raises:
            ConfigError: nothing has been aggregated in this round, or nobody would be left.
        """
        if self._cut is None or self._stepped is None:
            raise ConfigError("there is nothing to agree on in this round. Call aggregate_updates first.")
        if not (set(self._state.peers) - set(left)) | set(joined):
            raise ConfigError("nobody would be left. A run that ends does so by its rounds.")
        after_cut, _ = follow(self._state, self._cut)
        stepped = dataclasses.replace(self._stepped, unix_time=time)
        result = rounds.build_result(
            after_cut, self._work, stepped, joined=tuple(map(PeerId, joined)), left=tuple(map(PeerId, left))
        )
        self._state, vertex = follow(after_cut, result)
        assert vertex is not None
        self._log += [self._cut, result]
        self._vertices.append(vertex)
        self._workspace.commit(contributed=False)  # the residuals are kept here, one a peer
        kept = {**self._residuals, **self._residuals_after}
        zeros = np.zeros_like(self._workspace.theta)
        self._residuals = {peer: kept.get(peer, zeros) for peer in self._state.peers}
        self._begin_books()
        return vertex

    # ---- parts of it ------------------------------------------------------------------------------------------

    def _begin_books(self) -> None:
        self._work = rounds.new_work(self._state)
        self._cut, self._stepped = None, None
        self._residuals_after: dict[PeerId, Float32] = {}

    def _check(
        self, assigned: RoundPlan, updates: Mapping[str, tuple[Float32, int]], contributors: Sequence[PeerId]
    ) -> None:
        if strangers := sorted(set(updates) - set(assigned.slots)):
            raise ConfigError(
                f"{strangers[0]!r} has no part in round {assigned.round}; {', '.join(assigned.slots)} have"
            )
        for peer, (update, _) in updates.items():
            if np.shape(update) != (self._workspace.size,) or not np.isfinite(update).all():
                raise ConfigError(f"the update of {peer!r} is not {self._workspace.size} finite elements")
        absent = frozenset(self._state.peers) - set(contributors)
        if not is_quorum(self._state.peers, contributors) or not rounds.is_enough(
            self._state, self._work, contributors, absent
        ):
            raise ConfigError(
                f"{len(contributors)} of {len(self._state.peers)} members have brought an update: no quorum, or fewer "
                f"than min_peers = {self._state.config.round.min_peers}. A run would wait for more."
            )

    def _promise(self, peer: PeerId, update: Float32, samples: int, loss: float) -> None:
        """Encode a peer's update as it would, and keep its commitment and its shards."""
        space, num_shards = self._workspace, self._work.plan.num_shards
        space.residual = self._residuals[peer]
        space.codec = self._codecs.setdefault(peer, codec_of(self._state.config.round.codec, np.int16))
        leaves = space.encode(update, self._state.exponents, self._state.round, num_shards)
        for shard in range(num_shards):
            space.keep_update(peer, self._part(shard), np.array(space.outgoing(self._part(shard))))
        self._residuals_after[peer] = space.residual_behind(contributed=True)
        trained = Trained(
            round=self._state.round,
            steps=self._work.plan.steps,
            samples=samples,
            tokens=samples,
            train_loss=round(loss * records.MICRO),
            validation_loss=0,
            validation_tokens=0,
            leaves=leaves,
        )
        commitment = rounds.commitment_of(self._state, peer, trained, lambda context, message: b"")
        try:
            promise = rounds.check_commitment(self._state, self._work, peer, commitment, lambda *vote: True)
        except PeerError as error:
            raise ConfigError(f"the update of {peer!r} would be refused: {error}") from error
        self._work.promises[peer] = promise

    def _part(self, shard: int) -> Part:
        return Part(self._state.round, shard, self._work.plan.num_shards)

    def _step(self, num_shards: int) -> None:
        state = self._state
        roots = self._workspace.step(
            state.attempt,
            state.exponents,
            state.config,
            state.round,
            num_shards,
            holds_momentum=state.holds_momentum,
        )
        self._stepped = roots.stepped(state.round, state.attempt)

    def _decoded(self, num_shards: int) -> Float32:
        """Return the aggregate's values."""
        space, out, scratch = self._workspace, np.empty(self._workspace.size, np.float32), np.empty(PIECE, np.int16)
        for shard, (start, stop) in enumerate(shards.bounds(space.size, num_shards)):
            for first in range(start, stop, PIECE):
                last = min(first + PIECE, stop)
                space.read_aggregate(self._part(shard), self._state.attempt, first - start, last - start, scratch)
                for block, low, high in grid.segments(space.blocks, first, last):
                    grid.decode(scratch[low - first : high - first], self._state.exponents[block], out[low:high])
        return out
