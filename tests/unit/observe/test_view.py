"""The fold over a run's events, and what is drawn and said of it."""

import io
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from barnraise.observe import figures, plain, table
from barnraise.observe.view import LAUNCHER, View, apply, empty
from barnraise.observe.vocabulary import (
    AnyEvent,
    Error,
    FaultInjected,
    PeerCatchingUp,
    PeerExited,
    PeerStarted,
    PeerWaiting,
    RoundCommitted,
    RoundPlanned,
    RoundProgress,
    RoundVoid,
    RunFinished,
    RunStarted,
    TrainerRestarted,
    TrainerStarted,
)

Told = tuple[int, AnyEvent]

COMMITTED = RoundCommitted(
    time=20.0,
    round=0,
    contributors=("a", "b"),
    train_loss=3.0,
    val_bits_per_byte=4.0,
    tokens=1000,
    train_s=2.0,
    wait_s=1.0,
    exchange_s=0.5,
    agree_s=0.25,
    apply_s=0.25,
    took_s=4.0,
    bytes_sent=1_500_000,
    bytes_received=1_000_000,
)
RUN: tuple[Told, ...] = (
    (LAUNCHER, RunStarted(run="ab" * 32, directory="/d", peers=2, rounds=2, steps=5)),
    (0, PeerStarted(peer="12D3KooWaaaaaa", address="/ip4/1", pid=10)),
    (1, PeerStarted(peer="12D3KooWbbbbbb", address="/ip4/2", pid=11)),
    (0, TrainerStarted(pid=20, device="cpu")),
    (0, RoundPlanned(time=10.0, round=0)),
    (1, RoundPlanned(time=9.0, round=0)),
    (0, RoundProgress(round=0, step=3, steps=5, loss=3.5)),
    (0, COMMITTED),
    (1, RoundCommitted(time=21.0, round=0, tokens=1000, train_s=4.0, took_s=5.0, bytes_sent=500_000)),
)


def folded(*events: Told, num_peers: int = 2) -> View:
    return reduce(lambda view, told: apply(view, *told), events, empty(num_peers))


def drawn(view: View) -> str:
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(table.render(view))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_round_is_counted_once_and_its_times_are_the_mean_of_the_reports() -> None:
    view = folded(*RUN)
    (row,) = view.rounds
    assert (view.done, view.tokens, view.up, row.reports) == (1, 1000, 2, 2)
    assert row.seconds == (3.0, 0.5, 0.25, 0.125, 0.125)
    assert (row.took_s, row.bytes_sent) == (4.5, 1_000_000)
    assert view.peers[0].bytes_sent == 1_500_000
    assert view.wall_s == 12.0


def test_a_run_is_over_when_everybody_who_lives_has_finished() -> None:
    finished = RunFinished(vertex="v", theta_path="/t", bytes_sent=7)
    view = folded(*RUN, (0, finished))
    assert not view.over
    assert apply(view, 1, PeerExited(code=-9)).over
    assert apply(view, 1, finished).over
    assert view.peers[0].bytes_sent == 7
    assert folded((0, PeerExited(code=1)), (1, PeerExited(code=1))).over


def test_all_wait_since_the_last_began_to() -> None:
    waiting = [(0, PeerWaiting(time=5.0, reason="alone")), (1, PeerWaiting(time=8.0, reason="alone"))]
    assert folded(waiting[0]).waiting_since is None
    view = folded(*waiting, (0, PeerWaiting(time=9.0, reason="still alone")))
    assert view.waiting_since == 8.0
    assert apply(view, 1, RoundPlanned(round=1)).waiting_since is None
    assert apply(view, 1, PeerExited(code=-9)).waiting_since == 5.0


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (RoundProgress(round=1, step=5, steps=5), "trained; with the others"),
        (RoundVoid(round=1, without=("a",)), "round tried again without 1"),
        (PeerCatchingUp(round=1, donor="12D3KooWaaaaaa"), "catching up from aaaaaa"),
        (PeerWaiting(reason="for a quorum"), "waiting: for a quorum"),
        (TrainerRestarted(pid=30, exit=-9), "trainer restarted"),
        (Error(message="port in use"), "failed: port in use"),
        (PeerExited(code=-9), "killed by signal 9 in round 0"),
        (PeerExited(code=3), "left with exit code 3"),
    ],
)
def test_a_state_is_told_in_plain_words(event: AnyEvent, state: str) -> None:
    view = folded(*RUN, (0, event))
    assert view.peers[0].state == state
    assert state in drawn(view)


def test_the_table_shows_the_run_its_peers_and_its_rounds() -> None:
    shown = drawn(folded(*RUN))
    assert "2/2 peers   1/2 rounds   222 tokens/s   loss 3.000   4.000 bits/byte   1.0 MB sent per peer" in shown
    assert "aaaaaa" in shown
    assert "3/5" in shown
    assert "█" * table.BAR_CELLS in shown
    assert "4.5 s" in shown
    assert "0/2 peers" in drawn(empty(2))


@given(st.lists(st.floats(0, 1e6), min_size=5, max_size=5))
def test_the_bar_has_always_the_same_width(seconds: list[float]) -> None:
    assert len(table.bar(tuple(seconds))) == table.BAR_CELLS


def test_each_round_is_one_plain_line() -> None:
    before = folded(*RUN[:-2])
    after = apply(before, 0, COMMITTED)
    said = plain.line(before, after, 0, COMMITTED)
    assert said is not None
    assert said.startswith("round 0  1/2 done  2 peers  loss 3.000  4.000 bits/byte  250 tokens/s  1.5 MB sent  4.0 s")
    assert "(train 2.00 wait 1.00 exchange 0.50 agree 0.25 apply 0.25)" in said
    again = apply(after, 1, COMMITTED)
    assert plain.line(after, again, 1, COMMITTED) is None


@pytest.mark.parametrize(
    ("source", "event", "said"),
    [
        (
            LAUNCHER,
            RunStarted(run="ab" * 32, directory="/d", peers=2, rounds=3, steps=5),
            "2 peers, 3 rounds of 5 steps",
        ),
        (LAUNCHER, FaultInjected(target="peer:1", round=2, pid=7), "killed peer:1 (pid 7) in round 2, as asked"),
        (1, TrainerRestarted(pid=30), "peer 1 restarted its trainer (pid 30)"),
        (1, RoundVoid(round=2, without=("a",)), "round 2 is tried again without 1"),
        (1, PeerWaiting(reason="alone"), "peer 1 waits: alone"),
        (1, Error(message="no.", next="Try again."), "peer 1 failed: no. Try again."),
        (1, PeerExited(code=-9), "peer 1 killed by signal 9 in round 0"),
        (1, RoundProgress(round=0, step=1, steps=2), None),
    ],
)
def test_what_a_person_wants_to_know_is_a_line(source: int, event: AnyEvent, said: str | None) -> None:
    before = folded(*RUN)
    line = plain.line(before, apply(before, source, event), source, event)
    assert line is None if said is None else line is not None and said in line


def test_figures() -> None:
    assert [figures.size(n) for n in (0, 999, 1000, 25e6, 3.21e9, 5e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "25.0 MB",
        "3.2 GB",
        "5.0 TB",
    ]
    assert figures.measured(None) == "-"
    assert figures.count(1234567) == "1,234,567"
