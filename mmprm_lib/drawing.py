"""What every figure shares (style, colours, captions), and the two figures made of images: problems, a solution.

Colours are Okabe and Ito's; whatever colour tells, a hatch, a dash, a marker or a number tells too.
"""

import textwrap
from collections.abc import Sequence
from functools import cache

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from mmprm_lib.schema import Problem

# Okabe and Ito's colours, ordered so that neighbours also differ in lightness
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3))]
HATCHES = ["", "///", "...", "\\\\\\", "xx", "ooo", "++", "--"]
SCORE_MAP = sns.blend_palette(["#D55E00", "#F7F7F7", "#0072B2"], as_cmap=True)  # wrong, undecided, right
TRUTHS = {1: ("right", "#0072B2"), -1: ("wrong", "#D55E00"), 0: ("neutral", "#666666")}
MM = 1 / 25.4
CAPTION_CHARACTERS = 17  # per inch of width, at the caption's size
MAX_ROWS = 40  # steps on a card: a figure of thousands cannot be saved


def set_style() -> None:
    """Nothing; seaborn's and matplotlib's defaults are the project's. Every figure function calls it."""
    rc = {
        "figure.dpi": 110,
        "savefig.dpi": 160,
        "savefig.bbox": "tight",
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "hatch.linewidth": 0.6,
        "svg.hashsalt": "mmprm",
    }
    sns.set_theme(context="notebook", style="ticks", palette=COLOURS, rc={**rc, "grid.color": "#dddddd"})


def new_figure(width: float = 6.4, height: float = 3.8, n_axes: int = 1, **options) -> tuple[Figure, np.ndarray]:
    """A figure that pyplot does not know: it is shown once, by its cell, and freed with its last reference."""
    set_style()
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, n_axes, squeeze=False, **options)[0]
    return figure, axes


def add_caption(figure: Figure, text: str) -> Figure:
    """The figure with `text` wrapped under it, as wide as it is."""
    if text:
        width = int(figure.get_figwidth() * CAPTION_CHARACTERS)
        figure.supxlabel("\n".join(textwrap.wrap(text, width)), x=0.01, ha="left", fontsize=8, color="#444444")
    return figure


def contact_sheet(
    problems: Sequence[Problem],
    images: Sequence[Image.Image],
    titles: Sequence[str] | None = None,
    ncols: int = 4,
    caption: str = "",
) -> Figure:
    """The problems as pictures: image, question under it, answer (or `titles`) above it."""
    set_style()
    nrows = max(1, -(-len(problems) // ncols))
    texts = [_problem_text(problem) for problem in problems]
    n_lines = 1 + max((text.count("\n") for text in texts), default=0)
    figure = Figure(figsize=(2.5 * ncols, (2.75 + 0.16 * n_lines) * nrows), layout="constrained")
    grid = figure.subplots(nrows, ncols, squeeze=False).ravel()
    for axes in grid[len(problems) :]:
        axes.axis("off")
    titles = titles or [f"{p.source}: {p.answer}" for p in problems]
    for axes, text, image, title in zip(grid, texts, images, titles, strict=False):
        axes.imshow(image, interpolation="nearest" if max(image.size) < 300 else None)
        axes.set_title(_wrap(title, 32), fontsize=9, loc="center")
        axes.set_xlabel(text + "\n" * (n_lines - 1 - text.count("\n")), fontsize=8)  # rows of one height
        axes.set(xticks=[], yticks=[])
        sns.despine(ax=axes, left=True, bottom=True)
    return add_caption(figure, caption or f"{len(problems)} problems.")


def _problem_text(problem: Problem, width: int = 36) -> str:
    text = _wrap(problem.question, width, lines=8)
    if problem.choices:
        text += "\n" + _wrap("  ".join(f"({chr(65 + i)}) {c}" for i, c in enumerate(problem.choices)), width, lines=4)
    return text


def _wrap(text: str, width: int, lines: int = 2) -> str:
    wrapped = [line for part in plain(text).splitlines() for line in textwrap.wrap(part, width) or [""]]
    return "\n".join(wrapped[:lines]) + (" ..." if len(wrapped) > lines else "")


def plain(text: str) -> str:
    """Text as it is: a dollar sign of a model's LaTeX would start matplotlib's own mathematics, and fail in it.

    What the font has no shape for (control characters, other scripts) is a box, as matplotlib draws it with a warning.
    """
    known = _characters()
    text = "".join(c if ord(c) in known or c in "\n\t" else "\u25a1" for c in text)
    return text.replace("\\$", "$").replace("$", r"\$")


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def solution_with_scores(
    image: Image.Image,
    problem: Problem,
    steps: Sequence[str],
    scores: Sequence[float | None],
    truth: Sequence[int] | None = None,
    *,
    caption: str = "",
    score_name: str = "score",
) -> Figure:
    """The image beside the steps, each in the colour and with the number of its score; with `truth` a sign of what it
    really is.

    Orange is low, white 0.5, blue high; a step without a score (None) is hatched. Of more than MAX_ROWS steps the first
    are shown, and how many there are.
    """
    if len(steps) != len(scores) or (truth is not None and len(truth) != len(steps)):
        raise ValueError(
            f"{problem.problem_id}: {len(steps)} steps, {len(scores)} scores, {len(truth or steps)} truths"
        )
    set_style()
    shown = rows_shown(len(steps))
    texts = [_wrap(steps[i], 52, lines=6) for i in shown]
    question = _problem_text(problem)
    heights = [1.15 + 0.75 * text.count("\n") for text in texts]
    figure = Figure(
        figsize=(8.6, max(3.2 + 0.15 * question.count("\n"), 0.32 * sum(heights) + 0.9)), layout="constrained"
    )
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    left.imshow(image, interpolation="nearest" if max(image.size) < 300 else None)
    left.axis("off")
    left.set_title(question, fontsize=9, loc="left")
    left.text(
        0.5, -0.03, plain(f"answer: {problem.answer}"), transform=left.transAxes, ha="center", va="top", fontsize=9
    )
    _score_rows(right, texts, heights, scores, truth, score_name, shown)
    return add_caption(figure, caption)


def rows_shown(n_steps: int, about: int = 0) -> range:
    """The steps that a card shows, MAX_ROWS at most, with the one numbered `about` (from 0) among them."""
    first = max(0, min(about - MAX_ROWS // 2, n_steps - MAX_ROWS))
    return range(first, min(n_steps, first + MAX_ROWS))


def _score_rows(
    axes: Axes, texts: list[str], heights: list[float], scores: Sequence, truth: Sequence | None, name: str,
    shown: range,
) -> None:  # fmt: skip
    top, end = 0.0, 10.0
    if len(shown) < len(scores):
        part = f"steps {shown.start + 1} to {shown.stop} of {len(scores)}"
        axes.text(0.15, -0.15, part, fontsize=8, color="#444444")
    for index, text, height in zip(shown, texts, heights, strict=True):
        score = scores[index]
        known = score is not None and not np.isnan(score)
        colour = SCORE_MAP(float(np.clip(score, 0, 1))) if known else "white"
        edge = dict(edgecolor="#666666", lw=0.6, hatch=None if known else "//")
        axes.add_patch(mpl.patches.Rectangle((0, top), end, height * 0.92, facecolor=colour, **edge))
        ink = "white" if known and np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.45 else "black"
        style = dict(va="center", fontsize=9, color=ink)
        middle = top + height * 0.46
        axes.text(0.15, middle, f"{index + 1}  ", **style | {"fontsize": 8})
        axes.text(0.6, middle, text, **style)
        axes.text(end - 0.15, middle, f"{score:.2f}" if known else "–", ha="right", weight="bold", **style)
        if truth is not None:
            sign, shade = TRUTHS[int(truth[index])]
            weight = "bold" if sign == "wrong" else "normal"
            axes.text(end + 0.2, middle, sign, weight=weight, **style | {"color": shade})
        top += height
    axes.set(xlim=(0, end + (1.6 if truth is not None else 0.1)), ylim=(max(top, 0.5), -0.6))
    axes.text(end - 0.15, -0.15, name, ha="right", fontsize=8, color="#444444")
    if truth is not None:
        axes.text(end + 0.2, -0.15, "truth", fontsize=8, color="#444444")
    axes.axis("off")
