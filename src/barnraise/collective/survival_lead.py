"""What the leader of one ballot knows, and when that is enough to propose; it sends nothing itself."""

from collections.abc import Mapping

from barnraise.collective.survival_blame import is_quorum, judge
from barnraise.collective.survival_effects import Patience
from barnraise.collective.survival_messages import Ballot, Collect, Decision, Member, Propose, Report


class Lead:
    """One ballot of one leader: reports come in, one decision is proposed, votes are counted.

    Args:
        ballot: Which.
        epoch: How many decisions were made before.
        last: The one before.
        members: Ranks that are in until then.
        patience: The deadlines.
        now: Seconds.
    """

    def __init__(
        self,
        ballot: Ballot,
        epoch: int,
        last: Decision | None,
        members: tuple[int, ...],
        patience: Patience,
        now: float,
    ) -> None:
        self.ballot = ballot
        self.members = members
        self.asked_at = now
        """When the members were last asked for reports, or for their votes."""
        self.proposed: Decision | None = None
        self.is_patient = False
        """Nothing is wrong but that somebody's user has not called."""
        self._epoch = epoch
        self._last = last
        self._patience = patience
        self._since = self._patient_since = now
        self._reports: dict[int, Report] = {}
        self._reported_at: dict[int, float] = {}
        self._votes: set[int] = set()

    @property
    def reporters(self) -> list[int]:
        """Return who has promised, ascending: only they may vote."""
        return sorted(self._reports)

    @property
    def is_patience_over(self) -> bool:
        """Tell whether users were waited for as long as they may be."""
        return self.is_patient and self.asked_at >= self._patient_until

    @property
    def _patient_until(self) -> float:
        """Return when the first user is tired of waiting for those that have not called."""
        said = [
            self._reported_at[rank] + report.waits_ms / 1000
            for rank, report in self._reports.items()
            if report.waits_ms is not None
        ]
        return min(said, default=self._patient_since + self._patience.user_timeout_s)

    def collect(self) -> Collect:
        """Return the question for reports."""
        return Collect(epoch=self._epoch, ballot=self.ballot, last=self._last, is_patient=self.is_patient)

    def proposal(self, decision: Decision) -> Propose:
        """Return the question for votes."""
        return Propose(epoch=self._epoch, ballot=self.ballot, decision=decision)

    def report(self, now: float, sender: int, report: Report) -> None:
        """Note a report, or a newer one."""
        if sender in self.members and self.proposed is None:
            self._reports[sender], self._reported_at[sender] = report, now

    def forget(self, rank: int) -> None:
        """Drop the report of a rank that can't be reached now."""
        if self.proposed is None:
            self._reports.pop(rank, None)

    def forget_silent(self, now: float) -> None:
        """Drop the reports of ranks that were asked again and did not answer."""
        for rank in self.reporters:
            if now >= self._reported_at[rank] + 2 * self._patience.report_timeout_s:
                self.forget(rank)

    def vote(self, sender: int, left: set[int]) -> bool:
        """Count a vote for what was proposed; tell whether it is decided."""
        self._votes.add(sender)
        return is_quorum(set(self.members) - left, self._votes)

    def consider(self, now: float, absent: Mapping[int, str], left: set[int]) -> Decision | None:
        """Return what to propose, once enough is known.

        Args:
            now: Seconds.
            absent: Why ranks can't be reached from here.
            left: Those of them that are gone for good and will never vote.
        """
        electorate = set(self.members) - left
        if self.proposed is not None or not is_quorum(electorate, self._reports):
            return None
        missing = set(self.members) - set(self._reports)
        is_time = now >= self._since + self._patience.report_timeout_s
        if not is_time and any(self._may_report(rank, absent, left) for rank in missing):
            return None
        accepted = [report.accepted for report in self._reports.values() if report.accepted is not None]
        if accepted:
            # Race 3: it may have been decided.
            return max(accepted, key=lambda value: value.ballot).decision
        silence = f"it did not answer for {self._patience.report_timeout_s:g} s"
        return self._judge(now, electorate, {rank: absent.get(rank, silence) for rank in missing})

    def _may_report(self, rank: int, absent: Mapping[int, str], left: set[int]) -> bool:
        """Tell whether a rank that has not reported may be alive: somebody has a link to it."""
        if rank in left:
            return False
        return rank not in absent or any(rank not in report.down for report in self._reports.values())

    def _judge(self, now: float, electorate: set[int], gone: Mapping[int, str]) -> Decision | None:
        is_over = self.is_patient and now >= self._patient_until
        judgement = judge(electorate, self._reports, gone, is_patience_over=is_over)
        if judgement is None:
            if not self.is_patient:
                self.is_patient, self._patient_since = True, now
            return None
        return Decision(
            number=self._epoch + 1,
            members=tuple(Member(rank, self._reports[rank].weight) for rank in judgement.members),
            verdicts=judgement.verdicts,
            hand_on=judgement.hand_on,
            excused=tuple(sorted({r for report in self._reports.values() for r in report.down} & {*judgement.members})),
        )
