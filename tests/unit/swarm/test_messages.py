"""Control messages: numbers that would overflow what they are added to or stored in are refused at the door."""

import msgspec
import pytest

from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm import messages
from barnraise.swarm.messages import StateWanted, Status, Want

SENDER = PeerId("12D3KooWsender")


@pytest.mark.parametrize("number", [-1, 2**40 + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize(
    "fields",
    [("StateWanted", "height"), ("Status", "round"), ("Want", "height"), ("Propose", "view"), ("Change", "view")],
)
def test_a_number_out_of_range_is_refused(fields: tuple[str, str], number: int) -> None:
    tag, field = fields
    honest = {
        "StateWanted": {"height": 0},
        "Status": {"height": 0, "round": 0, "wants_in": False},
        "Want": {"height": 0, "round": 0, "commitments": ()},
        "Propose": {"height": 0, "view": 0, "value": b""},
        "Change": {"height": 0, "view": 0, "accepted_view": -1, "accepted": b""},
    }[tag]
    messages.decode(SENDER, msgspec.msgpack.encode([tag, *honest.values()]))
    with pytest.raises(PeerError, match="malformed"):
        messages.decode(SENDER, msgspec.msgpack.encode([tag, *(honest | {field: number}).values()]))


@pytest.mark.parametrize(
    "message",
    [Status(height=3, round=1, wants_in=True), Want(height=3, round=1, commitments=("a",)), StateWanted(height=3)],
)
def test_messages_survive_the_wire(message: messages.Message) -> None:
    assert messages.decode(SENDER, messages.encode(message)) == message
