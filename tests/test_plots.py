"""Figures: each is drawn and holds what it was given; what a reader could misread is asserted, not the pixels."""

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmprm_lib import drawing, plots
from mmprm_lib.schema import Problem

IMAGE = Image.new("RGB", (112, 112), "white")
PROBLEM = Problem(
    problem_id="p1",
    question="What costs $5 and $\\frac{1}{2?",
    image="a.png",
    image_sha256="0" * 64,
    answer="B",
    answer_type="choice",
    choices=["$x_1$", "two"],
    source="test",
    split="test",
)
HISTORY = [{"step": 10 * i, "loss": 0.7 / (i + 1)} for i in range(5)] + [
    {"epoch": float(e), "auroc": a, "macro_f1": 0.6, "brier": 0.2, "n": 1234} for e, a in ((1, 0.7), (2, 0.9), (3, 0.8))
]
BINS = [{"low": 0.0, "high": 0.1, "n": 10, "mean_score": 0.05, "share_right": 0.0}]


def rows(**columns):
    return pd.DataFrame(
        {**columns, "low": [v - 0.1 for v in columns["value"]], "high": [v + 0.1 for v in columns["value"]], "n": 500}
    )


def text_of(figure: Figure) -> str:
    """Everything that is written in the figure, after it was really drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that the font lacks, a layout that collapsed
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    found = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return "\n".join(found)


FIGURES = {
    "contact_sheet": lambda: plots.contact_sheet([PROBLEM] * 5, [IMAGE] * 5, ncols=3),
    "bars": lambda: plots.bars(rows(family=["a", "b"], value=[0.5, 0.7]), "family", "value", percent=True),
    "bars_by_hue": lambda: plots.bars(
        rows(f=["a", "a", "b"], form=["x", "y", "x"], value=[0.5, 0.6, 0.7]), "f", "value", "form"
    ),
    "solution": lambda: plots.solution_with_scores(IMAGE, PROBLEM, ["a $", "b"], [0.2, None], [1, -1]),
    "no_steps": lambda: plots.solution_with_scores(IMAGE, PROBLEM, [], []),
    "label_quality": lambda: plots.label_quality_by_k(rows(k=[1, 2, 4], value=[0.5, 0.6, 0.7])),
    "training": lambda: plots.training_curves(HISTORY),
    "training_without_validation": lambda: plots.training_curves(HISTORY[:5]),
    "reliability": lambda: plots.reliability(BINS),
    "benchmark": lambda: plots.benchmark_bars(rows(method=["a", "b"], value=[0.5, 0.7]).assign(baseline=[True, False])),
    "best_of_n": lambda: plots.best_of_n_curves(
        rows(method=["a", "a", "b", "b"], N=[1, 2, 1, 2], value=[0.5, 0.6, 0.5, 0.7])
    ),
    "length": lambda: plots.score_against_length(
        pd.DataFrame(dict(n_steps=[3, 4, 5, 3], score=[0.1, 0.2, 0.3, 0.2], correct=[True, False, True, True]))
    ),
    "errors": lambda: plots.error_breakdown(pd.DataFrame(dict(group=["a", "a"], kind=["right", "slip"], value=[3, 1]))),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_without_a_warning(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert text_of(figure).strip()
    if name not in ("contact_sheet", "solution", "no_steps"):
        for axes in figure.axes:
            assert axes.get_ylabel() or axes.get_xlabel()


def test_a_solution_shows_each_score_and_what_is_true():
    figure = plots.solution_with_scores(IMAGE, PROBLEM, ["one", "two", "three"], [0.123, 0.9, None], [1, 0, -1])
    text = text_of(figure)
    for word in ("one", "0.12", "0.90", "–", "right", "neutral", "wrong", "answer: B"):
        assert word in text.splitlines()
    colours = [p.get_facecolor() for p in figure.axes[1].patches]
    assert colours[0] == drawing.SCORE_MAP(0.123) and colours[2] == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="p1: 2 steps, 1 scores"):
        plots.solution_with_scores(IMAGE, PROBLEM, ["a", "b"], [0.1])


def test_the_scale_runs_from_orange_to_blue():
    low, high = drawing.SCORE_MAP(0.0), drawing.SCORE_MAP(1.0)
    assert low[0] > low[2] and high[2] > high[0]


def test_bars_stand_at_their_values_with_their_intervals():
    figure = plots.bars(rows(family=["a", "b"], value=[0.5, 0.7]), "family", "value", ylabel="pass@1")
    (axes,) = figure.axes
    assert [p.get_height() for p in axes.patches] == [0.5, 0.7]
    assert axes.get_ylabel() == "pass@1"
    assert "n = 500; bars and bands: 95 % intervals" in text_of(figure)
    assert "50%" in text_of(FIGURES["bars"]())


def test_benchmark_puts_the_best_above_and_marks_baselines():
    (axes,) = FIGURES["benchmark"]().axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]  # the y axis points up
    assert [p.get_hatch() for p in axes.patches] == ["///", ""]


def test_the_best_epoch_is_marked():
    figure = plots.training_curves(HISTORY)
    assert [line.get_xdata()[0] for line in figure.axes[1].lines if line.get_linestyle() == ":"] == [2.0]
    assert "n = 1,234 decisions" in text_of(figure)


def test_lines_differ_without_colour():
    (axes,) = FIGURES["best_of_n"]().axes
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 2
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2"]


def test_shares_of_a_group_add_up_to_one():
    (axes,) = FIGURES["errors"]().axes
    assert [p.get_width() for p in axes.patches] == [0.75, 0.25]
    assert axes.get_yticklabels()[0].get_text() == "a (n = 4)"


def test_lengths_of_many_tokens_are_grouped():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        dict(n_tokens=rng.integers(10, 400, 200), score=rng.random(200), correct=rng.random(200) < 0.5)
    )
    figure = plots.score_against_length(frame)
    assert len(figure.axes[0].lines[0].get_xdata()) <= 8
    assert figure.axes[0].get_xlabel() == "tokens in the solution"


def test_a_caption_given_stands_in_the_figure():
    assert "See here." in text_of(plots.reliability(BINS, caption="See here."))


def test_what_the_font_has_no_shape_for_is_a_box_and_no_warning():
    assert drawing.plain("a\x0f b\u4e2d $x$\n\u221e \x85") == "a\u25a1 b\u25a1 \\$x\\$\n\u221e \u25a1"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = ["\x0f\x1b[31m", "\u4e2d\u6587 $\\frac{1"]
        drawing.solution_with_scores(IMAGE, PROBLEM, steps, [0.1, 0.9]).savefig(io.BytesIO())
