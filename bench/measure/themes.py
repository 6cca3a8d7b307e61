"""What the themes of bench/allreduce.py share: their settings, their targets, the lines they print and the figures they keep."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from measure.comparison import Taken

from barnraise.errors import BarnraiseError

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the command line says."""

    sizes_mb: tuple[float, ...] = (1.0, 25.0, 100.0)
    worlds: tuple[int, ...] = (2, 4, 8)
    repetitions: int = 9
    hivemind_python: str = sys.executable
    scenarios: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """What a figure should be."""

    at_least: float | None = None
    at_most: float | None = None

    def verdict(self, value: float) -> str:
        """Return the bound and whether it holds, in words."""
        if self.at_least is not None:
            return f">= {self.at_least:g} {'holds' if value >= self.at_least else 'DOES NOT HOLD'}"
        return f"<= {self.at_most:g} {'holds' if value <= (self.at_most or 0.0) else 'DOES NOT HOLD'}"


@dataclass(kw_only=True)
class Report:
    """What was found so far; a line is printed as soon as it is known."""

    figures: Figures = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """What could not be measured although this machine can."""

    def theme(self, name: str) -> None:
        """Begin a theme."""
        print(f"\n== {name}", flush=True)

    def say(self, text: str) -> None:
        """Print a line that is no figure."""
        print(text, flush=True)

    def skip(self, name: str, why: str) -> None:
        """Say in words why something cannot be measured here."""
        self.figures[name] = {"skipped": why}
        self.say(f"skipped: {why}")

    def keep(self, name: str, taken: Taken) -> None:
        """Keep every turn beside the figures."""
        self.figures.setdefault("raw", {})[name] = taken.raw()

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Do a part of the measurements; if it fails, say so and go on with the next."""
        try:
            work()
        except BarnraiseError as error:
            self.failed.append(name)
            self.say(f"{name} FAILED: {error}")

    def figure(self, name: str, value: float, unit: str = "", bound: Bound | None = None) -> float:
        """Print a figure with its target; return it as it is kept."""
        verdict = bound.verdict(value) if bound else ""
        print(f"{name:44}{value:10.3f} {unit:5}{verdict}".rstrip(), flush=True)
        if "NOT" in verdict:
            self.missed.append(name)
        return round(value, 4)

    def ways(self, taken: Taken, names: Iterable[str], bounds: dict[str, tuple[Bound, Bound]], title: str) -> Figures:
        """Print a table of ratios to Gloo, by CPU and by the wall; return them, each by its way."""
        found: Figures = {}
        for name in names:
            ratios = taken.ratios(name)
            cpu, wall = bounds.get(name, (None, None))
            found[name] = {
                "cpu": self.figure(f"{title} {name} / gloo, cpu", ratios["cpu"], "x", cpu),
                "wall": self.figure(f"{title} {name} / gloo, wall", ratios["wall"], "x", wall),
                "ms": round(1e3 * taken.wall_s(name), 2),
                "cpu_ms": round(1e3 * taken.cpu_s(name), 2),
            }
        return found
