"""Learning a run's configuration from one of its peers; whoever joins knows its hash, so nobody needs to be believed."""

import contextlib
from dataclasses import replace

import msgspec
import trio

from barnraise.config import DataConfig, RunConfig, parse_run_config
from barnraise.errors import ConfigError, PeerError, Unavailable
from barnraise.ids import PeerId, RunId, short
from barnraise.net.seam import Network, NetworkEvent, PeerUp, Received
from barnraise.observe.events import EventLog
from barnraise.swarm import messages
from barnraise.swarm.messages import Genesis, GenesisWanted


async def enrol(
    network: Network, run: RunId, deadline_s: float, events: EventLog
) -> tuple[RunConfig, list[NetworkEvent]]:
    """Ask every peer that is admitted until one has sent the configuration that ``run`` is the hash of.

    Returns:
        The configuration, and all other events that came meanwhile: the peer's driver has them first.

    Raises:
        Unavailable: nobody sent it in time.
    """
    meanwhile: list[NetworkEvent] = []
    with trio.move_on_after(deadline_s):
        async for event in network.events:
            config = await _heard(network, run, event, events)
            if config is not None:
                return config, meanwhile
            meanwhile.append(event)
    raise Unavailable(
        f"no peer of run {run.hex()[:12]} sent its configuration within {deadline_s:.0f} s. Is the run still going on? "
        "Ask for a new invitation where it does."
    )


async def _heard(network: Network, run: RunId, event: NetworkEvent, events: EventLog) -> RunConfig | None:
    """Return the run's configuration, if an event brings it."""
    if isinstance(event, PeerUp):
        with contextlib.suppress(Unavailable):  # it is gone again; when it is back it is asked again
            await network.send(event.peer, messages.encode(GenesisWanted()))
    if not isinstance(event, Received):
        return None
    try:
        message = messages.decode(event.peer, event.message)
        return _checked(event.peer, run, message) if isinstance(message, Genesis) else None
    except PeerError as error:
        events.emit("peer.refused", reason=str(error))
        return None


def _checked(sender: PeerId, run: RunId, message: Genesis) -> RunConfig:
    """Return the configuration that a peer sent.

    Raises:
        PeerError: it is malformed, or another run's.
    """
    try:
        config = parse_run_config(message.config, f"the configuration that {short(sender)} sent")
    except (ConfigError, msgspec.DecodeError) as error:
        raise PeerError(sender, str(error), message.config.encode()) from error
    if config.run_id != run:
        raise PeerError(sender, f"sent the configuration of run {config.run_id.hex()[:12]}", message.config.encode())
    # The hash covers no paths: those are this machine's, and not for a peer to say.
    data = replace(config.data, source=DataConfig().source)
    return replace(config, data=data, model=replace(config.model, source=""))
