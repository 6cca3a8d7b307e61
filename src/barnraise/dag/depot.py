"""Where blobs come in and go out over the bulk plane: one download at a time, and whatever others ask for."""

from collections.abc import Callable, Collection, Sequence

import trio

from barnraise.dag.asking import Answer, Ask, decode
from barnraise.dag.blobs import Blobs
from barnraise.dag.download import Wanted
from barnraise.dag.fetch import Fetch
from barnraise.dag.shelf import Shelf
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.net.seam import Bulk


class Depot:
    """A peer's blobs, as others see them. `sink` and `arrived` are the bulk plane's."""

    def __init__(self, blobs: Blobs, accused: Callable[[PeerError], None]) -> None:
        """Take the blobs to serve and to add to, and who is to hear of donors that lie."""
        self.blobs = blobs
        self.shelf = Shelf(blobs)
        self._accused = accused
        self._fetching = trio.Lock()
        self._fetch: Fetch | None = None

    @property
    def num_arrived(self) -> int:
        """Return how many parts of what is being fetched have come."""
        return self._fetch.num_arrived if self._fetch else 0

    async def fetch(
        self, bulk: Bulk, wanted: Sequence[Wanted], donors: Callable[[], Collection[PeerId]]
    ) -> dict[PeerId, int]:
        """Fetch blobs from several donors at once; return how many bytes came from whom.

        A second download begins when the first has ended, which may still be syncing what came after it was given up.

        Args:
            bulk: the plane whose `sink` and `arrived` these are.
            wanted: which blobs; those that are here already are not to be among them.
            donors: says who may be asked now; called a few times a second.

        Raises:
            Unavailable: nobody who is there has what is missing.
            OSError: the disk is full, say. What came stays for the next time.
        """
        async with self._fetching:
            self._fetch = Fetch(self.blobs, wanted, donors, self._accused)
            try:
                await self._fetch.run(bulk)
                return self._fetch.received_bytes
            finally:
                self._fetch = None

    def sink(self, sender: PeerId, data: bytes, size_bytes: int) -> memoryview | None:
        """Say where a payload goes; None refuses it."""
        match decode(data):
            case Ask(part):
                return memoryview(bytearray()) if self.shelf.accepts(sender, part, size_bytes) else None
            case Answer() as answer:
                fetch = self._fetch
                return fetch.sink(sender, answer, size_bytes) if fetch else None
            case None:
                return None

    def arrived(self, sender: PeerId, data: bytes) -> None:
        """Take a payload that is whole."""
        match decode(data):
            case Ask(part):
                self.shelf.asked(sender, part)
            case Answer() as answer:
                fetch = self._fetch
                if fetch is not None:
                    fetch.arrived(sender, answer)
            case None:
                return
