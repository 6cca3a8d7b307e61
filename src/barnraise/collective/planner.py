"""Which schedule, groups, chunks and codec suit a vector and the links it goes over, and why; pure.

Theory of operation. Candidates are every flat kind, laid out by latency clusters, and hierarchies over the clusters. For
each one the closed form picks the chunk size; then, best first, `cost.estimate` walks those that may still win. All of it
is a function of the arguments, in the same order of operations: ranks that hold the same rows (`LinkGraph.of_rows`) get
the same plan, and no one has to be asked.

What the rules leave out, whatever it would cost: a lossy codec in a ring, which rounds N - 1 times, and a codec that
drops most of what it sees anywhere but on the straight way to a part's owner. And one stream a host at a time where losses
hold connections back, which the model does not know: over 100 Mbit/s, 50 ms and 0.1 % loss a ring over eight cubic
connections used 0.6 of the line, shards over eight to each of three peers 0.85.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from barnraise.collective.closed_forms import closed_form_s, hierarchical_s
from barnraise.collective.clusters import Clusters, groups_of
from barnraise.collective.cost import GRAIN_ELEMENTS, Effort, Job, Wire, coarse_chunk, estimate
from barnraise.collective.kinds import FLAT, KINDS, schedule_of
from barnraise.collective.links import LinkProfile, Links
from barnraise.collective.schedule import Schedule, Transfer
from barnraise.errors import ConfigError, LocalError

WORTH: Final = 0.97
"""A smaller chunk, or a kind further down the list, must save so much: 3 % is within what any model is wrong by."""
CODEC_WORTH: Final = 0.75
"""A lossier codec must save a quarter of the time, and `CODEC_WORTH_S` besides: quality is not given away for nothing."""
CODEC_WORTH_S: Final = 0.010
HOPELESS: Final = 1.5
"""A candidate whose form, on the best of the links, says so many times the best estimate is not walked."""
PREFERENCE: Final = ("shards", "ring", "butterfly", "hierarchical", "tree", "centralised")
"""Who wins a tie: fewest latencies and roundings, then fewest connections, then what has no single busy rank."""
PREFERENCE_OVER_REGIONS: Final = ("shards", "hierarchical", "ring", "butterfly", "tree", "centralised")
ONE_STREAM: Final = ("ring", "butterfly")
"""Kinds in which a host sends to one other at a time."""
MOVES_PER_HOST: Final = 64
"""What a walk may cost the planner: 2 ms for eight hosts."""
LIKE: Final = 1.2
"""Hosts whose limits differ by less own equal parts: a measurement is no better."""
LIKE_HELD_BY_LOSS: Final = 2.0
"""The same where losses hold connections back: of lines that were alike, some were measured at 1.5 times others."""
MIN_FLAT_GROUPS: Final = 16
"""From so many hosts on groups are tried in one room, too: each rank then speaks to few."""
MAX_WEIGHT: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a vector is to be moved."""

    kind: str
    schedule: Schedule
    chunk_elements: int
    codec: str
    predicted_s: float
    groups: Clusters
    """Ranks by latency; one group where all are as near."""
    reasons: tuple[str, ...]
    """Sentences, for people."""
    alternatives: tuple[tuple[str, float], ...]
    """What else was weighed, with its predicted seconds, best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """One way to do it, not yet built."""

    name: str
    kind: str
    build: Callable[[], Schedule]
    form: Callable[[LinkProfile, LinkProfile, Job], float]
    """Seconds, from the profile inside the clusters, that between them, and the job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """A candidate that was walked."""

    candidate: _Candidate
    schedule: Schedule
    job: Job
    predicted_s: float


def plan(
    links: Links, size: int, wires: Sequence[Wire], *, kind: str | None = None, effort: Effort | None = None
) -> Plan:
    """Return the plan for a vector of ``size`` elements.

    Args:
        links: Between the members, by rank; the same on all of them.
        size: Elements.
        wires: Codecs that may be used, the least lossy first; a user's own choice is the only one.
        kind: The schedule that the user insists on, one of `kinds.KINDS`; None: the planner chooses.
        effort: CPU time a chunk takes; the same on all members.

    Raises:
        ConfigError: the kind is unknown, or does not suit the codec.
        LocalError: there is no codec to choose from.
    """
    if not wires:
        raise LocalError("a plan of no codec")
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"schedule {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    planner = _Planner(links.unshared(), size, kind, effort or Effort())
    return planner.plan(wires)


def is_suited(kind: str, wire: Wire, world_size: int) -> bool:
    """Tell whether a kind may carry a codec: each hop of a sum rounds it again, and some codecs bear one hop only."""
    if wire.is_once:
        return kind in ("shards", "centralised")
    return not (wire.is_lossy and kind == "ring" and world_size > 2)


class _Planner:
    """One call of `plan`."""

    def __init__(self, links: Links, size: int, kind: str | None, effort: Effort) -> None:
        self.links, self.size, self.kind, self.effort = links, size, kind, effort
        self.count = links.world_size
        self.groups = groups_of(links.region)
        self.limits = np.minimum(links.uplink_bytes_s, links.downlink_bytes_s)
        self.is_flat = len(self.groups) <= 1
        self.like = LIKE_HELD_BY_LOSS if links.is_held_by_loss else LIKE
        self.inside, self.across = self._profiles(is_best=False)
        self.best_inside, self.best_across = self._profiles(is_best=True)
        self.max_moves = MOVES_PER_HOST * self.count
        self.built: dict[str, Schedule] = {}
        """By the candidate's name: the same for all codecs."""

    def plan(self, wires: Sequence[Wire]) -> Plan:
        """Return the plan with the first codec that no lossier one betters enough."""
        chosen = self._ranked(wires[0])
        reasons: list[str] = []
        for wire in wires[1:]:
            lossier = self._ranked(wire)
            before, after = chosen[0].predicted_s, lossier[0].predicted_s
            if after <= CODEC_WORTH * before and before - after >= CODEC_WORTH_S:
                reasons.append(f"{wire.name} takes {_seconds(after)}, {chosen[0].job.wire.name} {_seconds(before)}")
                chosen = lossier
            else:
                reasons.append(f"{wire.name} would save too little: {_seconds(after)} instead of {_seconds(before)}")
        best, *others = chosen
        return Plan(
            kind=best.candidate.kind,
            schedule=best.schedule,
            chunk_elements=best.job.chunk_elements,
            codec=best.job.wire.name,
            predicted_s=best.predicted_s,
            groups=self.groups,
            reasons=(*self._reasons(best, others), *reasons),
            alternatives=tuple((other.candidate.name, other.predicted_s) for other in others),
        )

    def _ranked(self, wire: Wire) -> list[_Choice]:
        """Return what was walked, the winner first and the others by time."""
        candidates = [candidate for candidate in self._candidates() if self._is_allowed(candidate, wire)]
        if not candidates:
            raise ConfigError(
                f"schedule {self.kind!r} does not suit codec {wire.name!r}: leave one of them to the planner"
            )
        jobs = [self._job(candidate, wire) for candidate in candidates]
        bounds = [
            candidate.form(self.best_inside, self.best_across, job)
            for candidate, job in zip(candidates, jobs, strict=True)
        ]
        walked: list[_Choice] = []
        for number in sorted(range(len(candidates)), key=bounds.__getitem__):
            if not walked or bounds[number] <= HOPELESS * min(choice.predicted_s for choice in walked):
                walked.append(self._walked(candidates[number], jobs[number]))
        walked = self._refined(sorted(walked, key=lambda choice: choice.predicted_s))
        near = [choice for choice in walked if WORTH * choice.predicted_s <= walked[0].predicted_s]
        preference = PREFERENCE if self.is_flat else PREFERENCE_OVER_REGIONS
        winner = min(near, key=lambda choice: preference.index(choice.candidate.kind))
        return [winner, *(choice for choice in walked if choice is not winner)]

    def _refined(self, walked: list[_Choice]) -> list[_Choice]:
        """Return the choices, the best two with smaller chunks where uneven links want them: no form knows of these."""
        if self.is_flat and self.limits.max() <= self.like * self.limits.min():
            return walked
        for number, choice in enumerate(walked[:2]):
            elements = choice.job.chunk_elements // 4 // GRAIN_ELEMENTS * GRAIN_ELEMENTS
            if elements:
                smaller = self._walked(choice.candidate, replace(choice.job, chunk_elements=elements), 3)
                if smaller.predicted_s < WORTH * choice.predicted_s:
                    walked[number] = smaller
        return sorted(walked, key=lambda choice: choice.predicted_s)

    def _walked(self, candidate: _Candidate, job: Job, more: int = 1) -> _Choice:
        """Return the estimate; where the walk goes in coarser chunks than are sent, the form tells what that adds."""
        schedule, max_moves = self._built(candidate), more * self.max_moves
        predicted_s = estimate(schedule, self.links, job, max_moves).makespan_s
        coarse = replace(job, chunk_elements=coarse_chunk(schedule, job, max_moves))
        if coarse.chunk_elements != job.chunk_elements:
            form = candidate.form
            predicted_s *= form(self.inside, self.across, job) / form(self.inside, self.across, coarse)
        return _Choice(candidate=candidate, schedule=schedule, job=job, predicted_s=predicted_s)

    def _built(self, candidate: _Candidate) -> Schedule:
        if candidate.name not in self.built:
            self.built[candidate.name] = candidate.build()
        return self.built[candidate.name]

    def _job(self, candidate: _Candidate, wire: Wire) -> Job:
        """Return the job with the largest chunks that no smaller ones beat by more than the model's own error."""
        jobs = [
            Job(size=self.size, wire=wire, chunk_elements=elements, effort=self.effort)
            for elements in wire.chunk_choices()
        ]
        times = [candidate.form(self.inside, self.across, job) for job in jobs]
        return next(job for job, time in zip(jobs, times, strict=True) if WORTH * time <= min(times))

    def _is_allowed(self, candidate: _Candidate, wire: Wire) -> bool:
        """Tell whether a candidate suits the codec and the user's wish."""
        if self.kind is not None and candidate.kind != self.kind:
            return False
        if self._wants_many_streams() and candidate.kind in ONE_STREAM:
            return False
        kinds = candidate.name.replace("hierarchical ", "").split("/") if self.kind is None else ()
        return all(is_suited(kind, wire, self.count) for kind in (candidate.kind, *kinds))

    def _wants_many_streams(self) -> bool:
        return self.kind is None and self.links.is_held_by_loss and self.count > 2

    def _candidates(self) -> Iterator[_Candidate]:
        for kind in FLAT:
            yield self._flat(kind)
        groups = self.groups
        if self.is_flat and (self.count >= MIN_FLAT_GROUPS or self.kind == "hierarchical"):
            width = 1 << round(math.log2(self.count) / 2)
            groups = tuple(tuple(range(i, min(i + width, self.count))) for i in range(0, self.count, width))
        if 1 < len(groups) < self.count or self.kind == "hierarchical":
            inners = ["shards", "butterfly"] if _are_powers(map(len, groups)) else ["shards"]
            outers = ["shards"]
            if len(groups) > 2 and not self.is_flat:
                outers += ["ring", "butterfly"] if _are_powers([len(groups)]) else ["ring"]
            for inner in inners:
                for outer in outers:
                    yield self._hierarchical(groups, inner, outer)

    def _flat(self, kind: str) -> _Candidate:
        weights = self._weights() if kind == "shards" else None

        def build() -> Schedule:
            schedule = schedule_of(kind, self.count, weights=weights)
            order = self._order(kind)
            return schedule if order == list(range(self.count)) else relabelled(schedule, order)

        def form(inside: LinkProfile, across: LinkProfile, job: Job) -> float:
            return closed_form_s(kind, self.count, inside if self.is_flat else _faster(inside, across), job)

        return _Candidate(name=kind, kind=kind, build=build, form=form)

    def _hierarchical(self, groups: Clusters, inner: str, outer: str) -> _Candidate:
        mean = max(1, round(self.count / len(groups)))

        def build() -> Schedule:
            return schedule_of("hierarchical", self.count, groups=groups, inner=inner, outer=outer)

        def form(inside: LinkProfile, across: LinkProfile, job: Job) -> float:
            return hierarchical_s((inner, mean, inside), (outer, len(groups), across), job)

        return _Candidate(name=f"hierarchical {inner}/{outer}", kind="hierarchical", build=build, form=form)

    def _order(self, kind: str) -> list[int]:
        """Return which host takes which place in a flat schedule."""
        if kind in ("tree", "centralised"):
            root = self._root()
            rest = [rank for group in self.groups for rank in group if rank != root]
            return [root, *rest]
        if self.is_flat or kind == "shards":
            return list(range(self.count))
        if kind == "butterfly":  # its last halvings, of the smallest parts, are between neighbours
            longest = max(len(group) for group in self.groups)
            return [group[i] for i in range(longest) for group in self.groups if i < len(group)]
        return [rank for group in self.groups for rank in group]

    def _root(self) -> int:
        """Return the fastest host, of equals the one nearest to all."""
        far = np.where(np.eye(self.count, dtype=bool), 0.0, self.links.latency_s).sum(axis=1)
        return min(range(self.count), key=lambda rank: (-float(self.limits[rank]), float(far[rank]), rank))

    def _weights(self) -> list[int] | None:
        """Return the shares with which all hosts are done at the same time; None where they are alike.

        A host sends and receives the whole vector once, and N - 2 times its own part more: (S + (N - 2) s) / speed.
        """
        speeds = np.minimum(self.limits, 1 / self.effort.byte_s)
        if self.count < 3 or speeds.max() <= self.like * speeds.min():
            return None
        shares = np.zeros(self.count)
        fast = np.ones(self.count, dtype=bool)
        for _ in range(self.count):
            time = (self.count - 2 + fast.sum()) / speeds[fast].sum()
            shares = np.where(fast, (time * speeds - 1) / (self.count - 2), 0.0)
            if (shares >= 0).all():
                break
            fast &= shares > 0
        return [round(MAX_WEIGHT * float(share) / float(shares.max())) for share in shares]

    def _profiles(self, is_best: bool) -> tuple[LinkProfile, LinkProfile]:
        """Return the links inside the clusters and between them: medians, or the best of each."""
        is_other = ~np.eye(self.count, dtype=bool)
        is_near = self.links.region[:, None] == self.links.region[None, :]
        inside = is_near & is_other
        across = is_other & ~is_near
        if not across.any():
            across = inside
        return self._profile(inside if inside.any() else across, is_best), self._profile(across, is_best)

    def _profile(self, chosen: npt.NDArray[np.bool_], is_best: bool) -> LinkProfile:
        if not chosen.any():
            return LinkProfile(latency_s=0.0, bandwidth_bytes_s=math.inf)
        latency = self.links.latency_s[chosen]
        speed = np.minimum(self.links.bandwidth_bytes_s, self.limits[:, None])[chosen]
        if is_best:
            return LinkProfile(latency_s=float(latency.min()), bandwidth_bytes_s=float(speed.max()))
        return LinkProfile(latency_s=float(np.median(latency)), bandwidth_bytes_s=float(np.median(speed)))

    def _reasons(self, best: _Choice, others: Sequence[_Choice]) -> list[str]:
        """Return sentences: what the links are like, what won, and what is special about it."""
        reasons = [self._situation(), self._verdict(best, others)]
        wire, chunk = best.job.wire, best.job.chunk_elements
        if chunk < wire.chunk_elements():
            size = round(wire.bytes_of_chunk(chunk) / 1024)
            reasons.append(f"chunks of {size} KiB, so that more of them are on the way at a time")
        if best.candidate.kind == "shards" and (weights := self._weights()) is not None:
            slow = weights.index(min(weights))
            share, speed = 100 * weights[slow] / sum(weights), _speed(float(self.limits[slow]))
            reasons.append(f"rank {slow} owns {share:.1f} % of the vector: its line has {speed}")
        if wire.is_once:
            reasons.append(f"{wire.name} loses too much to be applied at every hop: inputs go straight to their owner")
        elif wire.is_lossy and self.kind is None and self.count > 2:
            reasons.append(f"no ring: {wire.name} would round at each of {self.count - 1} hops")
        if self._wants_many_streams():
            reasons.append("no ring or butterfly: without bbr a loss slows a stream down, and several carry more")
        return reasons

    def _situation(self) -> str:
        if self.count < 2:
            return "one host: nothing to move"
        slowest, fastest = float(self.limits.min()), float(self.limits.max())
        speed = _speed(slowest) if fastest <= self.like * slowest else f"{_speed(slowest)} to {_speed(fastest)}"
        if self.is_flat:
            return f"{self.count} hosts, all {_seconds(self.inside.latency_s)} from each other, {speed}"
        places = ", ".join("+".join(map(str, group)) for group in self.groups[:8])
        more = f" and {len(self.groups) - 8} more" if len(self.groups) > 8 else ""
        near, far = _seconds(self.inside.latency_s), _seconds(self.across.latency_s)
        return (
            f"{self.count} hosts in {len(self.groups)} regions ({places}{more}): {near} inside, {far} between, {speed}"
        )

    def _verdict(self, best: _Choice, others: Sequence[_Choice]) -> str:
        name, wire = best.candidate.name, best.job.wire
        size = _bytes(wire.reduce_bytes * self.size)
        line = f"{name}: {_seconds(best.predicted_s)} for {size} of {wire.name}"
        if self.kind is not None:
            return f"{line}, as asked for"
        if not others:
            return line
        rival = others[0]
        if rival.predicted_s < best.predicted_s / WORTH and rival.predicted_s > best.predicted_s * WORTH:
            return f"{line}, {rival.candidate.name} about the same"
        return f"{line}, {rival.candidate.name} {_seconds(rival.predicted_s)}"


def relabelled(schedule: Schedule, order: Sequence[int]) -> Schedule:
    """Return the schedule with rank ``order[i]`` in the place of rank i.

    Raises:
        LocalError: ``order`` does not name each rank once.
    """
    if sorted(order) != list(range(schedule.world_size)):
        raise LocalError(f"the order {list(order)} does not name each of {schedule.world_size} ranks once")
    return replace(
        schedule,
        owners=tuple(order[owner] for owner in schedule.owners),
        transfers=tuple(
            Transfer(move.step, order[move.sender], order[move.receiver], move.part, move.action)
            for move in schedule.transfers
        ),
    )


def _are_powers(counts: Iterable[int]) -> bool:
    """Tell whether all are powers of two: a butterfly of another number folds, which costs a vector's time each way."""
    return all(count & (count - 1) == 0 for count in counts)


def _faster(one: LinkProfile, other: LinkProfile) -> LinkProfile:
    return LinkProfile(
        latency_s=min(one.latency_s, other.latency_s),
        bandwidth_bytes_s=max(one.bandwidth_bytes_s, other.bandwidth_bytes_s),
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _speed(bytes_s: float) -> str:
    megabits = 8e-6 * bytes_s
    return f"{megabits / 1000:.3g} Gbit/s" if megabits >= 1000 else f"{megabits:.3g} Mbit/s"


def _bytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.3g} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.3g} kB"
