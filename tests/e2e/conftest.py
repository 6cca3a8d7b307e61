"""Marks everything here as end to end: real processes, real sockets on loopback, real kills."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .lan import Lan, two_machines

HERE = Path(__file__).parent
TEST_TIMEOUT_S = 180
"""A dozen interpreters are started in some tests, each of which takes 2 s of CPU."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this directory."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@pytest.fixture
def lan() -> Iterator[Lan]:
    """Give two machines with a network between them."""
    with two_machines() as made:
        yield made
