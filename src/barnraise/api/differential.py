"""A module's parameters and buffers kept alike in another process, by sending what has changed; how bytes move is the user's.

A message is BLAKE3 of the tensors' names and shapes (32 bytes), then a message of `codec.delta`. What takes part is what
a swarm agrees on: trainable parameters and saved buffers of floating point.
"""

from torch import nn

from barnraise.api.parameters import Parameters
from barnraise.api.ranks import Ranks
from barnraise.codec.codec import Malformed
from barnraise.codec.delta import THRESHOLD, WHOLE_STATE, Applied, DeltaReceiver, DeltaSender, Gap
from barnraise.errors import ConfigError
from barnraise.ids import DIGEST_BYTES

Answer = Applied | Gap


class ParameterSender:
    """Keeps one receiver's copy of a module up to date; each receiver needs a sender of its own.

    >>> sender, receiver = ParameterSender(model), ParameterReceiver(copy)
    >>> first = sender.message()
    >>> sender.answered(receiver.apply(first))
    >>> with torch.no_grad():
    ...     _ = next(model.parameters()).view(-1)[0].add_(1)
    >>> len(sender.message()) < len(first)
    True
    """

    def __init__(self, model: nn.Module, codec: str = WHOLE_STATE, threshold: float = THRESHOLD) -> None:
        """Send a module's changes.

        Args:
            model: the module, wherever it lies.
            codec: how changes travel; `barnraise.codec.chain` names all. A lossy one's error is part of the next change.
            threshold: changes that are smaller, relative to the value, wait until they have added up to more.

        Raises:
            ConfigError: there is no such codec, or the module has nothing to send.
        """
        self._parameters = Parameters(model, Ranks())
        self._sender = DeltaSender(codec, threshold)

    def message(self) -> bytes:
        """Return what brings the receiver up to date: all of it at first and after a gap, then what has changed."""
        return bytes.fromhex(self._parameters.digest) + self._sender.encode(self._parameters.read())

    def answered(self, answer: Answer) -> None:
        """Take the receiver's answer to the last message. Without one, the next message repeats what that one said."""
        if isinstance(answer, Gap):
            self._sender.resynchronise()
        else:
            self._sender.acknowledge(answer)


class ParameterReceiver:
    """Follows a `ParameterSender`."""

    def __init__(self, model: nn.Module) -> None:
        """Write to a module that is made like the sender's."""
        self._parameters = Parameters(model, Ranks())
        self._receiver = DeltaReceiver(self._parameters.size)

    def apply(self, message: bytes) -> Answer:
        """Write what a message says to the module, and return what to answer.

        Raises:
            ConfigError: the sender's module has other tensors.
            Malformed: no sender made it. The module is as it was.
        """
        if message[:DIGEST_BYTES].hex() != self._parameters.digest:
            raise ConfigError("the sender's module has tensors of other names or shapes. Build both alike.")
        answer = self._receiver.apply(message[DIGEST_BYTES:])
        if isinstance(answer, Applied):
            if len(self._receiver.values) != self._parameters.size:
                raise Malformed(f"{len(self._receiver.values)} elements instead of {self._parameters.size}")
            self._parameters.write(self._receiver.values)
        return answer
