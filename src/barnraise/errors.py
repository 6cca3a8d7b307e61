"""Every error that barnraise raises on purpose, and whose fault each one is.

    BarnraiseError
    |-- ConfigError     the user's: a value, a file, a flag      exit code 2
    |-- LocalError      ours: a promise of this code was broken  exit code 1
    |-- PeerError       theirs: carries the peer and the evidence
    |-- Unavailable     nobody's: try again later                exit code 3
    `-- Aborted         the members voted not to go on           exit code 4

A message names the value, the limit and the next step.
"""

from collections.abc import Iterator

from barnraise.ids import PeerId


class BarnraiseError(Exception):
    """The root of the tree; never raised itself."""

    exit_code = 1


class ConfigError(BarnraiseError):
    """The user asked for something that cannot be; the message says what to change."""

    exit_code = 2


class LocalError(BarnraiseError):
    """This code broke a promise to itself: a defect to report."""


class PeerError(BarnraiseError):
    """A peer broke the protocol. ``evidence`` is what it sent, cut to a printable length."""

    def __init__(self, peer: PeerId, message: str, evidence: bytes = b"") -> None:
        super().__init__(f"peer {peer}: {message}")
        self.peer = peer
        self.evidence = evidence[:256]


class Unavailable(BarnraiseError):
    """Something that others provide is not there now; trying again later may work."""

    exit_code = 3


class Aborted(BarnraiseError):
    """The run ended because too few members were left to agree."""

    exit_code = 4


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Return what a task group's error is made of, however deeply it is nested."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from leaves(part)
    else:
        yield error
