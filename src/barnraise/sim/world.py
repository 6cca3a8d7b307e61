"""A seeded world in one thread: the member's state machine that ships, on a simulated clock, network and disk.

The clock jumps to the next event of a heap. Links are FIFO with random delays, like TCP; they break and heal. A
crash loses everything but the disk, between any two effects. The tensors are small and real: rounding, aggregation
and the outer step are the ones that ship, so that hashes mean something. The trainer is a function of the
parameters and the sample numbers.

The same seed gives the same world, event for event; `World.failure` says which promise was broken.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from barnraise.collective import exchange
from barnraise.collective.shards import leaf
from barnraise.config import ConsensusConfig, InnerConfig, RoundConfig, RunConfig
from barnraise.consensus.agreement import Decision
from barnraise.consensus.seniority import is_quorum
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.sim.faults import Crash, Cutoff, Depart, Fault, Join, Pause
from barnraise.sim.node import Disk, Node, update_of, verify
from barnraise.swarm import effects, messages
from barnraise.swarm.adopt import adopt
from barnraise.swarm.effects import Effect
from barnraise.swarm.messages import Message, StateWanted
from barnraise.swarm.round import Trained
from barnraise.swarm.slots import Segment
from barnraise.swarm.workspace import Part, as_bytes, root_of

TICK_S = 0.25
QUIET_S = 150.0
"""After this long without new faults, whoever can go on has done so."""


LINGER_S = 20.0


class Broken(AssertionError):
    """A promise of the protocol was broken in this world."""


class World:
    """``num_peers`` peers, a seed, some faults. `run` until everybody who is alive is done."""

    train_s = (2.0, 4.0)
    """The shortest and the longest training of a round."""

    def __init__(
        self,
        *,
        seed: int,
        num_peers: int = 4,
        rounds: int = 4,
        faults: Sequence[Fault] = (),
        horizon_s: float = 2000.0,
        codec: str = "int8",
        seconds: float = 0.0,
        min_peers: int = 1,
        profile: Literal["home", "federation", "open"] = "home",
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.horizon_s = horizon_s
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._fifo: dict[tuple[int, int], float] = {}
        self._broken: set[frozenset[int]] = set()
        self._crashes = {(c.peer, c.round, c.after, c.nth): c for c in faults if isinstance(c, Crash)}
        self.decided: dict[int, bytes] = {}
        self.is_waiting = False
        """The world ended with too few members left: they say so and wait."""
        self._quiet_after_s = QUIET_S + max(
            (fault.at_s + getattr(fault, "for_s", 0.0) for fault in faults if not isinstance(fault, Crash)), default=0.0
        )
        self.config = RunConfig(
            profile=profile,
            founders=tuple(self.name_of(index) for index in range(num_peers)),
            inner=InnerConfig(batch_size=2),
            round=RoundConfig(
                rounds=rounds,
                steps=3,
                codec=codec,
                seconds=seconds,
                min_peers=min_peers,
                grace_min_s=5.0,
                exchange_timeout_s=10.0,
            ),
            consensus=ConsensusConfig(timeout_s=3.0),
        )
        joins = [fault for fault in faults if isinstance(fault, Join)]
        self.nodes = [self._fresh(index) for index in range(num_peers)]
        self.nodes += [self._visitor(index, join) for index, join in enumerate(joins, start=num_peers)]
        for fault in faults:
            self._schedule_fault(fault)
        for node in self.nodes[:num_peers]:
            self._later(self.rng.uniform(0, 2.0), self._start, node)
        for node, join in zip(self.nodes[num_peers:], joins, strict=True):
            self._later(join.at_s, self._arrive, node)

    # ---- running ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let the world go on until the run is over on every peer that is alive.

        Raises:
            Broken: agreement, exactness or liveness failed.
        """
        while self._heap and not self._is_over():
            self.now, _, act = heapq.heappop(self._heap)
            if self.now > self._quiet_after_s and self._waits_rightly():
                self.is_waiting = True
                self._check_end()
                return
            if self.now > self.horizon_s:
                phases = {n.index: (n.alive, n.member.phase.value, n.member.state.height) for n in self.nodes}
                raise Broken(f"no progress after {self.horizon_s} simulated seconds: {phases}")
            act()
        self._check_end()

    def _waits_rightly(self) -> bool:
        """Tell whether too few members are left for a quorum, so that waiting is all that may be done."""
        alive = [node for node in self.nodes if node.alive]
        if self._waking or not alive:
            return not self._waking
        members = max((node.member.state for node in alive), key=lambda state: state.height).peers
        return not is_quorum(members, {node.peer for node in alive})

    def _is_over(self) -> bool:
        if any(node.life < 0 or (node.alive and not node.member.state.is_over) for node in self.nodes):
            return False
        return any(node.alive for node in self.nodes)

    @property
    def _waking(self) -> bool:
        return any(node.life < 0 for node in self.nodes)

    def _check_end(self) -> None:
        ends = {(n.member.state.theta_root, n.member.state.vertex) for n in self.nodes if n.alive}
        if len(ends) > 1 and not self.is_waiting:
            raise Broken(f"survivors ended with {len(ends)} different checkpoints")
        for node in self.nodes:
            if node.alive and not node.is_hollow and root_of(node.workspace.theta) != node.member.state.theta_root:
                raise Broken(f"peer {node.index} holds other parameters than it agreed to")

    # ---- peers ------------------------------------------------------------------------------------------------

    def name_of(self, index: int) -> PeerId:
        """Return a peer's id."""
        return PeerId(f"peer-{index}")

    def _fresh(self, index: int, *, is_hollow: bool = False) -> Node:
        return Node.fresh(index, self.name_of(index), self.config, self.now, is_hollow=is_hollow)

    def _visitor(self, index: int, join: Join) -> Node:
        """Return a peer that is not there yet."""
        node = self._fresh(index, is_hollow=join.is_hollow)
        node.alive = False
        return node

    def _arrive(self, node: Node) -> None:
        node.alive = True
        node.start_again(self.config, self.now)
        self._start(node)

    def _start(self, node: Node) -> None:
        for other in self.nodes:
            if other is not node and other.alive and self._linked(node, other) and other.life >= 0:
                self._connect(node, other)
        self._tick(node, node.life)

    def _connect(self, one: Node, other: Node) -> None:
        self._event(one, lambda: one.member.peer_up(self.now, other.peer))
        self._event(other, lambda: other.member.peer_up(self.now, one.peer))

    def _disconnect(self, one: Node, other: Node) -> None:
        self._event(one, lambda: one.member.peer_down(self.now, other.peer))
        self._event(other, lambda: other.member.peer_down(self.now, one.peer))

    def _tick(self, node: Node, life: int) -> None:
        if node.alive and node.life == life:
            self._event(node, lambda: node.member.tick(self.now))
            self._go_when_nobody_is_behind(node)
            self._later(TICK_S, self._tick, node, life)

    def _go_when_nobody_is_behind(self, node: Node) -> None:
        since = node.leaving_since
        if since is None or not node.alive or node.paused_until > self.now:
            return
        if self.now > since + LINGER_S or not node.member.presence.anyone_behind(node.member.state.height):
            node.alive = False
            for other in self.nodes:
                if other is not node and other.alive:
                    self._disconnect(other, node)

    def _crash(self, node: Node, fault: Crash) -> None:
        node.alive = False
        for other in self.nodes:
            if other is not node and other.alive:
                self._later(0.01, self._event, other, lambda other=other: other.member.peer_down(self.now, node.peer))
        if fault.loses_disk:
            self._lose_disk(node)
        if fault.restart_after_s is not None:
            node.life = -abs(node.life) - 1
            self._later(fault.restart_after_s, self._restart, node)

    def _lose_disk(self, node: Node) -> None:
        """Forget all but the keys. What nobody else has on disk is lost with it, and may be decided otherwise."""
        node.disk, node.is_hollow = Disk.fresh(), False
        others = [other for other in self.nodes if other is not node and (other.alive or other.life < 0)]
        known = max((len(other.disk.log) for other in others), default=0)
        self.decided = {height: value for height, value in self.decided.items() if height < known}

    def _restart(self, node: Node) -> None:
        node.life, node.alive, node.encoded_round = -node.life, True, -1
        node.start_again(self.config, self.now)
        self._start(node)

    # ---- time and the network ---------------------------------------------------------------------------------

    def _later(self, delay_s: float, act: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), lambda: act(*args)))

    def _event(self, node: Node, call: Callable[[], list[Effect]]) -> None:
        """Let something happen to a peer, once it is awake."""
        if not node.alive:
            return
        if node.paused_until > self.now:
            self._later(node.paused_until - self.now, self._event, node, call)
            return
        life = node.life
        for effect in call():
            if node.life != life or not node.alive:
                return
            self._perform(node, effect)

    def _linked(self, one: Node, other: Node) -> bool:
        return not self._broken or frozenset((one.index, other.index)) not in self._broken

    def _deliver(self, sender: Node, to: Node, size_s: float, call: Callable[[], list[Effect]]) -> None:
        """Hand something over, in order; it is lost if either side dies or the link breaks meanwhile."""
        if not (to.alive and self._linked(sender, to)):
            return
        link = (sender.index, to.index)
        at = max(self._fifo.get(link, 0.0), self.now + self.rng.uniform(0.001, 0.2) + size_s)
        self._fifo[link] = at
        lives = sender.life, to.life

        def arrive() -> None:
            if (sender.life, to.life) == lives and self._linked(sender, to):
                self._event(to, call)

        self._later(at - self.now, arrive)

    def _send(self, sender: Node, to: Node, message: Message) -> None:
        data = messages.encode(message)
        self._deliver(sender, to, 0.0, lambda: self._hear(sender, to, messages.decode(sender.peer, data)))

    def _hear(self, sender: Node, to: Node, message: Message) -> list[Effect]:
        try:
            return to.member.receive(self.now, sender.peer, message)
        except PeerError as error:
            # Legal only for commitments that cross with the end of their round.
            if "commitment to round" not in str(error):
                raise
            return []

    def _schedule_fault(self, fault: Fault) -> None:
        match fault:
            case Pause():
                self._later(fault.at_s, self._pause, self.nodes[fault.peer], fault.for_s)
            case Cutoff():
                pair = frozenset((fault.one, fault.other))
                self._later(fault.at_s, self._break, pair, fault.for_s)
            case Depart():
                node = self.nodes[fault.peer]
                self._later(fault.at_s, lambda: self._event(node, lambda: node.member.leave(self.now)))
            case Crash() | Join():
                pass

    def _pause(self, node: Node, for_s: float) -> None:
        node.paused_until = max(node.paused_until, self.now + for_s)

    def _break(self, pair: frozenset[int], for_s: float) -> None:
        self._broken.add(pair)
        one, other = (self.nodes[index] for index in sorted(pair))
        self._disconnect(one, other)
        self._later(for_s, self._heal, pair)

    def _heal(self, pair: frozenset[int]) -> None:
        self._broken.discard(pair)
        one, other = (self.nodes[index] for index in sorted(pair))
        if one.alive and other.alive:
            self._connect(one, other)

    # ---- performing effects -----------------------------------------------------------------------------------

    def _perform(self, node: Node, effect: Effect) -> None:
        name = type(effect).__name__
        match effect:
            case effects.Broadcast():
                for other in self.nodes:
                    if other is not node:
                        self._send(node, other, effect.message)
            case effects.Send():
                self._send(node, self._by_id(effect.to), effect.message)
            case effects.PersistBallot():
                node.disk.ballot = effect.record
            case effects.Train():
                self._train(node, effect)
            case effects.Transfer():
                self._transfer(node, effect)
            case effects.Step():
                self._later(self.rng.uniform(0.01, 0.2), self._step, node, node.life, effect)
            case effects.Append():
                self._agreed(effect.height, effect.decision)
                node.disk.log.append(effect.decision)
            case effects.Commit():
                self._commit(node, effect)
            case effects.CatchUp():
                donor = self._by_id(effect.donor)
                self._send(node, donor, StateWanted(height=effect.height, is_hollow=node.member.is_hollow))
                self._later(5.0, self._give_up, node, node.life, effect.height)
            case effects.SendState():
                self._send_state(node, self._by_id(effect.to), effect)
            case effects.Finish():
                node.leaving_since = None if effect.is_over else self.now
            case effects.Report() | effects.Complain():
                pass
        self._maybe_crash(node, name)

    def _maybe_crash(self, node: Node, name: str) -> None:
        key = (node.member.state.round, name)
        node.performed[key] = node.performed.get(key, 0) + 1
        fault = self._crashes.pop((node.index, key[0], name, node.performed[key]), None)
        if fault:
            self._crash(node, fault)

    def _agreed(self, height: int, decision: Decision) -> None:
        if self.decided.setdefault(height, decision.value) != decision.value:
            raise Broken(f"two values were decided at height {height}")

    def _train(self, node: Node, effect: effects.Train) -> None:
        node.train_order += 1
        slot = effect.plan.slots.get(node.peer)
        if slot is not None:
            took = self.rng.uniform(*self.train_s)
            self._later(took, self._trained, node, node.life, node.train_order, effect.plan.round, slot)

    def _trained(self, node: Node, life: int, order: int, round_: int, slot: tuple[Segment, ...]) -> None:
        if node.life != life or node.train_order != order or not node.alive:
            return
        asked = sum(segment.count for segment in slot)
        update = update_of(node.workspace.theta, slot)
        num_shards = node.member.work.plan.num_shards
        leaves = node.workspace.encode(update, node.member.state.exponents, round_, num_shards)
        node.encoded_round = round_
        trained = Trained(
            round=round_,
            steps=3,
            samples=self.rng.randint(1, asked) if self.config.round.seconds else asked,
            tokens=60,
            train_loss=1_000_000,
            validation_loss=1_000_000,
            validation_tokens=10,
            leaves=leaves,
        )
        self._event(node, lambda: node.member.trained(self.now, trained))

    def _transfer(self, node: Node, effect: effects.Transfer) -> None:
        step, round_, attempt = effect.step, effect.round, effect.attempt
        state, part = node.member.state, Part(round_, step.shard, node.member.work.plan.num_shards)
        if state.cut is None or (state.round, state.attempt) != (round_, attempt):
            return  # it was concluded in the same breath
        num_updates = len(state.cut.contributions)
        match step:
            case exchange.SendUpdate():
                to, data = self._by_id(step.to), np.array(node.workspace.outgoing(part))

                def update_arrives() -> list[Effect]:
                    if to.member.state.round != round_:
                        return []
                    to.workspace.keep_update(node.peer, part, data)
                    digest = leaf(as_bytes(data))
                    return to.member.update_arrived(self.now, round_, node.peer, step.shard, digest)

                self._push(node, to, update_arrives, round_)
            case exchange.SendAggregate():
                to = self._by_id(step.to)
                data = np.array(node.workspace.aggregated(part, attempt))

                def aggregate_arrives() -> list[Effect]:
                    if to.member.state.round != round_:
                        return []
                    to.workspace.keep_aggregate(part, attempt, num_updates, data)
                    return to.member.aggregate_arrived(self.now, round_, attempt, step.shard)

                self._push(node, to, aggregate_arrives, round_)
            case exchange.Aggregate():
                self._later(0.05, self._aggregate, node, node.life, effect, step.shard)

    def _push(self, node: Node, to: Node, arrives: Callable[[], list[Effect]], round_: int) -> None:
        """Send until taken: a receiver that has not reached the round yet refuses, and is asked again."""

        def take() -> list[Effect]:
            if to.member.state.round < round_:
                self._later(0.05, self._push, node, to, arrives, round_)
                return []
            return arrives()

        if node.alive and node.member.state.round == round_:
            self._deliver(node, to, self.rng.uniform(0.0, 0.3), take)

    def _aggregate(self, node: Node, life: int, effect: effects.Transfer, shard: int) -> None:
        cut = node.member.state.cut
        if node.life != life or not node.alive or cut is None or node.member.state.attempt != effect.attempt:
            return
        weights = [(PeerId(entry.member), entry.samples) for entry in cut.contributions]
        part = Part(effect.round, shard, node.member.work.plan.num_shards)
        node.workspace.aggregate(part, effect.attempt, weights, node.peer)
        self._event(node, lambda: node.member.aggregated(self.now, effect.round, effect.attempt, shard))

    def _step(self, node: Node, life: int, effect: effects.Step) -> None:
        state = node.member.state
        if node.life != life or not node.alive or (state.round, state.attempt) != (effect.round, effect.attempt):
            return
        roots = node.workspace.step(
            effect.attempt,
            state.exponents,
            state.config,
            effect.round,
            node.member.work.plan.num_shards,
            holds_momentum=state.holds_momentum,
        )
        stepped = roots.stepped(effect.round, effect.attempt, int(self.now))
        self._event(node, lambda: node.member.stepped(self.now, stepped))

    def _commit(self, node: Node, effect: effects.Commit) -> None:
        self._agreed(effect.height, effect.decision)
        node.workspace.commit(effect.contributed)
        self._save(node, [*node.disk.log, effect.decision])

    def _save(self, node: Node, log: list[Decision]) -> None:
        space = node.workspace
        node.disk.log, node.disk.theta, node.disk.momentum = log, space.theta, space.momentum
        node.disk.residual = space.residual

    def _send_state(self, node: Node, to: Node, asked: effects.SendState) -> None:
        height = asked.height
        if (
            node.member.is_hollow
            or len(node.disk.log) < height
            or (len(node.disk.log) == height and not asked.is_hollow)
        ):
            return
        log = node.disk.log[height:]
        theta, momentum = node.workspace.theta, node.workspace.momentum

        def arrives() -> list[Effect]:
            if to.member.state.height != height:
                return to.member.catch_up_failed(self.now)
            adopted = adopt(to.member.state, log, verify)
            if root_of(theta) != adopted.state.theta_root:
                return to.member.catch_up_failed(self.now)
            residual = to.workspace.residual_behind(any(cut.has(to.peer) for cut in adopted.cuts))
            to.workspace.replace(theta, momentum, residual)
            to.is_hollow = False
            self._save(to, to.disk.log + log)
            return to.member.caught_up(self.now, adopted.state)

        self._deliver(node, to, 0.5, arrives)

    def _give_up(self, node: Node, life: int, height: int) -> None:
        if node.life == life and node.alive and node.member.state.height == height:
            self._event(node, lambda: node.member.catch_up_failed(self.now))

    def _by_id(self, peer: PeerId) -> Node:
        return next(node for node in self.nodes if node.peer == peer)
