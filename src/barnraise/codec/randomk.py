"""Random-k: a random share of the entries, which both sides draw alike, so that only values travel; pure.

Theory of operation. The n entries, as a ring, are cut into k = max(1, round(ratio n)) runs of n / k or so; of each run
one entry is sent. The place within each run and the turn of the ring come from `draws.draw` of the round's seed and the
shard's index. So each entry is sent with probability k / n, every entry is sent some time, and drawing takes k numbers
and not n. (Entries next to each other are never sent together where runs are long; error feedback does not mind.)

Values are sent as they are, not times n / k, which would make the expectation right (Wangni et al. 2017, arXiv
1710.09854) and the variance n / k times as large: with error feedback the compressor must lose norm each time, E |x -
C(x)|^2 <= (1 - k / n) |x|^2, which holds unscaled alone (Stich et al. 2018, arXiv 1809.07599, lemma A.1).

Against top-k: no indices, no search, and all peers send the same entries, so their sum is as sparse as they are.
But a random share k / n of the entries has that share of the squared norm, where top-k's has most of it.
"""

from typing import Final

import numpy as np

from barnraise.codec.codec import Codec, Place, Values
from barnraise.codec.draws import below, draw
from barnraise.codec.grid import Bytes
from barnraise.codec.indices import Indices
from barnraise.codec.scattered import Scattered, decoded


class RandomK:
    """Entries that `Place` fixes."""

    is_lossless: Final = False

    def __init__(self, ratio: float, values: Codec) -> None:
        """Send ``ratio`` (0 < ratio <= 1) of the entries, their values by ``values``."""
        self._ratio, self._values = ratio, values
        self.name: Final = f"randomk:{ratio!r}+{values.name}"
        self.dtype: Final = values.dtype
        self.is_exact: Final = values.is_exact

    def count(self, num_entries: int) -> int:
        """Return how many of so many entries are sent."""
        return min(num_entries, max(1, round(self._ratio * num_entries)))

    def bound_bytes(self, count: int) -> int:
        """Return the most that the values may take."""
        return self._values.bound_bytes(self.count(count))

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        """Write the values of the drawn entries."""
        return self._values.encode(values[drawn(len(values), self.count(len(values)), place)], out, place)

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> Scattered:
        """Draw the same entries again and decode their values. Raises `Malformed`."""
        chosen = self.count(count)
        values = decoded(self._values, data, chosen, place)
        return Scattered(drawn(count, chosen, place), values)

    def for_aggregate(self, num_updates: int) -> Codec:
        """Return the same entries at 8 bits or more: in one place all peers send the same, and so does their mean."""
        return RandomK(self._ratio, self._values.for_aggregate(num_updates))


def drawn(num_entries: int, count: int, place: Place) -> Indices:
    """Return the entries to send, int64[count], strictly ascending, below ``num_entries`` (at most 2**32)."""
    if count == num_entries:
        return np.arange(count)
    words = draw(place.seed, place.index, count + 1)
    bounds = np.arange(count + 1, dtype=np.uint64) * np.uint64(num_entries) // np.uint64(count)
    chosen = bounds[:-1] + below(words[1:], bounds[1:] - bounds[:-1])
    turned = (chosen + below(words[:1], np.array([num_entries], np.uint64))).astype(np.int64)
    over = int(np.searchsorted(turned, num_entries))
    return np.concatenate([turned[over:] - num_entries, turned[:over]])
