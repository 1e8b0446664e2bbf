"""Figures of critiques and refined pools: each is drawn without a warning and holds what it was given."""

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmprm_lib import plots_critique, refinement
from mmprm_lib.schema import Critique, CritiqueStep
from tests.doubles import problem, solution

IMAGE = Image.new("RGB", (112, 112), "white")
P = problem(question="What are bar A and bar B together? It costs $5 and $\\frac{1}{2?")
WRONG = solution(
    steps=("Bar A is 7", "Bar B is 4", "Sum: 7 + 4 = 11", "Answer: 11"), answer="11", verdict="wrong"
)  # fmt: skip
AT = [
    CritiqueStep(intent="Read bar A", image="Bar A is 7", logic="7 = 7 is True", verdict="correct", p_correct=0.97),
    CritiqueStep(intent="Read bar B", image="Bar B is 5", logic="5 = 4 is False", verdict="incorrect", p_correct=0.04),
]
FLAGGED = Critique(solution_id="p0/s0", steps=AT, first_error=2, corrected_step="Bar B is 5", parse="ok")
CLEAR = Critique(solution_id="p0/s0", steps=AT[:1] * 4, first_error=0, corrected_step=None, parse="ok")
UNREAD = Critique(
    solution_id="p0/s0", steps=[], first_error=None, corrected_step=None, parse="failed: step 2 has no verdict"
)
MODES = ("correction", "resample", "truth", "fresh")


def with_interval(frame: pd.DataFrame, half: float = 0.03) -> pd.DataFrame:
    return frame.assign(low=frame["value"] - half, high=frame["value"] + half)


def pool_rows() -> pd.DataFrame:
    """What `pools.pool_table` and `pools.sample_table` give, with numbers that could be."""
    gain = {"correction": 0.06, "resample": 0.02, "truth": 0.17, "fresh": 0.0}
    rows = []
    for mode in MODES:
        for k, n in enumerate((2, 4, 8, 16)):
            cost = n * (20 if mode == "fresh" else 16), n * 95
            best, ceiling = 0.62 + 0.055 * k + gain[mode], 0.68 + 0.06 * k + gain[mode] / 2
            answers = 1.5 + 0.8 * k - gain[mode]
            found = (("best_of_n", best), ("pass_at_n", ceiling), ("distinct_answers", answers))
            rows += [(mode, method, n, *cost, value, 500) for method, value in found]
    rows += [("samples", "majority_vote", n, 20 * n, 0.0, 0.52 + 0.04 * k, 500) for k, n in enumerate((1, 4, 16, 64))]
    names = ["mode", "method", "N", "n_policy_tokens", "n_critic_tokens", "value", "n"]
    return with_interval(pd.DataFrame(rows, columns=names))


def verdict_rows() -> pd.DataFrame:
    judges = {"critic": 0.0, "verdict only": -0.03, "marker PRM": -0.01}
    rows = [
        (judge, metric, value + less, 4321)
        for metric, value in (("macro_f1", 0.93), ("auroc", 0.98), ("first_error_f1", 0.88))
        for judge, less in judges.items()
    ]
    return with_interval(pd.DataFrame(rows, columns=["judge", "metric", "value", "n"]), 0.008)


def success_rows() -> pd.DataFrame:
    rows = [("family", name, value, n) for name, value, n in
            (("bars", 0.91, 140), ("triangle", 0.78, 96), ("table", 0.62, 120), ("clock", 1.0, 3))]
    rows += [("error", name, value, n) for name, value, n in
             (("intent", 0.84, 130), ("image", 0.72, 90), ("logic", 0.93, 66), ("right step", 0.4, 30))]
    frame = with_interval(pd.DataFrame(rows, columns=["trait", "group", "value", "n"]), 0.06)
    frame.loc[3, ["low", "high"]] = np.nan  # too few problems for an interval
    return frame


def flip_rows() -> pd.DataFrame:
    values = {"correction": (0.62, 0.2), "resample": (0.4, 0.21), "truth": (0.75, 0.2), "fresh": (0.36, 0.35)}
    rows = [
        (mode, flip, value, n)
        for mode, both in values.items()
        for flip, value, n in zip(("wrong_to_right", "right_to_wrong"), both, (1890, 2110), strict=True)
    ]
    return with_interval(pd.DataFrame(rows, columns=["mode", "flip", "value", "n"]))


def bins(shift: float) -> list[dict]:
    sizes, at = [800, 60, 30, 20, 15, 18, 24, 30, 90, 2900], [k / 10 + 0.05 for k in range(10)]
    rows = zip(sizes, at, strict=True)
    return [dict(low=x - 0.05, high=x + 0.05, n=n, mean_score=x, share_right=x**shift) for n, x in rows]


FIGURES = {
    "card": lambda: plots_critique.critique_card(IMAGE, P, WRONG, FLAGGED, [1, -1, -1, -1]),
    "card_without_truth": lambda: plots_critique.critique_card(IMAGE, P, WRONG, FLAGGED),
    "card_clear": lambda: plots_critique.critique_card(IMAGE, P, WRONG, CLEAR, [1, -1, -1, -1]),
    "card_unreadable": lambda: plots_critique.critique_card(IMAGE, P, WRONG, UNREAD),
    "card_empty": lambda: plots_critique.critique_card(IMAGE, P, solution(steps=(), answer=None), UNREAD),
    "verdicts": lambda: plots_critique.verdict_quality(verdict_rows(), baselines=["marker PRM"]),
    "success": lambda: plots_critique.correction_success(success_rows()),
    "reliability": lambda: plots_critique.reliability_of_judges({"critic": bins(0.8), "marker PRM": bins(1.3)}),
    "curves": lambda: plots_critique.refined_curves(pool_rows()[lambda f: f["mode"] != "samples"]),
    "tokens": lambda: plots_critique.accuracy_against_tokens(pool_rows()),
    "tokens_of_the_policy": lambda: plots_critique.accuracy_against_tokens(pool_rows(), critic=False),
    "diversity": lambda: plots_critique.pool_diversity(pool_rows()),
    "flips": lambda: plots_critique.flips(flip_rows()),
}


def text_of(figure: Figure) -> str:
    """Everything that is written in the figure, after it was really drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that the font lacks, a layout that collapsed
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    found = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return "\n".join(found)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_without_a_warning_and_says_what_it_shows(name):
    figure = FIGURES[name]()
    text = text_of(figure)
    if not name.startswith("card"):
        assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)
        assert figure.axes[0].get_ylabel() or figure.axes[0].get_yticklabels()
        assert "95 %" in text and ("n = " in text or " of 1,890" in text or "(n = " in text)


def test_a_card_frames_the_wrong_step_and_says_what_stands_there_instead():
    figure = FIGURES["card"]()
    lines = text_of(figure).splitlines()
    for word in ("of step 2", "Read bar B", "Bar B is 5", "5 = 4 is False", "Corrected", "0.97", "0.04", "wrong"):
        assert word in lines
    assert "this solution: 11 (wrong)" in lines and "answer: 12" in lines
    frames = [p for p in figure.axes[1].patches if not p.get_fill()]
    [frame] = [p for p in frames if p.get_linewidth() > 2]
    assert frame.get_y() == pytest.approx(1.15)  # under the first row
    hatched = [p for p in figure.axes[1].patches if p.get_hatch()]
    assert len(hatched) == 2  # the two steps after it were not judged


def test_a_card_says_nothing_of_the_answer_of_a_solution_that_states_none():
    silent = WRONG.model_copy(update={"answer": None, "verdict": "unknown"})  # as in VisualProcessBench
    text = text_of(plots_critique.critique_card(IMAGE, P, silent, FLAGGED))
    assert "answer: 12" in text and "this solution" not in text


def test_a_card_of_a_clear_or_unreadable_critique_says_so():
    clear = FIGURES["card_clear"]()
    assert "no step is judged Incorrect" in text_of(clear)
    assert not [p for p in clear.axes[1].patches if not p.get_fill() and p.get_linewidth() > 2]
    assert "could not be read: step 2 has no verdict" in text_of(FIGURES["card_unreadable"]())


def test_verdicts_stand_a_row_per_judge_and_a_panel_per_metric():
    figure = FIGURES["verdicts"]()
    text = text_of(figure).splitlines()
    assert [axes.get_xlabel() for axes in figure.axes] == ["macro F1", "AUROC", "first-error F1"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["critic", "verdict only", "marker PRM"]
    assert {"0.930", "0.900", "0.920"} <= set(text)  # of macro F1
    assert [line.get_marker() for line in figure.axes[0].lines if line.get_marker() in "oD"] == ["o", "o", "D"]
    plain = plots_critique.verdict_quality(verdict_rows())
    assert "grey diamonds" in "\n".join(text) and "grey diamonds" not in text_of(plain)


def test_success_stands_by_family_and_by_kind_of_error():
    figure = FIGURES["success"]()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["family", "kind of error"]
    assert [p.get_width() for p in figure.axes[0].patches] == [0.91, 0.78, 0.62, 1.0]
    assert figure.axes[1].get_yticklabels()[0].get_text() == "intent (n = 130)"
    assert figure.axes[0].get_xlabel() == "corrections that are right"
    labelled = plots_critique.correction_success(success_rows(), xlabel="found at the right step")
    assert labelled.axes[0].get_xlabel() == "found at the right step"


def test_judges_are_told_apart_in_the_reliability_figure_and_empty_bins_are_left_out():
    one = [*bins(1.0)[:9], dict(low=0.9, high=1.0, n=0, mean_score=None, share_right=None)]
    figure = plots_critique.reliability_of_judges({"critic": one, "marker PRM": bins(1.0)})
    text = text_of(figure)
    assert "critic (n = 1,087)" in text and "marker PRM (n = 3,987)" in text  # sums of the bins
    assert len(figure.axes[1].patches) == 9 + 10


def test_lines_of_modes_differ_without_colour_and_keep_their_look():
    curves = FIGURES["curves"]()
    looks = [(line.get_linestyle(), line.get_marker()) for line in curves.axes[0].lines]
    assert len(set(looks)) == len(MODES)
    other = plots_critique.refined_curves(pool_rows()[lambda f: f["mode"] == "truth"])
    assert (other.axes[0].lines[0].get_linestyle(), other.axes[0].lines[0].get_marker()) == looks[2]
    assert [t.get_text() for t in curves.axes[1].get_legend().get_texts()] == [
        "critic's correction", "cut there, no correction", "true correction (ceiling)", "plain Best-of-N",
    ]  # fmt: skip
    assert list(curves.axes[0].lines[0].get_xdata()) == [2, 4, 8, 16]
    assert curves.axes[0].lines[0].get_ydata()[0] == pytest.approx(0.68)
    one = plots_critique.refined_curves(pool_rows(), {"pass_at_n": "any"})
    assert [axes.get_title(loc="left") for axes in one.axes] == ["any"]
    assert one.axes[0].lines[0].get_ydata()[0] == pytest.approx(0.71)


def test_tokens_of_the_critic_are_added_on_the_right():
    figure = FIGURES["tokens"]()
    left, right = figure.axes
    assert list(left.lines[0].get_xdata()) == [32, 64, 128, 256]  # 16 N
    assert list(right.lines[0].get_xdata()) == [222, 444, 888, 1776]  # (16 + 95) N
    assert left.get_xlabel() == "policy tokens per problem"
    assert len(FIGURES["tokens_of_the_policy"]().axes) == 1
    unvoted = plots_critique.accuracy_against_tokens(pool_rows(), votes="none")
    assert len(unvoted.axes[0].lines) == len(MODES)


def test_diversity_counts_answers():
    (axes,) = FIGURES["diversity"]().axes
    assert axes.get_ylabel() == "distinct answers in the pool"
    assert list(axes.lines[-1].get_ydata()) == pytest.approx([1.5, 2.3, 3.1, 3.9])


def test_flips_are_shares_of_what_was_so_before():
    figure = FIGURES["flips"]()
    text = text_of(figure)
    assert "62% of 1,890" in text and "20% of 2,110" in text and "right before, wrong after" in text
    assert [p.get_width() for p in figure.axes[0].patches][:4] == [0.62, 0.4, 0.75, 0.36]
    none = pd.DataFrame([dict(mode="fresh", flip="right_to_wrong", value=np.nan, low=np.nan, high=np.nan, n=0)])
    assert "nan" not in text_of(plots_critique.flips(pd.concat([flip_rows(), none])))


def test_every_mode_has_a_name_and_a_caption_of_ones_own_is_shown():
    assert set(refinement.MODES) < set(plots_critique.MODES)
    assert "See here." in text_of(plots_critique.flips(flip_rows(), caption="See here."))
