"""The end of every benchmark: measure, print the machine and the table, write the figures, give the exit code."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from measure import process

from barnraise.cli import sole
from barnraise.errors import BarnraiseError


def report(
    name: str,
    measure: Callable[[], Mapping[str, float]],
    show: Callable[[Mapping[str, float]], None],
    file: Path | None,
    *,
    digits: int = 4,
) -> int:
    """Measure, print, and write the figures; return another code than 0 only if the measurement failed.

    Args:
        name: of the benchmark, for its errors.
        measure: takes the figures.
        show: prints the table.
        file: gets the figures and the machine, as JSON; None: nothing is written.
        digits: kept behind the point.
    """
    try:
        process.require_proc()
        machine = process.machine()
        figures = measure()
    except BaseException as error:
        cause = sole(error)
        if not isinstance(cause, BarnraiseError):
            raise
        print(f"{name}: {cause}", file=sys.stderr)
        return cause.exit_code
    machine["load_average_after"] = round(os.getloadavg()[0], 2)
    print(" ".join(f"{key}={value}" for key, value in machine.items()))
    show(figures)
    if file:
        rounded = {key: round(value, digits) for key, value in figures.items()}
        file.write_text(json.dumps({**rounded, "machine": machine}, indent=2) + "\n", encoding="utf-8")
    return 0
