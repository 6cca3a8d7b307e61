"""The admission handshake, without I/O: who gets in, who does not, and that no bytes can break it."""

import itertools
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.errors import LocalError, PeerError
from barnraise.identity import ClusterKey
from barnraise.ids import PeerId
from barnraise.net import admission
from barnraise.net.admission import Admission, NotAdmitted

KEY = ClusterKey(bytes(32))
OTHER_KEY = ClusterKey(bytes(31) + b"1")
ALICE, BOB, MALLORY = PeerId("alice"), PeerId("bob"), PeerId("mallory")


def make(
    local: PeerId = ALICE,
    remote: PeerId = BOB,
    *,
    initiator: bool = True,
    key: ClusterKey = KEY,
    run: bytes = b"run" * 8,
    binding: bytes = b"b" * 32,
    hello: bytes = b"",
    nonce: int = 1,
    decide: Callable[[bytes], str] = lambda instance: "",
) -> Admission:
    return Admission(
        initiator=initiator,
        local=local,
        remote=remote,
        run=run,
        cluster_key=key,
        hello=hello,
        binding=binding,
        nonce=nonce.to_bytes(32, "little"),
        instance=local.encode().ljust(16, b"."),
        decide=decide,
    )


def make_listener(**changes: object) -> Admission:
    arguments: dict[str, object] = {"local": BOB, "remote": ALICE, "initiator": False, "nonce": 2, **changes}
    return make(**arguments)  # type: ignore[arg-type]  # the tests name what they change


def converse(dialler: Admission, listener: Admission) -> list[bytes]:
    """Carry messages to and fro until nobody has anything to say."""
    messages = [dialler.start()]
    for side in itertools.cycle((listener, dialler)):
        reply = side.receive(messages[-1])
        if not reply:
            return messages
        messages.append(reply)
    raise AssertionError("unreachable")


def converse_until_refused(dialler: Admission, listener: Admission) -> tuple[NotAdmitted, Admission]:
    """Return the refusal, and the side that has not heard it yet."""
    message, receiver, hearer = dialler.start(), listener, dialler
    while message:
        try:
            message = receiver.receive(message)
        except NotAdmitted as refusal:
            return refusal, hearer
        receiver, hearer = hearer, receiver
    raise AssertionError("nobody refused")


def assert_refused(dialler: Admission, listener: Admission, words: str) -> None:
    """Check that one side refuses in these words and that the other side gets to read them."""
    refusal, hearer = converse_until_refused(dialler, listener)
    assert words in refusal.reason
    with pytest.raises(NotAdmitted) as heard:
        hearer.receive(refusal.farewell)
    assert words in heard.value.reason
    assert heard.value.farewell == b""
    assert not hearer.done


def test_two_peers_with_one_key_take_each_other() -> None:
    dialler, listener = make(hello=b"from alice"), make_listener(hello=b"from bob")
    assert len(converse(dialler, listener)) == 5
    assert dialler.done
    assert listener.done
    assert dialler.remote_hello == b"from bob"
    assert listener.remote_hello == b"from alice"
    assert listener.remote_instance.startswith(b"alice")


def test_another_cluster_key_is_refused() -> None:
    assert_refused(make(key=OTHER_KEY), make_listener(), "different cluster keys")


def test_another_run_is_refused() -> None:
    assert_refused(make(run=b"x" * 32), make_listener(), "is in run 7878787878787878")


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dialler, listener = make(), make_listener()
    monkeypatch.setattr(admission, "PROTOCOL_VERSION", 1)
    opening = dialler.start()
    monkeypatch.undo()
    with pytest.raises(NotAdmitted, match="speaks version 1"):
        listener.receive(opening)


def test_a_proof_does_not_carry_over_to_another_connection() -> None:
    """Somebody in the middle who relays every byte has two Noise sessions, so two handshake hashes."""
    assert_refused(make(binding=b"1" * 32), make_listener(binding=b"2" * 32), "different cluster keys")


def test_a_proof_does_not_carry_over_to_another_peer() -> None:
    assert_refused(make(remote=MALLORY), make_listener(), "different cluster keys")


def test_a_proof_cannot_be_turned_round() -> None:
    """Without the key, the listener's own proof is no answer to the listener."""
    listener = make_listener()
    challenge = msgspec.msgpack.decode(listener.receive(make().start()))
    echoed = msgspec.msgpack.encode(admission.Answer(proof=challenge[-1], hello=b""))
    with pytest.raises(NotAdmitted, match="different cluster keys"):
        listener.receive(echoed)


def test_a_recorded_admission_cannot_be_replayed() -> None:
    opening, _, answer, *_ = converse(make(), make_listener())
    listener = make_listener(nonce=3)
    listener.receive(opening)
    with pytest.raises(NotAdmitted, match="different cluster keys"):
        listener.receive(answer)


@pytest.mark.parametrize("who", ["dialler", "listener"])
def test_either_side_has_the_last_word_after_the_proof(who: str) -> None:
    asked: list[bytes] = []

    def refuse(instance: bytes) -> str:
        asked.append(instance)
        return "not on the list"

    if who == "dialler":
        assert_refused(make(decide=refuse), make_listener(), "not on the list")
    else:
        assert_refused(make(), make_listener(decide=refuse), "not on the list")
    assert len(asked) == 1


def test_decide_is_not_asked_without_a_proof() -> None:
    def unexpected(instance: bytes) -> str:
        raise AssertionError("asked about a stranger")

    assert_refused(make(key=OTHER_KEY), make_listener(decide=unexpected), "different cluster keys")


def test_the_words_of_a_stranger_are_made_printable() -> None:
    refusal = msgspec.msgpack.encode(admission.Refusal(reason="\x1b[31mred\n" + "x" * 1000))
    with pytest.raises(NotAdmitted) as error:
        make_listener().receive(refusal)
    assert error.value.reason.isprintable()
    assert len(error.value.reason) < 500


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["Opening"]),
        msgspec.msgpack.encode(["Verdict", b""]),
        msgspec.msgpack.encode(["Opening", admission.PROTOCOL_VERSION, b"run" * 8, b"short", b"i" * 16]),
        msgspec.msgpack.encode(["Opening", admission.PROTOCOL_VERSION, b"run" * 8, b"n" * 32, b"i" * 16, "more"]),
        bytes(admission.MAX_ADMISSION_BYTES + 1),
    ],
)
def test_what_is_not_the_protocol_is_the_peers_fault(data: bytes) -> None:
    with pytest.raises(PeerError, match="peer alice"):
        make_listener().receive(data)


def test_nothing_follows_a_finished_admission() -> None:
    dialler, listener = make(), make_listener()
    messages = converse(dialler, listener)
    with pytest.raises(PeerError, match="out of turn"):
        listener.receive(messages[-1])


def test_a_hello_over_the_limit_is_refused_on_both_ends() -> None:
    with pytest.raises(LocalError, match="8192"):
        make(hello=bytes(8193))
    listener = make_listener()
    challenge = listener.receive(make().start())
    dialler = make()
    dialler.start()
    answer = msgspec.msgpack.decode(dialler.receive(challenge))
    with pytest.raises(PeerError, match="8192"):
        listener.receive(msgspec.msgpack.encode([answer[0], answer[1], bytes(8193)]))


def test_lengths_of_our_own_are_checked() -> None:
    with pytest.raises(LocalError, match="wrong length"):
        make(run=bytes(65))


@given(st.lists(st.binary(max_size=200), max_size=4), st.booleans(), st.booleans())
def test_no_bytes_break_either_side(junk: list[bytes], initiator: bool, after_start: bool) -> None:
    side = make(initiator=initiator)
    if after_start and not initiator:
        side.receive(make(local=BOB, remote=ALICE).start())
    for data in junk:
        try:
            side.receive(data)
        except (PeerError, NotAdmitted):
            return
    assert not side.done


@given(st.integers(0, 4), st.integers(min_value=0), st.integers(1, 255))
def test_a_flipped_byte_is_noticed_or_harmless(which: int, position: int, flip: int) -> None:
    """Noise keeps messages whole; even without it, no changed message leads to an admission of something else."""
    dialler, listener = make(hello=b"hello"), make_listener(hello=b"hello")
    message = dialler.start()
    try:
        for number, side in enumerate(itertools.islice(itertools.cycle((listener, dialler)), 5)):
            if number == which:
                position %= len(message)
                message = message[:position] + bytes([message[position] ^ flip]) + message[position + 1 :]
            message = side.receive(message)
    except (PeerError, NotAdmitted):
        return
    assert {dialler.remote_instance, listener.remote_instance} == {b"alice".ljust(16, b"."), b"bob".ljust(16, b".")}
