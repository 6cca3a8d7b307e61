"""The agreed state as a fold: any log of cuts, voids and results, on any number of peers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.config import DataConfig, RoundConfig, RunConfig
from barnraise.errors import LocalError
from barnraise.ids import EMPTY_DIGEST, Digest, PeerId
from barnraise.swarm import records
from barnraise.swarm.plan import plan
from barnraise.swarm.records import Contribution, LogEvent, Vertex
from barnraise.swarm.slots import Segment
from barnraise.swarm.state import MAX_SAMPLES, State, apply, assignment, check_follows, follow, genesis

from .entries import (
    CONFIG,
    EVERYBODY,
    SAMPLES,
    cut_of,
    first_state,
    regroup_of,
    result_of,
    void_of,
)


def samples_of(segments: Sequence[Segment]) -> list[int]:
    return [sample for segment in segments for sample in range(segment.first, segment.first + segment.count)]


class Log:
    """A random log that is written while its state is followed."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.events: list[LogEvent] = []
        self.trained: list[int] = []
        self.state = first_state()

    def add(self, event: LogEvent) -> None:
        self.events.append(event)
        self.state = apply(self.state, event)

    def some(self, peers: Sequence[PeerId], least: int = 0) -> list[PeerId]:
        if not peers:
            return []
        return self.data.draw(st.lists(st.sampled_from(list(peers)), min_size=least, unique=True))

    def regroup(self) -> None:
        joined = self.some([peer for peer in EVERYBODY if peer not in self.state.peers])
        left = self.some(self.state.peers)
        if set(self.state.peers) - set(left) or joined:
            self.add(regroup_of(self.state, joined, left))
            assert self.state.counting == self.state.peers

    def round(self) -> None:
        if self.data.draw(st.booleans(), "regroup"):
            self.regroup()
        slots = assignment(self.state).slots
        for _ in range(self.data.draw(st.integers(0, 2), "voids")):
            self.add(cut_of(self.state, self.some(list(slots), least=1)))
            self.add(void_of(self.state, self.some(self.state.peers)))
            assert assignment(self.state).slots == slots
        contributors = self.some(list(slots), least=1)
        used = {peer: self.data.draw(st.integers(1, SAMPLES), "used") for peer in contributors}
        self.add(cut_of(self.state, contributors, used))
        self.trained += [sample for peer in contributors for sample in samples_of(slots[peer])[: used[peer]]]
        joined = self.some([peer for peer in EVERYBODY if peer not in self.state.peers])
        left = self.some([peer for peer in self.state.peers if peer != contributors[0]])
        self.add(result_of(self.state, joined, left))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_over_any_log_each_sample_is_trained_on_once_or_waits(data: st.DataObject) -> None:
    log = Log(data)
    for _ in range(data.draw(st.integers(1, 6), "rounds")):
        log.round()
        waiting = samples_of(log.state.requeued)
        assert sorted(log.trained + waiting) == list(range(log.state.cursor))
        assert log.state.total_samples == len(log.trained)
    again = first_state()
    for event in log.events:
        again = apply(again, records.decode_event.decode(records.encode(event)))
    assert again == log.state
    assert again.height == len(log.events)


def after(*events_of: str) -> State:
    """Return the state after the named entries, with everybody contributing."""
    state = first_state()
    for name in events_of:
        event: LogEvent
        match name:
            case "cut":
                event = cut_of(state, list(assignment(state).slots))
            case "void":
                event = void_of(state)
            case _:
                event = result_of(state)
        state = apply(state, event)
    return state


def test_a_lost_update_is_discarded_and_its_samples_go_out_again() -> None:
    state = first_state()
    lost = assignment(state).slots[EVERYBODY[1]]
    state = apply(state, cut_of(state, [EVERYBODY[0], EVERYBODY[2]]))
    state = apply(state, result_of(state))
    assert state.requeued == lost
    assert assignment(state).slots[EVERYBODY[0]] == lost
    assert [member.missed for member in state.members] == [0, 1, 0]
    assert state.total_samples == 2 * SAMPLES


def test_who_joins_is_the_most_junior_and_counts_one_round_later() -> None:
    state = after("cut")
    state = apply(state, result_of(state, joined=[EVERYBODY[5], EVERYBODY[3]], left=[EVERYBODY[0]]))
    assert state.peers == (EVERYBODY[1], EVERYBODY[2], EVERYBODY[3], EVERYBODY[5])
    assert (state.epoch, state.round) == (1, 1)
    assert set(plan(state).slots) == {EVERYBODY[1], EVERYBODY[2]}
    state = apply(state, cut_of(state, [EVERYBODY[1], EVERYBODY[2]]))
    state = apply(state, result_of(state))
    assert set(plan(state).slots) == set(state.peers)
    assert (state.epoch, state.round) == (1, 2)


def test_a_void_takes_the_cut_back_and_names_whom_not_to_wait_for() -> None:
    state = after("cut")
    state = apply(state, void_of(state, [EVERYBODY[2]]))
    assert (state.attempt, state.cut, state.without, state.round) == (1, None, frozenset({EVERYBODY[2]}), 0)
    state = apply(state, cut_of(state, EVERYBODY[:2]))
    state = apply(state, result_of(state))
    assert (state.attempt, state.without) == (0, frozenset())


Change = dict[str, object]


@pytest.mark.parametrize(
    "change",
    [
        {"run": bytes(32)},
        {"epoch": 1},
        {"round": 1},
        {"attempt": 1},
        {"previous": bytes(32)},
    ],
)
@pytest.mark.parametrize("kind", ["cut", "void", "result"])
def test_an_entry_of_another_place_is_refused(kind: str, change: Change) -> None:
    state = first_state() if kind == "cut" else after("cut")
    event: LogEvent
    match kind:
        case "cut":
            event = cut_of(state, EVERYBODY[:2])
        case "void":
            event = void_of(state)
        case _:
            event = result_of(state)
    check_follows(state, event)
    with pytest.raises(LocalError, match="does not follow"):
        apply(state, msgspec.structs.replace(event, **change))


def test_entries_come_in_turn() -> None:
    cut = after("cut")
    with pytest.raises(LocalError, match="cannot come"):
        apply(cut, cut_of(cut, EVERYBODY[:2]))
    start = first_state()
    early = msgspec.structs.replace(result_of(cut), previous=start.head)
    with pytest.raises(LocalError, match="cannot come"):
        apply(start, early)


def test_a_result_of_another_cut_is_refused() -> None:
    state = after("cut")
    for event in (result_of(state), void_of(state)):
        with pytest.raises(LocalError, match="another cut"):
            apply(state, msgspec.structs.replace(event, cut=bytes(32)))


@pytest.mark.parametrize(
    "contributions",
    [
        (),
        (Contribution("stranger", EMPTY_DIGEST, SAMPLES),),
        (Contribution(EVERYBODY[0], EMPTY_DIGEST, 0),),
        (Contribution(EVERYBODY[0], EMPTY_DIGEST, -1),),
        (Contribution(EVERYBODY[0], EMPTY_DIGEST, SAMPLES), Contribution(EVERYBODY[0], EMPTY_DIGEST, SAMPLES)),
    ],
    ids=["nobody", "stranger", "nothing", "less than nothing", "twice"],
)
def test_a_cut_of_impossible_contributions_is_refused(contributions: tuple[Contribution, ...]) -> None:
    state = first_state()
    with pytest.raises(LocalError):
        apply(state, msgspec.structs.replace(cut_of(state, EVERYBODY[:1]), contributions=contributions))


def test_refusing_changes_nothing_and_applying_leaves_the_old_state_alone() -> None:
    state = first_state()
    before = repr(state)
    apply(state, cut_of(state, EVERYBODY[:2]))
    with pytest.raises(LocalError):
        apply(state, cut_of(after("cut"), EVERYBODY[:2]))
    assert repr(state) == before


def test_founders_are_ordered_by_id() -> None:
    turned = RunConfig(founders=EVERYBODY[2::-1], inner=CONFIG.inner, round=CONFIG.round)
    assert genesis(turned, 2, EMPTY_DIGEST, EMPTY_DIGEST).peers == EVERYBODY[:3]


def test_the_run_is_over_after_the_last_planned_round() -> None:
    short = RunConfig(founders=EVERYBODY[:3], inner=CONFIG.inner, round=RoundConfig(rounds=1, steps=3))
    state = genesis(short, 2, EMPTY_DIGEST, EMPTY_DIGEST)
    state = apply(state, cut_of(state, EVERYBODY[:3]))
    assert not state.is_over
    assert apply(state, result_of(state)).is_over


def test_a_checkpoint_names_its_parent_and_its_contributors() -> None:
    state = after("cut")
    later, vertex = follow(state, result_of(state))
    assert isinstance(vertex, Vertex)
    assert vertex.parents == (state.vertex,)
    assert vertex.contributors == tuple((peer, SAMPLES) for peer in EVERYBODY[:3])
    assert later.vertex == records.vertex_id(vertex)


def seed_after(contributors: Sequence[str], samples: Mapping[str, int] | None = None, **changes: object) -> bytes:
    state = first_state()
    state = apply(state, cut_of(state, contributors, samples))
    return apply(state, msgspec.structs.replace(result_of(state), **changes)).seed


def test_the_next_seed_is_drawn_from_who_contributed_and_what_came_of_it() -> None:
    seed = seed_after(EVERYBODY[:3])
    assert seed != first_state().seed
    assert seed_after(EVERYBODY[:2]) != seed
    assert seed_after(EVERYBODY[:3], {EVERYBODY[0]: 1}) != seed
    assert seed_after(EVERYBODY[:3], aggregate_root=bytes(32)) != seed


def test_nobody_chooses_the_next_seed() -> None:
    """Neither by the entry's clock, nor by whom it lets in, nor by having the round tried again."""
    seed = seed_after(EVERYBODY[:3])
    assert seed_after(EVERYBODY[:3], time=7) == seed_after(EVERYBODY[:3], joined=(EVERYBODY[4],)) == seed
    assert after("cut", "void", "cut", "result").seed == seed


# ---- a round that is begun anew ------------------------------------------------------------------------------------


def test_a_regroup_begins_the_round_anew_with_members_who_all_count_at_once() -> None:
    state = after("cut")
    state = apply(state, result_of(state, joined=[EVERYBODY[4]], left=[EVERYBODY[0]]))
    assert set(assignment(state).slots) == {EVERYBODY[1], EVERYBODY[2]}
    anew = apply(state, regroup_of(state, joined=[EVERYBODY[5], EVERYBODY[3]], left=EVERYBODY[1:3]))
    assert anew.peers == (EVERYBODY[4], EVERYBODY[3], EVERYBODY[5])
    assert anew.counting == anew.peers
    assert set(plan(anew).slots) == set(anew.peers)
    assert (anew.epoch, anew.round, anew.attempt, anew.height) == (2, 1, 1, 3), (
        "what is late for the old attempt is none of the new one's"
    )
    assert (anew.cursor, anew.requeued, anew.vertex) == (state.cursor, state.requeued, state.vertex)
    assert [member.joined_epoch for member in anew.members] == [1, 2, 2]


def test_a_regroup_forgets_whom_the_round_no_longer_waits_for() -> None:
    state = after("cut")
    state = apply(state, void_of(state, [EVERYBODY[2]]))
    state = apply(state, regroup_of(state, left=[EVERYBODY[0]]))
    assert (state.attempt, state.without) == (2, frozenset())
    assert apply(state, cut_of(state, EVERYBODY[1:3])).cut is not None


def test_who_is_a_member_already_does_not_join_twice() -> None:
    state = first_state()
    assert apply(state, regroup_of(state, joined=[EVERYBODY[1]])).peers == EVERYBODY[:3]


def test_an_entry_that_names_a_newcomer_twice_is_refused() -> None:
    state = first_state()
    with pytest.raises(LocalError, match="twice"):
        apply(state, regroup_of(state, joined=[EVERYBODY[4], EVERYBODY[4]]))


def test_a_regroup_that_leaves_nobody_is_refused() -> None:
    state = first_state()
    with pytest.raises(LocalError, match="nobody would be left"):
        apply(state, regroup_of(state, left=EVERYBODY[:3]))
    assert apply(state, regroup_of(state, joined=[EVERYBODY[3]], left=EVERYBODY[:3])).peers == (EVERYBODY[3],)


def test_a_regroup_comes_instead_of_a_cut_and_not_behind_it() -> None:
    state = after("cut")
    with pytest.raises(LocalError, match="cannot come"):
        apply(state, regroup_of(state, left=[EVERYBODY[0]]))


@pytest.mark.parametrize(
    "change", [{"run": bytes(32)}, {"epoch": 1}, {"round": 1}, {"attempt": 1}, {"previous": bytes(32)}]
)
def test_a_regroup_of_another_place_is_refused(change: Change) -> None:
    state = first_state()
    with pytest.raises(LocalError, match="does not follow"):
        apply(state, msgspec.structs.replace(regroup_of(state, left=[EVERYBODY[0]]), **change))


def test_a_run_that_wants_more_members_than_there_are_gives_nothing_out() -> None:
    config = replace(CONFIG, round=replace(CONFIG.round, min_peers=4))
    state = genesis(config, 2, Digest(bytes([1]) * 32), Digest(bytes([2]) * 32))
    assert not state.can_train
    assert plan(state).slots == {}
    grown = apply(state, regroup_of(state, joined=[EVERYBODY[3]]))
    assert grown.can_train
    assert set(plan(grown).slots) == set(EVERYBODY[:4])
    assert assignment(grown).cursor == 4 * SAMPLES


# ---- what contributors use of their slots --------------------------------------------------------------------------


def test_what_a_contributor_did_not_come_to_goes_out_again() -> None:
    state = first_state()
    state = apply(state, cut_of(state, EVERYBODY[:3], {EVERYBODY[0]: 2, EVERYBODY[1]: 5}))
    state = apply(state, result_of(state))
    assert samples_of(state.requeued) == [2, 3, 4, 5, 11]
    assert state.total_samples == 2 + 5 + SAMPLES
    assert samples_of(assignment(state).slots[EVERYBODY[0]])[:5] == [2, 3, 4, 5, 11]


def test_of_data_of_its_own_nothing_comes_back_whatever_it_weighs() -> None:
    config = replace(CONFIG, data=DataConfig(kind="own"))
    state = genesis(config, 2, Digest(bytes([1]) * 32), Digest(bytes([2]) * 32))
    state = apply(state, cut_of(state, EVERYBODY[:3], {EVERYBODY[0]: 1, EVERYBODY[1]: MAX_SAMPLES}))
    state = apply(state, result_of(state))
    assert state.requeued == ()
    assert state.total_samples == 1 + MAX_SAMPLES + SAMPLES


@pytest.mark.parametrize(("strategy", "steps"), [("synchronous", 1), ("diloco", 3), ("local_sgd", 3), ("fedavg", 3)])
def test_the_strategy_says_how_many_steps_a_round_has(strategy: str, steps: int) -> None:
    config = replace(CONFIG, strategy=strategy, round=replace(CONFIG.round, seconds=2.5))  # type: ignore[arg-type]
    state = replace(genesis(config, 2, EMPTY_DIGEST, EMPTY_DIGEST), round=4, num_steps=4 * steps)
    planned = plan(state)
    assert (planned.steps, planned.first_step, planned.total_steps) == (steps, 4 * steps, 100 * steps)
    assert planned.seconds == 2.5
    assert {sum(segment.count for segment in slot) for slot in planned.slots.values()} == {2 * steps}
