"""When an entry of the log is certified: by a quorum of the members, or, a recovery, by most of the operators; pure.

Whoever follows a log that somebody else hands over (`adopt`, a proof that is checked years later) asks here, and nowhere
else, whether an entry's votes hold. A recovery is the one entry that members do not vote for: more of them are gone than
agreement can do without. Its votes are the signatures of more than half of the operators, over the entry's own bytes,
which name run, epoch, the entry before and the checkpoint: they mean nothing anywhere else.

What that rests on: an operator signs at most one recovery of a place in the log. Two that were signed by two majorities
share an operator who signed both, and whose signatures show it. And the members that are left out must be gone for good:
what they agreed on after the recovery's place is lost with them, and those of them that come back find another entry in
the place of theirs; they can only begin anew, with an empty directory.
"""

from typing import Final

import msgspec

from barnraise.consensus.agreement import Decision, Verify
from barnraise.errors import LocalError
from barnraise.ids import PeerId
from barnraise.swarm import amendments, records
from barnraise.swarm.records import LogEvent, Recover
from barnraise.swarm.state import State, check_follows

RECOVERY_CONTEXT: Final = "barnraise 1 recovery"


def certifies(state: State, decision: Decision, verify: Verify) -> bool:
    """Tell whether a decision is the next entry of the log, and those whose word it takes have signed it.

    Args:
        state: What the entry follows.
        decision: The entry with its votes.
        verify: A signature of any peer whose keys are known.
    """
    try:
        return is_certified(state, decision, event_of(decision.value), verify)
    except LocalError:
        return False


def is_certified(state: State, decision: Decision, event: LogEvent, verify: Verify) -> bool:
    """Tell the same of a decision whose entry was decoded; that it follows the state is checked for a recovery alone."""
    if not isinstance(event, Recover):
        return state.agreement.holds(decision, state.scope, state.committee, verify)
    check_follows(state, event)
    operators = state.founded.operator_ids
    signers = {
        signer
        for signer, signature in decision.votes[: len(operators)]
        if signer in operators and verify(PeerId(signer), RECOVERY_CONTEXT, decision.value, signature)
    }
    return amendments.is_majority(operators, signers)


def event_of(value: bytes) -> LogEvent:
    """Return the entry in some bytes; raises `LocalError` where it is malformed."""
    try:
        return records.decode_event.decode(value)
    except msgspec.DecodeError as error:
        raise LocalError(f"an entry of the log is malformed: {error}") from error
