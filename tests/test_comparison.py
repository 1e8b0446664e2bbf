"""Groups, curves, paired tests and traits, on hand cases."""

import math

import numpy as np
import pytest

from mmprm_lib import comparison, selection
from tests.doubles import problem, solution


def candidates(name, answers, gold="12"):
    return [
        solution(f"{name}/s{i}", answer=a, verdict="unknown" if a is None else "correct" if a == gold else "wrong")
        for i, a in enumerate(answers)
    ]


def test_groups_keep_the_order_and_vote_by_value():
    problems = [problem("p0"), problem("p1")]
    drawn = candidates("p1", ["12", "12.0", "13"]) + candidates("p0", ["7", "12", "12"])
    groups = comparison.groups_of(problems, drawn, greedy=candidates("p0", ["12"]))
    assert [g.problem_id for g in groups] == ["p0", "p1"]
    assert groups[1].answers[0] == groups[1].answers[1] != groups[1].answers[2]  # 12 and 12.0 are one vote
    assert groups[0].greedy.answer == "12" and groups[1].greedy is None


def test_a_candidate_without_an_answer_has_no_vote():
    drawn = [solution("p0/s0", ("no idea",), answer=None, verdict="unknown"), *candidates("p0", ["7"])[:1]]
    drawn[1] = drawn[1].model_copy(update={"solution_id": "p0/s1"})
    (group,) = comparison.groups_of([problem("p0")], drawn)
    assert group.answers[0] is None
    assert comparison.majority_pick(group, 2) == 1


def test_majority_pick_takes_the_first_of_the_commonest_and_looks_at_n_only():
    (group,) = comparison.groups_of([problem("p0")], candidates("p0", ["7", "12", "12", "7", "12"]))
    assert comparison.majority_pick(group, 1) == 0
    assert comparison.majority_pick(group, 3) == 1
    assert comparison.majority_pick(group, 4) == 0  # two votes each: the first to appear
    for n in range(1, 6):  # the pick is what the vote's outcome is about
        pick = group.candidates[comparison.majority_pick(group, n)]
        assert selection.correct(pick) == selection.majority_vote(group, n)


def test_curves_show_each_scorer_with_its_aggregator_and_the_main_weighted_vote():
    problems = [problem("p0"), problem("p1")]
    drawn = candidates("p0", ["12", "7"]) + candidates("p1", ["7", "12"])
    greedy = candidates("p0", ["12"]) + candidates("p1", ["7"])
    groups = comparison.groups_of(problems, drawn, greedy)
    scores = {s.solution_id: [0.9, 0.9, 0.9 if s.answer == "12" else 0.1] for s in drawn}
    whole = {s.solution_id: [0.5] for s in drawn}
    both = {"a": scores, "orm": whole}
    table = selection.selection_table(groups, both, (1, 2), {"a": ["last", "first"], "orm": ["last"]})
    found = comparison.curves(table, {"a": "last", "orm": "last"}, "a")
    methods = ["pass@N", "best by a", "vote weighted by a", "best by orm", "majority vote", "greedy", "random"]
    assert list(found["method"].unique()) == methods
    assert found.groupby("method")["N"].apply(list).map(lambda ns: ns == [1, 2]).all()
    value = found.set_index(["method", "N"])["value"]
    assert value["best by a", 2] == 1.0 and value["best by orm", 2] == 0.5  # a tie goes to the first: 1 of 2
    assert comparison.curves(table, {"a": "first", "orm": "last"}, "a").query("method == 'best by a' and N == 2")[
        "value"
    ].tolist() == [0.5]  # every first step scores 0.9, so the first candidate wins


def test_paired_tests():
    outcomes = {"a": np.array([1.0, 1, 1, 0]), "b": np.array([0.0, 1, 0, 0]), "c": np.array([0.5, 0.5, 0.5, 0.5])}
    found = comparison.paired_tests(outcomes, "a", ["a", "b", "c"]).set_index("other")
    assert list(found.index) == ["b", "c"]
    assert found.loc["b", "value"] == 0.5  # (1 + 0 + 1 + 0) / 4
    assert found.loc["b", "mcnemar_p"] == 0.5  # two pairs differ, both one way: 2 * 0.5^2
    assert found.loc["c", "value"] == 0.25 and math.isnan(found.loc["c", "mcnemar_p"])
    assert found.loc["b", "holm_p"] == 0.5 and math.isnan(found.loc["c", "holm_p"])  # a family of one test
    assert found.loc["b", "problems_needed"] == 8  # sd 0.5, difference 0.5: (1.96 + 0.84)^2 = 7.85
    assert (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()


def test_traits_without_a_scene_leave_out_the_wording():
    problems = [
        problem("p0", source="x"),
        problem("p1", source="y", answer="A", answer_type="choice", choices=["1", "2"]),
    ]
    found = comparison.by_trait(problems, {"m": np.array([1.0, 0.0])})
    assert found[["trait", "group", "value"]].to_numpy().tolist() == [
        ["family", "x", 1.0], ["family", "y", 0.0], ["form", "fill-in", 1.0], ["form", "multiple choice", 0.0],
    ]  # fmt: skip
    scenes = [p.model_copy(update={"scene": {"family": "bars", "tricky": i == 0}}) for i, p in enumerate(problems)]
    found = comparison.by_trait(scenes, {"m": np.array([1.0, 0.0])}).set_index(["trait", "group"])["value"]
    assert found["family", "bars"] == 0.5 and found["wording", "tricky"] == 1.0 and found["wording", "plain"] == 0.0


@pytest.mark.parametrize(("a", "b", "expected"), [([1, 2, 3], [2, 4, 9], 1.0), ([1, 2, 3], [3, 2, 1], -1.0)])
def test_spearman(a, b, expected):
    assert comparison.spearman(a, b) == pytest.approx(expected)


def test_spearman_of_what_does_not_vary_is_nan():
    assert math.isnan(comparison.spearman([1, 1], [1, 2])) and math.isnan(comparison.spearman([1], [2]))


def test_what_a_method_picks_keeps_its_verdict():
    drawn = candidates("p0", ["7", "12", "12", None]) + candidates("p1", [None, "7", "7", "7"])
    greedy = [solution(f"{p}/g", answer=a, verdict=v) for p, a, v in (("p0", "12", "correct"), ("p1", None, "unknown"))]
    groups = comparison.groups_of([problem("p0"), problem("p1")], drawn, greedy)
    scores = {s.solution_id: [score] * len(s.steps) for s, score in
              zip(drawn, (0.1, 0.2, 0.3, 0.9, 0.9, 0.1, 0.2, 0.8), strict=True)}  # fmt: skip
    assert comparison.pick_labels(groups, "greedy", 1) == ["correct", "unknown"]
    assert comparison.pick_labels(groups, "first", 4) == ["wrong", "unknown"]
    assert comparison.pick_labels(groups, "majority_vote", 4) == ["correct", "wrong"]
    assert comparison.pick_labels(groups, "best_of_n", 4, scores) == ["unknown", "unknown"]
    assert comparison.pick_labels(groups, "best_of_n", 3, scores) == ["correct", "unknown"]
    with pytest.raises(ValueError, match="'pass_at_n': use greedy"):
        comparison.pick_labels(groups, "pass_at_n", 4)
