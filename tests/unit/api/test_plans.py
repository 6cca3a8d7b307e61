"""What every rank does in a call: by rule or by graph, the same on all, and told apart where it is not."""

from typing import Any

import numpy as np
import pytest

from barnraise.api.choice import choose, goes_by_links, links_between
from barnraise.api.plans import HandOn, Plans, check
from barnraise.api.streams import Call
from barnraise.collective.adoption import Graph
from barnraise.collective.links import Row
from barnraise.errors import ConfigError
from barnraise.ids import PeerId

GROUP = tuple(PeerId(f"peer {rank}") for rank in range(4))
MEMBERS = (0, 1, 2, 3)


def graph_of(
    version: int = 1, across_us: int = 40_000, members: tuple[int, ...] = MEMBERS, *, megabits: int = 80
) -> Graph:
    """Return two regions of two hosts, with so much bandwidth between them."""
    near = [[(one < 2) == (other < 2) for other in range(4)] for one in range(4)]
    return Graph(
        version,
        {
            rank: Row(
                0,
                0,
                tuple(0 if other == rank else 100 if near[rank][other] else across_us for other in range(4)),
                tuple(0 if other == rank else 10**6 if near[rank][other] else 125 * megabits for other in range(4)),
            )
            for rank in members
        },
    )


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (Call("sum", "float32", 100), "shards"),
        (Call("sum", "float32", 1 << 22), "ring"),
        (Call("mean", "float64", 1 << 20), "ring"),
        (Call("sum", "float32", 1 << 22, "int8"), "shards"),
        (Call("sum", "float32", 1 << 22, schedule="hierarchical"), "ring"),
        (Call("sum", "float32", 100, schedule="tree"), "tree"),
        (Call("barrier", "float32", 0), "shards"),
    ],
)
def test_what_is_done_without_a_graph(call: Call, kind: str) -> None:
    assert choose(call, 4, None).schedule.kind == kind


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4", "topk:0.016+int2+zstd", "powersgd:4", "int8+zstd"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_all_plan_alike_by_one_graph(codec: str, dtype: str, size: int) -> None:
    if dtype == "float64" and codec != "fp32":
        return
    call = Call("sum", dtype, size, codec)  # type: ignore[arg-type]  # one of the two
    made = [Plans(GROUP).plan(call, MEMBERS, rank, None, graph_of()) for rank in MEMBERS]
    assert len({plan.digest for plan in made}) == 1
    assert sum(len(plan.program.sends) for plan in made) == sum(len(plan.program.receives) for plan in made)


def test_another_graph_is_another_digest_if_it_makes_a_difference() -> None:
    call = Call("sum", "float32", 3_000_000)
    plans = Plans(GROUP)
    far, near = graph_of(1), graph_of(2, 100)
    digests = {plans.plan(call, MEMBERS, 0, None, graph).digest for graph in (None, far, near)}
    assert len(digests) >= 2
    assert plans.plan(call, MEMBERS, 0, None, far) is plans.plan(call, MEMBERS, 0, None, far)


@pytest.mark.parametrize("codec", ["auto:1", "auto:3", "auto:5", "auto:9"])
@pytest.mark.parametrize("schedule", ["auto", "hierarchical", "ring", "tree", "shards"])
def test_all_choose_the_same_codec_by_one_graph(codec: str, schedule: str) -> None:
    call = Call("sum", "float32", 3_000_000, codec, schedule)
    check(call)
    for graph in (None, graph_of(1), graph_of(2, megabits=5)):
        made = [Plans(GROUP).plan(call, MEMBERS, rank, None, graph) for rank in MEMBERS]
        assert len({(plan.codec, plan.digest) for plan in made}) == 1
        assert made[0].codec == Plans(GROUP).choice(call, MEMBERS, graph).codec


def test_a_level_is_a_codec_by_the_slowest_link_and_another_digest() -> None:
    call, plans = Call("sum", "float32", 3_000_000, "auto:3"), Plans(GROUP)
    links = {megabits: graph_of(version, megabits=megabits) for version, megabits in enumerate((5, 50, 500), 1)}
    made = {megabits: plans.plan(call, MEMBERS, 0, None, graph) for megabits, graph in links.items()}
    assert {megabits: plan.codec for megabits, plan in made.items()} == {5: "int4", 50: "int8+zstd:1", 500: "int8"}
    assert len({plan.digest for plan in made.values()}) == 3
    assert plans.plan(call, MEMBERS, 0).codec == "int8"
    reasons = plans.choice(call, MEMBERS, links[5]).reasons
    assert (
        "the slowest link that no route avoids has 5 Mbit/s as far as is known, so level 3 counts as 5: int4" in reasons
    )
    assert any(reason.startswith("int4 takes ") for reason in reasons)


def test_a_codec_that_saves_too_little_is_not_taken() -> None:
    choice = Plans(GROUP).choice(Call("sum", "float32", 500, "auto:3"), MEMBERS, graph_of(megabits=500))
    assert choice.codec == "fp32"
    assert any(reason.startswith("int8 would save too little") for reason in choice.reasons)


def test_a_level_asks_links_whatever_the_schedule_and_other_codecs_do_not() -> None:
    assert goes_by_links(Call("sum", "float32", 10, "auto:3", "tree"))
    assert not goes_by_links(Call("sum", "float32", 10, "int8", "tree"))
    assert not goes_by_links(Call("barrier", "float32", 0))


def test_float64_and_a_member_alone_encode_nothing() -> None:
    wide = Plans(GROUP).choice(Call("sum", "float64", 10**6, "auto:9"), MEMBERS, graph_of())
    assert (wide.codec, "float64 travels as it is" in wide.reasons) == ("fp32", True)
    assert Plans(GROUP).plan(Call("sum", "float32", 10**6, "auto:9"), (2,), 0).codec == "fp32"


@pytest.mark.parametrize("operation", ["reduce_scatter sum", "all_gather", "broadcast"])
def test_a_level_is_for_what_can_make_good_later_what_it_loses(operation: Any) -> None:
    with pytest.raises(ConfigError, match="is for all_reduce"):
        check(Call(operation, "float32", 10, "auto:3"))


def test_a_hierarchy_has_the_graphs_regions() -> None:
    call = Call("sum", "float32", 400_000, schedule="hierarchical")
    choice = choose(call, 4, links_between(GROUP, MEMBERS, graph_of()))
    assert choice.kind == choice.schedule.kind.partition(" ")[0] == "hierarchical"
    assert choice.predicted_s is not None


def test_where_all_are_near_a_hierarchy_is_refused_unless_somebody_was_lost() -> None:
    call = Call("sum", "float32", 400_000, schedule="hierarchical")
    near = links_between(GROUP, (0, 1), graph_of())
    with pytest.raises(ConfigError, match="all 2 are as near to each other"):
        choose(call, 2, near)
    assert choose(call, 2, near, is_whole=False).kind != "hierarchical"


def test_a_vector_of_float64_is_planned_by_its_bytes() -> None:
    links = links_between(GROUP, MEMBERS, graph_of())
    narrow, wide = (
        choose(Call("sum", dtype, size), 4, links) for dtype, size in (("float32", 800_000), ("float64", 400_000))
    )  # type: ignore[arg-type]
    assert narrow.predicted_s == wide.predicted_s
    assert narrow.chunk_elements is not None
    assert wide.chunk_elements == narrow.chunk_elements // 2


def test_handing_on_asks_no_graph() -> None:
    call = Call("sum", "float32", 1000)
    plans = Plans(GROUP)
    with_graph = plans.plan(call, MEMBERS, 1, HandOn(0, (1,)), graph_of())
    assert with_graph.digest == plans.plan(call, MEMBERS, 1, HandOn(0, (1,))).digest


def test_parts_of_a_reduce_scatter_tile_the_vector() -> None:
    call = Call("reduce_scatter sum", "float32", 1000)
    parts = sorted(
        part for rank in MEMBERS for part in Plans(GROUP).plan(call, MEMBERS, rank, None, graph_of()).results
    )
    assert np.concatenate([np.arange(*part) for part in parts]).tolist() == list(range(1000))
