"""Fetches blobs over the bulk plane, as `download` says: asks, takes what was asked for, checks it, writes it.

Bytes are checked and written in the bulk plane's worker threads, chunk by chunk; the event loop only hears what came.
Nothing is allocated for an answer that was not asked for, and no more than was asked for.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, assert_never

import trio

from barnraise.dag.asking import Answer, Ask, Part, encode
from barnraise.dag.blobs import Blobs
from barnraise.dag.download import Accuse, Download, Effect, Found, Request, Wanted
from barnraise.dag.partial import Partial
from barnraise.errors import PeerError, Unavailable
from barnraise.ids import Digest, PeerId
from barnraise.net.seam import Bulk
from barnraise.swarm.manifest import CHUNK_BYTES, Manifest

TICK_S: Final = 0.1
ASK_S: Final = 10.0
"""A donor that has not taken an ask by then is as good as gone."""

Event = Callable[[float], list[Effect]]
Key = tuple[PeerId, Part]


class Fetch:
    """One download on its way; `sink` and `arrived` are the bulk plane's.

    Args:
        blobs: where they go.
        wanted: which.
        donors: says who may be asked now; called a few times a second.
        accused: told of each donor that sent what does not hold.
    """

    def __init__(
        self,
        blobs: Blobs,
        wanted: Sequence[Wanted],
        donors: Callable[[], Collection[PeerId]],
        accused: Callable[[PeerError], None],
    ) -> None:
        self._blobs, self._wanted = blobs, {blob.name: blob for blob in wanted}
        self._donors, self._accused = donors, accused
        self._events_in, self._events = trio.open_memory_channel[Event](float("inf"))
        self._token = trio.lowlevel.current_trio_token()
        self._download = Download((), 0.0)
        self._partials: dict[Digest, Partial] = {}
        self._asked: dict[Key, int] = {}
        """How long an answer must be. Written in the event loop, read and taken out by sinks, of which one runs."""
        self._rooms: dict[Key, bytearray] = {}
        self.num_arrived = 0
        """Parts that held, for whoever watches whether anything still comes."""
        self.received_bytes: dict[PeerId, int] = {}
        """What held, by donor."""

    # ---- the event loop's side --------------------------------------------------------------------------------

    async def run(self, bulk: Bulk) -> None:
        """Fetch all of it; a download that an earlier life began goes on.

        Raises:
            Unavailable: nobody who is there has what is missing.
            OSError: the disk is full, say. What came stays for the next time.
        """
        with self._blobs.hold(*self._wanted):
            try:
                found = await trio.to_thread.run_sync(self._open)
                self._download = Download(list(self._wanted.values()), trio.current_time(), found)
                await self._gather(bulk)
                await trio.to_thread.run_sync(self._finish)
            finally:
                self._asked.clear()
                for partial in self._partials.values():
                    partial.close()

    async def _gather(self, bulk: Bulk) -> None:
        failure: Unavailable | OSError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await self._drive(bulk, nursery)
            except (Unavailable, OSError) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _drive(self, bulk: Bulk, nursery: trio.Nursery) -> None:
        while not self._download.is_done:
            now = trio.current_time()
            effects = self._download.present(now, self._donors())
            if self._download.is_starved(now):
                raise Unavailable(
                    f"nobody of {len(self._donors())} donors sends the {self._download.missing_bytes} bytes still missing"
                )
            self._forget_what_nobody_owes()
            self._perform(bulk, nursery, effects)
            with trio.move_on_after(TICK_S):
                while not self._download.is_done:
                    event = await self._events.receive()
                    self._perform(bulk, nursery, event(trio.current_time()))

    def _perform(self, bulk: Bulk, nursery: trio.Nursery, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Request():
                    size_bytes = effect.part.length_bytes(self._wanted[effect.part.digest].size_bytes)
                    self._asked[effect.donor, effect.part] = size_bytes or 0
                    nursery.start_soon(self._ask, bulk, effect)
                case Accuse():
                    self._accused(PeerError(effect.donor, effect.reason, effect.evidence))
                case _:
                    assert_never(effect)

    async def _ask(self, bulk: Bulk, request: Request) -> None:
        try:
            with trio.fail_after(ASK_S):
                await bulk.send(request.donor, encode(Ask(request.part)), [])
        except (Unavailable, trio.TooSlowError):
            self._asked.pop((request.donor, request.part), None)
            now = trio.current_time()
            await self._events_in.send(lambda _: self._download.refused(now, request.donor, request.part))

    def _forget_what_nobody_owes(self) -> None:
        """Let go of rooms that stalled donors leave behind; who still writes to one keeps it alive, and nobody reads it."""
        for held in (self._asked, self._rooms):
            for key in [key for key in held if not self._download.is_open(*key)]:
                held.pop(key, None)

    # ---- the worker threads' side -----------------------------------------------------------------------------

    def sink(self, sender: PeerId, answer: Answer, size_bytes: int) -> memoryview | None:
        """Make room for what was asked for."""
        key = sender, answer.part
        if self._asked.get(key) != size_bytes:
            return None
        self._asked.pop(key, None)
        room = self._rooms[key] = bytearray(size_bytes)
        return memoryview(room)

    def arrived(self, sender: PeerId, answer: Answer) -> None:
        """Check what came, write it, and tell the event loop."""
        room = self._rooms.pop((sender, answer.part), None)
        if room is None:
            return  # it came too late to be of use
        event = self._manifest(sender, answer.part, room) if answer.part.is_manifest else None
        try:
            event = event or self._chunks(sender, answer.part, memoryview(room))
        except OSError as error:
            event = _failing(error)
        try:
            self._token.run_sync_soon(self._events_in.send_nowait, event)
        except trio.RunFinishedError:
            return

    def _manifest(self, sender: PeerId, part: Part, data: bytearray) -> Event:
        try:
            manifest = Manifest.decode(bytes(data), part.digest, self._wanted[part.digest].size_bytes)
        except ValueError as error:
            reason, evidence = f"sent {error}", bytes(data)
            return lambda now: self._download.lied(now, sender, part, (), reason, evidence)
        return lambda now: self._take_manifest(now, sender, manifest)

    def _take_manifest(self, now: float, sender: PeerId, manifest: Manifest) -> list[Effect]:
        if self._download.manifest(manifest.name) is None:
            self._partials[manifest.name].begin(manifest)
        self.num_arrived += 1
        return self._download.manifest_came(now, sender, manifest)

    def _chunks(self, sender: PeerId, part: Part, data: memoryview) -> Event:
        partial, written = self._partials[part.digest], list[int]()
        for place, index in enumerate(part.chunks):
            chunk = data[place * CHUNK_BYTES : (place + 1) * CHUNK_BYTES]
            if not partial.write(index, chunk):
                return lambda now: self._take_rotten(now, sender, part, written, bytes(chunk[:256]))
            written.append(index)
        return lambda now: self._take_chunks(now, sender, part, written)

    def _take_chunks(self, now: float, sender: PeerId, part: Part, written: Sequence[int]) -> list[Effect]:
        self._count(sender, part, written)
        return self._download.came(now, sender, part, written)

    def _take_rotten(
        self, now: float, sender: PeerId, part: Part, written: Sequence[int], evidence: bytes
    ) -> list[Effect]:
        self._count(sender, part, written)
        reason = f"sent something else as chunk {part.first + len(written)} of {part.digest.hex()[:12]}"
        return self._download.lied(now, sender, part, written, reason, evidence)

    def _count(self, sender: PeerId, part: Part, written: Sequence[int]) -> None:
        self.num_arrived += 1
        blob_bytes = self._wanted[part.digest].size_bytes
        size_bytes = sum(Part(part.name, index, 1).length_bytes(blob_bytes) or 0 for index in written)
        self.received_bytes[sender] = self.received_bytes.get(sender, 0) + size_bytes

    # ---- files ------------------------------------------------------------------------------------------------

    def _open(self) -> dict[Digest, Found]:
        found: dict[Digest, Found] = {}
        for name, wanted in self._wanted.items():
            partial = self._partials[name] = Partial(self._blobs, wanted)
            left = partial.found()
            if left is not None:
                found[name] = left
        return found

    def _finish(self) -> None:
        for partial in self._partials.values():
            partial.finish()


def _failing(error: OSError) -> Event:
    def fail(now: float) -> list[Effect]:
        raise error

    return fail
