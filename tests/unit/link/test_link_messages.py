"""Frames between peer and trainer: limits before allocation, and no bytes that raise anything undocumented."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.link import messages
from barnraise.link.messages import (
    MAX_FRAME_BYTES,
    Begin,
    Done,
    Failed,
    Finished,
    Hello,
    Initialise,
    Leave,
    Progress,
    Segment,
    Tensor,
)

HELLO = Hello(
    version=1,
    pid=2,
    layout=(Tensor("wte", (256, 8)), Tensor("norm.mean", (8,), is_buffer=True)),
    data_digest=b"d" * 32,
    device="cpu",
)
BEGIN = Begin(
    round=1,
    fragment=0,
    order=1,
    theta_path="/theta",
    update_path="/update",
    segments=(Segment(3, 4),),
    steps=2,
    first_step=2,
    total_steps=8,
    seconds=0.0,
    num_members=3,
    snapshot_in="",
    snapshot_out="/snapshot",
    evaluate=Segment(0, 0),
)
PROGRESS = Progress(round=1, step=2, loss=1.5)


@pytest.mark.parametrize("message", [HELLO, PROGRESS, Failed(round=1, reason="why"), Leave()])
def test_what_a_trainer_says_comes_back(message: messages.FromTrainer) -> None:
    frame = messages.frame(message)
    assert messages.body_length(frame[:4]) == len(frame) - 4
    assert messages.from_trainer(frame[4:]) == message


@pytest.mark.parametrize("message", [BEGIN, Initialise(path="/theta"), Finished(round=1, theta_path="/theta")])
def test_what_a_peer_says_comes_back(message: messages.FromPeer) -> None:
    assert messages.from_peer(messages.frame(message)[4:]) == message


def test_a_frame_over_the_limit_is_refused_by_its_length_alone() -> None:
    assert messages.body_length(MAX_FRAME_BYTES.to_bytes(4, "little")) == MAX_FRAME_BYTES
    with pytest.raises(ValueError, match="over the limit"):
        messages.body_length((MAX_FRAME_BYTES + 1).to_bytes(4, "little"))


@settings(deadline=None)
@given(place=st.integers(0, 60), data=st.binary(max_size=6), message=st.sampled_from([HELLO, BEGIN, PROGRESS]))
def test_hostile_bytes_are_a_message_or_a_decode_error(
    place: int, data: bytes, message: messages.FromTrainer | messages.FromPeer
) -> None:
    body = bytearray(messages.frame(message)[4:])
    body[place : place + len(data)] = data
    for decode in (messages.from_trainer, messages.from_peer):
        try:
            found = decode(bytes(body))
        except msgspec.DecodeError:
            continue
        assert not isinstance(found, Done)
