"""One member's machine among others: who waits for whom, who comes, who goes, who has lost its memory."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import blake3
import pytest

from barnraise.collective import exchange
from barnraise.collective.links import Row
from barnraise.config import DataConfig, InnerConfig, ModelConfig, RoundConfig, RunConfig, parse_run_config
from barnraise.consensus.voting import Accept, Decision, Persisted
from barnraise.errors import PeerError
from barnraise.ids import Digest, PeerId
from barnraise.swarm import effects, records
from barnraise.swarm.adopt import adopt
from barnraise.swarm.donors import SHUN_S
from barnraise.swarm.effects import Effect, Finish
from barnraise.swarm.member import Member
from barnraise.swarm.messages import Genesis, GenesisWanted, Links, Message, StateWanted, Status
from barnraise.swarm.records import Cut, LogEvent, Regroup, Result
from barnraise.swarm.round import Phase, Stepped, Trained
from barnraise.swarm.state import MAX_SAMPLES, State, genesis

A, B, C, D = (PeerId(f"peer-{letter}") for letter in "abcd")
TIMEOUT_S = 10.0
GRACE_S = 4.0
CATCH_UP_S = 6.0
"""Who got no shards of a round waits `agree_timeout_s` for them, then asks for the state."""
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
        return {message.height for message in self.said(peer, Accept)}

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


def test_three_members_go_through_rounds() -> None:
    room = room_of(A, B, C)
    for number in range(3):
        room.train()
        assert {member.state.round for member in room.members.values()} == {number + 1}
    assert kinds(room.log) == [Cut, Result] * 3
    assert [len(event.contributions) for event in room.log if isinstance(event, Cut)] == [3] * 3


# ---- enough members -----------------------------------------------------------------------------------------------


def test_one_founder_waits_until_there_are_as_many_as_the_rules_want() -> None:
    room = room_of(A, min_peers=3)
    room.wait(1.0)
    assert room.members[A].phase is Phase.SHORT
    assert room.reports(A, "peer.waiting") == [{"reason": "1 of at least 3 members are here"}]
    assert not any(isinstance(effect, effects.Train) for effect in room.done[A])

    room.enter(B)
    room.wait(2.0)
    assert room.members[A].phase is Phase.SHORT
    assert room.reports(A, "peer.waiting")[-1] == {"reason": "2 of at least 3 members are here"}
    room.enter(C)
    room.wait(2.0)
    assert kinds(room.log) == [Regroup, Regroup]
    assert {member.phase for member in room.members.values()} == {Phase.TRAIN}
    assert all(member.state.counting == (A, B, C) for member in room.members.values())
    assert all(isinstance(room.done[peer][-1], effects.Train | effects.Broadcast) for peer in (A, B, C))
    assert room.reports(A, "peer.waiting")[-1] == {"reason": "enough members are back"}

    room.train()
    assert kinds(room.log) == [Regroup, Regroup, Cut, Result]
    assert room.members[A].state.total_samples == 3 * ASKED


def short_of_one() -> Room:
    """Return a room of three, who must be three, of whom one died during the second round."""
    room = room_of(A, B, C, min_peers=3)
    room.train()
    room.die(C)
    room.train(A, B)
    room.wait(TIMEOUT_S + 2 * GRACE_S)
    return room


def test_when_one_of_too_few_dies_the_others_wait_and_say_so() -> None:
    room = short_of_one()
    assert kinds(room.log) == [Cut, Result]
    assert room.reports(A, "peer.waiting")[-1] == {"reason": "2 of at least 3 members are here"}


def test_a_newcomer_takes_the_place_of_one_that_died() -> None:
    room = short_of_one()
    room.enter(D, state=room.members[A].state)
    room.wait(3.0)
    (regroup,) = (event for event in room.log if isinstance(event, Regroup))
    assert (regroup.joined, regroup.left) == ((D,), (C,))
    room.train()
    assert {member.state.round for member in room.members.values()} == {2}
    assert room.members[D].state.peers == (A, B, D)


def test_the_same_peer_may_take_its_place_again() -> None:
    room = short_of_one()
    room.enter(C, state=adopt(first_state(room.config), room.decisions, verify).state, recent=room.decisions)
    room.wait(1.0)
    room.train(C)
    assert kinds(room.log) == [Cut, Result] * 2
    assert room.reports(A, "peer.waiting")[-1] == {"reason": "enough members are back"}


def test_newcomers_go_on_with_a_round_whose_samples_all_died() -> None:
    """Who joined with the last result was given nothing in this round, and everybody else is gone."""
    room = room_of(A)
    for peer in (B, C):
        room.enter(peer)
    room.wait(2.0)
    room.train(A)
    room.wait(CATCH_UP_S)
    assert room.members[B].state.peers == (A, B, C)
    assert room.members[B].state.counting == (A,)
    room.die(A)
    room.wait(TIMEOUT_S + 60.0)
    (regroup,) = (event for event in room.log if isinstance(event, Regroup))
    assert (regroup.joined, regroup.left) == ((), (A,))
    assert room.members[C].state.counting == (B, C)
    room.train()
    assert room.members[B].state.round == 2
    assert room.members[B].state.total_samples == 3 * ASKED


def test_a_regroup_waits_while_somebody_with_samples_may_still_finish() -> None:
    room = room_of(A)
    for peer in (B, C):
        room.enter(peer)
    room.wait(2.0)
    room.train(A)
    room.wait(TIMEOUT_S * 3)
    assert kinds(room.log) == [Cut, Result]
    assert room.members[A].phase is Phase.TRAIN


# ---- joining and leaving ------------------------------------------------------------------------------------------


def test_a_newcomer_has_no_weight_in_its_first_round_and_counts_from_the_next() -> None:
    room = room_of(A, B)
    room.enter(C)
    room.wait(2.0)
    shares = []
    for _ in range(3):
        room.train()
        room.wait(CATCH_UP_S)
        (cut,) = (event for event in room.log[-2:-1] if isinstance(event, Cut))
        shares.append(tuple(entry.member for entry in cut.contributions))
    assert shares == [(A, B), (A, B), (A, B, C)]
    assert room.log[1].joined == (C,)  # type: ignore[union-attr]  # a result


def test_who_wants_out_is_let_go_with_the_rounds_result() -> None:
    room = room_of(A, B, C)
    room.say(B, room.members[B].leave(room.now))
    assert not room.finished(B)
    room.train()
    assert [event.left for event in room.log if isinstance(event, Result)] == [(B,)]
    assert room.finished(B) == [
        Finish(is_over=False, reason="left the run; the others go on, and joining again is possible at any time")
    ]
    assert room.members[A].state.peers == (A, C)
    room.train(A, C)
    assert room.members[C].state.round == 2
    assert len(room.finished(B)) == 1


def test_the_leader_may_leave_as_well() -> None:
    room = room_of(A, B, C)
    room.say(A, room.members[A].leave(room.now))
    room.train()
    assert room.log[-1].left == (A,)  # type: ignore[union-attr]
    assert room.finished(A)
    room.train(B, C)
    assert room.members[B].state.round == 2


def test_where_all_want_out_nobody_is_let_go_and_the_run_can_be_resumed() -> None:
    room = room_of(A, B, C)
    for peer in (A, B, C):
        room.say(peer, room.members[peer].leave(room.now))
    room.train()
    assert room.log[-1].left == ()  # type: ignore[union-attr]
    assert all(
        room.finished(peer)
        == [Finish(is_over=False, reason="stopped; still a member, so start it again to go on where it was")]
        for peer in (A, B, C)
    )
    assert room.members[A].state.peers == (A, B, C)


def test_a_pause_changes_no_membership_and_ends_after_the_round_that_was_named() -> None:
    room = room_of(A, B)
    for peer in (A, B):
        room.say(peer, room.members[peer].leave(room.now, after_round=1))
    room.train()
    assert not room.finished(A)
    room.train()
    assert [room.members[peer].state.round for peer in (A, B)] == [2, 2]
    assert [len(room.finished(peer)) for peer in (A, B)] == [1, 1]
    assert [event.left for event in room.log if isinstance(event, Result)] == [(), ()]
    assert not any(status.wants_out for status in room.said(A, Status))


def test_who_is_no_member_leaves_at_once_and_wants_in_no_more() -> None:
    room = room_of(A, B)
    room.enter(C)
    room.say(C, room.members[C].leave(room.now))
    assert [finish.is_over for finish in room.finished(C)] == [False]
    room.wait(2.0)
    room.train()
    assert room.members[A].state.peers == (A, B)


def test_who_waits_for_more_members_leaves_at_once() -> None:
    room = room_of(A, min_peers=3)
    room.say(A, room.members[A].leave(room.now))
    assert len(room.finished(A)) == 1


def test_who_waits_for_a_quorum_leaves_at_once() -> None:
    room = room_of(A, B, C)
    room.die(A)
    room.die(B)
    room.wait(2.0)
    assert room.reports(C, "peer.waiting")
    room.say(C, room.members[C].leave(room.now))
    assert len(room.finished(C)) == 1


def test_who_has_left_votes_no_more() -> None:
    room = room_of(A, B, C)
    room.say(B, room.members[B].leave(room.now))
    room.train()
    before = room.votes(B)
    room.train(A, C)
    room.wait(5.0)
    assert room.votes(B) == before
    assert len(room.log) == 4


def test_a_second_wish_to_leave_changes_nothing() -> None:
    room = room_of(A, B)
    room.say(B, room.members[B].leave(room.now))
    room.train()
    room.say(B, room.members[B].leave(room.now))
    assert len(room.finished(B)) == 1


# ---- without tensors ----------------------------------------------------------------------------------------------


def catch_ups(room: Room, peer: PeerId) -> list[effects.CatchUp]:
    return [effect for effect in room.done[peer] if isinstance(effect, effects.CatchUp)]


def test_who_has_no_tensors_fetches_them_at_equal_height_before_anything_else() -> None:
    room = room_of(A, B, hands_over=False)
    hollow = room.enter(C, is_hollow=True)
    room.wait(2.0)
    (asked,) = catch_ups(room, C)
    assert (asked.height, hollow.phase) == (0, Phase.BEHIND)
    assert {(status.is_hollow, status.wants_in) for status in room.said(C, Status)} == {(True, False)}
    assert not any(isinstance(effect, effects.Train) for effect in room.done[C])
    room.train(A, B)
    assert room.log[1].joined == ()  # type: ignore[union-attr]
    state = room.members[A].state
    room.say(C, hollow.caught_up(room.now, state))
    newest = room.said(C, Status)[-1]
    assert (newest.is_hollow, newest.wants_in, newest.height) == (False, True, 2)
    room.train(A, B)
    assert room.log[3].joined == (C,)  # type: ignore[union-attr]


def test_a_founder_without_tensors_does_not_train_before_it_has_them() -> None:
    room = Room(config_of(A, B), hands_over=False)
    room.enter(A, is_hollow=True)
    room.enter(B)
    room.wait(2.0)
    assert [asked.donor for asked in catch_ups(room, A)] == [B]
    assert not any(isinstance(effect, effects.Train) for effect in room.done[A])
    room.say(A, room.members[A].caught_up(room.now, room.members[A].state))
    room.wait(1.0)
    room.train()
    assert [len(event.contributions) for event in room.log if isinstance(event, Cut)] == [2]


def test_who_has_no_tensors_itself_is_nobodys_donor() -> None:
    room = Room(config_of(A, B))
    room.enter(A, is_hollow=True)
    room.enter(B, is_hollow=True)
    room.wait(5.0)
    assert not catch_ups(room, A)
    assert not catch_ups(room, B)
    assert room.members[A].presence.donors() == ()


def test_a_donor_that_does_not_deliver_is_not_asked_again_soon() -> None:
    room = room_of(A, B, hands_over=False)
    hollow = room.enter(C, is_hollow=True)
    donors = []
    for _ in range(2):
        room.wait(1.0)
        donors.append(catch_ups(room, C)[-1].donor)
        room.say(C, hollow.catch_up_failed(room.now))
    room.wait(1.0)
    assert sorted(donors) == [A, B]
    assert len(catch_ups(room, C)) == 2
    room.wait(SHUN_S)
    assert len(catch_ups(room, C)) > 2


def test_who_has_no_tensors_yet_may_leave_and_what_comes_after_that_does_not_bring_it_back() -> None:
    room = room_of(A, B, hands_over=False)
    hollow = room.enter(C, is_hollow=True)
    room.wait(1.0)
    room.say(C, hollow.leave(room.now))
    assert len(room.finished(C)) == 1
    assert hollow.caught_up(room.now, room.members[A].state) == []
    assert hollow.catch_up_failed(room.now) == []
    room.wait(2.0)
    assert hollow.phase is Phase.OVER
    assert len(room.finished(C)) == 1


# ---- without memory -----------------------------------------------------------------------------------------------


def amnesiac() -> Room:
    """Return a room of three after two rounds, of whom the last has come back with an empty disk."""
    room = room_of(A, B, C)
    room.train()
    room.train()
    room.die(C)
    room.done[C] = []
    room.enter(C, is_fresh=True)
    return room


def test_who_has_lost_its_memory_casts_no_vote_on_what_may_be_decided_already() -> None:
    room = amnesiac()
    room.wait(1.0)
    assert room.members[C].state.height <= 4
    room.say(C, room.members[C].caught_up(room.now, room.members[A].state))
    room.train()
    assert 4 not in room.votes(C)
    assert room.members[A].state.height == 6
    room.train()
    room.train()
    assert room.votes(C)
    assert min(room.votes(C)) > 4
    assert not [record for record in ballots(room, C) if record.height <= 4]


def ballots(room: Room, peer: PeerId) -> list[Persisted]:
    return [effect.record for effect in room.done[peer] if isinstance(effect, effects.PersistBallot)]


def test_a_fresh_founder_that_hears_of_no_height_votes() -> None:
    room = Room(config_of(A, B, C))
    for peer in (A, B, C):
        room.enter(peer, is_fresh=True)
    room.wait(1.0)
    room.train()
    assert all(0 in room.votes(peer) for peer in (B, C))


def test_where_nothing_is_decided_without_it_it_votes_after_a_while() -> None:
    """Of three members one is gone for good: the other and the one without memory must do."""
    room = amnesiac()
    room.say(C, room.members[C].caught_up(room.now, room.members[A].state))
    room.die(B)
    room.train()
    room.wait(TIMEOUT_S - 3.0)
    assert room.members[A].state.height == 4
    room.wait(GRACE_S + 10.0)
    assert room.members[A].state.height >= 6
    assert room.members[C].state.height >= 6


# ---- what a round's members may claim -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "samples", "is_taken"),
    [
        pytest.param({"seconds": 5.0}, ASKED, True, id="all"),
        pytest.param({"seconds": 5.0}, 1, True, id="one"),
        pytest.param({"seconds": 5.0}, 0, False, id="none"),
        pytest.param({"seconds": 5.0}, -1, False, id="less than none"),
        pytest.param({"seconds": 5.0}, ASKED + 1, False, id="more than all"),
        pytest.param({}, ASKED - 1, False, id="not all, without a time limit"),
        pytest.param({"kind": "own"}, 1, True, id="own data, one"),
        pytest.param({"kind": "own"}, MAX_SAMPLES, True, id="own data, as many as there may be"),
        pytest.param({"kind": "own"}, MAX_SAMPLES + 1, False, id="own data, one too many"),
        pytest.param({"kind": "own"}, 0, False, id="own data, none"),
    ],
)
def test_a_commitment_claims_what_the_run_allows(changes: dict[str, Any], samples: int, is_taken: bool) -> None:
    config = config_of(A, B)
    if "kind" in changes:
        config = replace(config, data=DataConfig(kind="own"))
    else:
        config = replace(config, round=replace(config.round, **changes))
    room = Room(config)
    for peer in (A, B):
        room.enter(peer)
    room.wait(TICK_S)
    if not is_taken:
        with pytest.raises(PeerError, match=f"claims {samples} samples"):
            room.train(B, samples=samples)
        return
    room.train(B, samples=samples)
    room.train(A)
    (cut,) = (event for event in room.log if isinstance(event, Cut))
    assert [entry.samples for entry in cut.contributions] == [ASKED, samples]


# ---- what others may know -----------------------------------------------------------------------------------------


def test_the_runs_configuration_is_told_without_paths_and_its_hash_is_the_runs_name() -> None:
    config = replace(
        config_of(A),
        data=DataConfig(source="/home/me/secret.txt", digest="ab" * 32),
        model=ModelConfig(source="/home/me/model", initial="cd" * 32),
    )
    room = Room(config)
    member = room.enter(A)
    (answer,) = member.receive(room.now, B, GenesisWanted())[:1]
    assert isinstance(answer, effects.Send)
    assert isinstance(answer.message, Genesis)
    assert answer.to == B
    assert "/home" not in answer.message.config
    told = parse_run_config(answer.message.config, "what was told")
    assert told.run_id == config.run_id == member.state.run
    assert (told.data.source, told.model.source) == ("bundled", "")


def test_a_request_for_the_state_says_whether_the_tensors_are_wanted_at_equal_height() -> None:
    room = room_of(A)
    for is_hollow in (True, False):
        found = room.members[A].receive(room.now, B, StateWanted(height=0, is_hollow=is_hollow))
        assert effects.SendState(to=B, height=0, is_hollow=is_hollow) in found


def test_every_entry_of_the_log_is_what_was_signed() -> None:
    room = room_of(A, B)
    room.train()
    assert [records.decode_event.decode(decision.value) for decision in room.decisions] == room.log


def links_of(*latencies_us: int, epoch: int = 0) -> Links:
    row = Row(uplink_kb_s=0, downlink_kb_s=0, latencies_us=latencies_us, bandwidths_kb_s=(0,) * len(latencies_us))
    return Links(epoch=epoch, row=row)


def test_what_members_say_of_their_links_is_noted_until_they_are_gone() -> None:
    room = Room(config_of(A, B))
    member = room.enter(A)
    room.enter(B)
    before = (member.phase, member.state)
    member.receive(room.now, B, links_of(7, 0))
    member.receive(room.now, B, links_of(8, 0))
    assert member.presence.links(0) == {B: links_of(8, 0).row}
    assert member.presence.links(1) == {}
    assert (member.phase, member.state) == before
    room.die(B)
    assert member.presence.links(0) == {}


def test_links_of_other_members_or_of_a_stranger_are_passed_over() -> None:
    room = Room(config_of(A, B))
    member = room.enter(A)
    room.enter(B)
    member.receive(room.now, B, links_of(7, 0, 0, epoch=1))
    member.receive(room.now, C, links_of(7, 0))
    assert member.presence.links(0) == member.presence.links(1) == {}


@pytest.mark.parametrize("latencies_us", [(), (1,), (1,) * 3, (1,) * 4096])
def test_links_to_more_or_fewer_than_there_are_break_the_protocol(latencies_us: tuple[int, ...]) -> None:
    room = Room(config_of(A, B))
    member = room.enter(A)
    room.enter(B)
    member.receive(room.now, B, links_of(7, 0))
    with pytest.raises(PeerError, match="of links to 2 members"):
        member.receive(room.now, B, links_of(*latencies_us))
    assert member.presence.links(0) == {B: links_of(7, 0).row}
