"""What a member's machine looks like from outside at this moment; it reads the machine and changes nothing."""

import math
import os
import types
from collections.abc import Mapping

from barnraise.ids import PeerId
from barnraise.observe.counters import Meter
from barnraise.observe.status import Connected, LinkRow, MemberStatus, Status
from barnraise.peer.links import MAX_LINK_MEMBERS, LinkSurvey
from barnraise.swarm import speech
from barnraise.swarm.member import Member
from barnraise.swarm.records import MICRO
from barnraise.swarm.round import Phase


def status_of(
    member: Member,
    *,
    now: float,
    unix_time: float,
    address: str = "",
    device: str = "",
    bytes_sent: int = 0,
    bytes_received: int = 0,
    parameters: int = 0,
    survey: LinkSurvey | None = None,
    exchange: Meter | None = None,
    complaints: Mapping[PeerId, int] = types.MappingProxyType({}),
) -> Status:
    """Return what there is to say of a peer.

    Args:
        member: its machine.
        now: seconds on the machine's clock.
        unix_time: the same moment in Unix seconds.
        address: multiaddress that it listens on.
        device: what its trainer computes on.
        bytes_sent: by this process, on the bulk plane.
        bytes_received: likewise.
        parameters: of the model.
        survey: what it measured of its links; None: nothing was.
        exchange: what its exchanges came to; None: there was none.
        complaints: how many messages of each peer had to be dropped.
    """
    state, metrics = member.state, member.state.metrics
    return Status(
        time=round(unix_time, 3),
        pid=os.getpid(),
        run=state.run.hex(),
        peer=member.me,
        address=address,
        device=device,
        round=state.round,
        rounds=state.config.round.rounds,
        phase=member.phase.value,
        waiting=speech.why_waiting(state, member.me, member.presence),
        waiting_for=waiting_for(member),
        members=tuple(
            MemberStatus(peer=entry.peer, counts_from=entry.counts_from, missed=entry.missed) for entry in state.members
        ),
        connected=tuple(
            _connected(peer, silent_s, survey, complaints.get(peer, 0))
            for peer, silent_s in sorted(member.presence.silences(now).items())
        ),
        links=_links(member, survey),
        parameters=parameters,
        vertex=state.vertex.hex(),
        train_loss=metrics.train_loss / MICRO if state.round else None,
        val_bits_per_byte=metrics.validation_loss / MICRO / math.log(2) if metrics.validation_loss >= 0 else None,
        tokens=state.total_samples * state.config.model.max_seq_len,
        bytes_sent=bytes_sent,
        bytes_received=bytes_received,
        exchange=exchange or Meter(),
    )


def _connected(peer: PeerId, silent_s: float, survey: LinkSurvey | None, num_refused: int) -> Connected:
    latency_s, bandwidth_bytes_s = survey.measured(peer) if survey else (None, None)
    return Connected(
        peer=peer,
        silent_s=round(silent_s, 1),
        latency_s=None if latency_s is None else round(latency_s, 6),
        bandwidth_bytes_s=None if bandwidth_bytes_s is None else round(bandwidth_bytes_s),
        num_refused=num_refused,
    )


def _links(member: Member, survey: LinkSurvey | None) -> tuple[LinkRow, ...]:
    """Return what is known of the links between the members, in their order."""
    state = member.state
    if survey is None or len(state.members) > MAX_LINK_MEMBERS:
        return ()
    rows = member.presence.links(state.epoch) | {member.me: survey.row(state.peers)}
    return tuple(
        LinkRow(
            peer=peer,
            uplink_kb_s=rows[peer].uplink_kb_s,
            downlink_kb_s=rows[peer].downlink_kb_s,
            latencies_us=rows[peer].latencies_us,
            bandwidths_kb_s=rows[peer].bandwidths_kb_s,
        )
        for peer in state.peers
        if peer in rows
    )


def waiting_for(member: Member) -> tuple[PeerId, ...]:
    """Return the peers whose word or data the member's phase waits for, by seniority."""
    match member.phase:
        case Phase.GATHER:
            missing = [peer for peer in member.state.peers if not member.presence.is_up(peer)]
        case Phase.COMMIT:
            missing = [peer for peer in member.state.peers if peer in member.work.plan.slots]
            missing = [peer for peer in missing if peer not in member.work.promises]
        case Phase.EXCHANGE if member.work.exchange is not None:
            owing = member.work.exchange.owing
            missing = [peer for peer in member.state.peers if peer in owing]
        case _:
            missing = []
    return tuple(peer for peer in missing if peer != member.me)
