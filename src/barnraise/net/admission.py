"""The mutual proof that opens every control stream: who is in the cluster, in which run; pure, without I/O.

Noise has already told both sides whose key the other holds. What is left is to show that both know the cluster key
and mean the same run, before anything else is read. Messages, in turn (I dialled, R listened):

    I -> R   Opening    version, run, nonce, instance
    R -> I   Challenge  version, run, nonce, instance, proof of R
    I -> R   Answer     proof of I, hello of I
    R -> I   Verdict    hello of R
    I -> R   Confirmed
    either   Refusal    why not, in plain words; the sender closes the stream after it

| state     | receives  | checks                             | sends     | next      |
|-----------|-----------|------------------------------------|-----------|-----------|
| opening   | Opening   | version, run                       | Challenge | answer    |
| challenge | Challenge | version, run, proof                | Answer    | verdict   |
| answer    | Answer    | proof; ``decide`` says yes         | Verdict   | confirmed |
| verdict   | Verdict   | ``decide`` says yes                | Confirmed | done      |
| confirmed | Confirmed |                                    |           | done      |

A proof is an HMAC by the cluster key over the prover's role and a transcript: version, run, both peer ids as Noise
authenticated them, both nonces, both instances, and Noise's handshake hash. So it cannot be replayed (nonces), turned
round (role), or carried over to another connection by somebody in the middle (ids and handshake hash). An instance is
drawn once per process: it tells a peer that restarted from one that dials twice.
"""

import hashlib
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId

PROTOCOL_VERSION: Final = 2
"""2: links carry pings, and members tell each other of their links."""
NONCE_BYTES: Final = 32
INSTANCE_BYTES: Final = 16
PROOF_BYTES: Final = 32
MAX_RUN_BYTES: Final = 64
MAX_HELLO_BYTES: Final = 8 * 1024
"""A hello holds an ML-DSA-65 key (1952 bytes), a signature by it (3309) and an address."""
MAX_REASON_CHARS: Final = 400
MAX_ADMISSION_BYTES: Final = MAX_HELLO_BYTES + 1024
"""Largest message here; whoever announces more is cut off before anything is allocated."""
ADMISSION_DEADLINE_S: Final = 5.0
"""A peer that has not proved itself this long after it connected is cut off."""

Decide = Callable[[bytes], str]
"""``(the other side's instance) -> why not``, empty for yes. Called once, after the proof, just before this side
commits itself."""


class Prover(Protocol):
    """What is needed of the cluster key."""

    def prove(self, role: bytes, channel: bytes) -> bytes:
        """Return the proof of knowing the key."""
        ...

    def check(self, role: bytes, channel: bytes, proof: bytes) -> bool:
        """Return whether a proof is right, in constant time."""
        ...


class NotAdmitted(Unavailable):
    """One side did not want the other. ``farewell`` is what to send before closing; empty if the other refused."""

    def __init__(self, reason: str, farewell: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.farewell = farewell


class _Message(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True, forbid_unknown_fields=True):
    pass


class Opening(_Message, frozen=True):
    """The dialler says what it is about."""

    version: int
    run: bytes
    nonce: bytes
    instance: bytes


class Challenge(_Message, frozen=True):
    """The listener says the same of itself and proves that it knows the key."""

    version: int
    run: bytes
    nonce: bytes
    instance: bytes
    proof: bytes


class Answer(_Message, frozen=True):
    """The dialler's proof, and what it says of itself."""

    proof: bytes
    hello: bytes


class Verdict(_Message, frozen=True):
    """The listener takes the dialler, and says who it is."""

    hello: bytes


class Confirmed(_Message, frozen=True):
    """The dialler takes the listener."""


class Refusal(_Message, frozen=True):
    """Why not."""

    reason: str


_AnyMessage = Opening | Challenge | Answer | Verdict | Confirmed | Refusal
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[_AnyMessage] = msgspec.msgpack.Decoder(_AnyMessage)


class Admission:
    """One side of one admission. Feed it what arrives, send what it returns, until `done`.

    Example:
        >>> admission = Admission(initiator=True, ...)
        >>> send(admission.start())
        >>> while not admission.done: send(admission.receive(read()))
    """

    def __init__(
        self,
        *,
        initiator: bool,
        local: PeerId,
        remote: PeerId,
        run: bytes,
        cluster_key: Prover,
        hello: bytes,
        binding: bytes,
        nonce: bytes,
        instance: bytes,
        decide: Decide,
    ) -> None:
        """Prepare one side.

        Args:
            initiator: whether this side dialled.
            local: this peer, as it proved itself to the transport.
            remote: the other peer, as the transport authenticated it.
            run: the run's id, at most ``MAX_RUN_BYTES``.
            cluster_key: makes and checks proofs.
            hello: what to tell the other of ourselves, at most ``MAX_HELLO_BYTES``.
            binding: bytes that only the two ends of this very connection share (the Noise handshake hash).
            nonce: ``NONCE_BYTES`` fresh random bytes.
            instance: ``INSTANCE_BYTES`` drawn once per process.
            decide: has the last word once the proof is right.

        Raises:
            LocalError: a value of ours is over its limit.
        """
        if len(hello) > MAX_HELLO_BYTES:
            raise LocalError(f"a hello of {len(hello)} bytes is over the limit of {MAX_HELLO_BYTES}: say less in it")
        if len(run) > MAX_RUN_BYTES or len(nonce) != NONCE_BYTES or len(instance) != INSTANCE_BYTES:
            raise LocalError(f"run, nonce or instance has a wrong length: {len(run)}, {len(nonce)}, {len(instance)}")
        self.initiator = initiator
        self._local, self._remote = local, remote
        self._run, self._cluster_key, self._hello = run, cluster_key, hello
        self._binding, self._nonce, self._instance = binding, nonce, instance
        self._decide = decide
        self._awaited: type[_AnyMessage] | None = Challenge if initiator else Opening
        self._transcript = b""
        self._remote_hello = b""
        self._remote_instance = b""

    @property
    def done(self) -> bool:
        """Whether both sides have taken each other."""
        return self._awaited is None

    @property
    def remote_hello(self) -> bytes:
        """What the other said of itself; empty before the proof."""
        return self._remote_hello

    @property
    def remote_instance(self) -> bytes:
        """Which process of the peer this is; unproven until `done`."""
        return self._remote_instance

    def start(self) -> bytes:
        """Return the first message; only the initiator has one to send."""
        if not self.initiator:
            raise LocalError("the listening side of an admission does not speak first")
        return _encode(Opening(version=PROTOCOL_VERSION, run=self._run, nonce=self._nonce, instance=self._instance))

    def receive(self, data: bytes) -> bytes:
        """Take one message; return the one to send, empty for none.

        Raises:
            NotAdmitted: one of the two refused; send its ``farewell`` if it has one, and close.
            PeerError: what arrived is not a message of this protocol at this point; close.
        """
        message = self._parse(data)
        match message:
            case Refusal():
                raise NotAdmitted(f"the other side said: {printable(message.reason)}")
            case Opening():
                return self._on_opening(message)
            case Challenge():
                return self._on_challenge(message)
            case Answer():
                return self._on_answer(message)
            case Verdict():
                return self._on_verdict(message)
            case Confirmed():
                self._awaited = None
                return b""

    def _parse(self, data: bytes) -> _AnyMessage:
        if len(data) > MAX_ADMISSION_BYTES:
            raise PeerError(self._remote, f"admission message of {len(data)} bytes, limit {MAX_ADMISSION_BYTES}", data)
        try:
            message = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # msgspec lets bad UTF-8 in a message's tag out as the second.
            raise PeerError(self._remote, f"malformed admission message: {error}", data) from error
        if self._awaited is None or not isinstance(message, (self._awaited, Refusal)):
            raise PeerError(self._remote, f"admission message out of turn: {type(message).__name__}", data)
        return message

    def _on_opening(self, opening: Opening) -> bytes:
        self._check_terms(opening)
        self._awaited = Answer
        return _encode(
            Challenge(
                version=PROTOCOL_VERSION,
                run=self._run,
                nonce=self._nonce,
                instance=self._instance,
                proof=self._cluster_key.prove(b"listener", self._transcript),
            )
        )

    def _on_challenge(self, challenge: Challenge) -> bytes:
        self._check_terms(challenge)
        self._check_proof(b"listener", challenge.proof)
        self._awaited = Verdict
        return _encode(Answer(proof=self._cluster_key.prove(b"dialler", self._transcript), hello=self._hello))

    def _on_answer(self, answer: Answer) -> bytes:
        self._check_proof(b"dialler", answer.proof)
        self._take_hello(answer.hello)
        self._ask_to_decide()
        self._awaited = Confirmed
        return _encode(Verdict(hello=self._hello))

    def _on_verdict(self, verdict: Verdict) -> bytes:
        self._take_hello(verdict.hello)
        self._ask_to_decide()
        self._awaited = None
        return _encode(Confirmed())

    def _check_terms(self, theirs: Opening | Challenge) -> None:
        if theirs.version != PROTOCOL_VERSION:
            self._refuse(
                f"peer {self._remote} speaks version {theirs.version} of the control protocol, peer {self._local} "
                f"speaks {PROTOCOL_VERSION}: run the same release of barnraise on both"
            )
        if theirs.run != self._run:
            self._refuse(
                f"peer {self._remote} is in run {theirs.run[:8].hex() or 'none'}, peer {self._local} is in run "
                f"{self._run[:8].hex() or 'none'}: join with the line that the run's creator printed"
            )
        if len(theirs.nonce) != NONCE_BYTES or len(theirs.instance) != INSTANCE_BYTES:
            raise PeerError(self._remote, "nonce or instance of a wrong length", theirs.nonce)
        self._remote_instance = theirs.instance
        self._transcript = self._transcribe(theirs)

    def _transcribe(self, theirs: Opening | Challenge) -> bytes:
        """Return the hash of all that a proof binds, the dialler's part first."""
        ours = (self._local.encode(), self._nonce, self._instance)
        other = (self._remote.encode(), theirs.nonce, theirs.instance)
        fields = (ours + other) if self.initiator else (other + ours)
        hasher = hashlib.sha256(b"barnraise control admission 1")
        for field in (self._run, *fields, self._binding):
            hasher.update(len(field).to_bytes(4, "little"))
            hasher.update(field)
        return hasher.digest()

    def _check_proof(self, role: bytes, proof: bytes) -> None:
        if len(proof) != PROOF_BYTES or not self._cluster_key.check(role, self._transcript, proof):
            self._refuse(
                f"peers {self._remote} and {self._local} hold different cluster keys: "
                "copy the key file of a machine that is in the cluster"
            )

    def _take_hello(self, hello: bytes) -> None:
        if len(hello) > MAX_HELLO_BYTES:
            raise PeerError(self._remote, f"hello of {len(hello)} bytes, limit {MAX_HELLO_BYTES}", hello)
        self._remote_hello = hello

    def _ask_to_decide(self) -> None:
        if reason := self._decide(self._remote_instance):
            self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        self._awaited = None
        raise NotAdmitted(reason, _encode(Refusal(reason=reason[:MAX_REASON_CHARS])))


def printable(text: str) -> str:
    """Return a peer's words fit for a terminal and a log: no control characters, not too long."""
    return "".join(character if character.isprintable() else "?" for character in text[:MAX_REASON_CHARS])
