"""Who is in and who is to blame, from reports."""

import pytest

from barnraise.collective.survival_blame import Judgement, is_quorum, judge
from barnraise.collective.survival_messages import Ballot, Complaint, Fault, HandOn, Report, Work

BALLOT = Ballot(1, 0)


def report_of(
    *complaints: Complaint,
    done: int = 0,
    called: int = 1,
    had: Work = Work.COLLECTIVE,
    waits_for: int | None = None,
) -> Report:
    return Report(
        epoch=0,
        ballot=BALLOT,
        done=done,
        called=called,
        weight=1,
        had=had,
        waits_for=waits_for,
        complaints=complaints,
        down=(),
        accepted=None,
    )


def complaint(fault: Fault, rank: int, times: int = 1, sequence: int = 1) -> Complaint:
    return Complaint(fault, sequence, rank, times, fault.value)


def judged(*reports: Report, is_patience_over: bool = False) -> Judgement:
    judgement = judge(range(len(reports)), dict(enumerate(reports)), {}, is_patience_over=is_patience_over)
    assert judgement is not None
    return judgement


@pytest.mark.parametrize(
    ("present", "is_enough"),
    [((0, 1, 2), True), ((1, 2, 3), True), ((0, 1), True), ((0, 3), True), ((1, 2), False), ((0,), False), ((), False)],
)
def test_a_quorum_is_more_than_half_or_half_with_the_lowest(present: tuple[int, ...], is_enough: bool) -> None:
    assert is_quorum((0, 1, 2, 3), present) is is_enough


def test_two_quorums_always_share_a_rank() -> None:
    for size in range(1, 9):
        group = range(2, 2 + size)
        sides = [{rank for rank in group if mask >> rank & 1} for mask in range(0, 1 << (2 + size), 4)]
        for side in sides:
            assert not (is_quorum(group, side) and is_quorum(group, set(group) - side))


def test_who_does_not_report_explains_everything() -> None:
    reports = {0: report_of(complaint(Fault.BROKEN, 1, 2)), 1: report_of(), 2: report_of()}
    judgement = judge(range(4), reports, {3: "it did not answer"}, is_patience_over=False)
    assert judgement is not None
    assert judgement.members == (0, 1, 2)
    assert [(verdict.rank, verdict.is_out) for verdict in judgement.verdicts] == [(3, True)]


def test_damage_is_named_and_the_second_time_its_sender_is_out() -> None:
    first = judged(report_of(complaint(Fault.DAMAGED, 2)), report_of(), report_of())
    assert first.members == (0, 1, 2)
    assert [(verdict.rank, verdict.is_out) for verdict in first.verdicts] == [(2, False)]
    assert judged(report_of(complaint(Fault.DAMAGED, 2, 2)), report_of(), report_of()).members == (0, 1)


def test_of_a_pair_the_junior_goes_and_of_several_the_one_they_share() -> None:
    ok = report_of()
    assert judged(ok, report_of(complaint(Fault.BROKEN, 2)), ok, ok).members == (0, 1, 2, 3)
    assert judged(ok, report_of(complaint(Fault.BROKEN, 2, 2)), ok, ok).members == (0, 1, 3)
    shared = report_of(complaint(Fault.BROKEN, 2, 2), complaint(Fault.BROKEN, 3, 2))
    assert judged(ok, shared, ok, ok).members == (0, 2, 3)


def test_of_two_the_junior_goes_also_if_the_senior_is_accused() -> None:
    assert judged(report_of(), report_of(complaint(Fault.DAMAGED, 0, 2))).members == (0,)


def test_the_rank_at_the_end_of_the_chain_is_to_blame() -> None:
    waiting = report_of(complaint(Fault.STALLED, 1), waits_for=1)
    judgement = judged(waiting, report_of(waits_for=2), report_of(waits_for=3), report_of())
    assert judgement.members == (0, 1, 2)
    assert judgement.verdicts[0].rank == 3


def test_a_circle_of_waiting_ranks_gets_another_attempt() -> None:
    def circle(times: int) -> Judgement:
        return judged(
            report_of(complaint(Fault.STALLED, 1, times), waits_for=1), report_of(waits_for=2), report_of(waits_for=0)
        )

    assert circle(1).members == (0, 1, 2)
    assert circle(2).members == (0, 2)


def test_a_user_that_has_not_called_is_waited_for_and_not_for_ever() -> None:
    reports = dict(enumerate((report_of(complaint(Fault.STALLED, 1), waits_for=1), report_of(called=0), report_of())))
    assert judge(range(3), reports, {}, is_patience_over=False) is None
    judgement = judge(range(3), reports, {}, is_patience_over=True)
    assert judgement is not None
    assert judgement.members == (0, 2)


def test_a_user_that_is_later_than_another_ones_patience_is_out() -> None:
    late = report_of(complaint(Fault.LATE, 2))
    assert judged(late, report_of(), report_of(called=0)).members == (0, 1)
    assert judged(late, report_of(), report_of()).members == (0, 1, 2), "it has called meanwhile"


def test_who_called_after_it_was_stopped_is_not_to_blame() -> None:
    stalled = report_of(complaint(Fault.STALLED, 1), waits_for=1)
    assert judged(stalled, report_of(had=Work.NOTHING), report_of()).members == (0, 1, 2)


def test_who_lacks_an_older_result_is_given_it_and_is_to_blame_only_if_it_was_before() -> None:
    ahead = report_of(complaint(Fault.STALLED, 2, sequence=2), done=1, called=2, waits_for=2)
    judgement = judged(ahead, report_of(done=1, called=2), report_of(done=0, called=1))
    assert judgement.members == (0, 1, 2)
    assert judgement.hand_on == HandOn(1, 0, (2,))
    judgement = judged(ahead, report_of(done=1, called=2), report_of(had=Work.HAND_ON))
    assert judgement.members == (0, 1)


def test_a_result_that_a_member_has_stands() -> None:
    assert judged(report_of(), report_of(), report_of()).hand_on is None
    assert judged(report_of(), report_of(done=1), report_of(done=1, called=2)).hand_on == HandOn(1, 1, (0,))
    assert judged(report_of(done=1), report_of(done=1)).hand_on is None


def test_a_result_that_nobody_keeps_cannot_be_handed_on() -> None:
    judgement = judged(report_of(done=5, called=5), report_of(done=5, called=5), report_of(done=3, called=4))
    assert judgement.members == (0, 1)
    assert judgement.verdicts[0].rank == 2
