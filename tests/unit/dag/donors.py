"""A world of donors on a simulated clock, for the download's machine: each has a link, and may die, stall or lie."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from barnraise.dag.asking import Part
from barnraise.dag.download import Accuse, Download, Effect, Found, Request, Wanted
from barnraise.ids import Digest, PeerId
from barnraise.swarm.manifest import CHUNK_BYTES, HASH_BYTES, Manifest

TICK_S = 0.1
LATENCY_S = 0.01


@dataclass(kw_only=True)
class Donor:
    """One donor: an honest one unless told otherwise."""

    bytes_per_s: float
    dies_at: float = float("inf")
    comes_at: float = 0.0
    stalls_from: float = float("inf")
    """From then on it takes asks and answers nothing."""
    is_liar: bool = False
    has_nothing: bool = False
    lie_chance: float = 0.5
    busy_until: float = 0.0
    sent_bytes: int = 0


@dataclass(kw_only=True)
class World:
    """Runs a download to its end. Checks on the way what must hold at any time."""

    blobs: list[Manifest]
    donors: dict[PeerId, Donor]
    seed: int = 0
    found: dict[Digest, Found] = field(default_factory=dict)
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        """Lay out the blobs."""
        self.rng = random.Random(self.seed)
        self.manifests = {manifest.name: manifest for manifest in self.blobs}
        self.now = 0.0
        self.written: set[tuple[Digest, int]] = set()
        self.accused: list[PeerId] = []
        self.most_under_way = 0
        self.received_bytes = 0
        self._heap: list[tuple[float, int, Callable[[], list[Effect]]]] = []
        self._count = itertools.count()
        wanted = [Wanted(name=name, size_bytes=m.size_bytes) for name, m in self.manifests.items()]
        self.download = Download(wanted, self.now, self.found)

    def run(self) -> float:
        """Return how long it took; raises AssertionError where something does not hold."""
        self._later(0.0, self._tick)
        while not self.download.is_done:
            assert self._heap
            assert self.now < self.patience_s, "the download hangs"
            self.now, _, event = heapq.heappop(self._heap)
            self._perform(event())
            self.most_under_way = max(self.most_under_way, self.download.under_way_bytes)
            if self.download.is_starved(self.now):
                break
        return self.now

    def whole(self) -> bool:
        """Tell whether every chunk that was not here before came, and held."""
        return all(
            (name, index) in self.written
            for name, manifest in self.manifests.items()
            for index in range(manifest.num_chunks)
            if name not in self.found or index not in self.found[name].chunks
        )

    def present(self) -> list[PeerId]:
        """Return who is connected."""
        return [peer for peer, donor in self.donors.items() if donor.comes_at <= self.now < donor.dies_at]

    def _tick(self) -> list[Effect]:
        self._later(TICK_S, self._tick)
        return self.download.present(self.now, self.present())

    def _later(self, delay_s: float, event: Callable[[], list[Effect]]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._count), event))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Accuse):
                self.accused.append(effect.donor)
            else:
                self._ask(effect)

    def _ask(self, request: Request) -> None:
        donor, peer, part = self.donors[request.donor], request.donor, request.part
        assert peer not in self.accused, "a liar is asked again"
        if donor.has_nothing or self.now >= donor.dies_at:
            self._later(2 * LATENCY_S, lambda: self.download.refused(self.now, peer, part))
            return
        size = part.length_bytes(self.manifests[part.digest].size_bytes)
        assert size is not None, "a part that no blob has"
        donor.busy_until = max(donor.busy_until, self.now) + size / donor.bytes_per_s
        arrives = donor.busy_until + 2 * LATENCY_S
        if arrives < min(donor.dies_at, donor.stalls_from):
            self._later(arrives - self.now, lambda: self._arrive(peer, part))

    def _arrive(self, peer: PeerId, part: Part) -> list[Effect]:
        donor, manifest = self.donors[peer], self.manifests[part.digest]
        lies = donor.is_liar and self.rng.random() < donor.lie_chance
        if part.is_manifest:
            if lies:
                return self.download.lied(self.now, peer, part, (), "a false manifest", b"")
            return self.download.manifest_came(self.now, peer, manifest)
        size = part.length_bytes(manifest.size_bytes) or 0
        donor.sent_bytes += size
        self.received_bytes += size
        good = []
        for index in part.chunks:
            if lies and (self.rng.random() < 0.5 or index == part.chunks[-1]):
                return self.download.lied(self.now, peer, part, good, "a false chunk", b"")
            self.written.add((part.digest, index))
            good.append(index)
        return self.download.came(self.now, peer, part, good)


def blob_of(num_chunks: int, rest_bytes: int = 0, seed: int = 0) -> Manifest:
    """Return the manifest of a blob of so many chunks, and a last one that is shorter; its bytes are nobody's business."""
    size_bytes = num_chunks * CHUNK_BYTES + rest_bytes
    hashes = (
        bytes([seed, place % 256, place >> 8]) + bytes(HASH_BYTES - 3) for place in range(-(-size_bytes // CHUNK_BYTES))
    )
    return Manifest(size_bytes=size_bytes, hashes=b"".join(hashes))
