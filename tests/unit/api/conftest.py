"""What the tests of the object interface share: the examples of docstrings are run."""

import doctest
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def run_docstring() -> Callable[..., None]:
    """Return a function that runs the example in an object's docstring with the names that it takes for granted."""

    def run(thing: object, **names: Any) -> None:
        found = [test for test in doctest.DocTestFinder(recurse=False).find(thing, globs=names) if test.examples]
        assert len(found) == 1, "there is one example"
        output: list[str] = []
        results = doctest.DocTestRunner().run(found[0], out=output.append)
        assert results.attempted >= 1
        assert results.failed == 0, "".join(output)

    return run
