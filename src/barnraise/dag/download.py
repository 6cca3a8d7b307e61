"""Which donor is asked for which chunk of which blob: a state machine without I/O, clock or threads.

Theory of operation. A blob is fetched in parts: first its manifest, which the name proves, then its chunks, which the
manifest proves (`swarm.manifest`). Everybody who is there is a donor until it shows otherwise. To each as much is under
way as it delivers in `HORIZON_S`, so a fast donor has several parts under way and a slow one a single chunk; where not all
can be kept busy, the fastest are. So nobody waits for anybody, and each gives what its link gives.

    part of a donor    leaves it when                              to
    (fresh)            a donor has room                            asked
    asked              it came and held                            done
    asked              it came and did not hold                    fresh; the donor is accused, and asked no more
    asked              the donor refused it or is gone             fresh; who refused rests, longer each time
    asked              it takes four times what it should          late: fresh for others, and taken all the same
    asked, at the end  nothing is fresh and a donor is idle that
                       will be sooner                              asked twice: who is first, counts

What a donor delivers is the mean over the last seconds in which anything of it was under way. `now` is any clock that
does not go backwards, in seconds. At most `MAX_UNDER_WAY_BYTES` are asked for and not here, whatever the blobs' size.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from barnraise.dag.asking import MAX_RUN_CHUNKS, Part
from barnraise.ids import Digest, PeerId
from barnraise.swarm.manifest import CHUNK_BYTES, Manifest

HORIZON_S: Final = 1.0
MAX_PARTS_UNDER_WAY: Final = 4
"""From one donor: 16 MiB."""
MAX_UNDER_WAY_BYTES: Final = 64 * 1024 * 1024
MAX_COPIES: Final = 2
"""Of a part that is asked for twice, at the end."""
HALF_LIFE_S: Final = 2.0
"""What a donor delivered that long ago counts half."""
FIRST_PATIENCE_S: Final = 10.0
"""For a donor whose link nobody knows."""
MIN_PATIENCE_S: Final = 2.0
PATIENCE: Final = 4.0
"""Times what it should take."""
GIVE_UP_S: Final = 30.0
"""What is later than this is not expected any more."""
RESTS_S: Final = (0.05, 2.0)
"""A donor that refuses rests for this long at first, and at most."""
STARVED_S: Final = 5.0
"""Nothing came for so long and nothing is under way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A blob to be fetched."""

    name: Digest
    size_bytes: int
    """What it must be: the model fixes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What of a blob is here already, checked."""

    manifest: Manifest
    chunks: frozenset[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Effect: ask a donor for a part."""

    donor: PeerId
    part: Part


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuse:
    """Effect: a donor sent what does not hold; it is not asked again."""

    donor: PeerId
    reason: str
    evidence: bytes


Effect = Request | Accuse


@dataclass(kw_only=True, slots=True)
class _Blob:
    wanted: Wanted
    manifest: Manifest | None = None
    has: bytearray = field(default_factory=bytearray)
    num_missing: int = 0
    fresh: deque[tuple[int, int]] = field(default_factory=deque)
    """``(first, stop)`` of chunks that nobody is asked for; some of them may have come late since."""

    def open(self, manifest: Manifest, chunks: Collection[int] = ()) -> None:
        self.manifest, self.has = manifest, bytearray(manifest.num_chunks)
        for index in chunks:
            self.has[index] = 1
        self.num_missing = manifest.num_chunks - len(chunks)
        self.fresh.append((0, manifest.num_chunks))

    def take_fresh(self, most: int) -> range:
        """Return the next chunks in a row that are missing and that nobody is asked for."""
        while self.fresh:
            first, stop = self.fresh.popleft()
            while first < stop and self.has[first]:
                first += 1
            end = first
            while end < min(stop, first + most) and not self.has[end]:
                end += 1
            if end < stop:
                self.fresh.appendleft((end, stop))
            if first < end:
                return range(first, end)
        return range(0)

    def bytes_of(self, part: Part) -> int:
        return part.length_bytes(self.wanted.size_bytes) or 0


@dataclass(kw_only=True, slots=True)
class _Asked:
    since: float
    expected_at: float
    """When it should be here, as its donor delivers."""
    size_bytes: int
    is_late: bool = False


@dataclass(kw_only=True, slots=True)
class _Donor:
    asked: dict[Part, _Asked] = field(default_factory=dict)
    rests_until: float = 0.0
    rest_s: float = RESTS_S[0]
    marked_at: float = 0.0
    """When it was last idle or delivered something."""
    delivered_bytes: float = 0.0
    delivering_s: float = 0.0

    @property
    def bytes_per_s(self) -> float | None:
        """Return what it delivers; None: nothing came of it yet."""
        return self.delivered_bytes / max(self.delivering_s, 1e-6) if self.delivered_bytes else None

    @property
    def under_way_bytes(self) -> int:
        return sum(asked.size_bytes for asked in self.asked.values())

    @property
    def room_chunks(self) -> int:
        """Return how many more chunks it may be asked for."""
        if len(self.asked) >= MAX_PARTS_UNDER_WAY or any(asked.is_late for asked in self.asked.values()):
            return 0
        if self.bytes_per_s is None:
            return 0 if self.asked else 1
        room = int(self.bytes_per_s * HORIZON_S - self.under_way_bytes) // CHUNK_BYTES
        return min(MAX_RUN_CHUNKS, max(room, 0 if self.asked else 1))

    def takes_s(self, size_bytes: int) -> float:
        """Return how long so much more should take."""
        rate = self.bytes_per_s
        return FIRST_PATIENCE_S / PATIENCE if rate is None else (self.under_way_bytes + size_bytes) / rate

    def ask(self, now: float, part: Part, size_bytes: int) -> None:
        if not self.asked:
            self.marked_at = now
        self.asked[part] = _Asked(since=now, expected_at=now + self.takes_s(size_bytes), size_bytes=size_bytes)

    def deliver(self, now: float, size_bytes: int) -> None:
        """Note what came."""
        took_s = now - self.marked_at
        kept = 0.5 ** (took_s / HALF_LIFE_S)
        self.delivered_bytes = kept * self.delivered_bytes + size_bytes
        self.delivering_s = kept * self.delivering_s + took_s
        self.marked_at, self.rest_s = now, RESTS_S[0]

    def rest(self, now: float) -> None:
        self.rests_until = now + self.rest_s
        self.rest_s = min(2 * self.rest_s, RESTS_S[1])


class Download:
    """Several blobs at once, from whoever has them. Perform the requests that each call returns."""

    def __init__(self, wanted: Sequence[Wanted], now: float, found: Mapping[Digest, Found] | None = None) -> None:
        """Begin, with what is here already.

        Args:
            wanted: The blobs.
            now: The time, seconds.
            found: By name: a blob's manifest and the chunks that an earlier download left.
        """
        self._blobs = {blob.name: _Blob(wanted=blob) for blob in wanted}
        for name, part in (found or {}).items():
            self._blobs[name].open(part.manifest, part.chunks)
        self._donors: dict[PeerId, _Donor] = {}
        self.liars: set[PeerId] = set()
        self._came_at = now

    # ---- what is known ----------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Tell whether all blobs are whole."""
        return all(blob.manifest is not None and not blob.num_missing for blob in self._blobs.values())

    @property
    def missing_bytes(self) -> int:
        """Return about how much is still to come."""
        return sum(
            blob.wanted.size_bytes if blob.manifest is None else blob.num_missing * CHUNK_BYTES
            for blob in self._blobs.values()
        )

    @property
    def under_way_bytes(self) -> int:
        """Return how much was asked for and is not here."""
        return sum(donor.under_way_bytes for donor in self._donors.values())

    def is_open(self, peer: PeerId, part: Part) -> bool:
        """Tell whether a donor still owes a part."""
        donor = self._donors.get(peer)
        return donor is not None and part in donor.asked

    def manifest(self, name: Digest) -> Manifest | None:
        """Return a blob's manifest, once it is known."""
        return self._blobs[name].manifest

    def is_starved(self, now: float) -> bool:
        """Tell whether nobody who is there seems to have what is missing."""
        waited_s = now - self._came_at
        return not self.is_done and waited_s > (GIVE_UP_S if self.under_way_bytes else STARVED_S)

    # ---- events -----------------------------------------------------------------------------------------------

    def present(self, now: float, donors: Collection[PeerId]) -> list[Effect]:
        """Note who may be asked now, and let time pass; call it a few times a second."""
        for gone in self._donors.keys() - set(donors):
            self._release(self._donors.pop(gone).asked)
        for peer in sorted(set(donors) - self._donors.keys() - self.liars):
            self._donors[peer] = _Donor()
        for donor in self._donors.values():
            self._look_for_late(now, donor)
        return self._requests(now)

    def came(self, now: float, peer: PeerId, part: Part, chunks: Iterable[int]) -> list[Effect]:
        """Note chunks that came, held and are written.

        Args:
            now: The time, seconds.
            peer: Who sent them.
            part: What it was asked for.
            chunks: Those of it that are written now.
        """
        self._note(now, part, chunks)
        donor = self._donors.get(peer)
        if donor is not None and donor.asked.pop(part, None) is not None:
            donor.deliver(now, self._blobs[part.digest].bytes_of(part))
        return self._requests(now)

    def manifest_came(self, now: float, peer: PeerId, manifest: Manifest) -> list[Effect]:
        """Note a blob's manifest, which was checked against its name."""
        blob = self._blobs[manifest.name]
        if blob.manifest is None:
            blob.open(manifest)
            self._came_at = now
        donor = self._donors.get(peer)
        if donor is not None:
            # A manifest is short: how long it took says nothing of the link's bandwidth.
            donor.asked.pop(Part(manifest.name), None)
            donor.marked_at, donor.rest_s = now, RESTS_S[0]
        return self._requests(now)

    def lied(
        self, now: float, peer: PeerId, part: Part, chunks: Iterable[int], reason: str, evidence: bytes
    ) -> list[Effect]:
        """Note that what came of a part does not hold, ``chunks`` of it apart, which are written."""
        self._note(now, part, chunks)
        self.liars.add(peer)
        donor = self._donors.pop(peer, None)
        if donor is None:
            return []
        self._release(donor.asked)
        return [Accuse(donor=peer, reason=reason, evidence=evidence), *self._requests(now)]

    def refused(self, now: float, peer: PeerId, part: Part) -> list[Effect]:
        """Note that a donor did not take an ask, or cannot be reached."""
        donor = self._donors.get(peer)
        if donor is None or part not in donor.asked:
            return []
        asked = {part: donor.asked.pop(part)}
        donor.rest(now)
        self._release(asked)
        return self._requests(now)

    def _note(self, now: float, part: Part, chunks: Iterable[int]) -> None:
        blob = self._blobs[part.digest]
        for index in chunks:
            if not blob.has[index]:
                blob.has[index] = 1
                blob.num_missing -= 1
                self._came_at = now

    # ---- choosing ---------------------------------------------------------------------------------------------

    def _requests(self, now: float) -> list[Effect]:
        """Fill whoever has room, the fastest first; whose link nobody knows yet is tried before them."""
        found: list[Effect] = []
        able = [(peer, donor) for peer, donor in self._donors.items() if donor.rests_until <= now]
        under_way = self.under_way_bytes
        for peer, donor in sorted(able, key=lambda pair: (-(pair[1].bytes_per_s or float("inf")), pair[0])):
            while (room := donor.room_chunks) and under_way < MAX_UNDER_WAY_BYTES:
                part = self._next(now, donor, room)
                if part is None:
                    break
                size_bytes = self._blobs[part.digest].bytes_of(part)
                donor.ask(now, part, size_bytes)
                under_way += size_bytes
                found.append(Request(donor=peer, part=part))
        return found

    def _next(self, now: float, donor: _Donor, room: int) -> Part | None:
        for name, blob in self._blobs.items():
            if blob.manifest is None:
                part = Part(name)
                if part not in donor.asked and self._num_asked(part) < MAX_COPIES:
                    return part
            elif chunks := blob.take_fresh(self._fair(room)):
                return Part(name, chunks.start, len(chunks))
        return None if donor.asked else self._second_copy(now, donor)

    def _fair(self, room: int) -> int:
        """Return how many chunks to ask for at once: towards the end fewer, so that all end together."""
        left = sum(blob.num_missing for blob in self._blobs.values())
        return max(1, min(room, left // (2 * len(self._donors))))

    def _second_copy(self, now: float, donor: _Donor) -> Part | None:
        """Return a part that somebody else is slow with, where this idle donor should be sooner."""
        waiting = [
            (self._still_s(now, asked), part)
            for other in self._donors.values()
            for part, asked in other.asked.items()
            if self._is_missing(part) and self._num_asked(part) < MAX_COPIES
        ]
        if not waiting:
            return None
        still_s, part = max(waiting)
        takes_s = donor.takes_s(self._blobs[part.digest].bytes_of(part))
        return part if donor.bytes_per_s is None or takes_s < still_s else None

    @staticmethod
    def _still_s(now: float, asked: _Asked) -> float:
        """Return how long a part may still take; one that is overdue for long will take long."""
        return max(asked.expected_at - now, (now - asked.since) / 2)

    def _is_missing(self, part: Part) -> bool:
        blob = self._blobs[part.digest]
        if part.is_manifest or blob.manifest is None:
            return blob.manifest is None
        return any(not blob.has[index] for index in part.chunks)

    def _num_asked(self, part: Part) -> int:
        return sum(part in donor.asked and not donor.asked[part].is_late for donor in self._donors.values())

    def _look_for_late(self, now: float, donor: _Donor) -> None:
        """Let others have what takes too long; forget what will not come any more."""
        for part, asked in list(donor.asked.items()):
            allowed_s = max(MIN_PATIENCE_S, PATIENCE * (asked.expected_at - asked.since))
            if not asked.is_late and now > asked.since + allowed_s:
                asked.is_late = True
                self._release({part: asked})
            if now > asked.since + max(GIVE_UP_S, 2 * allowed_s):
                del donor.asked[part]
                donor.rest(now)

    def _release(self, asked: Mapping[Part, _Asked]) -> None:
        """Make fresh again what was asked for here and is under way nowhere else."""
        for part in asked:
            blob = self._blobs[part.digest]
            if part.is_manifest or blob.manifest is None:
                continue
            under_way = {
                index
                for donor in self._donors.values()
                for other, still in donor.asked.items()
                if other.name == part.name and not still.is_late
                for index in other.chunks
            }
            for index in part.chunks:
                if not blob.has[index] and index not in under_way:
                    blob.fresh.appendleft((index, index + 1))
