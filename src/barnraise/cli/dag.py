"""``barnraise dag``: the checkpoints of a run as a graph, newest on top, with what they came from and what is here."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from barnraise.cli.log import bits
from barnraise.cli.page import Directory, Json, print_json, print_table, readable
from barnraise.ids import Digest
from barnraise.observe.figures import measured
from barnraise.runs import reading
from barnraise.swarm import records
from barnraise.swarm.records import MICRO, Vertex

TITLES: Final = ("graph", "checkpoint", "round", "from", "peers", "samples", "loss", "bits/byte", "here", "time")
_NUMBERS: Final = ("round", "peers", "samples", "loss", "bits/byte")


def dag(
    *,
    directory: Directory = None,
    last: Annotated[int, Parameter(validator=Number(gte=1))] = 20,
    json: Json = False,
) -> int:
    """Draw the checkpoints of a run: each stands below those that came of it, and a merge has several below it.

    The last one came of what the run began with, which nobody had to agree on: the run's id fixes it.

    Args:
        directory: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        last: How many checkpoints, the newest.
        json: Print one object for each checkpoint, in a list, newest first, with all fields; ids as hex digits.
    """
    path = reading.find(directory)
    home = reading.farthest(path)
    with reading.opened(home) as reader:
        vertices = in_order(reader.vertices())[:last]
    if json:
        print_json([_record(vertex, path) for vertex in vertices])
    elif vertices:
        drawn = zip(graph(vertices), vertices, strict=True)
        print_table(TITLES, [_cells(lane, vertex, path) for lane, vertex in drawn], numbers=_NUMBERS)
    else:
        print("there is no checkpoint yet; barnraise status says what the peers are doing")
    return 0


def in_order(vertices: Sequence[Vertex]) -> list[Vertex]:
    """Return checkpoints newest first, each before all that it came from."""
    known = {records.vertex_id(vertex): vertex for vertex in vertices}
    depths: dict[bytes, int] = {}
    for name in known:
        _measure(name, known, depths)
    return sorted(vertices, key=lambda vertex: (vertex.round, depths[records.vertex_id(vertex)]), reverse=True)


def graph(vertices: Sequence[Vertex]) -> list[str]:
    """Return for each checkpoint where it is drawn: ``*`` in its own lane, ``|`` where another line passes by.

    Args:
        vertices: newest first, each before all that it came from.
    """
    lanes: list[bytes] = []
    """What each lane comes to next."""
    drawn = []
    for vertex in vertices:
        name = bytes(records.vertex_id(vertex))
        lanes = lanes if name in lanes else [*lanes, name]
        place = lanes.index(name)
        drawn.append(" ".join("*" if lane == name else "|" for lane in lanes))
        lanes = [*lanes[:place], *vertex.parents, *lanes[place + 1 :]]
        lanes = [lane for at, lane in enumerate(lanes) if lane != name and lane not in lanes[:at]]
    return drawn


def _measure(start: bytes, known: dict[Digest, Vertex], depths: dict[bytes, int]) -> None:
    """Set how many generations are below a checkpoint and all that it came from; without recursion, chains are long."""
    stack = [start]
    while stack:
        name = stack[-1]
        parents = [parent for parent in known[Digest(name)].parents if parent in known]
        unknown = [parent for parent in parents if parent not in depths]
        if unknown:
            stack += unknown
        else:
            depths[stack.pop()] = 1 + max((depths[parent] for parent in parents), default=-1)


def _here(path: Path, vertex: Vertex) -> bool:
    return any(reading.theta(home, vertex).is_file() for home in reading.peer_directories(path))


def _record(vertex: Vertex, path: Path) -> dict[str, Any]:
    return {"id": records.vertex_id(vertex).hex(), "held": _here(path, vertex), **readable(vertex)}


def _cells(lane: str, vertex: Vertex, path: Path) -> tuple[str, ...]:
    return (
        lane,
        records.vertex_id(vertex).hex()[:12],
        str(vertex.round),
        " ".join(parent.hex()[:12] for parent in vertex.parents),
        str(len(vertex.contributors)),
        str(vertex.total_samples),
        measured(vertex.train_loss / MICRO),
        measured(bits(vertex.validation_loss)),
        "yes" if _here(path, vertex) else "no",
        f"{datetime.fromtimestamp(vertex.time):%Y-%m-%d %H:%M:%S}" if vertex.time else "",
    )
