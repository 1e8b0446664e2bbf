"""The figures: one function per figure, each returns a matplotlib Figure that reads in colour, to the colour-blind and
in grey.

Frames carry plain columns; `low` and `high` are the ends of a 95 % interval. n and the interval stand in the figure
itself.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mmprm_lib.drawing import (
    COLOURS,
    DASHES,
    HATCHES,
    MARKERS,
    add_caption,
    contact_sheet,
    new_figure,
    plain,
    set_style,
    solution_with_scores,
)

__all__ = [
    "bars",
    "benchmark_bars",
    "best_of_n_curves",
    "contact_sheet",
    "error_breakdown",
    "label_quality_by_k",
    "reliability",
    "score_against_length",
    "set_style",
    "solution_with_scores",
    "training_curves",
]


def _legend_outside(axes: Axes, title: str = "") -> None:
    """Nothing; the legend stands right of the axes, where it cannot hide a point."""
    axes.legend(title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, title_fontsize=9)


def _errors(value, low, high) -> np.ndarray | None:
    """Distances (2, n) for error bars; None if no interval is known."""
    value, low, high = (np.asarray(x, float) for x in (value, low, high))
    if np.isnan(low).all():
        return None
    return np.nan_to_num(np.clip([value - low, high - value], 0, None))


def _interval_note(frame: pd.DataFrame) -> str:
    parts = []
    if "n" in frame:
        n = frame["n"].dropna().astype(int)
        parts.append(f"n = {n.min():,}" if n.nunique() == 1 else f"n = {n.min():,} to {n.max():,}" if len(n) else "")
    if "low" in frame and frame["low"].notna().any():
        parts.append("bars and bands: 95 % intervals")
    return "; ".join(part for part in parts if part)


def bars(
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    *,
    ylabel: str = "",
    caption: str = "",
    percent: bool = False,
) -> Figure:
    """Bars of `y` by `x` (and `hue`) with intervals from `low`, `high`, and the value over each bar."""
    groups = list(dict.fromkeys(frame[hue])) if hue else [None]
    names = list(dict.fromkeys(frame[x].astype(str)))
    figure, (axes,) = new_figure(max(4.2, 0.62 * len(names) * max(1, len(groups) * 0.62) + 1.6 + (1.4 if hue else 0)))
    width = 0.8 / len(groups)
    for index, group in enumerate(groups):
        part = frame if hue is None else frame[frame[hue] == group]
        at = np.array([names.index(str(name)) for name in part[x]]) + (index - (len(groups) - 1) / 2) * width
        _bar_series(axes, at, part, y, width, index, group, percent)
    long = max(map(len, names)) * len(names) > 50
    axes.set_xticks(
        range(len(names)),
        [plain(name) for name in names],
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
    axes.set_ylabel(ylabel or y.replace("_", " "))
    axes.set_xlabel(x.replace("_", " "))
    axes.margins(y=0.12)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if hue:
        _legend_outside(axes, hue.replace("_", " "))
    return add_caption(figure, caption or _interval_note(frame))


def _bar_series(
    axes: Axes, at: np.ndarray, part: pd.DataFrame, y: str, width: float, index: int, label: object, percent: bool
) -> None:
    errors = _errors(part[y], part["low"], part["high"]) if "low" in part else None
    style = dict(color=COLOURS[index % 8], hatch=HATCHES[index % 8], edgecolor="white", linewidth=0.6)
    name = None if label is None else str(label)
    axes.bar(at, part[y], width, label=name, yerr=errors, capsize=2, error_kw={"lw": 1}, **style)
    tops = part[y] + (errors[1] if errors is not None else 0)
    size = 8 if width > 0.3 else 7
    for place, top, value in zip(at, tops, part[y], strict=True):
        text = f"{value:.0%}" if percent else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
        axes.annotate(text, (place, top), (0, 2), textcoords="offset points", ha="center", fontsize=size)


def label_quality_by_k(frame: pd.DataFrame, *, caption: str = "") -> Figure:
    """How good labels are by the rollouts per step: columns k, value, low, high, and `metric` (one line each) if there
    are several.
    """
    group = "metric" if "metric" in frame else None
    figure, (axes,) = new_figure()
    _lines(axes, frame, "k", group)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(frame["k"].unique()), sorted(frame["k"].unique()))
    axes.set(xlabel="rollouts per step, k", ylabel="label quality against truth")
    axes.grid(axis="y", lw=0.5)
    if group and frame[group].nunique() > 1:
        _legend_outside(axes)
    return add_caption(figure, caption or _interval_note(frame))


def _lines(axes: Axes, frame: pd.DataFrame, x: str, group: str | None) -> None:
    """Lines of `value` with bands of low to high, told apart by colour, dash and marker."""
    for index, (name, part) in enumerate([("", frame)] if group is None else frame.groupby(group, sort=False)):
        part = part.sort_values(x)
        style = dict(
            color=COLOURS[index % 8], marker=MARKERS[index % 8], linestyle=DASHES[index % 8], markersize=5, lw=1.5
        )
        axes.plot(part[x], part["value"], label=str(name), **style)
        if "low" in part and part["low"].notna().any():
            axes.fill_between(
                part[x], part["low"].astype(float), part["high"].astype(float), color=style["color"], alpha=0.15, lw=0
            )


def training_curves(history: Sequence[dict], *, caption: str = "") -> Figure:
    """Loss by update and, where known, AUROC, macro F1 and Brier score by epoch, the best epoch marked."""
    loss = [(row["step"], row["loss"]) for row in history if "loss" in row]
    epochs = [row for row in history if row.get("auroc") is not None or row.get("brier") is not None]
    figure, axes = new_figure(8.6 if epochs else 5.0, 3.4, n_axes=2 if epochs else 1)
    axes[0].plot(
        *(zip(*loss, strict=True) if loss else ([], [])),
        color=COLOURS[0],
        lw=1.5,
        marker="o" if len(loss) < 30 else None,
        markersize=3,
    )
    axes[0].set(xlabel="update", ylabel="training loss (nats per step)")
    if epochs:
        _validation(axes[1], epochs)
    n = f"validation: n = {epochs[-1]['n']:,} decisions; dotted: the best epoch, which is kept" if epochs else ""
    return add_caption(figure, caption or n)


def _validation(axes: Axes, epochs: list[dict]) -> None:
    for index, name in enumerate(("auroc", "macro_f1", "brier")):
        points = [(row["epoch"], row[name]) for row in epochs if row.get(name) is not None]
        style = dict(color=COLOURS[index], marker=MARKERS[index], linestyle=DASHES[index], markersize=5, lw=1.5)
        axes.plot(
            *(zip(*points, strict=True) if points else ([], [])),
            label={"auroc": "AUROC", "macro_f1": "macro F1", "brier": "Brier score"}[name],
            **style,
        )
    best = max(epochs, key=lambda row: (row.get("auroc") or 0.0, -row["brier"]))
    axes.axvline(best["epoch"], color="#666666", lw=1, ls=":")
    axes.set(xlabel="epoch", ylabel="validation", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_outside(axes)


def reliability(bins: Sequence[dict], *, caption: str = "") -> Figure:
    """Share of right steps by mean score in each bin (`validation_metrics`), the size of the bins below; the diagonal
    is calibrated.
    """
    set_style()
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    frame = pd.DataFrame(list(bins), columns=["low", "high", "n", "mean_score", "share_right"])
    spread = 1.96 * np.sqrt((frame["share_right"] * (1 - frame["share_right"]) / frame["n"]).astype(float))
    top.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--", label="calibrated")
    top.errorbar(
        frame["mean_score"],
        frame["share_right"],
        yerr=spread,
        color=COLOURS[0],
        marker="o",
        capsize=2,
        lw=1.5,
        label="PRM",
    )
    top.set(ylabel="share of right steps", xlim=(0, 1), ylim=(-0.02, 1.02))
    top.legend(loc="upper left", fontsize=9)
    bottom.bar(
        frame["low"], frame["n"], frame["high"] - frame["low"], align="edge", color=COLOURS[7], edgecolor="white"
    )
    bottom.set(xlabel="step score", ylabel="steps")
    return add_caption(
        figure,
        caption or f"n = {int(frame['n'].sum()):,} steps; bars: 95 % normal intervals, steps taken as independent",
    )


def benchmark_bars(frame: pd.DataFrame, *, ylabel: str = "macro F1", caption: str = "") -> Figure:
    """Methods by value with intervals, horizontal, best above: columns method, value, low, high, n; `baseline` (bool)
    marks baselines.
    """
    frame = frame.sort_values("value").reset_index(drop=True)
    figure, (axes,) = new_figure(6.4, 0.42 * len(frame) + 1.3)
    baseline = frame["baseline"].astype(bool) if "baseline" in frame else pd.Series(False, frame.index)
    errors = _errors(frame["value"], frame["low"], frame["high"]) if "low" in frame else None
    colours = [COLOURS[7] if b else COLOURS[0] for b in baseline]
    style = dict(color=colours, hatch=["///" if b else "" for b in baseline], edgecolor="white")
    axes.barh(frame.index, frame["value"], xerr=errors, capsize=2, error_kw={"lw": 1}, **style)
    ends = frame["value"] + (errors[1] if errors is not None else 0)
    for place, (end, value) in enumerate(zip(ends, frame["value"], strict=True)):
        axes.annotate(f"{value:.3f}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(frame.index, [plain(str(m)) for m in frame["method"]])
    axes.set(xlabel=ylabel)
    axes.margins(x=0.14)
    note = _interval_note(frame) + ("; grey, hatched: baselines" if baseline.any() else "")
    return add_caption(figure, caption or note)


def best_of_n_curves(frame: pd.DataFrame, *, caption: str = "") -> Figure:
    """Share of correct answers by the number of candidates: columns method, N, value, low, high."""
    figure, (axes,) = new_figure(7.0, 4.2)
    _lines(axes, frame, "N", "method")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(frame["N"].unique()), sorted(frame["N"].unique()))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="candidates per problem, N", ylabel="problems answered correctly")
    axes.grid(axis="y", lw=0.5)
    _legend_outside(axes)
    return add_caption(figure, caption or _interval_note(frame))


def score_against_length(frame: pd.DataFrame, *, caption: str = "") -> Figure:
    """Score by length, right and wrong solutions apart: columns n_steps (or n_tokens), score, correct (bool)."""
    length = "n_steps" if "n_steps" in frame else "n_tokens"
    figure, (axes,) = new_figure()
    x = (
        frame[length]
        if frame[length].nunique() <= 12
        else pd.qcut(frame[length], 8, duplicates="drop").map(lambda i: round(i.mid))
    )
    for index, (name, mask) in enumerate(
        [("correct", frame["correct"].astype(bool)), ("wrong", ~frame["correct"].astype(bool))]
    ):
        groups = frame["score"][mask].groupby(x[mask].astype(float))
        mean, error = groups.mean(), 1.96 * groups.std().fillna(0) / np.sqrt(groups.count())
        style = dict(color=COLOURS[index], marker=MARKERS[index], linestyle=DASHES[index])
        axes.errorbar(
            mean.index + (index - 0.5) * 0.06,
            mean,
            yerr=error,
            capsize=2,
            lw=1.5,
            label=f"{name} (n = {int(mask.sum()):,})",
            **style,
        )
    rho = frame[[length, "score"]].corr("spearman").iloc[0, 1]
    axes.set(
        xlabel="steps in the solution" if length == "n_steps" else "tokens in the solution",
        ylabel="mean solution score",
    )
    axes.grid(axis="y", lw=0.5)
    _legend_outside(axes)
    return add_caption(
        figure,
        caption or f"Spearman correlation of score and length {rho:.2f}; bars: 95 % normal intervals of the mean",
    )


def error_breakdown(frame: pd.DataFrame, *, caption: str = "") -> Figure:
    """Shares of kinds as stacked bars: columns group, kind, value (share or count; each group is scaled to 1)."""
    table = frame.pivot_table(index="group", columns="kind", values="value", aggfunc="sum", sort=False).fillna(0.0)
    totals = table.sum(axis=1)
    share = table.div(totals.where(totals > 0, 1), axis=0)
    figure, (axes,) = new_figure(7.0, 0.45 * len(share) + 1.4)
    start = np.zeros(len(share))
    for index, kind in enumerate(share):
        part = share[kind].to_numpy()
        style = dict(color=COLOURS[index % 8], hatch=HATCHES[index % 8], edgecolor="white")
        axes.barh(np.arange(len(share)), part, left=start, label=str(kind), **style)
        for place, (left, width) in enumerate(zip(start, part, strict=True)):
            if width > 0.07:
                box = dict(fc="white", ec="none", pad=1, alpha=0.8)
                axes.text(left + width / 2, place, f"{width:.0%}", ha="center", va="center", fontsize=8, bbox=box)
        start += part
    counts = (frame["value"] > 1).any()
    axes.set_yticks(
        np.arange(len(share)),
        [f"{name} (n = {int(total):,})" if counts else str(name) for name, total in totals.items()],
    )
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="share", xlim=(0, 1))
    _legend_outside(axes)
    return add_caption(figure, caption)
