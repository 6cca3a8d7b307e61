"""Heartbeats: what answers say of a link, and what becomes of a peer that floods, lies or never answers."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.net import links
from barnraise.net.heartbeat import (
    ALPHA,
    EVERY_S,
    HASTE_S,
    MAX_CREDIT,
    MAX_UNANSWERED,
    NONCE_BYTES,
    WINDOW,
    Heartbeat,
)
from barnraise.net.links import PING, PONG, Link, frame, receive_frame
from barnraise.net.memory import open_medium
from barnraise.net.seam import MAX_MESSAGE_BYTES, NetworkEvent, PeerUp

ALICE, BOB = PeerId("alice"), PeerId("bob")


def told(beat: Heartbeat, *round_trips_s: float) -> float:
    """Return the latency after these round trips."""
    for number, taken_s in enumerate(round_trips_s):
        beat.answered(10.0 * number + taken_s, beat.ask(10.0 * number))
    assert beat.latency_s is not None
    return beat.latency_s


def test_how_long_a_peer_has_been_silent_is_counted_from_the_oldest_ping_that_is_out() -> None:
    beat = Heartbeat(BOB)
    assert beat.silent_s(7.0) == 0.0
    first, second = beat.ask(10.0), beat.ask(12.0)
    assert beat.silent_s(15.0) == 5.0
    beat.answered(15.0, first)
    assert beat.silent_s(15.0) == 3.0
    beat.answered(15.0, second)
    assert beat.silent_s(99.0) == 0.0


def test_the_latency_is_half_of_the_least_of_the_last_round_trips_averaged() -> None:
    assert Heartbeat(BOB).latency_s is None
    assert told(Heartbeat(BOB), 0.2) == pytest.approx(0.1)
    assert told(Heartbeat(BOB), 0.2, 0.9, 0.5, 0.3) == pytest.approx(0.1)
    assert told(Heartbeat(BOB), 0.2, 0.1) == pytest.approx((0.2 - ALPHA * 0.1) / 2)


def test_a_line_that_became_slower_is_believed_after_a_window() -> None:
    assert told(Heartbeat(BOB), 0.2, *[1.2] * (WINDOW - 1)) == pytest.approx(0.1)
    assert told(Heartbeat(BOB), 0.2, *[1.2] * WINDOW) == pytest.approx((0.2 + ALPHA) / 2)
    assert told(Heartbeat(BOB), 0.2, *[1.2] * 40) == pytest.approx(0.6, rel=0.01)


@pytest.mark.parametrize(
    "answer",
    [
        lambda nonces: bytes(NONCE_BYTES),
        lambda nonces: nonces[1],
        lambda nonces: nonces[0][:-1],
        lambda nonces: b"",
        lambda nonces: bytes(10_000),
    ],
)
def test_an_answer_that_was_not_asked_for_or_is_not_in_turn_is_a_breach(
    answer: Callable[[list[bytes]], bytes],
) -> None:
    beat = Heartbeat(BOB)
    nonces = [beat.ask(1.0), beat.ask(2.0)]
    with pytest.raises(PeerError, match="not sent, or not in turn"):
        beat.answered(3.0, answer(nonces))
    beat.answered(3.0, nonces[0])
    with pytest.raises(PeerError, match="not in turn"):
        beat.answered(3.0, nonces[0])


def test_only_so_many_pings_are_out_at_a_time() -> None:
    beat = Heartbeat(BOB)
    for _ in range(MAX_UNANSWERED):
        assert beat.may_ask
        nonce = beat.ask(0.0)
    assert not beat.may_ask
    assert len({nonce, Heartbeat(BOB).ask(0.0)}) == 2


def test_an_honest_peers_pings_are_never_too_many_and_a_floods_are() -> None:
    beat, sender = Heartbeat(BOB), Heartbeat(ALICE)
    now = 0.0
    for _ in range(100):
        now += EVERY_S
        beat.asked(now, sender.ask(now))
    for _ in range(MAX_UNANSWERED):  # it was paused, or we were
        beat.asked(now, sender.ask(now))

    def flood() -> None:
        for _ in range(MAX_CREDIT):
            beat.asked(now, bytes(NONCE_BYTES))

    with pytest.raises(PeerError, match="pings without end"):
        flood()


async def run_against(data: bytes) -> str:
    """Return why a link ended whose peer sent these bytes and went on listening."""
    near, far = memory_stream_pair()
    events_in, _events = links.open_events()
    await far.send_all(data)
    return await Link(BOB, b"", near, lambda payload: None).run(events_in)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (bytes([PING]), "a ping of 0 bytes"),
        (bytes([PING]) + bytes(MAX_MESSAGE_BYTES), "a ping of 65536 bytes"),
        (bytes([PONG]) + bytes(NONCE_BYTES), "answered a ping that was not sent"),
        (bytes([PONG]), "answered a ping that was not sent"),
        (bytes([PONG]) + bytes(MAX_MESSAGE_BYTES), "answered a ping that was not sent"),
    ],
)
async def test_a_hostile_heartbeat_ends_the_link_with_its_reason(
    autojump_clock: MockClock, body: bytes, words: str
) -> None:
    assert words in await run_against(frame(body))


async def test_a_flood_of_pings_ends_the_link(autojump_clock: MockClock) -> None:
    flood = b"".join(frame(bytes([PING]) + number.to_bytes(NONCE_BYTES, "little")) for number in range(10_000))
    assert "pings without end" in await run_against(flood)


async def test_who_pings_and_takes_no_answer_costs_no_memory(autojump_clock: MockClock) -> None:
    """It paces itself below the limit of pings, so that only the answers that wait give it away."""
    near, far = trio.testing.lockstep_stream_pair()
    events_in, _events = links.open_events()
    link = Link(BOB, b"", near, lambda payload: None)
    reasons: list[str] = []

    async def run() -> None:
        reasons.append(await link.run(events_in))

    async def pester() -> None:
        while True:
            await far.send_all(frame(bytes([PING]) + bytes(NONCE_BYTES)))
            assert len(link._to_answer) <= MAX_CREDIT
            await trio.sleep(HASTE_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with pytest.raises(trio.BrokenResourceError):
            await pester()
    assert "pings" in reasons[0] or "took nothing" in reasons[0]


@asynccontextmanager
async def running(near: trio.abc.HalfCloseableStream) -> AsyncIterator[Link]:
    """Run a link over one end of a connection for as long as the block lasts."""
    events_in, _events = links.open_events()
    link = Link(BOB, b"", near, lambda payload: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run, events_in)
        yield link
        link.close("enough")


async def test_a_ping_is_answered_at_once_with_its_nonce_behind_what_is_queued(autojump_clock: MockClock) -> None:
    near, far = memory_stream_pair()
    async with running(near):
        await far.send_all(frame(bytes([PING]) + b"nonce..1") + frame(bytes([PING]) + b"nonce..2"))
        assert await receive_frame(far, 100) == bytes([PONG]) + b"nonce..1"
        assert await receive_frame(far, 100) == bytes([PONG]) + b"nonce..2"
        assert trio.current_time() == pytest.approx(0.0)


async def pings(seconds: float, *, are_answered: bool) -> tuple[list[float], float | None]:
    """Return when a link pings within so many seconds, and the latency that it has found by then."""
    near, far = memory_stream_pair()
    times: list[float] = []
    async with running(near) as link:
        began = trio.current_time()
        with trio.move_on_after(seconds):
            while True:
                kind, *nonce = await receive_frame(far, 100)
                assert kind == PING
                times.append(trio.current_time() - began)
                if are_answered:
                    await far.send_all(frame(bytes([PONG, *nonce])))
    return times, link.latency_s


async def test_pings_come_in_haste_first_and_stop_where_nobody_answers(autojump_clock: MockClock) -> None:
    times, latency_s = await pings(100.0, are_answered=False)
    assert times == pytest.approx([0.25 * number for number in range(1, 9)])
    assert latency_s is None


async def test_pings_that_are_answered_become_seldom(autojump_clock: MockClock) -> None:
    times, latency_s = await pings(10.0, are_answered=True)
    assert times == pytest.approx([*(HASTE_S * number for number in range(1, WINDOW + 1)), 4.0, 6.0, 8.0])
    assert latency_s == pytest.approx(0.0)


async def test_a_link_that_is_busy_is_not_pinged_and_loses_nothing(autojump_clock: MockClock) -> None:
    near, _far = trio.testing.lockstep_stream_pair()
    async with running(near) as link:
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(links.MAX_UNSENT_MESSAGES + 1):
            await link.send(b"")
        await trio.sleep(links.WRITE_DEADLINE_S / 2)
        assert link._outbox.statistics().current_buffer_used == links.MAX_UNSENT_MESSAGES


async def test_both_ends_of_a_link_in_memory_learn_its_latency(autojump_clock: MockClock) -> None:
    async with open_medium(random.Random(1), delays_s=(0.040, 0.040)) as medium:
        alice, bob = medium.join(ALICE), medium.join(BOB)
        for network in (alice, bob):
            event: NetworkEvent = await network.events.receive()
            assert isinstance(event, PeerUp)
        assert alice.latency_s(BOB) is None
        await trio.sleep(20.0)
        assert alice.latency_s(BOB) == pytest.approx(0.040)
        assert bob.latency_s(ALICE) == pytest.approx(0.040)
        assert alice.latency_s(PeerId("carol")) is None
        medium.cut(ALICE, BOB)
        await trio.sleep(0.1)
        assert alice.latency_s(BOB) is None


async def test_a_ping_goes_with_what_is_sent_anyhow_and_before_it(autojump_clock: MockClock) -> None:
    near, far = memory_stream_pair()
    kinds: list[int] = []
    async with running(near) as link:
        await trio.sleep(WINDOW * HASTE_S + 0.1)
        for _ in range(WINDOW):
            nonce = (await receive_frame(far, 100))[1:]
            await far.send_all(frame(bytes([PONG]) + nonce))
        for _ in range(6):
            await trio.sleep(1.0)
            await link.send(b"here I am")
        await trio.sleep(0.1)
        with trio.move_on_after(0.1):
            while True:
                kinds.append((await receive_frame(far, 100))[0])
    assert kinds == [PING, 0, 0] * 3


def test_what_the_kernel_saw_counts_where_it_is_less() -> None:
    near, _far = memory_stream_pair()
    kernel: list[float | None] = [None]
    link = Link(BOB, b"", near, lambda payload: None, shortest_s=lambda: kernel[0])
    kernel[0] = 0.002
    assert link.latency_s is None
    link._heartbeat.answered(0.010, link._heartbeat.ask(0.0))
    assert link.latency_s == pytest.approx(0.001)
    for seconds in (0.020, 0.0, None):
        kernel[0] = seconds
        assert link.latency_s == pytest.approx(0.005)
