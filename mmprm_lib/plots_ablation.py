"""Figures of ablations: settings side by side, differences with both their intervals, curves over a dial."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from .drawing import COLOURS, DASHES, MARKERS, add_caption, new_figure, plain

WORDS = {
    "macro_f1": "step macro F1",
    "auroc": "step AUROC",
    "first_error_f1": "first-error F1",
    "best_of_n_mean": "Best-of-N, mean of scores",
    "best_of_n_min": "Best-of-N, least score",
    "best_of_n_last": "Best-of-N, last score",
    "pass_at_n": "pass@N: any is right",
    "majority_vote": "majority vote",
    "best_of_n": "Best-of-N",
    "n_answers": "distinct answers",
    "n_paths": "distinct solutions",
}


def differences(frame: pd.DataFrame, by: str, measures: Sequence[str], *, base: str, caption: str = "") -> Figure:
    """A panel per measure: each setting minus `base`, with its interval over problems and, below it, over seeds.

    frame: `by`, measure, value, low, high, seed_low, seed_high, as `ablation.compared` gives.
    """
    names = list(dict.fromkeys(frame[by]))
    figure, axes = new_figure(2.6 * len(measures) + 1.2, 0.42 * len(names) + 1.5, len(measures), sharey=True)
    for axis, measure in zip(axes, measures, strict=True):
        part = frame[frame["measure"] == measure].set_index(by).reindex(names)
        at = np.arange(len(names))
        axis.axvline(0, color="#666666", lw=1)
        for shift, ends, index, label in (
            (-0.12, ("low", "high"), 0, "problems"), (0.12, ("seed_low", "seed_high"), 1, "seeds"),
        ):  # fmt: skip
            low, high = (part[end].astype(float) for end in ends)
            axis.hlines(at + shift, low, high, color=COLOURS[index], lw=2, ls=DASHES[index], label=label)
        axis.plot(part["value"], at, ls="none", marker="o", color="black", markersize=4)
        axis.set(title=WORDS.get(measure, measure), xlabel=f"minus {base}")
        axis.grid(axis="x", lw=0.5)
    axes[0].set_yticks(range(len(names)), [plain(str(name)) for name in names])
    axes[0].invert_yaxis()
    axes[-1].legend(title="95 % over", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, title_fontsize=9)
    return add_caption(figure, caption)


def over_dial(
    frame: pd.DataFrame, x: str, hue: str | None, measures: Sequence[str], *, xlabel: str = "", log: int = 0,
    seeds: pd.DataFrame | None = None, zero: bool = False, caption: str = "",
) -> Figure:  # fmt: skip
    """A panel per measure: its value over the numbers in column `x`, a line per `hue`, bands over problems or seeds.

    frame: as `ablation.levels` gives; the band is low to high where it is known, else seed_low to seed_high. `seeds`
    (x, hue, measure, value) draws each seed as a dot. `log` is the base of the axis, 0 a plain one. `zero` draws a
    line at 0, for differences.
    """
    figure, axes = new_figure(3.1 * len(measures) + (1.2 if hue else 0.2), 3.6, len(measures), sharex=True)
    for axis, measure in zip(axes, measures, strict=True):
        part = frame[frame["measure"] == measure]
        for index, (name, line) in enumerate(part.groupby(hue, sort=False) if hue else [("", part)]):
            _line(axis, line.sort_values(x), x, index, str(name))
        if seeds is not None:
            dots = seeds[seeds["measure"] == measure]
            for index, (_, each) in enumerate(dots.groupby(hue, sort=False) if hue else [("", dots)]):
                axis.plot(each[x], each["value"], ls="none", marker=".", ms=4, color=COLOURS[index % 8], alpha=0.5)
        if zero:
            axis.axhline(0, color="#666666", lw=1)
        if log:
            axis.set_xscale("log", base=log)
            axis.xaxis.set_minor_locator(NullLocator())
        places = sorted(frame[x].unique())
        if len(places) <= 7:
            axis.set_xticks(places, [f"{place:g}" for place in places], rotation=45 if max(places) < 0.01 else 0)
        axis.set(title=WORDS.get(measure, measure), xlabel=xlabel or x.replace("_", " "))
        axis.grid(axis="y", lw=0.5)
    if hue:
        axes[-1].legend(title=hue.replace("_", " "), loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    return add_caption(figure, caption)


def _line(axis: Axes, line: pd.DataFrame, x: str, index: int, label: str) -> None:
    style = dict(color=COLOURS[index % 8], marker=MARKERS[index % 8], linestyle=DASHES[index % 8], ms=5, lw=1.5)
    axis.plot(line[x], line["value"], label=plain(label), **style)
    low = line["low"].astype(float).fillna(line["seed_low"].astype(float))
    high = line["high"].astype(float).fillna(line["seed_high"].astype(float))
    axis.fill_between(line[x], low, high, color=style["color"], alpha=0.15, lw=0)
