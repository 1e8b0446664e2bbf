"""Figures of a generative PRM: a critique beside its image, how good verdicts and corrections are, and refined pools.

Frames carry plain columns; `low` and `high` are the ends of a 95 % interval, None or nan where none is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter
from PIL import Image

from .drawing import (
    COLOURS,
    DASHES,
    HATCHES,
    MARKERS,
    _problem_text,
    _score_rows,
    _wrap,
    add_caption,
    new_figure,
    plain,
    rows_shown,
    set_style,
)
from .plots import _errors, _interval_note
from .schema import Critique, Problem, Solution

MODES = {
    "correction": "critic's correction",
    "masked": "correction, no answers",
    "resample": "cut there, no correction",
    "random_step": "cut at a random step",
    "true_correction": "true step at critic's place",
    "truth": "true correction (ceiling)",
    "fresh": "plain Best-of-N",
    "samples": "majority vote of samples",
}  # mode of a pool -> its name in a legend; its place here is its colour, dash and marker in every figure
GREY = "#999999"
METRICS = {"macro_f1": "macro F1", "auroc": "AUROC", "first_error_f1": "first-error F1", "brier": "Brier score"}
TRAITS = {"error": "kind of error"}
ABOUT = {"intent": "Intent", "image": "Image", "logic": "Logic"}


# -- one critique


def critique_card(
    image: Image.Image, problem: Problem, solution: Solution, critique: Critique, truth: Sequence[int] | None = None, *,
    caption: str = "",
) -> Figure:  # fmt: skip
    """The image beside the steps, each with its probability of "Correct", and under them what is said of the wrong one.

    The step that is found wrong has a thick frame; steps after it are hatched, as they were not judged. With `truth`
    (1, 0, -1 per step) each step says what it really is. A critique that could not be read says why.
    """
    set_style()
    steps, judged = list(solution.steps), [s.p_correct for s in critique.steps]
    shown = rows_shown(len(steps), (critique.first_error or 1) - 1)
    texts = [_wrap(steps[i], 52, lines=4) for i in shown]
    heights = [1.15 + 0.75 * text.count("\n") for text in texts]
    notes = _notes(critique)
    note_height = sum(0.95 + 0.7 * text.count("\n") for _, text in notes) + 0.6
    question = _problem_text(problem)
    height = max(3.2 + 0.15 * question.count("\n"), 0.32 * (sum(heights) + note_height) + 0.9)
    figure = Figure(figsize=(8.6, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    left.imshow(image, interpolation="nearest" if max(image.size) < 300 else None)
    left.axis("off")
    left.set_title(question, fontsize=9, loc="left")
    known = solution.answer is not None or solution.verdict != "unknown"  # a benchmark's solutions state steps alone
    given = f"\nthis solution: {solution.answer or 'none'} ({solution.verdict})" if known else ""
    answer = _wrap(f"answer: {problem.answer}{given}", 40)
    left.text(0.5, -0.03, answer, transform=left.transAxes, ha="center", va="top", fontsize=9)
    _score_rows(right, texts, heights, [*judged, *[None] * len(steps)][: len(steps)], truth, "p(Correct)", shown)
    for row in right.patches:
        if row.get_hatch():  # what was not judged stays readable
            row.set(edgecolor="#cccccc")
    end = sum(heights)
    right.set_ylim(end + note_height, -0.6)
    _write_notes(right, notes, end + 0.35)
    if critique.first_error:
        place = critique.first_error - 1 - shown.start
        top = sum(heights[:place])
        right.add_patch(mpl.patches.Rectangle((0, top), 10, heights[place] * 0.92, fill=False, ec="black", lw=2.4))
    return add_caption(figure, caption or "Thick frame: the step judged Incorrect. Hatched: not judged.")


def _notes(critique: Critique) -> list[tuple[str, str]]:
    """(heading, wrapped text) of what stands under the steps."""
    if critique.parse != "ok":
        return [("Critique", _wrap(f"could not be read: {critique.parse.removeprefix('failed: ')}", 66, 2))]
    if not critique.first_error:
        return [("Critique", "no step is judged Incorrect")]
    step = critique.steps[critique.first_error - 1]
    rows = [("Critique", f"of step {critique.first_error}")]
    rows += [(name, _wrap(getattr(step, field), 66, 3)) for field, name in ABOUT.items() if getattr(step, field)]
    return [*rows, ("Corrected", _wrap(critique.corrected_step or "nothing", 66, 3))]


def _write_notes(axes: Axes, notes: Sequence[tuple[str, str]], top: float) -> None:
    for heading, text in notes:
        weight = "bold" if heading in ("Critique", "Corrected") else "normal"
        axes.text(0.15, top, heading, va="top", fontsize=9, weight="bold", color="#444444")
        axes.text(2.2, top, text, va="top", fontsize=9, weight=weight)
        top += 0.95 + 0.7 * text.count("\n")


# -- verdicts and corrections


def _dots(axes: Axes, frame: pd.DataFrame, names: Sequence[str], label: str, grey: Sequence[str] = ()) -> None:
    """A point with its interval and its number per row of `names`, the first above."""
    for row in frame.itertuples():
        place, base = list(names).index(str(getattr(row, label))), str(getattr(row, label)) in grey
        errors = _errors([row.value], [row.low], [row.high])
        style = dict(color=GREY if base else COLOURS[0], marker="D" if base else "o", mfc="white" if base else None)
        axes.errorbar([row.value], [place], xerr=errors, capsize=3, lw=1.6, ms=6.5, ls="none", **style)
        above = dict(xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.annotate(f"{row.value:.3f}", (row.value, place), **above)
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.grid(axis="x", lw=0.5)


def verdict_quality(frame: pd.DataFrame, *, baselines: Sequence[str] = (), caption: str = "") -> Figure:
    """A panel per metric, a row per judge: columns judge, metric, value, low, high, n. Baselines are grey diamonds."""
    metrics, judges = list(dict.fromkeys(frame["metric"])), list(dict.fromkeys(frame["judge"].astype(str)))
    size = (2.3 * len(metrics) + 1.9, 0.5 * len(judges) + 1.5)
    figure, panels = new_figure(*size, len(metrics), sharey=True)
    for axes, metric in zip(panels, metrics, strict=True):
        _dots(axes, frame[frame["metric"] == metric], judges, "judge", baselines)
        axes.set_xlabel(METRICS.get(str(metric), str(metric).replace("_", " ")))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.margins(x=0.15)
    panels[0].set_yticks(range(len(judges)), [plain(name) for name in judges])
    note = _interval_note(frame) + ("; grey diamonds: baselines" if baselines else "")
    return add_caption(figure, caption or note)


def correction_success(frame: pd.DataFrame, *, xlabel: str = "corrections that are right", caption: str = "") -> Figure:
    """A panel per trait (family, kind of error), a bar per group: columns trait, group, value, low, high, n."""
    traits = list(dict.fromkeys(frame["trait"]))
    counts = [int((frame["trait"] == trait).sum()) for trait in traits]
    figure, panels = new_figure(4.0 * len(traits) + 0.4, 0.44 * max(counts) + 1.4, len(traits), sharex=True)
    for index, (axes, trait) in enumerate(zip(panels, traits, strict=True)):
        part = frame[frame["trait"] == trait].reset_index(drop=True)
        errors = _errors(part["value"], part["low"], part["high"])
        style = dict(color=COLOURS[index], hatch=HATCHES[index], edgecolor="white")
        axes.barh(part.index, part["value"], 0.7, xerr=errors, capsize=2, error_kw={"lw": 1}, **style)
        ends = np.maximum(part["value"], part["high"].astype(float).fillna(0))
        for place, (end, value) in enumerate(zip(ends, part["value"], strict=True)):
            axes.annotate(f"{value:.0%}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        names = [f"{plain(str(g))} (n = {n:,})" for g, n in zip(part["group"], part["n"], strict=True)]
        axes.set_yticks(part.index, names)
        axes.set(xlabel=xlabel, xlim=(0, 1.2), title=TRAITS.get(str(trait), str(trait).replace("_", " ")))
        axes.set_xticks(np.arange(0, 1.01, 0.25))
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    note = "Bars: 95 % intervals over problems." if frame["low"].notna().any() else ""
    return add_caption(figure, caption or note)


def reliability_of_judges(bins: Mapping[str, Sequence[dict[str, Any]]], *, caption: str = "") -> Figure:
    """Share of right steps by mean score, a line per judge, and below how many steps each bin holds.

    `bins`: judge -> dicts with low, high, n, mean_score, share_right, as `validation.validation_metrics` gives.
    """
    set_style()
    figure = Figure(figsize=(6.4, 4.9), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    top.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="calibrated")
    for index, (name, rows) in enumerate(bins.items()):
        part = pd.DataFrame(list(rows), columns=["low", "high", "n", "mean_score", "share_right"])
        part = part[part["n"] > 0]
        share = part["share_right"].astype(float)
        spread = 1.96 * np.sqrt(share * (1 - share) / part["n"])
        style = dict(color=COLOURS[index % 8], marker=MARKERS[index % 8], linestyle=DASHES[index % 8])
        label = f"{name} (n = {int(part['n'].sum()):,})"
        top.errorbar(part["mean_score"], share, yerr=spread, capsize=2, lw=1.5, ms=5, label=label, **style)
        width = (part["high"] - part["low"]) / max(1, len(bins))
        at = part["low"] + width * index
        look = dict(color=COLOURS[index % 8], hatch=HATCHES[index % 8], edgecolor="white", lw=0.4)
        bottom.bar(at, part["n"], width, align="edge", **look)
    top.set(ylabel="share of right steps", xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    top.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    bottom.set(xlabel="probability that the step is right", ylabel="steps\n(log scale)", yscale="log")
    bottom.yaxis.set_minor_locator(NullLocator())
    return add_caption(figure, caption or "Bars: 95 % normal intervals, steps taken as independent.")


# -- refined pools


def _mode_style(mode: str) -> dict[str, Any]:
    """Colour, dash and marker of a mode, the same in every figure; an unknown one gets the next in line."""
    index = list(MODES).index(mode) if mode in MODES else len(MODES)
    return dict(color=COLOURS[index % 8], marker=MARKERS[index % 8], linestyle=DASHES[index % 8], lw=1.6, ms=5.5)


def _mode_lines(axes: Axes, frame: pd.DataFrame, x: str) -> None:
    for mode, part in frame.groupby("mode", sort=False):
        part, style = part.sort_values(x), _mode_style(str(mode))
        axes.plot(part[x], part["value"], label=MODES.get(str(mode), str(mode)), **style)
        if part["low"].notna().any():
            ends = part["low"].astype(float), part["high"].astype(float)
            axes.fill_between(part[x], *ends, color=style["color"], alpha=0.12, lw=0)
    axes.grid(axis="y", lw=0.5)


def _share_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _by_pool_size(axes: Axes, frame: pd.DataFrame) -> None:
    axes.set_xscale("log", base=2)
    sizes = sorted(frame["N"].unique())
    axes.set_xticks(sizes, sizes)
    axes.set_xlabel("solutions in the pool, N")


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)


def refined_curves(
    table: pd.DataFrame, methods: Mapping[str, str] | None = None, *, caption: str = ""
) -> Figure:
    """Accuracy by N, a line per mode and a panel per method: rows of `pools.pool_table`.

    `methods`: method -> title of its panel; by default what is chosen, and what could have been.
    """
    methods = methods or {"best_of_n": "the chosen solution is right", "pass_at_n": "some solution of the pool is"}
    figure, panels = new_figure(3.4 * len(methods) + 2.2, 3.9, len(methods), sharey=True)
    for axes, (method, label) in zip(panels, methods.items(), strict=True):
        part = table[table["method"] == method]
        _mode_lines(axes, part, "N")
        _by_pool_size(axes, part)
        _share_axis(axes)
        axes.set_title(label, fontsize=10)
    panels[0].set_ylabel("share of problems")
    _legend(panels[-1])
    shown = table[table["method"].isin(methods)]
    return add_caption(figure, caption or _interval_note(shown))


def accuracy_against_tokens(
    table: pd.DataFrame, *, critic: bool = True, votes: str = "samples", caption: str = ""
) -> Figure:
    """Accuracy by generated tokens, a line per mode, points named by N: rows of `pools.pool_table` and `sample_table`.

    best_of_n of every mode, and the majority vote of the mode `votes`. Left the tokens of the policy alone, right, if
    `critic`, those of the critic added; on logarithmic axes.
    """
    own = (table["method"] == "best_of_n") | ((table["method"] == "majority_vote") & (table["mode"] == votes))
    frame = table[own].copy()
    frame["policy"], frame["all"] = frame["n_policy_tokens"], frame["n_policy_tokens"] + frame["n_critic_tokens"]
    names = {"policy": "policy tokens per problem", "all": "policy and critic tokens per problem"}
    names = names if critic else {"policy": names["policy"]}
    figure, panels = new_figure(3.6 * len(names) + 2.2, 3.9, len(names), sharey=True)
    for axes, (column, label) in zip(panels, names.items(), strict=True):
        _mode_lines(axes, frame, column)
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", labelsize=8)
        for mode, part in frame.groupby("mode", sort=False):
            if mode in ("correction", votes):
                _name_points(axes, part, column, below=mode == votes)
        _share_axis(axes)
    panels[0].set_ylabel("problems answered correctly")
    _legend(panels[-1])
    return add_caption(figure, caption or f"{_interval_note(frame)}; small numbers: N")


def _name_points(axes: Axes, part: pd.DataFrame, column: str, below: bool) -> None:
    for row in part.itertuples():
        place = dict(xytext=(0, -11 if below else 6), textcoords="offset points", ha="center", fontsize=7.5)
        axes.annotate(str(row.N), (getattr(row, column), row.value), **place)


def pool_diversity(table: pd.DataFrame, *, caption: str = "") -> Figure:
    """Distinct answers in the pool by N, a line per mode: rows of `pools.pool_table`."""
    part = table[table["method"] == "distinct_answers"]
    figure, (axes,) = new_figure(6.6, 3.7)
    _mode_lines(axes, part, "N")
    _by_pool_size(axes, part)
    axes.set_ylabel("distinct answers in the pool")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return add_caption(figure, caption or _interval_note(part))


def flips(frame: pd.DataFrame, *, caption: str = "") -> Figure:
    """What became of the initial solutions, a row per mode: columns mode, flip, value, low, high, n.

    `flip` is "wrong_to_right" or "right_to_wrong", a share of those that were wrong, or right, before.
    """
    labels = {"wrong_to_right": "wrong before, right after", "right_to_wrong": "right before, wrong after"}
    frame = frame[frame["n"] > 0]  # a flip that no solution could make is no bar
    modes = list(dict.fromkeys(frame["mode"]))
    figure, (axes,) = new_figure(7.4, 0.62 * len(modes) + 1.4)
    reach = max([0.05, *frame["value"].dropna(), *frame["high"].dropna()])
    for index, (flip, label) in enumerate(labels.items()):
        part = frame[frame["flip"] == flip]
        at = np.array([modes.index(mode) for mode in part["mode"]]) + (index - 0.5) * 0.38
        errors = _errors(part["value"], part["low"], part["high"])
        style = dict(color=COLOURS[2 if index == 0 else 5], hatch=HATCHES[2 * index], edgecolor="white")
        axes.barh(at, part["value"], 0.36, xerr=errors, capsize=2, error_kw={"lw": 1}, label=label, **style)
        ends = np.maximum(part["value"], part["high"].astype(float).fillna(0))
        for place, end, row in zip(at, ends, part.itertuples(), strict=True):
            text = f"{row.value:.0%} of {row.n:,}"
            axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    names = MODES | {"fresh": "a fresh sample"}  # of one solution; a pool of them is plain Best-of-N
    axes.set_yticks(range(len(modes)), [names.get(mode, str(mode)) for mode in modes])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="share of the initial solutions that were so before", xlim=(0, 1.3 * reach))
    _legend(axes)
    return add_caption(figure, caption or "Bars: 95 % intervals over problems.")
