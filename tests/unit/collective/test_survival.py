"""One rank's survival machine by itself: what it starts, stops, promises and refuses."""

import pytest

from barnraise.collective.survival import Survival
from barnraise.collective.survival_effects import Deliver, Effect, Ended, Lost, Patience, Start, Stop, Tell
from barnraise.collective.survival_messages import (
    Accept,
    Accepted,
    Alarm,
    Ballot,
    Collect,
    Decided,
    Decision,
    Fault,
    GaveUp,
    HandOn,
    Member,
    Message,
    Propose,
    Refuse,
    Report,
    Verdict,
    Work,
)
from barnraise.errors import LocalError

WEIGHTS = {0: 1, 1: 2, 2: 3, 3: 4}


def machine_of(rank: int, *, calls: int = 1) -> Survival:
    machine = Survival(rank=rank, weights=WEIGHTS)
    for sequence in range(1, calls + 1):
        if sequence > 1:
            machine.completed(0.0, sequence - 1, 0)
        machine.entered(0.0, sequence, WEIGHTS[rank])
    return machine


def told(effects: list[Effect]) -> dict[int, list[Message]]:
    messages: dict[int, list[Message]] = {}
    for effect in effects:
        if isinstance(effect, Tell):
            messages.setdefault(effect.to, []).append(effect.message)
    return messages


def decision(*ranks: int, number: int = 1, hand_on: HandOn | None = None) -> Decision:
    verdicts = tuple(Verdict(rank, True, "it is gone") for rank in WEIGHTS if rank not in ranks)
    return Decision(number, tuple(Member(rank, WEIGHTS[rank]) for rank in ranks), verdicts, hand_on)


def report_of(ballot: Ballot, *, done: int = 0, accepted: Accepted | None = None, down: tuple[int, ...] = ()) -> Report:
    return Report(
        epoch=0,
        ballot=ballot,
        done=done,
        called=1,
        weight=1,
        had=Work.COLLECTIVE,
        waits_for=None,
        complaints=(),
        down=down,
        accepted=accepted,
    )


def collect(number: int, leader: int, *, epoch: int = 0, last: Decision | None = None) -> Collect:
    return Collect(epoch=epoch, ballot=Ballot(number, leader), last=last, is_patient=False)


def test_as_long_as_all_is_well_nothing_is_said() -> None:
    machine = Survival(rank=2, weights=WEIGHTS)
    for sequence in (1, 2, 3):
        (start,) = machine.entered(0.0, sequence, 3)
        assert isinstance(start, Start)
        assert (start.plan.sequence, start.plan.attempt, start.plan.holder) == (sequence, 0, None)
        assert sum(member.weight for member in start.plan.members) == 10
        assert machine.tick(1e6) == []
        assert machine.completed(0.0, sequence, 0) == [Deliver(sequence)]


def test_calls_out_of_order_are_our_own_mistake() -> None:
    machine = machine_of(1)
    for sequence in (0, 1, 2, 3):
        with pytest.raises(LocalError):
            machine.entered(0.0, sequence, 2)
    with pytest.raises(LocalError):
        Survival(rank=4, weights=WEIGHTS)
    with pytest.raises(LocalError):
        Survival(rank=0, weights={0: 1, 256: 1})


def test_a_failure_is_told_to_all_at_once() -> None:
    machine = machine_of(3)
    effects = machine.failed(1.0, 1, 0, Fault.BROKEN, 2, "reset")
    assert effects[0] == Stop(1, 0)
    assert told(effects) == {rank: [Alarm(epoch=0)] for rank in (0, 1, 2)}
    assert machine.failed(1.0, 1, 0, Fault.BROKEN, 1, "reset") == [], "once is enough"


def test_a_failure_of_an_older_attempt_is_none() -> None:
    machine = machine_of(3)
    machine.heard(0.0, 0, Decided(decision=decision(0, 1, 3)))
    assert machine.failed(1.0, 1, 0, Fault.BROKEN, 2, "reset") == []
    assert machine.is_settled


def test_a_result_that_comes_after_the_promise_is_not_delivered() -> None:
    machine = machine_of(3)
    effects = machine.heard(0.0, 0, collect(1, 0))
    (report,) = told(effects)[0]
    assert isinstance(report, Report)
    assert report.done == 0
    assert machine.completed(0.0, 1, 0) == []
    effects = machine.heard(0.0, 0, Decided(decision=decision(0, 1, 3)))
    assert [effect.plan.attempt for effect in effects if isinstance(effect, Start)] == [1]
    assert machine.completed(0.0, 1, 0) == []
    assert machine.completed(0.0, 1, 1) == [Deliver(1)]


def test_who_has_promised_a_ballot_refuses_an_older_one() -> None:
    machine = machine_of(3)
    machine.heard(0.0, 1, collect(2, 1))
    refusal = {0: [Refuse(epoch=0, ballot=Ballot(2, 1))]}
    assert told(machine.heard(0.0, 0, collect(1, 0))) == refusal
    assert machine.heard(0.0, 0, Propose(epoch=0, ballot=Ballot(1, 0), decision=decision(0, 3))) == []
    propose = Propose(epoch=0, ballot=Ballot(2, 1), decision=decision(1, 2, 3))
    assert told(machine.heard(0.0, 1, propose)) == {1: [Accept(epoch=0, ballot=Ballot(2, 1))]}
    (report,) = told(machine.heard(0.0, 2, collect(3, 2)))[2]
    assert isinstance(report, Report)
    assert report.accepted == Accepted(Ballot(2, 1), decision(1, 2, 3))


def test_nobody_leads_in_anothers_name() -> None:
    machine = machine_of(3)
    assert machine.heard(0.0, 2, collect(1, 0)) == []
    machine.heard(0.0, 0, collect(1, 0))
    assert machine.heard(0.0, 2, Propose(epoch=0, ballot=Ballot(1, 0), decision=decision(2, 3))) == []


def test_the_leader_proposes_what_may_have_been_decided() -> None:
    machine = machine_of(1)
    machine.peer_down(0.0, 0)
    ballot = Ballot(1, 1)
    older = Accepted(Ballot(1, 0), decision(0, 1, 2))
    machine.heard(0.0, 2, report_of(ballot, accepted=older, down=(0,)))
    effects = machine.heard(0.0, 3, report_of(ballot, down=(0,)))
    assert told(effects)[2] == [Propose(epoch=0, ballot=ballot, decision=older.decision)]


def test_a_decision_takes_a_quorum_of_votes() -> None:
    machine = machine_of(1)
    machine.peer_down(0.0, 0)
    ballot = Ballot(1, 1)
    machine.heard(0.0, 2, report_of(ballot, down=(0,)))
    effects = machine.heard(0.0, 3, report_of(ballot, down=(0,)))
    assert set(told(effects)) == {2, 3}
    assert machine.epoch == 0
    assert machine.heard(0.0, 2, Accept(epoch=0, ballot=ballot)) == [], "half of four, without the lowest"
    effects = machine.heard(0.0, 3, Accept(epoch=0, ballot=ballot))
    assert machine.epoch == 1
    assert set(machine.weights) == {1, 2, 3}
    assert Lost(0, "its control link is down") in effects
    assert {type(message) for message in told(effects)[2]} == {Decided}


def test_too_few_for_a_quorum_end_after_a_while() -> None:
    machine = Survival(rank=3, weights=WEIGHTS, patience=Patience(quorum_timeout_s=5.0))
    machine.entered(0.0, 1, 4)
    for rank in (0, 1, 2):
        machine.peer_down(1.0, rank)
    assert not any(isinstance(effect, Ended) for effect in machine.tick(5.9))
    effects = machine.tick(6.0)
    assert isinstance(effects[-1], Ended)
    assert told(effects)[0] == [GaveUp(epoch=0)]
    assert isinstance(machine.entered(7.0, 2, 4)[0], Ended)


def test_who_is_left_out_ends() -> None:
    machine = machine_of(2)
    effects = machine.heard(0.0, 0, Decided(decision=decision(0, 1, 3)))
    assert effects[0] == Stop(1, 0)
    assert isinstance(effects[-1], Ended)
    assert machine.completed(0.0, 1, 0) == []


def test_a_rank_that_speaks_of_the_past_is_told() -> None:
    machine = machine_of(3)
    machine.heard(0.0, 0, Decided(decision=decision(0, 1, 3)))
    past: list[Message] = [Alarm(epoch=0), collect(9, 2), Accept(epoch=0, ballot=Ballot(1, 3))]
    for message in past:
        assert told(machine.heard(0.0, 2, message)) == {2: [Decided(decision=decision(0, 1, 3))]}
    assert told(machine.peer_up(0.0, 2)) == {2: [Decided(decision=decision(0, 1, 3))]}


def test_a_rank_that_is_behind_learns_from_the_leaders_question() -> None:
    machine = machine_of(3)
    effects = machine.heard(0.0, 0, collect(1, 0, epoch=1, last=decision(0, 1, 3)))
    assert machine.epoch == 1
    (report,) = told(effects)[0]
    assert isinstance(report, Report)
    assert report.epoch == 1
    assert told(machine.heard(0.0, 0, Alarm(epoch=5))) == {0: [Alarm(epoch=1)]}


def test_who_has_the_result_hands_it_on_before_it_goes_on() -> None:
    machine = machine_of(1, calls=2)
    effects = machine.heard(0.0, 0, Decided(decision=decision(0, 1, 2, hand_on=HandOn(1, 1, (0, 2)))))
    assert [e.plan.sequence for e in effects if isinstance(e, Start)] == [1]
    (start,) = machine.completed(0.0, 1, 1)
    assert isinstance(start, Start)
    assert (start.plan.sequence, start.plan.attempt, start.plan.is_hand_on) == (2, 1, False)
    assert machine.completed(0.0, 2, 1) == [Deliver(2)]


def test_a_user_that_calls_while_its_rank_hands_on_waits() -> None:
    machine = machine_of(1, calls=1)
    machine.completed(0.0, 1, 0)
    machine.heard(0.0, 0, Decided(decision=decision(0, 1, 2, hand_on=HandOn(1, 1, (0, 2)))))
    assert machine.entered(0.0, 2, 2) == []
    assert len(machine.completed(0.0, 1, 1)) == 1


def test_who_lacks_the_result_is_given_it_also_if_its_user_calls_later() -> None:
    machine = machine_of(2, calls=1)
    machine.completed(0.0, 1, 0)
    assert not machine.heard(0.0, 0, Decided(decision=decision(0, 1, 2, hand_on=HandOn(2, 1, (2,)))))[1:]
    (start,) = machine.entered(0.0, 2, 3)
    assert isinstance(start, Start)
    assert start.plan.holder == 1
    assert machine.completed(0.0, 2, 1) == [Deliver(2)]


def test_a_member_that_fails_while_it_is_decided_to_be_in_is_not_forgotten() -> None:
    machine = machine_of(3)
    machine.heard(0.0, 0, collect(1, 0))
    machine.peer_down(0.0, 1)
    effects = machine.heard(0.0, 0, Decided(decision=decision(0, 1, 3)))
    assert not any(isinstance(effect, Start) for effect in effects)
    assert told(effects)[0] == [Alarm(epoch=1)]


def test_a_link_that_is_down_between_two_that_are_in_stops_nobody_twice() -> None:
    machine = machine_of(3)
    machine.heard(0.0, 0, collect(1, 0))
    machine.peer_down(0.0, 1)
    members = decision(0, 1, 3)
    excusing = Decision(1, members.members, members.verdicts, None, excused=(1,))
    effects = machine.heard(0.0, 0, Decided(decision=excusing))
    assert any(isinstance(effect, Start) for effect in effects)


def test_a_new_weight_is_agreed_before_it_counts() -> None:
    machine = Survival(rank=3, weights=WEIGHTS)
    effects = machine.entered(0.0, 1, 40)
    assert not any(isinstance(effect, Start) for effect in effects)
    (report,) = told(machine.heard(0.0, 0, collect(1, 0)))[0]
    assert isinstance(report, Report)
    assert report.weight == 40


def test_a_silent_leader_is_followed_by_the_next() -> None:
    machine = machine_of(1)
    machine.heard(0.0, 3, Alarm(epoch=0))
    assert told(machine.tick(2.0)) == {}
    effects = machine.tick(3.0)
    assert {type(message) for messages in told(effects).values() for message in messages} == {Collect}
    assert set(told(effects)) == {0, 2, 3}


def test_when_the_leaders_link_breaks_the_next_leads_at_once() -> None:
    machine = machine_of(1)
    machine.heard(0.0, 3, Alarm(epoch=0))
    assert isinstance(told(machine.peer_down(0.0, 0))[2][0], Collect)


def test_of_two_the_junior_goes_on_alone_only_if_the_senior_has_left() -> None:
    machine = Survival(rank=1, weights={0: 1, 1: 1})
    machine.left(0.0, 0)
    effects = machine.entered(0.0, 1, 1)
    assert Lost(0, "it has left") in effects
    assert isinstance(effects[-1], Start)
    machine = Survival(rank=1, weights={0: 1, 1: 1})
    machine.peer_down(0.0, 0)
    assert not any(isinstance(effect, Start) for effect in machine.entered(0.0, 1, 1))


def test_who_can_never_be_of_a_quorum_again_gives_up_soon() -> None:
    machine = Survival(rank=1, weights={0: 1, 1: 1})
    machine.entered(0.0, 1, 1)
    machine.peer_down(5.0, 0)
    for now in (5.0, 6.0, 6.9):
        assert not any(isinstance(effect, Ended) for effect in machine.tick(now))
    assert machine.tick(7.0)[-1] == Ended("no decision for 2.0 s: 1 of 2 ranks, this one included, can be reached")


def test_who_is_in_reach_again_in_time_is_waited_for() -> None:
    machine = Survival(rank=1, weights={0: 1, 1: 1})
    machine.entered(0.0, 1, 1)
    machine.peer_down(5.0, 0)
    machine.tick(5.0)
    machine.peer_up(6.0, 0)
    assert not any(isinstance(effect, Ended) for now in (6.5, 7.5, 8.0) for effect in machine.tick(now))


@pytest.mark.parametrize(("said_s", "waits_s"), [(None, 600.0), (5.0, 5.0), (900.0, 900.0)])
def test_a_late_user_is_waited_for_as_long_as_the_others_users_say(said_s: float | None, waits_s: float) -> None:
    leader = Survival(rank=0, weights={0: 1, 1: 1, 2: 1})
    leader.entered(0.0, 1, 1, said_s)
    leader.failed(0.0, 1, 0, Fault.STALLED, 2, "moved nothing")
    ballot = Ballot(1, 0)
    here = [
        Report(
            epoch=0,
            ballot=ballot,
            done=0,
            called=called,
            weight=1,
            had=Work.COLLECTIVE if called else Work.NOTHING,
            waits_for=None,
            complaints=(),
            down=(),
            accepted=None,
        )
        for called in (1, 0)
    ]

    def proposed(now: float) -> list[Propose]:
        effects: list[Effect] = []
        for rank, report in enumerate(here, start=1):
            effects += leader.heard(now, rank, report)
        effects += leader.tick(now)
        return [message for message in told(effects).get(1, []) if isinstance(message, Propose)]

    for now in range(int(waits_s)):
        assert proposed(now) == []
    (proposal,) = proposed(waits_s + 1.0) or proposed(waits_s + 1.1)
    assert [member.rank for member in proposal.decision.members] == [0, 1]


def test_strangers_are_not_heard() -> None:
    machine = machine_of(0)
    assert machine.heard(0.0, 9, Alarm(epoch=0)) == []
    assert machine.heard(0.0, 9, Decided(decision=decision(1, 2, 3))) == []


@pytest.mark.parametrize("message", [Refuse(epoch=0, ballot=Ballot(1 << 40, 1)), collect(1 << 40, 1)])
def test_counts_do_not_run_away_with_what_a_rank_says(message: Message) -> None:
    machine = machine_of(0)
    assert machine.heard(0.0, 1, message) == []
    effects = machine.failed(1.0, 1, 0, Fault.BROKEN, 2, "reset") + machine.tick(2.0)
    numbers = [said.ballot.number for each in told(effects).values() for said in each if isinstance(said, Collect)]
    assert numbers
    assert max(numbers) < 10


def test_who_is_out_decides_nothing() -> None:
    machine = machine_of(3)
    machine.heard(0.0, 0, Decided(decision=decision(0, 1, 3)))
    assert machine.heard(0.0, 2, Decided(decision=decision(2, 3, number=2))) == []
    assert machine.heard(0.0, 2, collect(9, 2, epoch=2, last=decision(2, 3, number=2))) == []
    assert sorted(machine.weights) == [0, 1, 3]
