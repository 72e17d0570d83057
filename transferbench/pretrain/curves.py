"""The log of a run as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferbench.pretrain.log import Line
from transferbench.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#1f6fb4", "#d1622b", "#3a923a", "#7d55a6")
_APART = {"kind", "step", "epoch", "loss", "lr", "images_per_second", "seconds"}


def draw_curves(lines: Sequence[Line], path: Path, *, title: str) -> None:
    """Draw loss, learning rate, feature health and what the method logs over epochs, as PNG.

    Parameters
    ----------
    lines : sequence of dict
        As `log.read_log` gives them.
    path : Path
        Written atomically.
    title : str
    """
    # The object interface needs no pyplot, hence no display and no global figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [line for line in lines if line["kind"] == "steps"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    per_epoch = epochs[0]["step"] / (epochs[0]["epoch"] + 1) if epochs else 1.0
    names = sorted({name for line in steps for name in line} - _APART)

    # Margins by hand: a layout engine draws everything twice, longer than a small run trains.
    figure = Figure(figsize=(10, 6.2))
    FigureCanvasAgg(figure)
    figure.suptitle(title, y=0.97)
    margins = {"left": 0.08, "right": 0.98, "bottom": 0.09, "top": 0.91}
    grid = margins | {"wspace": 0.34, "hspace": 0.08}
    (loss, rate), (health, logged) = figure.subplots(2, 2, sharex=True, gridspec_kw=grid)
    _curve(loss, steps, "loss", per_epoch, _COLORS[0])
    loss.set_ylabel("loss")
    _curve(rate, steps, "lr", per_epoch, _COLORS[1])
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)

    _curve(health, epochs, "spread", per_epoch, _COLORS[2], marker="o")
    health.set_ylabel("spread of features (1: even)", color=_COLORS[2])
    health.set_ylim(bottom=0)
    rank = health.twinx()
    _curve(rank, epochs, "rankme", per_epoch, _COLORS[3], marker="s")
    rank.set_ylabel("effective rank (RankMe)", color=_COLORS[3])
    rank.set_ylim(bottom=0)
    rank.grid(False)

    for name, color in zip(names, _COLORS, strict=False):
        _curve(logged, steps, name, per_epoch, color, label=name.replace("_", " "))
    if names:
        logged.legend(frameon=False, fontsize="small")
    logged.set_ylabel("watched by the method")
    for axes in (health, logged):
        axes.set_xlabel("epochs")

    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=110)
    write_atomic(path, memory.getvalue())


def _curve(
    axes: Axes, lines: Sequence[Line], name: str, per_epoch: float, color: str, **style: Any
) -> None:
    """Draw one value of the log; lines without it are passed over."""
    own = [line for line in lines if name in line]
    at = [line["step"] / per_epoch for line in own]
    values = [line[name] for line in own]
    axes.plot(at, values, color=color, linewidth=1.5, markersize=3, **style)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top"]].set_visible(False)
