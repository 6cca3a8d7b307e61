"""Messages that a member answers, or notes, and that do not move it; pure."""

from typing import assert_never

from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm import effects, speech
from barnraise.swarm.effects import Effect
from barnraise.swarm.mailbox import Mailbox
from barnraise.swarm.messages import Genesis, GenesisWanted, Links, StateWanted, Want
from barnraise.swarm.presence import Presence
from barnraise.swarm.round import Work
from barnraise.swarm.state import State

Answered = Want | GenesisWanted | Genesis | Links | StateWanted


def reply(
    state: State, work: Work, mailbox: Mailbox, presence: Presence, sender: PeerId, message: Answered
) -> list[Effect]:
    """Return the answer to a message.

    Raises:
        PeerError: it breaks the protocol; nothing changed.
    """
    match message:
        case Want():
            return _on_want(state, work, mailbox, sender, message)
        case GenesisWanted():
            return [effects.Send(to=sender, message=Genesis(config=speech.shared_config(state)))]
        case Genesis():
            return []  # only who does not know the run yet asks for it, and asks without this machine
        case Links():
            _note_links(state, presence, sender, message)
            return []
        case StateWanted():
            return [effects.SendState(to=sender, height=message.height, is_hollow=message.is_hollow)]
        case _:
            assert_never(message)


def _on_want(state: State, work: Work, mailbox: Mailbox, sender: PeerId, message: Want) -> list[Effect]:
    found: list[Effect] = []
    decided = mailbox.decided(message.height)
    if decided:
        found.append(effects.Send(to=sender, message=decided))
    if message.round == state.round:
        asked = set(message.commitments)
        known = [promise.message for peer, promise in sorted(work.promises.items()) if peer in asked]
        found += [effects.Send(to=sender, message=commit) for commit in known]
    return found


def _note_links(state: State, presence: Presence, sender: PeerId, message: Links) -> None:
    """Note what a member says of its links, if it is about the members that we know: if not, it is told again."""
    if message.epoch != state.epoch or sender not in state.peers:
        return
    counts = len(message.row.latencies_us), len(message.row.bandwidths_kb_s)
    if counts != (len(state.members),) * 2:
        said = f"told {counts[0]} latencies and {counts[1]} bandwidths of links to {len(state.members)} members"
        raise PeerError(sender, said)
    presence.note_links(sender, message.epoch, message.row)
