"""The bytes that are hashed and signed are these, and nothing but them is taken from a peer."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.consensus.agreement import Decided
from barnraise.consensus.voting import Accept, Change, Propose
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm import messages, records
from barnraise.swarm.messages import Commit, Genesis, GenesisWanted, Message, StateWanted, Status, Want
from barnraise.swarm.records import (
    Commitment,
    Contribution,
    Cut,
    Metrics,
    Record,
    Regroup,
    Result,
    Signed,
    Vertex,
    Void,
)

RUN, PREVIOUS = b"r" * 32, b"p" * 32
SENDER = PeerId("peer-0")

COMMITMENT = Commitment(
    run=RUN,
    epoch=1,
    round=2,
    base=b"b" * 32,
    member="peer-0",
    samples=200,
    steps=25,
    tokens=25600,
    codec="grid16",
    exponents=(16, -3),
    update_root=b"u" * 32,
    trace_root=bytes(32),
    train_loss=1_500_000,
    validation_loss=1_400_000,
    validation_tokens=2048,
)
CUT = Cut(
    run=RUN, epoch=1, round=2, attempt=3, previous=PREVIOUS, contributions=(Contribution("peer-0", b"c" * 32, 200),)
)
REGROUP = Regroup(
    run=RUN, epoch=1, round=2, attempt=3, previous=PREVIOUS, joined=("peer-2",), left=("peer-0", "peer-1")
)
VOID = Void(run=RUN, epoch=1, round=2, attempt=3, previous=PREVIOUS, cut=b"c" * 32, without=("peer-1",))
RESULT = Result(
    run=RUN,
    epoch=1,
    round=2,
    attempt=3,
    previous=PREVIOUS,
    cut=b"c" * 32,
    excluded=(),
    gram=bytes(32),
    aggregate_root=b"a" * 32,
    theta_root=b"t" * 32,
    momentum_root=b"m" * 32,
    exponents=(16, -3),
    metrics=Metrics(1_500_000, -1, 25600),
    ledger=bytes(32),
    joined=("peer-2",),
    left=(),
    time=1_800_000_000,
    vertex=b"v" * 32,
)
VERTEX = Vertex(
    run=RUN,
    parents=(PREVIOUS,),
    round=3,
    model=b"t" * 32,
    outer=b"m" * 32,
    random=b"s" * 32,
    cursor=800,
    requeued=((3, 4),),
    exponents=(16, -3),
    time=1_800_000_000,
    contributors=(("peer-0", 200),),
    total_samples=1600,
    train_loss=1_500_000,
    validation_loss=-1,
)
RECORDS: dict[str, Record | Vertex] = {
    "commitment": COMMITMENT,
    "cut": CUT,
    "void": VOID,
    "regroup": REGROUP,
    "result": RESULT,
    "vertex": VERTEX,
}
MESSAGES: list[Message] = [
    Commit(commitment=Signed(records.encode(COMMITMENT), b"s" * 8), leaves=(b"l" * 32, b"m" * 32)),
    Status(height=3, round=1, wants_in=True),
    Status(height=3, round=1, wants_in=False, wants_out=True, is_hollow=True),
    GenesisWanted(),
    Genesis(config="seed = 1"),
    StateWanted(height=3, is_hollow=True),
    Want(height=3, round=1, commitments=("peer-0",)),
    StateWanted(height=3),
    Propose(height=3, view=0, value=records.encode(CUT)),
    Accept(height=3, view=0, value=b"d" * 32, signature=b"s" * 8),
    Change(height=3, view=1, accepted_view=0, accepted=b"value"),
    Decided(height=3, view=0, value=b"value", votes=(("peer-0", b"s"),)),
]
DECODERS = {"event": records.decode_event, "commitment": records.decode_commitment, "vertex": records.decode_vertex}

GOLDEN = {
    "regroup": (
        "9aa7526567726f757001c4207272727272727272727272727272727272727272727272727272727272727272010200c4"
        "2070707070707070707070707070707070707070707070707070707070707070700391a6706565722d3292a670656572"
        "2d30a6706565722d31"
    ),
    "commitment": (
        "dc0012aa436f6d6d69746d656e7401c42072727272727272727272727272727272727272727272727272727272727272"
        "72010200c4206262626262626262626262626262626262626262626262626262626262626262a6706565722d30ccc819"
        "cd6400a66772696431369210fdc4207575757575757575757575757575757575757575757575757575757575757575c4"
        "200000000000000000000000000000000000000000000000000000000000000000ce0016e360ce00155cc0cd0800"
    ),
    "cut": (
        "99a343757401c4207272727272727272727272727272727272727272727272727272727272727272010200c420707070"
        "7070707070707070707070707070707070707070707070707070707070039193a6706565722d30c42063636363636363"
        "63636363636363636363636363636363636363636363636363ccc8"
    ),
    "void": (
        "9aa4566f696401c4207272727272727272727272727272727272727272727272727272727272727272010200c4207070"
        "70707070707070707070707070707070707070707070707070707070707003c420636363636363636363636363636363"
        "636363636363636363636363636363636391a6706565722d31"
    ),
    "result": (
        "dc0015a6526573756c7401c4207272727272727272727272727272727272727272727272727272727272727272010200"
        "c420707070707070707070707070707070707070707070707070707070707070707003c4206363636363636363636363"
        "63636363636363636363636363636363636363636390c420000000000000000000000000000000000000000000000000"
        "0000000000000000c4206161616161616161616161616161616161616161616161616161616161616161c42074747474"
        "74747474747474747474747474747474747474747474747474747474c4206d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d"
        "6d6d6d6d6d6d6d6d6d6d6d6d6d6d9210fd93ce0016e360ffcd6400c42000000000000000000000000000000000000000"
        "0000000000000000000000000091a6706565722d3290ce6b49d200c42076767676767676767676767676767676767676"
        "76767676767676767676767676"
    ),
    "vertex": (
        "dc0010a656657274657801c420727272727272727272727272727272727272727272727272727272727272727291c420"
        "707070707070707070707070707070707070707070707070707070707070707003c42074747474747474747474747474"
        "74747474747474747474747474747474747474c4206d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d"
        "6d6d6d6d6dc4207373737373737373737373737373737373737373737373737373737373737373cd0320919203049210"
        "fdce6b49d2009192a6706565722d30ccc8cd0640ce0016e360ff"
    ),
}
"""Changing one of these changes the format: raise ``records.VERSION``, and say how old logs are read."""


@pytest.mark.parametrize("name", RECORDS)
def test_the_canonical_bytes_are_these(name: str) -> None:
    assert records.encode(RECORDS[name]).hex() == GOLDEN[name]


def test_the_names_of_records_and_checkpoints_are_these() -> None:
    assert (
        records.digest(records.encode(CUT)).hex() == "275ca143a22a0c1844f2d1a79ef1f598f88b4232a6c60e613850386e74bf6109"
    )
    assert records.vertex_id(VERTEX).hex() == "cc29ae51cb6ba9a5bbd7093563a544f18a9fe04777bb78eed14dc44742d78a7d"


def test_a_record_and_a_checkpoint_of_the_same_bytes_have_different_names() -> None:
    assert records.digest(records.encode(VERTEX)) != records.vertex_id(VERTEX)


@pytest.mark.parametrize("event", [CUT, VOID, REGROUP, RESULT])
def test_events_come_back_as_they_were(event: records.LogEvent) -> None:
    assert records.decode_event.decode(records.encode(event)) == event


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_come_back_as_they_were(message: Message) -> None:
    assert messages.decode(SENDER, messages.encode(message)) == message


SEEDS = [records.encode(record) for record in RECORDS.values()] + [messages.encode(message) for message in MESSAGES]
NESTED = b"\x91" * 4096


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw valid bytes with some of them overwritten, cut out or put in."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        inserted = draw(st.binary(max_size=4) | st.just(NESTED) | st.just(b"\xdd\xff\xff\xff\xff"))
        data[place : place + draw(st.integers(0, 6))] = inserted
    return bytes(data)


HOSTILE = st.binary(max_size=200) | mutated()


@settings(deadline=None, max_examples=150)
@given(data=HOSTILE)
def test_hostile_bytes_are_a_message_or_a_peers_error(data: bytes) -> None:
    try:
        message = messages.decode(SENDER, data)
    except PeerError:
        return
    assert messages.decode(SENDER, messages.encode(message)) == message


@settings(deadline=None, max_examples=100)
@given(data=HOSTILE)
@pytest.mark.parametrize("name", DECODERS)
def test_hostile_bytes_are_a_record_or_a_decode_error(name: str, data: bytes) -> None:
    decoder: records.Decoder[records.LogEvent | Commitment | Vertex] = DECODERS[name]  # type: ignore[assignment]
    try:
        record = decoder.decode(data)
    except msgspec.DecodeError:
        return
    assert decoder.decode(records.encode(record)) == record


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(NESTED, id="nested"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="four thousand million elements"),
        pytest.param(b"\x97\xa6Status\x01\x01\xc3\xc2\xc2\xc2", id="one field too many"),
        pytest.param(b"\x93\xa6Status\x01\x01", id="one field too few"),
        pytest.param(b"\x94\xa6Status\xca\x3f\x80\x00\x00\x01\xc3", id="a float for an integer"),
        pytest.param(b"\x94\xa6Status\x01\x01\xc3\x00", id="something behind it"),
        pytest.param(b"\x92\xa6Nobody\x01", id="unknown"),
        pytest.param(b"\x94\xa4Want\x01\x01\x91\xa2\xff\xfe", id="a text that is not UTF-8"),
        pytest.param(b"\x93\xa6Commit\x93\xc4\x01a\xc4\x01b" + NESTED + b"\x90", id="nested in a signature"),
    ],
)
def test_malformed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="malformed") as caught:
        messages.decode(SENDER, data)
    assert caught.value.peer == SENDER
