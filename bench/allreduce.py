"""How fast tensors are added up: our encrypted collectives beside Gloo, hivemind and PCCL, on loopback and long links.

    python bench/allreduce.py                                   all of it, some forty minutes on two idle cores
    python bench/allreduce.py --only loopback --mb 25 --world 4 --json allreduce.json
    python bench/allreduce.py --only hivemind --hivemind-python OTHER_VENV/bin/python

METHODOLOGY.md says what each figure is and how it is taken.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from measure import process
from measure.choosing import choice
from measure.failing import failure
from measure.hivemind import hivemind
from measure.local import loopback
from measure.pccl import pccl
from measure.quantising import codec
from measure.themes import Report, Settings
from measure.wide import links

from barnraise.errors import BarnraiseError

THEMES: Final[Mapping[str, Callable[[Settings, Report], None]]] = {
    "codec": codec,
    "loopback": loopback,
    "hivemind": hivemind,
    "pccl": pccl,
    "links": links,
    "choice": choice,
    "failure": failure,
}


def main() -> int:
    """Measure, print, and write the figures; return 1 if the measurement failed, whatever the figures are 0."""
    arguments = _parser().parse_args()
    settings = Settings(
        sizes_mb=tuple(arguments.mb or (1.0, 25.0, 100.0)),
        worlds=tuple(arguments.world or (2, 4, 8)),
        repetitions=arguments.repetitions,
        hivemind_python=arguments.hivemind_python,
        scenarios=tuple(arguments.scenario or ()),
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    report = Report()
    try:
        process.require_proc()
    except BarnraiseError as error:
        print(f"allreduce: {error}", file=sys.stderr)
        return error.exit_code
    machine = process.machine()
    print(" ".join(f"{key}={value}" for key, value in machine.items()), flush=True)
    try:
        for theme in arguments.only or THEMES:
            report.theme(theme)
            report.attempt(theme, functools.partial(THEMES[theme], settings, report))
    finally:
        machine["load_average_after"] = round(os.getloadavg()[0], 2)
        if arguments.json and report.figures:
            _write(arguments.json, report.figures | {"machine": machine})
    print(f"\nload average afterwards: {machine['load_average_after']}")
    return 1 if report.failed else 0


def _write(path: Path, figures: dict[str, Any]) -> None:
    """Write what was measured; what else the file has already stays."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    for name in ("loopback", "choice", "raw"):  # by size: a call may have measured some of them
        if name in known and name in figures:
            figures[name] = known[name] | figures[name]
    path.write_text(json.dumps(known | figures, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(THEMES), help="one theme; may be given again")
    parser.add_argument("--json", type=Path, help="write the figures to this file; other themes in it are kept")
    parser.add_argument("--mb", action="append", type=float, help="size on loopback; default: 1, 25 and 100")
    parser.add_argument("--world", action="append", type=int, help="processes on loopback; default: 2, 4 and 8")
    parser.add_argument("--repetitions", type=int, default=9, help="turns of each side that count")
    parser.add_argument("--scenario", action="append", help="of the theme links, only those whose name begins so")
    parser.add_argument("--hivemind-python", default=sys.executable, help="a Python that has hivemind")
    return parser


if __name__ == "__main__":
    sys.exit(main())
