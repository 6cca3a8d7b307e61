"""The bytes that are hashed and signed are these, and nothing but them is taken from a peer."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.consensus.agreement import MAX_VALUE_BYTES, Decided
from barnraise.consensus.raft_messages import Ack, Append, PreVote, PreVoteReply, RequestVote, VoteReply
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm import messages, records
from barnraise.swarm.messages import Commit, Genesis, GenesisWanted, Message, StateWanted, Status, Want
from barnraise.swarm.records import (
    Amend,
    Change,
    Commitment,
    Contribution,
    Cut,
    Merge,
    Metrics,
    Parent,
    Readmit,
    Record,
    Recover,
    Regroup,
    Result,
    Revoke,
    Rotate,
    Seal,
    Signed,
    Upgrade,
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
    changes=b"h" * 32,
)
UPGRADE = Upgrade(number=1, version=2, rules=(("outer.lr", "0.5"), ("round.steps", "30")))
AMENDS = {
    "upgrade": UPGRADE,
    "rotate": Rotate(old="peer-1", new="peer-9"),
    "revoke": Revoke(peer="peer-1"),
    "readmit": Readmit(lost="peer-1", new="peer-9"),
}
ABOUT = {"run": RUN, "epoch": 1, "round": 2, "attempt": 3, "previous": PREVIOUS}
RECOVER = Recover(**ABOUT, vertex=b"v" * 32, members=("peer-0", "peer-3"))  # type: ignore[arg-type]
MERGE = Merge(
    **ABOUT,  # type: ignore[arg-type]
    parents=(Parent(b"v" * 32, 3), Parent(b"w" * 32, 1)),
    theta_root=b"t" * 32,
    momentum_root=b"m" * 32,
    exponents=(16, -3),
    vertex=b"x" * 32,
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
LATER_VERTEX = msgspec.structs.replace(VERTEX, version=2, rules=b"g" * 32)


def amend_of(change: Change) -> Amend:
    return Amend(**ABOUT, change=change, seals=(Seal("peer-1", b"s" * 8),))  # type: ignore[arg-type]


RECORDS: dict[str, Record | Vertex] = {
    "commitment": COMMITMENT,
    "cut": CUT,
    "void": VOID,
    "regroup": REGROUP,
    "result": RESULT,
    "vertex": VERTEX,
    "later vertex": LATER_VERTEX,
    **{name: amend_of(change) for name, change in AMENDS.items()},
    "recover": RECOVER,
    "merge": MERGE,
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
    Append(height=3, view=0, value=records.encode(CUT)),
    Ack(height=3, view=0, value=b"d" * 32, signature=b"s" * 8),
    PreVote(height=3, view=1, entry_term=0),
    PreVoteReply(height=3, view=1, granted=True),
    RequestVote(height=3, view=1, entry_term=-1),
    VoteReply(height=3, view=1, granted=False),
    Decided(height=3, view=0, value=b"value", votes=(("peer-0", b"s"),)),
]
DECODERS = {"event": records.decode_event, "commitment": records.decode_commitment, "vertex": records.decode_vertex}

GOLDEN = {
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
    "regroup": (
        "9ba7526567726f757001c4207272727272727272727272727272727272727272727272727272727272727272010200c4"
        "2070707070707070707070707070707070707070707070707070707070707070700391a6706565722d3292a670656572"
        "2d30a6706565722d31c400"
    ),
    "result": (
        "dc0016a6526573756c7401c4207272727272727272727272727272727272727272727272727272727272727272010200"
        "c420707070707070707070707070707070707070707070707070707070707070707003c4206363636363636363636363"
        "63636363636363636363636363636363636363636390c420000000000000000000000000000000000000000000000000"
        "0000000000000000c4206161616161616161616161616161616161616161616161616161616161616161c42074747474"
        "74747474747474747474747474747474747474747474747474747474c4206d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d"
        "6d6d6d6d6d6d6d6d6d6d6d6d6d6d9210fd93ce0016e360ffcd6400c42000000000000000000000000000000000000000"
        "0000000000000000000000000091a6706565722d3290ce6b49d200c42076767676767676767676767676767676767676"
        "76767676767676767676767676c4206868686868686868686868686868686868686868686868686868686868686868"
    ),
    "vertex": (
        "dc0010a656657274657801c420727272727272727272727272727272727272727272727272727272727272727291c420"
        "707070707070707070707070707070707070707070707070707070707070707003c42074747474747474747474747474"
        "74747474747474747474747474747474747474c4206d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d"
        "6d6d6d6d6dc4207373737373737373737373737373737373737373737373737373737373737373cd0320919203049210"
        "fdce6b49d2009192a6706565722d30ccc8cd0640ce0016e360ff"
    ),
    "later vertex": (
        "dc0011a656657274657802c420727272727272727272727272727272727272727272727272727272727272727291c420"
        "707070707070707070707070707070707070707070707070707070707070707003c42074747474747474747474747474"
        "74747474747474747474747474747474747474c4206d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d"
        "6d6d6d6d6dc4207373737373737373737373737373737373737373737373737373737373737373cd0320919203049210"
        "fdce6b49d2009192a6706565722d30ccc8cd0640ce0016e360ffc4206767676767676767676767676767676767676767"
        "676767676767676767676767"
    ),
    "upgrade": (
        "9aa5416d656e6401c4207272727272727272727272727272727272727272727272727272727272727272010200c42070"
        "707070707070707070707070707070707070707070707070707070707070700394a75570677261646501029292a86f75"
        "7465722e6c72a3302e3592ab726f756e642e7374657073a233309192a6706565722d31c4087373737373737373"
    ),
    "rotate": (
        "9aa5416d656e6401c4207272727272727272727272727272727272727272727272727272727272727272010200c42070"
        "707070707070707070707070707070707070707070707070707070707070700393a6526f74617465a6706565722d31a6"
        "706565722d399192a6706565722d31c4087373737373737373"
    ),
    "revoke": (
        "9aa5416d656e6401c4207272727272727272727272727272727272727272727272727272727272727272010200c42070"
        "707070707070707070707070707070707070707070707070707070707070700392a65265766f6b65a6706565722d3191"
        "92a6706565722d31c4087373737373737373"
    ),
    "readmit": (
        "9aa5416d656e6401c4207272727272727272727272727272727272727272727272727272727272727272010200c42070"
        "707070707070707070707070707070707070707070707070707070707070700393a7526561646d6974a6706565722d31"
        "a6706565722d399192a6706565722d31c4087373737373737373"
    ),
    "recover": (
        "9aa75265636f76657201c4207272727272727272727272727272727272727272727272727272727272727272010200c4"
        "20707070707070707070707070707070707070707070707070707070707070707003c420767676767676767676767676"
        "767676767676767676767676767676767676767692a6706565722d30a6706565722d33"
    ),
    "merge": (
        "9da54d6572676501c4207272727272727272727272727272727272727272727272727272727272727272010200c42070"
        "70707070707070707070707070707070707070707070707070707070707070039292c420767676767676767676767676"
        "76767676767676767676767676767676767676760392c420777777777777777777777777777777777777777777777777"
        "777777777777777701c4207474747474747474747474747474747474747474747474747474747474747474c4206d6d6d"
        "6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d9210fdc4207878787878787878787878787878"
        "787878787878787878787878787878787878"
    ),
}
"""Changing one of these changes the format: raise ``records.NEWEST``, and say how older runs are read."""


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


@pytest.mark.parametrize("event", [CUT, VOID, REGROUP, RESULT, *map(amend_of, AMENDS.values()), RECOVER, MERGE])
def test_events_come_back_as_they_were(event: records.LogEvent) -> None:
    assert records.decode_event.decode(records.encode(event)) == event


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_come_back_as_they_were(message: Message) -> None:
    assert messages.decode(SENDER, messages.encode(message)) == message


@pytest.mark.parametrize("vertex", [VERTEX, LATER_VERTEX])
def test_checkpoints_come_back_as_they_were(vertex: Vertex) -> None:
    assert records.decode_vertex.decode(records.encode(vertex)) == vertex


def test_a_checkpoint_names_its_rules_from_version_2_on_and_not_before() -> None:
    for vertex in (VERTEX, LATER_VERTEX):
        with pytest.raises(ValueError, match="bytes of rules"):
            msgspec.structs.replace(vertex, version=3 - vertex.version)
    early = msgspec.msgpack.decode(records.encode(LATER_VERTEX))
    early[1] = 1
    with pytest.raises(msgspec.DecodeError, match="bytes of rules"):
        records.decode_vertex.decode(msgspec.msgpack.encode(early))


TOO_LONG: dict[str, Record] = {
    "a name": amend_of(Revoke(peer="p" * 65)),
    "no name": amend_of(Revoke(peer="")),
    "a rule": amend_of(Upgrade(number=1, version=2, rules=(("outer.lr", "1" * 65),))),
    "rules": amend_of(Upgrade(number=1, version=2, rules=(("outer.lr", "1"),) * (records.MAX_RULES + 1))),
    "signatures": msgspec.structs.replace(amend_of(UPGRADE), seals=(Seal("p", b""),) * (records.MAX_SEALS + 1)),
    "a signature": msgspec.structs.replace(amend_of(UPGRADE), seals=(Seal("p", bytes(4097)),)),
    "members": msgspec.structs.replace(RECOVER, members=("p",) * (records.MAX_NAMED + 1)),
    "no members": msgspec.structs.replace(RECOVER, members=()),
    "a hash": msgspec.structs.replace(RECOVER, vertex=bytes(33)),
    "a weight": msgspec.structs.replace(MERGE, parents=(Parent(bytes(32), 1), Parent(b"w" * 32, 1 << 21))),
    "no weight": msgspec.structs.replace(MERGE, parents=(Parent(bytes(32), 1), Parent(b"w" * 32, 0))),
    "one parent": msgspec.structs.replace(MERGE, parents=(Parent(bytes(32), 1),)),
}


@pytest.mark.parametrize("what", TOO_LONG)
def test_what_an_entry_names_is_bounded(what: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        records.decode_event.decode(records.encode(TOO_LONG[what]))


def test_the_longest_entries_fit_an_agreement() -> None:
    peer, signature = "1" * 52, bytes(3373)
    seals = tuple(Seal(f"{peer[:-1]}{number}", signature) for number in range(records.MAX_SEALS))
    change = Readmit(lost=peer, new=peer)
    for event in (
        msgspec.structs.replace(amend_of(change), seals=seals),
        msgspec.structs.replace(RECOVER, members=(peer,) * records.MAX_NAMED),
    ):
        assert len(records.encode(event)) < MAX_VALUE_BYTES


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
