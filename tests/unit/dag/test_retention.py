"""Which checkpoints keep their tensors: by rule, and as long as somebody uses them."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.dag.blobs import Blobs
from barnraise.dag.retention import Holds, Retention, tensors_of
from barnraise.dag.store import Store
from barnraise.errors import ConfigError
from barnraise.ids import Digest, RunId
from barnraise.swarm.records import Vertex

on_disk = settings(max_examples=30, deadline=None)
"""Each example syncs a dozen files, which takes as long as the disk takes."""
RULES = st.builds(Retention, newest=st.integers(1, 6), every=st.integers(0, 5))


def vertex_of(round_: int) -> Vertex:
    return Vertex(
        run=b"r" * 32,
        parents=(),
        round=round_,
        model=bytes([round_, 0]) * 16,
        outer=bytes([round_, 1]) * 16,
        random=bytes(32),
        cursor=0,
        requeued=(),
        exponents=(),
        time=0,
        contributors=(),
        total_samples=0,
        train_loss=0,
        validation_loss=0,
    )


@given(rule=RULES, rounds=st.integers(1, 60))
def test_the_newest_are_kept_and_every_nth(rule: Retention, rounds: int) -> None:
    kept = {vertex.round for vertex in rule.kept([vertex_of(round_) for round_ in range(1, rounds + 1)])}
    newest = set(range(max(1, rounds - rule.newest + 1), rounds + 1))
    multiples = {round_ for round_ in range(1, rounds + 1) if rule.every and round_ % rule.every == 0}
    assert kept == newest | multiples
    assert rounds in kept


@given(rule=RULES, round_=st.integers(0, 50), newest=st.integers(0, 50), later=st.integers(0, 50))
def test_what_was_dropped_once_is_never_wanted_again(rule: Retention, round_: int, newest: int, later: int) -> None:
    if not rule.keeps(round_, newest):
        assert not rule.keeps(round_, newest + later)


@on_disk
@given(rule=RULES, rounds=st.integers(0, 40))
def test_the_store_keeps_by_the_same_rule(
    rule: Retention, rounds: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "log.sqlite", RunId(b"r" * 32))
    vertices = [vertex_of(round_) for round_ in range(1, rounds + 1)]
    store.append(0, [], vertices, None)
    assert store.kept(rule) == sorted(rule.kept(vertices), key=lambda vertex: -vertex.round)
    store.close()


@on_disk
@given(
    rule=RULES,
    rounds=st.integers(1, 12),
    shared=st.sets(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=4),
    held=st.sets(st.integers(1, 12), max_size=3),
)
def test_nothing_goes_that_a_kept_checkpoint_names_or_somebody_uses(
    rule: Retention,
    rounds: int,
    shared: set[tuple[int, int]],
    held: set[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Some checkpoints share a tensor, as two do that a round without effect lies between."""
    blobs = Blobs(tmp_path_factory.mktemp("blobs"))
    value = {round_: round_ for round_ in range(1, 13)}
    for one, other in shared:
        value[one] = value[other]
    names = {round_: blobs.put(np.full(3, value[round_], np.float32)) for round_ in range(1, rounds + 1)}
    (blobs.path(names[1]).parent / "stray").write_bytes(b"")
    in_use = [names[round_] for round_ in held if round_ in names]
    needed = {name for round_, name in names.items() if rule.keeps(round_, rounds)}
    with blobs.hold(*in_use):
        blobs.keep(needed)
        assert {file.name for file in blobs.path(names[1]).parent.iterdir()} == {
            name.hex() for name in needed | set(in_use)
        }
    blobs.keep(needed)
    assert {file.name for file in blobs.path(names[1]).parent.iterdir()} == {name.hex() for name in needed}


def test_what_is_fetched_now_is_not_deleted(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    name = Digest(b"n" * 32)
    for suffix in (".partial", ".chunks"):
        blobs.path(name).with_suffix(suffix).write_bytes(b"so far")
    with blobs.hold(name):
        blobs.keep([])
        assert len(list(tmp_path.iterdir())) == 2
    blobs.keep([])
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_held_until_the_last_lets_go() -> None:
    holds, name = Holds(), Digest(b"n" * 32)
    with holds.hold([name]):
        with holds.hold([name]), holds.unless_held(name) as is_free:
            assert not is_free
        with holds.unless_held(name) as is_free:
            assert not is_free
    with holds.unless_held(name) as is_free:
        assert is_free


def test_nobody_begins_to_use_what_is_being_deleted() -> None:
    holds, name = Holds(), Digest(b"n" * 32)
    began = threading.Event()

    def use() -> None:
        with holds.hold([name]):
            began.set()

    with holds.unless_held(name) as is_free:
        thread = threading.Thread(target=use)
        thread.start()
        assert is_free
        assert not began.wait(0.05)
    thread.join()
    assert began.is_set()


def test_the_tensors_of_checkpoints_are_their_models_and_optimisers() -> None:
    assert tensors_of([vertex_of(1), vertex_of(1)]) == {bytes([1, 0]) * 16, bytes([1, 1]) * 16}


@pytest.mark.parametrize("rule", [{"newest": 0}, {"newest": -1}, {"every": -1}, {"newest": 10**7}, {"every": 10**7}])
def test_a_rule_that_keeps_nothing_is_refused(rule: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"keep_.* is outside .*Change the value"):
        Retention(**rule)
