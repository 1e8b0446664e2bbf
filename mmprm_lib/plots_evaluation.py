"""Figures of the two evaluations: a metric along the steps of a solution, and the candidates of one problem."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mmprm_lib.drawing import (
    COLOURS,
    DASHES,
    MARKERS,
    SCORE_MAP,
    _problem_text,
    _wrap,
    add_caption,
    new_figure,
    plain,
    set_style,
)
from mmprm_lib.schema import Problem, Solution

MAX_CELLS = 7  # steps of a candidate that are drawn; the rest is counted


def metric_by_position(frame: pd.DataFrame, metric: str, *, ylabel: str = "", caption: str = "") -> Figure:
    """A metric by the place of the step, a line per scorer: columns position, scorer, metric, value, n, low, high.

    n stands under the axis, because few solutions are long, and a wide interval there is no finding.
    """
    frame = frame[(frame["metric"] == metric) & frame["value"].notna()]
    figure, (axes,) = new_figure(6.8, 3.9)
    for index, (name, part) in enumerate(frame.groupby("scorer", sort=False)):
        at = part["position"] + (index - (frame["scorer"].nunique() - 1) / 2) * 0.06
        errors = np.clip([part["value"] - part["low"], part["high"] - part["value"]], 0, None)
        style = dict(color=COLOURS[index % 8], marker=MARKERS[index % 8], linestyle=DASHES[index % 8])
        axes.errorbar(at, part["value"], yerr=np.nan_to_num(errors), capsize=2, lw=1.5, ms=5, label=name, **style)
    sizes = frame.groupby("position")["n"].max()
    if len(sizes):
        axes.set_xticks(sizes.index, [f"{place}\nn = {n:,}" for place, n in sizes.items()])
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    else:
        axes.text(0.5, 0.5, "too few steps, or of one kind only, at every place", ha="center", transform=axes.transAxes)
    axes.set(xlabel="place of the step", ylabel=ylabel or metric.replace("_", " "))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.grid(axis="y", lw=0.5)
    return add_caption(figure, caption or "Bars: 95 % intervals over problems.")


def candidate_board(
    image: Image.Image,
    problem: Problem,
    candidates: Sequence[Solution],
    step_scores: Sequence[Sequence[float]],
    totals: Sequence[float],
    picks: Mapping[str, int],
    *,
    caption: str = "",
) -> Figure:
    """The problem beside its candidates, a row each: steps in the colour of their scores, answer, score, who picks it.

    `picks`: method -> row. Orange is a low step score, white 0.5, blue high; wrong and right are words as well.
    """
    set_style()
    n_columns = max(1, min(MAX_CELLS, max((len(c.steps) for c in candidates), default=1)))
    question = _problem_text(problem)
    height = max(3.4 + 0.14 * question.count("\n"), 0.56 * len(candidates) + 1.0)
    figure = Figure(figsize=(2.9 + 1.12 * n_columns + 2.6, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.9, 1.12 * n_columns + 2.6])
    left.imshow(image, interpolation="nearest" if max(image.size) < 300 else None)
    left.axis("off")
    left.set_title(question, fontsize=9, loc="left")
    answer = _wrap(f"answer: {problem.answer}", 36)
    left.text(0.5, -0.03, answer, transform=left.transAxes, ha="center", va="top", fontsize=9)
    for row, (candidate, scores, total) in enumerate(zip(candidates, step_scores, totals, strict=True)):
        _cells(right, row, candidate.steps, scores)
        names = [method for method, pick in picks.items() if pick == row]
        _verdict(right, row, n_columns, candidate, total, names)
    right.set(xlim=(-0.35, n_columns + 2.3), ylim=(len(candidates), -0.45))
    right.text(n_columns + 0.1, -0.15, "answer", fontsize=8, color="#444444")
    right.text(n_columns + 1.15, -0.15, "score", fontsize=8, color="#444444", ha="right")
    right.axis("off")
    return add_caption(figure, caption)


def _cells(axes: Axes, row: int, steps: Sequence[str], scores: Sequence[float]) -> None:
    axes.text(-0.08, row + 0.44, str(row + 1), ha="right", va="center", fontsize=8, color="#444444")
    for column, (step, score) in enumerate(list(zip(steps, scores, strict=True))[:MAX_CELLS]):
        colour = SCORE_MAP(float(np.clip(score, 0, 1)))
        box = mpl.patches.Rectangle((column, row), 0.96, 0.88, facecolor=colour, edgecolor="#666666", lw=0.5)
        axes.add_patch(box)
        ink = "white" if np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.45 else "black"
        text = _wrap(step, 16, lines=2)
        if column == MAX_CELLS - 1 and len(steps) > MAX_CELLS:
            text = f"{len(steps) - MAX_CELLS} more"
        words = axes.text(column + 0.48, row + 0.36, text, ha="center", va="center", fontsize=6.5, color=ink)
        words.set_clip_path(box)  # digits in a row are wider than the letters that the wrapping reckons with
        axes.text(column + 0.93, row + 0.84, f"{score:.2f}", ha="right", va="bottom", fontsize=5.5, color=ink)


def _verdict(axes: Axes, row: int, x: int, candidate: Solution, total: float, picked_by: list[str]) -> None:
    shade = {"correct": "#0072B2", "wrong": "#D55E00"}.get(candidate.verdict, "#666666")
    text = f"{plain(str(candidate.answer or 'none')[:8])}\n{candidate.verdict}"
    axes.text(x + 0.1, row + 0.44, text, va="center", fontsize=7.5, color=shade)
    score = f"{total:.2f}" if np.isfinite(total) else "none"
    axes.text(x + 1.15, row + 0.44, score, va="center", ha="right", fontsize=9, weight="bold")
    if picked_by:
        box = mpl.patches.Rectangle((-0.3, row - 0.05), x + 2.5, 0.98, fill=False, edgecolor="black", lw=1.4)
        axes.add_patch(box)
        axes.text(x + 1.25, row + 0.44, "\n".join(picked_by), va="center", fontsize=8, weight="bold")
