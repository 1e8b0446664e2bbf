"""Figures of what labels cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from .drawing import COLOURS, MARKERS, add_caption, new_figure

PANELS = {
    ("step truth", "macro_f1"): "macro F1 of hard labels\nagainst the truth of the step",
    ("prefix truth", "macro_f1"): "macro F1 of hard labels\nagainst the truth of the prefix",
    ("reference", "macro_f1"): "macro F1 of hard labels\nagainst the reference",
    ("reference", "rmse"): "error of the rate (RMSE)\nagainst the reference",
}


def quality_against_tokens(frame: pd.DataFrame, *, caption: str = "") -> Figure:
    """A panel per kind of quality, tokens per step on a log axis; the exhaustive strategy is a line over its k.

    frame: strategy, setting, against, metric, value, low, high, n_tokens, as `labeling_cost.over_seeds` gives.
    """
    panels = [p for p in PANELS if ((frame["against"] == p[0]) & (frame["metric"] == p[1])).any()] or [*PANELS][:1]
    figure, axes = new_figure(3.3 * len(panels), 3.6, len(panels), sharex=True)
    for axis, (against, metric) in zip(axes, panels, strict=True):
        part = frame[(frame["against"] == against) & (frame["metric"] == metric)]
        for index, (strategy, points) in enumerate(part.groupby("strategy", sort=False)):
            _points(axis, points.sort_values("n_tokens"), str(strategy), index)
        axis.set(xlabel="generated tokens per step", title=PANELS[against, metric])
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.grid(axis="y", lw=0.5)
        axis.margins(y=0.12)  # the labels of the lowest points keep clear of the axis
    if len(frame):
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    return add_caption(figure, caption)


def _points(axis: Axes, points: pd.DataFrame, strategy: str, index: int) -> None:
    """Nothing; one strategy's points with their ranges, joined if there are several, labelled by k if that is known."""
    errors = [points["value"] - points["low"], points["high"] - points["value"]]
    style = dict(color=COLOURS[index % 8], marker=MARKERS[index % 8], linestyle="-" if len(points) > 1 else "none")
    style |= dict(markersize=6, capsize=2, lw=1.2, label=strategy)
    axis.errorbar(points["n_tokens"], points["value"], yerr=errors, **style)
    for row in points.itertuples():
        if row.setting.startswith("k = "):
            place = dict(xytext=(4, -10), textcoords="offset points", fontsize=8)
            axis.annotate(row.setting.removeprefix("k = "), (row.n_tokens, row.value), **place)
