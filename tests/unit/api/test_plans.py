"""What every rank does in a call: by rule or by graph, the same on all, and told apart where it is not."""

import numpy as np
import pytest

from barnraise.api.choice import choose, links_between
from barnraise.api.plans import HandOn, Plans
from barnraise.api.streams import Call
from barnraise.collective.adoption import Graph
from barnraise.collective.links import Row
from barnraise.errors import ConfigError
from barnraise.ids import PeerId

GROUP = tuple(PeerId(f"peer {rank}") for rank in range(4))
MEMBERS = (0, 1, 2, 3)


def graph_of(version: int = 1, across_us: int = 40_000, members: tuple[int, ...] = MEMBERS) -> Graph:
    """Return two regions of two hosts."""
    near = [[(one < 2) == (other < 2) for other in range(4)] for one in range(4)]
    return Graph(
        version,
        {
            rank: Row(
                0,
                0,
                tuple(0 if other == rank else 100 if near[rank][other] else across_us for other in range(4)),
                tuple(0 if other == rank else 10**6 if near[rank][other] else 10**4 for other in range(4)),
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
