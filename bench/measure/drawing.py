"""The figure of bench/learning.py: loss against bytes sent, one panel from scratch and one warm; matplotlib only here."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any, Final

from barnraise.errors import ConfigError

INK: Final = "#1f2328"
"""Text and axes; replaced in the file by a colour that follows the reader's light or dark theme."""
_THEME: Final = "<style>svg{--ink:#1f2328}@media(prefers-color-scheme:dark){svg{--ink:#e6edf3}}</style>"
_COLOURS: Final = {"solo": "#d1572d", "h1": "#8c6bd1"}
_SWARM: Final = "#2f8f83"

Seeds = Mapping[int, Mapping[str, Mapping[str, float]]]


def draw(seeds: Seeds, path: Path) -> None:
    """Write the figure as SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib, or leave --plot out") from error
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "barnraise",
        "text.color": INK,
        "axes.edgecolor": INK,
    }
    settings |= {"axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        titles = ("from scratch", "second half, after data parallelism")
        for panel, prefix, title in zip(panels, ("", "warm_"), titles, strict=True):
            _panel(panel, {name: _of(seeds, prefix + name) for name in _names(seeds)}, title)
        panels[0].set_ylabel("nats per byte, held-out text")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    path.write_text(themed(buffer.getvalue()), encoding="utf-8")


def _names(seeds: Seeds) -> list[str]:
    return [name for name in next(iter(seeds.values())) if not name.startswith("warm_")]


def _of(seeds: Seeds, name: str) -> list[Mapping[str, float]]:
    return [cells[name] for cells in seeds.values()]


def _panel(panel: Any, cells: Mapping[str, list[Mapping[str, float]]], title: str) -> None:
    for name, values in cells.items():
        losses = [value["loss"] for value in values]
        colour = _COLOURS.get(name, _SWARM)
        if name == "solo":
            panel.axhline(mean(losses), color=colour, linestyle="--", linewidth=1)
            place = (0.8, mean(losses))
            panel.annotate(
                "one worker alone", place, xycoords=("axes fraction", "data"), xytext=(0, 4), **_label(colour)
            )
            continue
        megabytes = values[0]["bytes_per_peer"] / 1e6
        panel.plot([megabytes] * len(losses), losses, ".", color=colour, markersize=4, alpha=0.6)
        panel.plot(megabytes, mean(losses), "o", color=colour, markersize=7)
        text = "data parallel" if name == "h1" else f"H = {name[1:]}"
        panel.annotate(text, (megabytes, mean(losses)), xytext=(0, 8), **_label(colour))
    panel.set_xscale("log")
    panel.margins(x=0.2, y=0.2)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("MB sent per peer")
    panel.grid(color=INK, alpha=0.12, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _label(colour: str) -> dict[str, Any]:
    return {"textcoords": "offset points", "color": colour, "ha": "center", "fontsize": 9}


def themed(svg: str) -> str:
    """Return the drawing with ink that follows the reader's theme."""
    body = re.sub(r"\s+\n", "\n", svg.replace(INK, "var(--ink)"))
    head, end, rest = body.partition("<defs>")
    return head + _THEME + end + rest
