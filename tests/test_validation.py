"""The table of decisions and its estimates, on cases small enough to do by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mmprm_lib import plots_prm, validation
from mmprm_lib.schema import Problem, Scores, Solution, StepLabels
from mmprm_lib.steps import FORMATS

STEPS = ["A is 3", "total: 3 + 4 = 8", "Answer: 8"]


def problem(name: str, scene: dict | None = None, split: str = "dev") -> Problem:
    return Problem(
        problem_id=name, question="?", image="a.png", image_sha256="0" * 64, answer="7", answer_type="number",
        source="test", split=split, scene=scene,
    )  # fmt: skip


def labelled(name: str, of: str, mc: list[float | None], truth: list[int] | None) -> StepLabels:
    counts = [None if m is None else 4 for m in mc]
    correct = [None if m is None else round(4 * m) for m in mc]
    unknown = [None if m is None else 0 for m in mc]
    return StepLabels(
        solution_id=name, problem_id=of, steps=STEPS[: len(mc)], n_rollouts=counts, n_correct=correct,
        n_unknown=unknown, mc_score=mc, strategy="exhaustive", n_generated_tokens=0, truth=truth,
    )  # fmt: skip


def solution(name: str, of: str, verdict: str) -> Solution:
    return Solution(
        solution_id=name, problem_id=of, steps=STEPS, answer="8", verdict=verdict, policy="p", seed=0, n_tokens=9,
        finish_reason="stop",
    )  # fmt: skip


def scored(name: str, scores: list[float]) -> Scores:
    return Scores(solution_id=name, prm="m", step_scores=scores)


def test_right_is_the_truth_where_there_is_one_and_the_label_where_not():
    problems = [problem("p", scene={"family": "bars"}), problem("q")]
    records = [labelled("p/s0", "p", [1.0, 0.25, 0.0], [1, 0, -1]), labelled("q/s0", "q", [0.25, 0.0, None], None)]
    scores = [scored("q/s0", [0.4, 0.3, 0.2]), scored("p/s0", [0.9, 0.8, 0.1])]  # any order
    table = validation.decisions("m", FORMATS["marker"], records, problems, scores)
    assert table["right"].tolist() == [True, None, False, True, False, None]
    assert table["score"].tolist() == [0.9, 0.8, 0.1, 0.4, 0.3, 0.2]
    assert table["place"].tolist() == [1, 2, 3, 1, 2, 3]
    assert table["kind"].tolist() == ["read", "deduce", "answer", "other", "other", "other"]


def test_missing_and_surplus_scores_are_named():
    records = [labelled("p/s0", "p", [1.0, 0.0], None)]
    for scores, found in [([], "no scores"), ([scored("p/s0", [0.5])], "1 scores")]:
        with pytest.raises(ValueError, match=f"p/s0: {found}"):
            validation.decisions("m", FORMATS["marker"], records, [problem("p")], scores)


def test_an_orm_has_one_decision_at_the_end():
    records = [solution("p/s0", "p", "wrong"), solution("p/s1", "p", "unknown")]
    scores = [scored("p/s0", [0.3]), scored("p/s1", [0.6])]
    table = validation.decisions("orm", FORMATS["orm"], records, [problem("p")], scores)
    assert table[["place", "kind", "right"]].values.tolist() == [[3, "solution", False], [3, "solution", None]]


def test_the_labels_themselves_are_judged_only_against_a_truth():
    records = [labelled("p/s0", "p", [1.0, None, 0.5], [1, 1, -1]), labelled("q/s0", "q", [1.0, 0.0], None)]
    table = validation.label_decisions(records, [problem("p"), problem("q")])
    assert table[["score", "right"]].values.tolist() == [[1.0, True], [0.5, False]]


def table_of(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=validation.COLUMNS).astype({"right": object})


def test_estimates_on_a_hand_case():
    rows = [
        ("m", "s0", "p", 1, "read", 0.9, True),
        ("m", "s0", "p", 2, "deduce", 0.6, False),
        ("m", "s1", "q", 1, "read", 0.4, True),
        ("m", "s1", "q", 2, "deduce", 0.1, False),
        ("m", "s1", "q", 3, "answer", 0.5, None),
    ]
    found = validation.estimates(table_of(rows)).set_index("metric")
    # pairs right over wrong: .9 > .6, .9 > .1, .4 > .1 but not .4 > .6: 3 of 4
    assert found.loc["auroc", "value"] == 0.75
    # tp 1, fn 1, fp 1, tn 1: both F1 are 2 / (2 + 1 + 1)
    assert found.loc["macro_f1", "value"] == 0.5
    # (.01 + .36 + .36 + .01) / 4
    assert found.loc["brier", "value"] == pytest.approx(0.185)
    assert set(found["n"]) == {4}, "the step without a truth does not count"
    by_kind = validation.estimates(table_of(rows), by="kind").set_index(["kind", "metric"])["value"]
    assert np.isnan(by_kind["read", "auroc"]) and by_kind["read", "brier"] == pytest.approx((0.01 + 0.36) / 2)
    shown = validation.side_by_side(validation.estimates(table_of(rows)))
    assert shown.loc["m", "n"] == 4 and shown.loc["m", "auroc"].startswith("0.750")


def test_the_interval_draws_whole_problems():
    # every problem is 50 copies of one decision: as steps n = 200, as problems n = 4, so the interval must be wide
    rows = [("m", f"s{p}", f"p{p}", 1, "read", p / 4, p > 1) for p in range(4) for _ in range(50)]
    brier = validation.estimates(table_of(rows)).set_index("metric").loc["brier"]
    assert brier["high"] - brier["low"] > 0.15  # squared errors 0, .0625, .25, .0625: drawn by fours


def test_solution_scores_follow_the_aggregator_and_the_verdict():
    rows = [("m", "p/s0", "p", i + 1, "read", s, None) for i, s in enumerate([0.2, 0.9, 0.7])]
    rows += [("m", "p/s1", "p", 1, "read", 0.5, True)]
    solutions = [solution("p/s0", "p", "wrong"), solution("p/s1", "p", "unknown")]
    for aggregator, score in [("mean", 0.6), ("min", 0.2), ("last", 0.7)]:
        table = validation.solution_decisions(table_of(rows), solutions, aggregator)
        assert table["score"].tolist() == pytest.approx([score, 0.5])
        assert table["right"].tolist() == [False, None]


def test_label_summary_counts_null_apart_from_zero():
    problems = [problem("p", split="train"), problem("q")]
    records = [labelled("p/s0", "p", [1.0, 0.25, None], [1, -1, 0]), labelled("q/s0", "q", [0.0], None)]
    train, dev = validation.label_summary(records, problems).to_dict("records")
    assert (train["n_steps"], train["n_unlabelled"]) == (3, 1)
    assert (train["share_0"], train["share_between"], train["share_1"], train["share_right"]) == (0, 0.5, 0.5, 0.5)
    assert dev["share_0"] == 1 and np.isnan(dev["share_right"])


def test_reliability_by_epoch_has_a_panel_per_epoch_and_never_more_than_six():
    bins = [dict(low=0.9, high=1.0, n=4, mean_score=0.95, share_right=1.0)]
    history = [{"loss": 1.0}] + [dict(epoch=e, auroc=None, brier=0.1, n=4, bins=bins) for e in range(1, 10)]
    assert len(plots_prm.reliability_by_epoch(history[:3]).axes) == 2
    titles = [axes.get_title(loc="left") for axes in plots_prm.reliability_by_epoch(history).axes]
    assert len(titles) == 6 and titles[0].startswith("epoch 1\n") and titles[-1].startswith("epoch 9\n")
