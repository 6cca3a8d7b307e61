"""Histograms: every figure is in one range, nothing is lost, and they survive a status file."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.observe.counters import BYTES, SECONDS, Histogram, Meter


@given(st.lists(st.floats(0, 1e12)))
def test_every_figure_is_counted_once_where_it_belongs(figures: list[float]) -> None:
    found = Histogram.empty(BYTES)
    for figure in figures:
        found = found.plus(figure)
    edges = (-1.0, *BYTES, float("inf"))
    for (low, high), count in zip(pairwise(edges), found.counts, strict=True):
        assert count == sum(low < figure <= high for figure in figures)
    assert found.count == len(figures)
    assert found.total == pytest.approx(sum(figures))


def test_a_meter_keeps_failures_apart_from_what_succeeded() -> None:
    found = Meter().plus(took_s=0.2, sent_bytes=5_000_000, received_bytes=10, failed=2)
    found = found.plus(took_s=0.3, sent_bytes=0, received_bytes=10)
    assert (found.failed, found.seconds.count) == (2, 2)
    assert found.seconds.counts[SECONDS.index(0.3)] == 2
    assert (found.seconds.total, found.sent_bytes.total, found.received_bytes.total) == (0.5, 5e6, 20)
    assert found.received_bytes.counts[0] == 2
    assert msgspec.json.decode(msgspec.json.encode(found), type=Meter) == found
