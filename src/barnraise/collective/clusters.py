"""Which hosts are near each other: regions told apart by latency alone; pure.

Theory of operation. Single linkage: join the two nearest hosts, then the next nearest, until all are one; the latencies
at which groups were joined are the edges of the minimum spanning tree. Inside a region they are alike, and the first edge
that leaves a region is much longer. So the tree is cut at the widest gap among those whose two sides differ by more than
noise and Wi-Fi explain. Where there are several levels (rooms, towns, continents) the widest in milliseconds wins, since
that is the one that a collective waits for. A host alone is a cluster.
"""

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

MIN_GAP: Final = 3.0
"""A region's next neighbour is at least so many times as far as its own hosts: Wi-Fi beside a cable is not a region."""
NOISE_S: Final = 0.0005
"""Added to both sides of the ratio: 0.1 ms and 0.4 ms are one room, whatever their ratio."""

Matrix = npt.NDArray[np.float64]
"""float64[n, n], from the rank of the row to the rank of the column; the diagonal means nothing."""
Clusters = tuple[tuple[int, ...], ...]
"""Ranks, ascending in each cluster; clusters ascending by their first."""


def clusters(latency_s: Matrix) -> Clusters:
    """Return the latency clusters of the hosts; one cluster if they are all as far from each other.

    Args:
        latency_s: float64[n, n], one way; the slower direction counts.
    """
    distance = np.maximum(latency_s, latency_s.T)
    edges = _spanning_tree(distance)
    lengths = [float(distance[pair]) for pair in edges]
    gaps = [
        (far - near, kept)
        for kept, (near, far) in enumerate(pairwise(lengths), start=1)
        if far + NOISE_S >= MIN_GAP * (near + NOISE_S)
    ]
    if not gaps:
        return (tuple(range(len(distance))),) if len(distance) else ()
    return _joined(len(distance), edges[: max(gaps)[1]])


def regions(latency_s: Matrix) -> npt.NDArray[np.intp]:
    """Return each host's cluster, intp[n], the clusters numbered in their order."""
    region = np.zeros(len(latency_s), dtype=np.intp)
    for number, cluster in enumerate(clusters(latency_s)):
        region[list(cluster)] = number
    return region


def groups_of(region: npt.NDArray[np.intp]) -> Clusters:
    """Return the clusters that `regions` numbered."""
    return tuple(tuple(np.flatnonzero(region == number).tolist()) for number in np.unique(region))


def _spanning_tree(distance: Matrix) -> list[tuple[int, int]]:
    """Return the edges of the minimum spanning tree, shortest first (Prim 1957); the lower rank first where two tie."""
    count = len(distance)
    if count < 2:
        return []
    nearest, found = distance[0].copy(), np.zeros(count, dtype=np.intp)
    nearest[0] = np.inf
    edges: list[tuple[int, int]] = []
    for _ in range(count - 1):
        host = int(np.argmin(nearest))
        edges.append((int(found[host]), host))
        is_open = np.isfinite(nearest)
        is_nearer = is_open & (distance[host] < nearest)
        nearest[is_nearer], found[is_nearer] = distance[host][is_nearer], host
        nearest[host] = np.inf
    return sorted(edges, key=lambda edge: (float(distance[edge]), edge))


def _joined(count: int, edges: list[tuple[int, int]]) -> Clusters:
    """Return the groups that the edges hold together."""
    group = np.arange(count)
    for a, b in edges:
        low, high = sorted((group[a], group[b]))
        group[group == high] = low
    return tuple(tuple(np.flatnonzero(group == name).tolist()) for name in np.unique(group))
