"""Performs what the member's machine asks for, on real sockets, disks and trainers, in the order asked.

One task owns the machine: it takes events from the inbox one at a time and performs the effects of each before it
looks at the next, so that a promise is on disk before the vote that rests on it leaves. What takes long (training,
transfers, arithmetic) runs beside it and posts an event when it is done. Arithmetic and disk run in worker threads.
"""

import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, assert_never

import trio

from barnraise.collective import exchange
from barnraise.config import PeerConfig
from barnraise.dag.blobs import Blobs
from barnraise.dag.depot import Depot
from barnraise.dag.retention import Retention
from barnraise.dag.store import Store
from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.link.messages import Done, Failed, Finished, Initialised, Progress
from barnraise.link.process import TrainerEvent, TrainerGone, TrainerLink, TrainerUp
from barnraise.net.seam import (
    MAX_MESSAGE_BYTES,
    Bulk,
    Network,
    NetworkEvent,
    PeerDown,
    PeerUp,
    Received,
    Refused,
)
from barnraise.observe.counters import Meter
from barnraise.observe.events import EventLog
from barnraise.observe.status import STATUS_FILE, Status, StatusFile
from barnraise.peer.archive import Archive
from barnraise.peer.books import RoundBooks
from barnraise.peer.complaints import Complaints
from barnraise.peer.courier import Courier, FetchedState
from barnraise.peer.faults import Drill
from barnraise.peer.handover import Adoption, Followed, Giver, Taker
from barnraise.peer.keyring import Keyring, read_hello
from barnraise.peer.links import LinkSurvey
from barnraise.peer.orders import Orders
from barnraise.peer.petitions import Desk
from barnraise.peer.status import status_of
from barnraise.peer.succession import take_over
from barnraise.peer.workbench import Workbench
from barnraise.swarm import effects, messages
from barnraise.swarm.effects import Effect
from barnraise.swarm.member import Member
from barnraise.swarm.workspace import Workspace

TICK_S: Final = 0.25
INBOX_EVENTS: Final = 1024
SEND_PATIENCE_S: Final = 0.05
"""How long a peer whose queue is full may hold up what we say to the others."""
LINGER_S: Final = 20.0
"""A peer that is done waits this long for others that are a little behind and may need it."""

Event = Callable[[float], list[Effect]]


class Driver:
    """One peer at work, from its first connection to the run's end."""

    def __init__(
        self,
        *,
        config: PeerConfig,
        member: Member,
        workspace: Workspace,
        store: Store,
        blobs: Blobs,
        keys: Keyring,
        trainer: TrainerLink,
        events: EventLog,
        network: Network,
        device: str = "",
    ) -> None:
        self._config = config
        self._member = member
        self._workspace = workspace
        self._keys = keys
        self._trainer = trainer
        self._events = events
        self._network = network
        self._device = device
        self._status_file = StatusFile(config.data_dir / STATUS_FILE)
        self._inbox_in, self._inbox = trio.open_memory_channel[Event | FetchedState | Adoption](INBOX_EVENTS)
        self._token = trio.lowlevel.current_trio_token()
        self._bench = Workbench(member, workspace)
        self._books = RoundBooks()
        self._complaints = Complaints()
        self._drill = Drill()
        retention = Retention(newest=config.keep_checkpoints, every=config.keep_every)
        self._archive = Archive(store, blobs, self._drill, retention)
        self._desk = Desk(config.data_dir)
        self._orders = Orders(blobs.scratch or config.data_dir)
        self._done = trio.Event()
        self._finished_at: float | None = None
        self._bulk: Bulk | None = None
        self._survey: LinkSurvey | None = None
        self._exchange = Meter()
        self._nursery: trio.Nursery | None = None
        self._depot = Depot(blobs, self._accuse)
        self.courier = Courier(member, workspace, self.post_from_thread, self._fetched_in_thread, self._depot)
        self._giver = Giver(member, workspace, self._archive, keys, self.courier, self._depot.shelf)
        self._taker = Taker(member, workspace, keys, self.courier, events, self._depot)

    async def leave(self, after_round: int | None = None) -> None:
        """Finish the round, or ``after_round``, and leave the run."""
        await self._post(functools.partial(self._member.leave, after_round=after_round))

    async def run(self, bulk: Bulk, meanwhile: Sequence[NetworkEvent] = ()) -> None:
        """Work until the run is over and nobody needs us any more; begin with what the network told before.

        Raises:
            LocalError: the trainer cannot go on.
            OSError, sqlite3.OperationalError: the disk cannot; nothing is half applied.
        """
        self._bulk = bulk
        self._survey = LinkSurvey(self._member.me, self._network, bulk)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._hear_network, meanwhile)
            nursery.start_soon(self._hear_trainer)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._depot.shelf.serve, bulk)
            nursery.start_soon(self._work)
            await self._done.wait()
            nursery.cancel_scope.cancel()

    # ---- the inbox --------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        async for event in self._inbox:
            for effect in await self._handle(event):
                with self._drill.around(effect, self._member.state.round):
                    await self._perform(effect)

    async def _handle(self, event: Event | FetchedState | Adoption) -> list[Effect]:
        if isinstance(event, FetchedState):
            return await self._follow(event)
        if isinstance(event, Adoption):
            return await self._adopt(event)
        try:
            return event(trio.current_time())
        except PeerError as error:
            self._complain(error)
            return []

    def _complain(self, error: PeerError) -> None:
        """Count a bad message, and tell of it unless there are many."""
        if self._complaints.note(error.peer, trio.current_time()):
            times = self._complaints.counts[error.peer]
            self._events.emit("peer.refused", reason=f"{error} ({times} times)" if times > 1 else str(error))

    async def _post(self, event: Event) -> None:
        await self._inbox_in.send(event)

    def post_from_thread(self, event: Event) -> None:
        """Post from a worker thread, which waits while the inbox is full."""
        with contextlib.suppress(trio.RunFinishedError, trio.Cancelled):
            trio.from_thread.run(self._post, event, trio_token=self._token)

    async def _tick(self) -> None:
        try:
            while not self._may_leave():
                await self._post(self._pass_time)
                self._status_file.write(self._status())
                await trio.sleep(TICK_S)
        finally:
            self._status_file.write(self._status(), is_last=True)
        self._done.set()

    def _pass_time(self, now: float) -> list[Effect]:
        news = self._survey.news(now, self._member.state) if self._survey else []
        return self._member.tick(now) + news + self._petitioned(now)

    def _petitioned(self, now: float) -> list[Effect]:
        """Hand on what somebody has left in our directory; what is wrong with it is told once for each entry."""
        found: list[Effect] = []
        for petition in self._desk.look(self._member.state.height):
            try:
                found += self._member.petition(now, petition)
            except PeerError as error:
                self._events.emit("peer.refused", reason=f"a petition in {self._config.data_dir}: {error}")
        return found

    def _status(self) -> Status:
        return status_of(
            self._member,
            now=trio.current_time(),
            unix_time=time.time(),
            address=next(iter(self._network.addresses), ""),
            device=self._device,
            bytes_sent=self._total_sent(),
            bytes_received=self._total_received(),
            parameters=self._workspace.size,
            survey=self._survey,
            exchange=self._exchange,
            complaints=self._complaints.counts,
        )

    def _may_leave(self) -> bool:
        """Tell whether the run is over and nobody who is connected is behind, or has been for too long."""
        if self._finished_at is None:
            return False
        is_late = trio.current_time() > self._finished_at + LINGER_S
        return is_late or not self._member.presence.anyone_behind(self._member.state.height)

    async def _hear_network(self, meanwhile: Sequence[NetworkEvent]) -> None:
        for event in meanwhile:
            await self._on_network(event)
        async for event in self._network.events:
            await self._on_network(event)

    async def _on_network(self, event: NetworkEvent) -> None:
        match event:
            case PeerUp():
                await self._greet(event)
            case PeerDown():
                self._events.emit("peer.lost", other=event.peer, reason=event.reason)
                if self._bulk is not None:
                    self._bulk.forget(event.peer)
                await self._post(functools.partial(self._member.peer_down, peer=event.peer))
                if self._taker.donor == event.peer:
                    await self._post(lambda now: self._taker.give_up())
            case Received():
                if not self._complaints.is_muted(event.peer, trio.current_time()):
                    await self._post(functools.partial(self._receive, event))
            case Refused():
                self._events.emit("peer.refused", reason=f"{event.address or event.peer}: {event.reason}")

    async def _greet(self, event: PeerUp) -> None:
        try:
            identity, host, port = read_hello(event.peer, event.hello)
        except PeerError as error:
            self._events.emit("peer.refused", reason=str(error))
            return
        self._keys.add(identity)
        if self._bulk is not None:
            self._bulk.learn(event.peer, host, port)
        self._events.emit("peer.joined", other=event.peer)
        await self._post(functools.partial(self._member.peer_up, peer=event.peer))

    def _receive(self, event: Received, now: float) -> list[Effect]:
        return self._member.receive(now, event.peer, messages.decode(event.peer, event.message))

    async def _hear_trainer(self) -> None:
        async for event in self._trainer.events:
            await self._on_trainer(event)

    async def _go(self) -> None:
        """Leave at once: nobody trains here any more."""
        self._done.set()

    async def _on_trainer(self, event: TrainerEvent) -> None:
        match event:
            case TrainerUp():
                self._device = event.hello.device
                self._events.emit("trainer.restarted", pid=event.hello.pid, exit=event.died)
            case Progress():
                steps = self._member.work.plan.steps
                self._events.emit("round.progress", round=event.round, step=event.step, steps=steps, loss=event.loss)
            case Done():
                if self._orders.is_news(event.order):
                    self._start(self._encode, event)
            case TrainerGone():
                await (self._go() if event.hung_up else self.leave())
            case Failed():
                raise LocalError(f"the trainer cannot train round {event.round}: {event.reason}")
            case Initialised():
                raise LocalError("the trainer initialised a run that has begun")

    # ---- effects ----------------------------------------------------------------------------------------------

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case effects.Broadcast():
                await self._broadcast(effect.message)
            case effects.Send():
                await self._send(effect.to, messages.encode(effect.message))
            case effects.PersistBallot():
                self._books.voted()
                await self._archive.on_log(self._archive.store.persist, effect.record)
            case effects.Train():
                await self._train(effect)
            case effects.Transfer():
                self._transfer(effect)
            case effects.Step():
                self._start(self._step, effect, self._workspace.generation)
            case effects.Append():
                self._books.cut(self._total_sent(), self._total_received())
                vertices = (effect.vertex,) if effect.vertex else ()
                await self._archive.on_log(self._archive.store.append, effect.height, [effect.decision], vertices, None)
            case effects.Commit():
                await self._commit(effect)
            case effects.CatchUp():
                self._start(self._catch_up, effect)
            case effects.SendState():
                self._start(self._giver.give, self._plane, effect)
            case effects.Finish():
                await self._finish(effect)
            case effects.Report():
                self._events.emit(effect.event, **effect.fields)
            case effects.Complain():
                self._complain(effect.error)
            case _:
                assert_never(effect)

    async def _broadcast(self, message: messages.Message) -> None:
        data = messages.encode(message)
        for peer in self._member.presence.connected:
            await self._send(peer, data)

    async def _send(self, to: PeerId, data: bytes) -> None:
        """Send, or not: whoever is gone or takes nothing is told again later, and keeps nobody waiting meanwhile."""
        if len(data) > MAX_MESSAGE_BYTES:
            return  # a decision with the votes of some twenty members: who lacks it fetches the state
        with contextlib.suppress(Unavailable), trio.move_on_after(SEND_PATIENCE_S):
            await self._network.send(to, data)

    async def _train(self, effect: effects.Train) -> None:
        self._books = RoundBooks(sent=self._total_sent(), received=self._total_received())
        theta = await self._archive.lend(self._member.state.theta_root)
        work = self._orders.give(effect.plan, self._member.me, theta)
        if work is not None:
            await self._trainer.assign(work)

    def _transfer(self, effect: effects.Transfer) -> None:
        if isinstance(effect.step, exchange.Aggregate):
            self._start(self._aggregate, effect, effect.step.shard, self._workspace.generation)
        else:
            if (effect.round, effect.attempt) != (self._member.state.round, self._member.state.attempt):
                return  # it was concluded in the same breath; who lacks the shard fetches the state
            parcel = self.courier.pack(effect)
            self._start(self.courier.push, self._plane, parcel, self._member.state.config.round.exchange_timeout_s)

    async def _commit(self, effect: effects.Commit) -> None:
        """Tensors first, then the log entry that names them: a crash between the two loses the step, not the order."""
        began = trio.current_time()
        space = self._workspace
        residual = space.residual_after if effect.contributed and space.residual_after is not None else space.residual
        names = effect.state.theta_root, effect.state.momentum_root
        saved = effect.height, [effect.decision], (effect.vertex,), space.pending(), names, residual
        self._start(self._archive.prune, await self._archive.save(*saved))
        space.commit(effect.contributed)
        self.courier.enter(effect.event.round + 1)
        self._books.applied(trio.current_time() - began)
        self._report_committed(effect)
        self._start(self._go_on_under_another_key)

    async def _go_on_under_another_key(self) -> None:
        """Leave, if the members agreed to our new key, for this process has the old one."""
        if take_over(self._config.data_dir, self._member.state, self._member.me):
            self._events.emit("peer.waiting", reason="the members agreed to the new key of this peer: start it again")
            await self.leave()

    # ---- work beside the inbox --------------------------------------------------------------------------------

    async def _encode(self, done: Done) -> None:
        """Put the trainer's update on the grid and report it."""
        self._books.trained()
        trained = await self._bench.encode(done, self._orders.update_file)
        residual = self._workspace.residual_after

        def report(now: float) -> list[Effect]:
            # A regroup gives the same round other samples: what was trained before it is not what is asked for.
            return self._member.trained(now, trained) if self._orders.is_newest(done.order) else []

        await self._post(report)
        if residual is not None:
            await self._archive.write_residual(residual)

    async def _aggregate(self, effect: effects.Transfer, shard: int, generation: int) -> None:
        if await self._bench.aggregate(effect, shard, generation):
            event = functools.partial(self._member.aggregated, round_=effect.round, attempt=effect.attempt, shard=shard)
            await self._post(event)

    async def _step(self, effect: effects.Step, generation: int) -> None:
        self._books.exchanged(self._total_sent(), self._total_received())
        found = await self._bench.step(effect, generation)
        if found is None:
            return
        stepped, tensors = found
        self._books.stepped()
        await self._post(functools.partial(self._member.stepped, stepped=stepped))
        await self._archive.write_tensors(tensors, (stepped.theta_root, stepped.momentum_root))

    async def _catch_up(self, effect: effects.CatchUp) -> None:
        self._taker.begin(effect)
        wanted = messages.StateWanted(height=effect.height, is_hollow=self._member.is_hollow)
        await self._send(effect.donor, messages.encode(wanted))
        if await self._taker.watch(effect):
            await self._post(lambda now: self._taker.give_up())

    def _fetched_in_thread(self, fetched: FetchedState) -> None:
        with contextlib.suppress(trio.RunFinishedError, trio.Cancelled):
            trio.from_thread.run(self._inbox_in.send, fetched, trio_token=self._token)

    async def _follow(self, fetched: FetchedState) -> list[Effect]:
        """Check a piece of a donor's log; with the last one begin to fetch what it leads to."""
        try:
            followed = await self._bench.compute(self._taker.take, fetched)
        except (LocalError, PeerError) as error:
            return self._taker.refuse(fetched.donor, error)
        if followed is not None:
            self._start(self._gather, followed)
        return []

    async def _gather(self, followed: Followed) -> None:
        """Fetch the tensors at the end of a log."""
        try:
            adoption = await self._taker.gather(self._plane, followed)
        except (LocalError, Unavailable) as error:
            donor, refusal = followed.asked.donor, error
            await self._post(lambda now: self._taker.refuse(donor, refusal))
            return
        if adoption is not None:
            await self._inbox_in.send(adoption)

    def _accuse(self, error: PeerError) -> None:
        self._events.emit("peer.refused", reason=str(error))

    async def _adopt(self, adoption: Adoption) -> list[Effect]:
        """Make ours what was fetched."""
        followed, space = adoption.followed, self._workspace
        try:
            residual = self._taker.conclude(adoption)
        except LocalError as error:
            return self._taker.refuse(followed.asked.donor, error)
        if residual is None:
            return []
        state, names = followed.state, (followed.state.theta_root, followed.state.momentum_root)
        saved = followed.asked.height, followed.log, followed.vertices, adoption.tensors, names, residual
        self._start(self._archive.prune, await self._archive.save(*saved))
        await self._bench.compute(space.replace, *adoption.tensors, residual)
        self.courier.enter(state.round)
        return self._member.caught_up(trio.current_time(), state)

    async def _finish(self, effect: effects.Finish) -> None:
        """Report the end; `_tick` sees to it that we leave."""
        self._finished_at = trio.current_time()
        state = self._member.state
        theta = self._archive.blobs.path(state.theta_root)
        lent = await self._archive.lend(state.theta_root)
        await self._trainer.assign(Finished(round=state.round, theta_path=str(lent)))
        fields: dict[str, object] = {
            "vertex": state.vertex.hex(),
            "theta_path": str(theta),
            "rounds": state.round,
            "tokens": state.total_samples * state.config.model.max_seq_len,
            "bytes_sent": self._total_sent(),
            "bytes_received": self._total_received(),
        }
        if effect.is_over:
            self._events.emit("run.finished", **fields)
        else:
            self._events.emit("run.left", reason=effect.reason, **fields)

    # ---- tasks and figures ------------------------------------------------------------------------------------

    def _start(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        if self._nursery is None:
            raise LocalError("the driver does not run")
        self._nursery.start_soon(work, *arguments)

    @property
    def _plane(self) -> Bulk:
        if self._bulk is None:
            raise LocalError("the driver does not run")
        return self._bulk

    def _report_committed(self, effect: effects.Commit) -> None:
        fields = self._books.committed(effect, self._total_sent(), self._total_received())
        self._events.emit("round.committed", **fields)
        self._exchange = self._books.metered(self._exchange, effect, self._total_sent(), self._total_received())
        if self._survey is not None:
            self._survey.note_exchange(*self._books.moved, self._books.exchange_s)
        for peer in effect.event.left:
            self._events.emit("peer.left", other=peer, reason="it was gone when the round was agreed")

    def _total_sent(self) -> int:
        return self._plane.bytes_sent

    def _total_received(self) -> int:
        return self._plane.bytes_received
