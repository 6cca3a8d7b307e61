"""The download's machine among donors that die, stall, refuse, come late and lie: a simulated clock, no bytes on a wire."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.dag.asking import MAX_RUN_CHUNKS, Answer, Ask, Part, decode, encode
from barnraise.dag.download import (
    GIVE_UP_S,
    MAX_PARTS_UNDER_WAY,
    MAX_UNDER_WAY_BYTES,
    STARVED_S,
    Accuse,
    Download,
    Found,
    Request,
    Wanted,
)
from barnraise.ids import Digest, PeerId
from barnraise.swarm.manifest import CHUNK_BYTES

from .donors import Donor, World, blob_of

MB = 1e6
A, B, C, D = (PeerId(name) for name in "ABCD")


def world(donors: Mapping[PeerId, Donor], num_chunks: int = 200, **options: object) -> World:
    return World(blobs=[blob_of(num_chunks, 1000)], donors=dict(donors), **options)  # type: ignore[arg-type]


def test_four_equal_donors_are_nearly_four_times_as_fast_as_one() -> None:
    alone = world({A: Donor(bytes_per_s=10 * MB)}).run()
    together = world({peer: Donor(bytes_per_s=10 * MB) for peer in (A, B, C, D)}).run()
    assert alone / together > 3.6


def test_each_gives_what_its_link_gives() -> None:
    donors = {A: Donor(bytes_per_s=80 * MB), B: Donor(bytes_per_s=15 * MB), C: Donor(bytes_per_s=5 * MB)}
    found = world(donors, 1000)
    took_s = found.run()
    assert found.whole()
    assert took_s < 1.15 * 1000 * CHUNK_BYTES / (100 * MB)
    share = [donor.sent_bytes / (1000 * CHUNK_BYTES) for donor in donors.values()]
    assert share == pytest.approx([0.8, 0.15, 0.05], abs=0.05)
    assert found.received_bytes < 1.03 * 1000 * CHUNK_BYTES


def test_a_hopelessly_slow_donor_holds_nobody_up() -> None:
    fast = world({A: Donor(bytes_per_s=50 * MB)}).run()
    found = world({A: Donor(bytes_per_s=50 * MB), B: Donor(bytes_per_s=1000.0)})
    assert found.run() < fast + 0.5
    assert found.whole()


def test_a_donor_that_dies_costs_its_chunks() -> None:
    donors = {peer: Donor(bytes_per_s=10 * MB) for peer in (A, B, C)}
    donors[B].dies_at = 3.0
    found = world(donors)
    ideal_s = (200 * CHUNK_BYTES - 3 * 10 * MB) / (20 * MB)
    assert found.run() < ideal_s + 1.5
    assert found.whole()


def test_a_donor_that_stalls_is_passed_over() -> None:
    donors = {peer: Donor(bytes_per_s=10 * MB) for peer in (A, B, C)}
    donors[B].stalls_from = 2.0
    found = world(donors)
    assert found.run() < (200 * CHUNK_BYTES - 2 * 10 * MB) / (20 * MB) + 3.0
    assert found.whole()
    assert found.accused == []


def test_a_liar_is_accused_once_and_never_asked_again() -> None:
    donors = {A: Donor(bytes_per_s=10 * MB), B: Donor(bytes_per_s=40 * MB, is_liar=True, lie_chance=1.0)}
    found = world(donors)
    found.run()
    assert found.accused == [B]
    assert found.download.liars == {B}
    assert found.whole()


def test_who_has_nothing_and_who_comes_later() -> None:
    donors = {A: Donor(bytes_per_s=1 * MB, has_nothing=True), B: Donor(bytes_per_s=50 * MB, comes_at=2.0)}
    found = world(donors, 50)
    assert 2.0 < found.run() < 2.0 + 50 * CHUNK_BYTES / (50 * MB) + 1.0
    assert found.whole()


@pytest.mark.parametrize(
    "donors",
    [
        {},
        {A: Donor(bytes_per_s=MB, has_nothing=True)},
        {A: Donor(bytes_per_s=10 * MB, dies_at=1.0)},
        {A: Donor(bytes_per_s=10 * MB, is_liar=True, lie_chance=1.0)},
    ],
    ids=["nobody", "who has nothing", "who dies", "a liar"],
)
def test_without_anybody_who_has_it_the_download_says_so(donors: dict[PeerId, Donor]) -> None:
    found = world({peer: Donor(**vars(donor)) for peer, donor in donors.items()})
    assert found.run() < 2 * STARVED_S + 2.0
    assert not found.download.is_done
    assert found.download.missing_bytes > 0


def test_a_donor_that_never_answers_is_not_waited_for_without_end() -> None:
    found = world({A: Donor(bytes_per_s=10 * MB, stalls_from=0.0)})
    assert found.run() < GIVE_UP_S + STARVED_S + 5.0
    assert not found.download.is_done


def test_what_is_here_is_not_fetched_again() -> None:
    manifest = blob_of(40)
    have = {manifest.name: Found(manifest=manifest, chunks=frozenset(range(0, 40, 2)))}
    found = World(blobs=[manifest], donors={A: Donor(bytes_per_s=10 * MB)}, found=have)
    found.run()
    assert found.whole()
    assert found.received_bytes == 20 * CHUNK_BYTES


def test_a_whole_one_needs_nobody() -> None:
    manifest = blob_of(3)
    wanted = Wanted(name=manifest.name, size_bytes=manifest.size_bytes)
    assert Download([wanted], 0.0, {manifest.name: Found(manifest=manifest, chunks=frozenset(range(3)))}).is_done
    assert not Download([wanted], 0.0).is_done


def test_memory_is_bounded_with_many_donors() -> None:
    donors = {PeerId(f"peer-{number:02}"): Donor(bytes_per_s=500 * MB) for number in range(30)}
    found = world(donors, 400)
    found.run()
    assert found.whole()
    assert found.most_under_way < MAX_UNDER_WAY_BYTES + MAX_RUN_CHUNKS * CHUNK_BYTES


def test_nobody_owes_more_than_four_parts() -> None:
    manifest = blob_of(100)
    download = Download([Wanted(name=manifest.name, size_bytes=manifest.size_bytes)], 0.0)
    now, requests = 0.0, download.present(0.0, [A])
    assert requests == [Request(donor=A, part=Part(manifest.name))]
    requests = download.manifest_came(now, A, manifest)
    for _ in range(10):
        now += 0.001
        (request, *rest) = [request for request in requests if isinstance(request, Request)]
        requests = rest + download.came(now, A, request.part, request.part.chunks)
        assert len(requests) <= MAX_PARTS_UNDER_WAY
    assert len(requests) == MAX_PARTS_UNDER_WAY


def test_an_accusation_frees_what_was_asked_and_carries_the_evidence() -> None:
    manifest = blob_of(1)
    download = Download([Wanted(name=manifest.name, size_bytes=manifest.size_bytes)], 0.0)
    download.present(0.0, [A])
    download.manifest_came(0.1, A, manifest)
    part = Part(manifest.name, 0, 1)
    assert download.is_open(A, part)
    assert download.lied(0.2, A, part, (), "rot", b"evidence") == [Accuse(donor=A, reason="rot", evidence=b"evidence")]
    assert not download.is_open(A, part)
    assert download.present(0.3, [A]) == []
    assert download.present(0.4, [A, B]) == [Request(donor=B, part=part)]


def test_what_comes_late_counts_all_the_same() -> None:
    manifest = blob_of(1)
    download = Download([Wanted(name=manifest.name, size_bytes=manifest.size_bytes)], 0.0)
    download.present(0.0, [A])
    download.manifest_came(0.1, A, manifest)
    part = Part(manifest.name, 0, 1)
    assert download.present(11.0, [A, B]) == [Request(donor=B, part=part)]
    assert download.came(12.0, A, part, [0]) == []
    assert download.is_done
    assert download.came(12.5, B, part, [0]) == []


donors = st.builds(
    Donor,
    bytes_per_s=st.floats(1 * MB, 200 * MB),
    dies_at=st.one_of(st.just(float("inf")), st.floats(0.0, 5.0)),
    comes_at=st.floats(0.0, 2.0),
    stalls_from=st.one_of(st.just(float("inf")), st.floats(0.0, 5.0)),
    is_liar=st.booleans(),
    has_nothing=st.booleans(),
    lie_chance=st.floats(0.0, 1.0),
)


@settings(deadline=None, max_examples=150)
@given(
    honest=st.builds(Donor, bytes_per_s=st.floats(2 * MB, 100 * MB), comes_at=st.floats(0.0, 3.0)),
    others=st.lists(donors, max_size=6),
    sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5000)), min_size=1, max_size=3),
    had=st.sets(st.integers(0, 11)),
    seed=st.integers(0, 1 << 16),
)
def test_one_honest_donor_is_enough(
    honest: Donor, others: list[Donor], sizes: list[tuple[int, int]], had: set[int], seed: int
) -> None:
    blobs = [blob_of(chunks, rest, seed=place) for place, (chunks, rest) in enumerate(sizes)]
    first = blobs[0]
    found: dict[Digest, Found] = {}
    if had:
        chunks = frozenset(index for index in had if index < first.num_chunks)
        found = {first.name: Found(manifest=first, chunks=chunks)}
    peers = {PeerId(f"peer-{place}"): donor for place, donor in enumerate([honest, *others])}
    made = World(blobs=blobs, donors=peers, seed=seed, found=found, patience_s=120.0)
    made.run()
    assert made.download.is_done
    assert made.whole()
    assert {made.donors[peer].is_liar for peer in made.accused} <= {True}
    assert len(set(made.accused)) == len(made.accused)
    assert made.most_under_way <= MAX_UNDER_WAY_BYTES + MAX_RUN_CHUNKS * CHUNK_BYTES


@given(st.binary(max_size=80))
def test_no_header_raises_anything(data: bytes) -> None:
    decode(data)


@pytest.mark.parametrize("header", [Ask(Part(bytes(32))), Answer(Part(bytes(32), 7, 4))])
def test_headers_come_back(header: Ask | Answer) -> None:
    assert decode(encode(header)) == header


@pytest.mark.parametrize(
    "part",
    [Part(bytes(31)), Part(bytes(33)), Part(bytes(32), -1, 1), Part(bytes(32), 0, 5), Part(bytes(32), 1 << 41, 1)],
)
def test_headers_out_of_bounds_are_none(part: Part) -> None:
    assert decode(encode(Ask(part))) is None


@pytest.mark.parametrize(
    ("part", "length"),
    [
        (Part(bytes(32)), 8 + 3 * 32),
        (Part(bytes(32), 1, 0), None),
        (Part(bytes(32), 0, 2), 2 * CHUNK_BYTES),
        (Part(bytes(32), 2, 1), 5),
        (Part(bytes(32), 1, 2), CHUNK_BYTES + 5),
        (Part(bytes(32), 2, 2), None),
        (Part(bytes(32), 3, 1), None),
    ],
)
def test_a_part_has_one_length(part: Part, length: int | None) -> None:
    assert part.length_bytes(2 * CHUNK_BYTES + 5) == length
