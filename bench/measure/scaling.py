"""The figure of bench/scale.py: seconds over peers, a panel for each size; matplotlib only here."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from measure.drawing import INK, themed

from barnraise.errors import ConfigError

LATENCY_MS: Final = 50
_COLOURS: Final = ("#d1572d", "#c9952b", "#2f8f83", "#8c6bd1")
_DASHES: Final[tuple[Any, ...]] = ("-", "--", ":")


def draw(
    points: Sequence[Any], megabytes: Sequence[int], megabits: Sequence[int], codecs: Sequence[str], path: Path
) -> None:
    """Write the figure as SVG: a colour for each bandwidth, a dash for each codec, all at one latency.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'barnraise[plot]', or leave --plot out") from error
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "barnraise", "font.size": 9}
    settings |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(8.4, 6.2), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
        for panel, size in zip(panels, megabytes, strict=True):
            lines = [point for point in points if point.megabytes == size and point.latency_ms == LATENCY_MS]
            _panel(panel, lines, megabits, codecs)
            panel.set_title(f"{size} MB of float32", fontsize=10)
        figure.supxlabel("peers", fontsize=9)
        figure.supylabel(f"predicted seconds of an all-reduce, {LATENCY_MS} ms one way", fontsize=9)
        figure.legend(handles=_legend(megabits, codecs), loc="outside upper center", ncols=7, frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    path.write_text(themed(buffer.getvalue()), encoding="utf-8")


def _panel(panel: Any, points: Sequence[Any], megabits: Sequence[int], codecs: Sequence[str]) -> None:
    for speed, colour in zip(megabits, _COLOURS, strict=True):
        for codec, dash in zip(codecs, _DASHES, strict=True):
            line = [point for point in points if point.megabits == speed and point.codec == codec]
            panel.plot([p.peers for p in line], [p.seconds for p in line], dash, color=colour, linewidth=1.3)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.axhline(1.0, color=INK, linewidth=0.8)
    panel.axvline(100, color=INK, linewidth=0.8, alpha=0.4)
    panel.set_xticks([4, 16, 64, 256, 1024, 4096], labels=["4", "16", "64", "256", "1024", "4096"])
    panel.grid(color=INK, alpha=0.12, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(megabits: Sequence[int], codecs: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    names = [f"{speed // 1000} Gbit/s" if speed >= 1000 else f"{speed} Mbit/s" for speed in megabits]
    speeds = [Line2D([], [], color=colour, label=name) for name, colour in zip(names, _COLOURS, strict=True)]
    return speeds + [
        Line2D([], [], color=INK, linestyle=dash, label=codec) for codec, dash in zip(codecs, _DASHES, strict=True)
    ]
