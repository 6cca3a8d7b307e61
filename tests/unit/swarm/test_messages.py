"""Control messages: numbers that would overflow what they are added to or stored in are refused at the door."""

import msgspec
import pytest

from barnraise.collective.links import MAX_BANDWIDTH_KB_S, MAX_LATENCY_US, MAX_ROW_MEMBERS, Row
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm import messages
from barnraise.swarm.messages import Links, StateWanted, Status, Want

SENDER = PeerId("12D3KooWsender")


@pytest.mark.parametrize("number", [-1, 2**40 + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize(
    "fields",
    [
        ("StateWanted", "height"),
        ("Status", "round"),
        ("Want", "height"),
        ("raft.Append", "view"),
        ("raft.PreVote", "view"),
    ],
)
def test_a_number_out_of_range_is_refused(fields: tuple[str, str], number: int) -> None:
    tag, field = fields
    honest = {
        "StateWanted": {"height": 0},
        "Status": {"height": 0, "round": 0, "wants_in": False},
        "Want": {"height": 0, "round": 0, "commitments": ()},
        "raft.Append": {"height": 0, "view": 0, "value": b""},
        "raft.PreVote": {"height": 0, "view": 0, "entry_term": -1},
    }[tag]
    messages.decode(SENDER, msgspec.msgpack.encode([tag, *honest.values()]))
    with pytest.raises(PeerError, match="malformed"):
        messages.decode(SENDER, msgspec.msgpack.encode([tag, *(honest | {field: number}).values()]))


@pytest.mark.parametrize(
    "message",
    [
        Status(height=3, round=1, wants_in=True),
        Want(height=3, round=1, commitments=("a",)),
        StateWanted(height=3),
        Links(epoch=2, row=Row(uplink_kb_s=9, downlink_kb_s=0, latencies_us=(0, 7), bandwidths_kb_s=(0, 0))),
    ],
)
def test_messages_survive_the_wire(message: messages.Message) -> None:
    assert messages.decode(SENDER, messages.encode(message)) == message


@pytest.mark.parametrize(
    "row",
    [
        [0, 0, [1] * (MAX_ROW_MEMBERS + 1), [1]],
        [0, 0, [1], [1] * (MAX_ROW_MEMBERS + 1)],
        [0, 0, [MAX_LATENCY_US + 1], [1]],
        [0, 0, [1], [MAX_BANDWIDTH_KB_S + 1]],
        [0, 0, [-1], [1]],
        [2**64 - 1, 0, [1], [1]],
        [0, -1, [1], [1]],
        [0, 0, [0.5], [1]],
        [0, 0, [float("nan")], [1]],
        [0, 0, ["1"], [1]],
        [0, 0, [None], [1]],
        [0, 0, [1]],
        [0, 0, [1], [1], []],
        {},
    ],
)
def test_links_out_of_range_or_without_end_are_refused(row: object) -> None:
    messages.decode(SENDER, msgspec.msgpack.encode(["Links", 0, [0, 0, [1], [1]]]))
    with pytest.raises(PeerError, match="malformed"):
        messages.decode(SENDER, msgspec.msgpack.encode(["Links", 0, row]))


def test_a_row_of_a_whole_mesh_is_a_small_message() -> None:
    most = (MAX_LATENCY_US,) * 100, (MAX_BANDWIDTH_KB_S,) * 100
    row = Row(uplink_kb_s=1, downlink_kb_s=1, latencies_us=most[0], bandwidths_kb_s=most[1])
    assert len(messages.encode(Links(epoch=0, row=row))) < 1100
