"""The figure of ``barnraise bench allreduce``: times over sizes, a line for each codec and schedule; matplotlib only here."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from barnraise.errors import ConfigError

KINDS: Final = (".svg", ".png")
_STYLES: Final = ("-", "--", ":", "-.")
_COLOURS: Final = ("#2f8f83", "#8c6bd1", "#d1572d", "#4a7fc1", "#b0893a", "#666666")

Row = Mapping[str, Any]


def check(path: Path) -> None:
    """See that a figure can be drawn into a file.

    Raises:
        ConfigError: its name's end is none of those that can be drawn, or matplotlib is not installed.
    """
    if path.suffix not in KINDS:
        raise ConfigError(f"--plot {path}: the name ends in {' or '.join(KINDS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'barnraise[plot]', or leave --plot out")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the figure of a table's rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    panel: Any = figure.subplots()
    codecs, schedules = _in_order(rows, "codec"), _in_order(rows, "schedule")
    for codec, schedule in dict.fromkeys((row["codec"], row["schedule"]) for row in rows):
        line = sorted(
            (row["mb"], row["median_ms"]) for row in rows if (row["codec"], row["schedule"]) == (codec, schedule)
        )
        panel.plot(
            *zip(*line, strict=True),
            marker="o",
            markersize=4,
            color=_COLOURS[codecs.index(codec) % len(_COLOURS)],
            linestyle=_STYLES[schedules.index(schedule) % len(_STYLES)],
            label=f"{codec} {schedule}",
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("MB of float32")
    panel.set_ylabel("ms, slowest peer, median")
    panel.grid(alpha=0.2, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def _in_order(rows: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))
