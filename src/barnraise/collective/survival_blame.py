"""Who is in and who is to blame, from what the ranks of a group report after a failure; pure, and without memory.

In this order:

1. Who did not report is out. Nobody else is blamed then: one that is dead explains everything.
2. Who is accused of damage for the second time in a row is out.
3. Two that could not reach each other for the second time in a row: the one with more such pairs is out, else the junior.
4. From a rank whose deadline passed, follow "waits for": to a rank that waits for nobody and has not finished, it is out;
   to one whose user has not called, everybody waits for that user; to one that is complete, or round in a circle, the last
   two count as a pair of rule 3.

Nobody is put out where those that remain would not be a quorum; if it was one of two, the other one goes.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from barnraise.collective.survival_messages import MAX_REASON_CHARS, Complaint, Fault, HandOn, Report, Verdict, Work

MAX_TIMES = 2
"""A pair, or a sender of damage, gets one more attempt with new streams."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Who stays, who did what, and the result that stands."""

    members: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    hand_on: HandOn | None


def is_quorum(group: Collection[int], present: Collection[int]) -> bool:
    """Tell whether ``present`` may decide for ``group``: more than half of it, or half of it with its lowest rank."""
    count = sum(rank in present for rank in group)
    return 2 * count > len(group) or (2 * count == len(group) and count > 0 and min(group) in present)


def judge(
    group: Collection[int],
    reports: Mapping[int, Report],
    gone: Mapping[int, str],
    *,
    is_patience_over: bool,
) -> Judgement | None:
    """Return who is in and who is to blame; None where there is nothing to do but wait, as for a user to call.

    Args:
        group: Ranks that were in until now, and have not left.
        reports: Of the ranks that reported: a quorum of ``group``.
        gone: Why each of the others is out.
        is_patience_over: Users were waited for long enough.
    """
    if gone:
        verdicts = [Verdict(rank, True, reason) for rank, reason in sorted(gone.items())]
        members = tuple(sorted(reports))
    else:
        court = _Court(group, reports)
        if court.hear(is_patience_over=is_patience_over):
            return None
        verdicts = list(court.verdicts.values())
        members = tuple(rank for rank in sorted(reports) if rank not in court.out)
    return _with_result(group, members, verdicts, reports)


class _Court:
    """One judgement while it is made: all ranks of ``group`` have reported."""

    def __init__(self, group: Collection[int], reports: Mapping[int, Report]) -> None:
        self._group = group
        self._reports = reports
        self.out: set[int] = set()
        self.verdicts: dict[int, Verdict] = {}
        self._pairs: dict[frozenset[int], Complaint] = {}

    def hear(self, *, is_patience_over: bool) -> bool:
        """Hear all complaints; return whether somebody's user must be waited for and nothing else is wrong."""
        late: set[int] = set()
        for accuser, report in sorted(self._reports.items()):
            for complaint in report.complaints:
                if complaint.rank not in self._reports:
                    continue
                match complaint.fault:
                    case Fault.DAMAGED:
                        self._damaged(accuser, complaint)
                    case Fault.BROKEN:
                        self._pair(accuser, complaint.rank, complaint)
                    case Fault.STALLED:
                        late |= self._stalled(accuser, complaint)
                    case Fault.LATE if self._reports[complaint.rank].called < complaint.sequence:
                        self._put_out(complaint.rank, accuser, complaint.reason)
        self._settle_pairs()
        if self.verdicts or not late:
            return False
        for rank in late if is_patience_over else ():
            self._put_out(rank, None, "its user has not called the collective that the others are in")
        return not is_patience_over

    def _damaged(self, accuser: int, complaint: Complaint) -> None:
        if complaint.times >= MAX_TIMES:
            self._put_out(complaint.rank, accuser, complaint.reason)
        else:
            self._name(complaint.rank, complaint.reason)

    def _stalled(self, accuser: int, complaint: Complaint) -> set[int]:
        """Follow who waits for whom; return the rank whose user is late, if it ends there."""
        sequence = complaint.sequence
        before, rank, seen = accuser, complaint.rank, {accuser}
        while rank not in seen:
            seen.add(rank)
            report = self._reports[rank]
            if report.called == report.done < sequence:
                return {rank}
            if report.done >= sequence:
                break
            if report.had is Work.NOTHING or (report.called < sequence and report.had is Work.COLLECTIVE):
                return set()  # Its user has called since; or it lacks an older result, and will be given it.
            if report.waits_for is None or report.waits_for not in self._reports:
                self._put_out(rank, accuser, complaint.reason)
                return set()
            before, rank = rank, report.waits_for
        else:
            before, rank = accuser, complaint.rank
        self._pair(before, rank, complaint)
        return set()

    def _pair(self, one: int, other: int, complaint: Complaint) -> None:
        """Note two that could not reach each other, with the complaint that was made most often."""
        pair = frozenset((one, other))
        known = self._pairs.get(pair)
        if len(pair) == 1:
            # A rank that accuses itself: its own disk, memory or code failed.
            if complaint.times >= MAX_TIMES:
                self._put_out(one, None, complaint.reason)
        elif known is None or known.times < complaint.times:
            self._pairs[pair] = complaint

    def _settle_pairs(self) -> None:
        while True:
            bad = [pair for pair, complaint in self._pairs.items() if complaint.times >= MAX_TIMES]
            bad = [pair for pair in bad if not pair & self.out]
            if not bad:
                break
            degree = Counter(rank for pair in bad for rank in pair)
            worst = max(degree, key=lambda rank: (degree[rank], rank))
            pair = next(pair for pair in sorted(bad, key=sorted) if worst in pair)
            (other,) = pair - {worst}
            if not self._put_out(worst, other, f"ranks {min(pair)} and {max(pair)}: {self._pairs[pair].reason}"):
                break

    def _put_out(self, rank: int, other: int | None, reason: str) -> bool:
        """Exclude ``rank``, or ``other`` where the group can't do without ``rank``; tell whether one of them is out."""
        if rank in self.out:
            return True
        for guilty in (rank, other):
            if guilty is None or guilty in self.out:
                continue
            if is_quorum(self._group, set(self._reports) - self.out - {guilty}):
                self.out.add(guilty)
                self.verdicts[guilty] = Verdict(guilty, True, reason[:MAX_REASON_CHARS])
                return True
        self._name(rank, reason)
        return False

    def _name(self, rank: int, reason: str) -> None:
        self.verdicts.setdefault(rank, Verdict(rank, False, reason[:MAX_REASON_CHARS]))


def _with_result(
    group: Collection[int], members: tuple[int, ...], verdicts: list[Verdict], reports: Mapping[int, Report]
) -> Judgement | None:
    """Add what becomes of the newest result that enough members have or can get: who lacks it gets it from the lowest.

    A rank keeps one result only: who lacks an older one as well can't be served, and either it is out or those before it.
    None: neither side is a quorum.
    """
    for newest in sorted({reports[rank].done for rank in members}, reverse=True):
        kept = tuple(rank for rank in members if newest - 1 <= reports[rank].done <= newest)
        if not is_quorum(group, kept):
            continue
        reason = f"it is more than one collective away from {newest}, and nobody keeps older results"
        apart = [Verdict(rank, True, reason) for rank in members if rank not in kept]
        incomplete = tuple(rank for rank in kept if reports[rank].done < newest)
        holder = next(rank for rank in kept if reports[rank].done == newest)
        hand_on = HandOn(newest, holder, incomplete) if incomplete else None
        return Judgement(members=kept, verdicts=(*verdicts, *apart), hand_on=hand_on)
    return None
