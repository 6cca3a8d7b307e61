"""A room of members without sockets, clocks or tensors, for tests of their machine."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import blake3

from barnraise.collective import exchange
from barnraise.config import InnerConfig, RoundConfig, RunConfig
from barnraise.consensus.agreement import Decision
from barnraise.consensus.raft_messages import Ack
from barnraise.errors import PeerError
from barnraise.ids import Digest, PeerId
from barnraise.swarm import effects
from barnraise.swarm.effects import Effect, Finish
from barnraise.swarm.member import Member
from barnraise.swarm.messages import Message
from barnraise.swarm.records import LogEvent
from barnraise.swarm.round import Stepped, Trained
from barnraise.swarm.state import State, genesis

A, B, C, D = (PeerId(f"peer-{letter}") for letter in "abcd")
TIMEOUT_S = 10.0
GRACE_S = 4.0
CATCH_UP_S = 6.0
"""Who got no shards of a round waits `consensus.timeout_s` for them, then asks for the state."""
TICK_S = 0.25
ASKED = 6
"""Samples of a slot: three steps of two."""


def config_of(*founders: PeerId, **rules: Any) -> RunConfig:
    return RunConfig(
        founders=founders,
        inner=InnerConfig(batch_size=2),
        round=RoundConfig(**{"rounds": 50, "steps": 3, "grace_min_s": GRACE_S, "grace_factor": 0.0, **rules}),
    )


def first_state(config: RunConfig) -> State:
    return genesis(config, 1, Digest(bytes([1]) * 32), Digest(bytes([2]) * 32))


def sign(peer: PeerId, context: str, message: bytes) -> bytes:
    return blake3.blake3(f"{peer}|{context}|".encode() + message).digest()


def verify(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
    return signature == sign(peer, context, message)


def digest_of(*words: object) -> Digest:
    return Digest(blake3.blake3(repr(words).encode()).digest())


class Room:
    """Members that hear each other at once, on one clock. Nothing is computed; `train` says that an update is ready."""

    def __init__(self, config: RunConfig, *, hands_over: bool = True) -> None:
        """``hands_over``: donors deliver at once; False: the test says what becomes of a `CatchUp`."""
        self.config = config
        self.hands_over = hands_over
        self.now = 0.0
        self.members: dict[PeerId, Member] = {}
        self.log: list[LogEvent] = []
        self.decisions: list[Decision] = []
        self.done: dict[PeerId, list[Effect]] = {}
        """Every effect of a peer, in order."""
        self._under_way: deque[Callable[[], None]] = deque()

    def enter(self, peer: PeerId, *, state: State | None = None, **options: Any) -> Member:
        """Bring a peer in, or back, and connect it to all others."""
        member = Member(
            me=peer,
            state=state or first_state(self.config),
            sign=lambda context, message: sign(peer, context, message),
            verify=verify,
            now=self.now,
            peer_timeout_s=TIMEOUT_S,
            **options,
        )
        others = dict(self.members)
        self.members[peer] = member
        self.done.setdefault(peer, [])
        for name, other in others.items():
            self._do(peer, member.peer_up(self.now, name))
            self._do(name, other.peer_up(self.now, peer))
        self._settle()
        return member

    def die(self, peer: PeerId) -> None:
        del self.members[peer]
        for name, member in list(self.members.items()):
            self._do(name, member.peer_down(self.now, peer))
        self._settle()

    def say(self, peer: PeerId, effects_: Sequence[Effect]) -> None:
        """Perform what a call of the test's own led to."""
        self._do(peer, effects_)
        self._settle()

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            for name, member in list(self.members.items()):
                self._do(name, member.tick(self.now))
                self._settle()

    def train(self, *peers: PeerId, samples: int = ASKED) -> None:
        """Have these peers finish their part of the round that each is in."""
        for peer in peers or tuple(self.members):
            member = self.members[peer]
            leaves = tuple(digest_of(peer, member.state.round, s) for s in range(member.work.plan.num_shards))
            trained = Trained(
                round=member.state.round,
                steps=3,
                samples=samples,
                tokens=60,
                train_loss=1,
                validation_loss=1,
                validation_tokens=1,
                leaves=leaves,
            )
            if peer in member.work.plan.slots:
                self.say(peer, member.trained(self.now, trained))

    def finished(self, peer: PeerId) -> list[Finish]:
        return [effect for effect in self.done[peer] if isinstance(effect, Finish)]

    def reports(self, peer: PeerId, event: str) -> list[dict[str, object]]:
        return [e.fields for e in self.done[peer] if isinstance(e, effects.Report) and e.event == event]

    def said(self, peer: PeerId, kind: type[Message]) -> list[Any]:
        told = [e.message for e in self.done[peer] if isinstance(e, effects.Broadcast | effects.Send)]
        return [message for message in told if isinstance(message, kind)]

    def votes(self, peer: PeerId) -> set[int]:
        """Return the heights that a peer voted on."""
        return {message.height for message in self.said(peer, Ack)}

    def _settle(self) -> None:
        while self._under_way:
            self._under_way.popleft()()

    def _do(self, peer: PeerId, what: Sequence[Effect]) -> None:
        for effect in what:
            self.done[peer].append(effect)
            self._perform(peer, effect)

    def _later(self, peer: PeerId, call: Callable[[Member], list[Effect]]) -> None:
        def act() -> None:
            if peer in self.members:
                self._do(peer, call(self.members[peer]))

        self._under_way.append(act)

    def _perform(self, peer: PeerId, effect: Effect) -> None:
        match effect:
            case effects.Broadcast():
                for other in self.members:
                    if other != peer:
                        self._tell(peer, other, effect.message)
            case effects.Send():
                self._tell(peer, effect.to, effect.message)
            case effects.Transfer():
                self._transfer(peer, effect)
            case effects.Step():
                root = digest_of("theta", effect.round)
                stepped = Stepped(
                    round=effect.round,
                    attempt=effect.attempt,
                    aggregate_root=root,
                    theta_root=root,
                    momentum_root=root,
                    exponents=(16,),
                    unix_time=0,
                )
                self._later(peer, lambda member: member.stepped(self.now, stepped))
            case effects.CatchUp() if self.hands_over and effect.donor in self.members:
                state = self.members[effect.donor].state
                self._later(peer, lambda member: member.caught_up(self.now, state))
            case effects.Append() | effects.Commit():
                if effect.height == len(self.log):
                    self.log.append(effect.event)
                    self.decisions.append(effect.decision)
                assert self.log[effect.height] == effect.event
            case _:
                pass

    def _tell(self, sender: PeerId, to: PeerId, message: Message) -> None:
        def hear(member: Member) -> list[Effect]:
            try:
                return member.receive(self.now, sender, message)
            except PeerError as error:
                if "commitment to round" not in str(error):  # it crossed with the end of its round
                    raise
                return []

        self._later(to, hear)

    def _transfer(self, peer: PeerId, effect: effects.Transfer) -> None:
        step, round_, attempt, now = effect.step, effect.round, effect.attempt, self.now
        match step:
            case exchange.SendUpdate():
                leaf = digest_of(peer, round_, step.shard)
                self._later(step.to, lambda member: member.update_arrived(now, round_, peer, step.shard, leaf))
            case exchange.SendAggregate():
                self._later(step.to, lambda member: member.aggregate_arrived(now, round_, attempt, step.shard))
            case exchange.Aggregate():
                self._later(peer, lambda member: member.aggregated(now, round_, attempt, step.shard))


def room_of(*founders: PeerId, hands_over: bool = True, **rules: Any) -> Room:
    room = Room(config_of(*founders, **rules), hands_over=hands_over)
    for peer in founders:
        room.enter(peer)
    room.wait(TICK_S)
    return room


def kinds(log: Sequence[LogEvent]) -> list[type[LogEvent]]:
    return [type(event) for event in log]
