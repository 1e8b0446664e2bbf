"""Labels against the truth, by hand; and what fewer rollouts would have said."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprm_lib import label_quality, stats
from mmprm_lib.label_quality import RULES, chances, doublings, label_chance, label_frame, quality_by_k
from mmprm_lib.labeling import Options
from mmprm_lib.schema import StepLabels
from mmprm_lib.trees import Node, Tree
from tests.doubles import problem, solution


def record(name="p0/s0", counts=((4, 4, 0), (4, 1, 0), (4, 0, 1)), truth=(1, -1, 1), **fields) -> StepLabels:
    """Labels of a solution from (n_rollouts, n_correct, n_unknown) per step, None where a step was not sampled."""
    columns = [[None if c is None else c[i] for c in counts] for i in range(3)]
    scores = [None if c is None or c[0] == c[2] else c[1] / (c[0] - c[2]) for c in counts]
    return StepLabels(
        solution_id=name, problem_id=name.split("/")[0], steps=["x"] * len(counts), n_rollouts=columns[0],
        n_correct=columns[1], n_unknown=columns[2], mc_score=scores, strategy="exhaustive", n_generated_tokens=50,
        truth=None if truth is None else list(truth), **fields,
    )  # fmt: skip


def frame(*records) -> pd.DataFrame:
    return label_frame(records, [problem(name) for name in {r.problem_id: 0 for r in records}])


def test_the_two_truths_part_after_a_first_error():
    steps = frame(record(counts=[(4, 2, 0)] * 5, truth=(0, 1, -1, 1, 0)))
    assert steps["step_right"].tolist() == [None, True, False, True, None]  # a neutral step is not judged
    assert steps["prefix_right"].tolist() == [True, True, False, False, False]
    assert steps["place"].tolist() == [1, 2, 3, 4, 5] and steps["last"].tolist() == [False] * 4 + [True]
    assert list(steps.columns) == label_quality.COLUMNS


def test_what_is_not_known_stays_unknown():
    steps = frame(record(counts=[None, (4, 0, 4), (4, 1, 2)], truth=None))
    assert steps["mc_score"].tolist()[2] == 0.5 and steps["mc_score"].isna().tolist() == [True, True, False]
    assert steps["above_0"].tolist() == [None, None, True]
    assert steps["n_known"].tolist()[1:] == [0, 2] and np.isnan(steps["n_known"][0])
    assert steps["step_right"].tolist() == steps["prefix_right"].tolist() == [None] * 3


def test_labels_against_truth_by_hand():
    steps = frame(record())  # mc 1, 1/4, 0; step truth right, wrong, right; prefix right, wrong, wrong
    found = label_quality.against_truth(steps).set_index(["truth", "metric"])["value"]
    # mc > 0 says right, right, wrong. Step: 1 of 3 agree. Prefix: 2 of 3.
    assert found["step", "accuracy"] == pytest.approx(1 / 3) and found["prefix", "accuracy"] == pytest.approx(2 / 3)
    # prefix: tp 1, fp 1, tn 1, fn 0: F1 = 2 / 3 of both classes
    assert found["prefix", "macro_f1"] == pytest.approx(2 / 3)
    # step: tp 1, fn 1, fp 1, tn 0: F1 of right 2 / 4, of wrong 0
    assert found["step", "macro_f1"] == pytest.approx(1 / 4)
    assert found["prefix", "auroc"] == 1.0 and found["step", "auroc"] == 0.5  # one of two right ones is above 1/4
    higher = label_quality.against_truth(steps, threshold=0.25).set_index(["truth", "metric"])["value"]
    assert higher["prefix", "accuracy"] == 1.0  # now 1/4 is wrong
    assert len(label_quality.against_truth(frame(record(truth=None)))) == 0


# -- fewer rollouts


def test_chances_of_a_hand_case():
    # 2 of 4 are right; of the 6 pairs 1 holds none, 4 hold one, 1 holds both
    assert chances([2], [4], 2)[0] == pytest.approx([1 / 6, 4 / 6, 1 / 6])
    assert label_chance([2], [4], 2) == pytest.approx([5 / 6])
    assert label_chance([2], [4], 2, "mc >= 0.5") == pytest.approx([5 / 6])  # one of two is half
    assert label_chance([2], [4], 3, "mc >= 0.5") == pytest.approx([1 / 2])  # two of three: (2 C 2)(2 C 1) / (4 C 3)
    assert label_chance([0, 4], [4, 4], 3).tolist() == [0.0, 1.0]
    assert chances([], [], 4).shape == (0, 5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.data())
def test_chances_are_those_of_drawing_without_replacement(n, data):
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    drawn = [sum(i < right for i in chosen) for chosen in combinations(range(n), k)]
    expected = np.bincount(drawn, minlength=k + 1) / len(drawn)
    assert chances([right], [n], k)[0] == pytest.approx(expected)
    for rule, needed in RULES.items():
        assert label_chance([right], [n], k, rule)[0] == pytest.approx(expected[needed(k) :].sum())
    assert label_chance([right], [n], k)[0] == pytest.approx(stats.pass_at_k_each([right], [n], k)[0])


def test_what_cannot_be_drawn_is_an_error():
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k is {k}, the known rollouts of a step are 4"):
            chances([1], [4], k)
    with pytest.raises(ValueError, match="rule 'mean' is unknown: choose one of mc > 0, mc >= 0.5"):
        label_chance([1], [4], 2, "mean")


def test_doublings():
    assert [doublings(n) for n in (1, 4, 12, 16)] == [[1], [1, 2, 4], [1, 2, 4, 8], [1, 2, 4, 8, 16]]


def test_quality_by_k_by_hand():
    # two steps of 4 rollouts: a right one with 3 right rollouts, a wrong one with 1; the last has one rollout only
    steps = frame(record(counts=[(4, 3, 0), (4, 1, 0), (1, 0, 0)], truth=(1, -1, -1)))
    table = quality_by_k(steps, [1, 2, 4]).set_index(["truth", "rule", "metric", "k"])["value"]
    any_, half = (table.xs((rule, "accuracy"), level=("rule", "metric"))["step"].tolist() for rule in RULES)
    # k = 1: right with 3/4, and with 3/4. k = 2, any: 1 - 0, and 3/6 miss the one right rollout. k = 4: 1 and 0
    assert any_ == pytest.approx([3 / 4, (1 + 1 / 2) / 2, 1 / 2])
    assert half == pytest.approx([3 / 4, (1 + 1 / 2) / 2, 1.0])  # k = 4: 3 of 4 is at least half, 1 of 4 is not
    auroc = table.xs(("soft", "auroc"), level=("rule", "metric"))["step"].tolist()
    # k = 1: above 9/16, equal 6/16. k = 2: the right one has 1 or 2 of 2 (1/2 each), the wrong one 0 or 1 (1/2 each)
    assert auroc == pytest.approx([9 / 16 + 3 / 16, 3 / 4 + 1 / 8, 1.0])


def test_all_rollouts_give_the_label_itself():
    steps = frame(*(record(f"p{i}/s0", [(4, i % 5, 0), (4, 4 - i % 5, 0)], (1, -1 if i % 2 else 1)) for i in range(9)))
    by_k = quality_by_k(steps, [4]).set_index(["truth", "rule", "metric"])
    whole = label_quality.against_truth(steps).set_index(["truth", "metric"])
    for truth in ("step", "prefix"):
        for metric, rule in (("accuracy", "mc > 0"), ("macro_f1", "mc > 0"), ("auroc", "soft")):
            assert by_k.loc[(truth, rule, metric), "value"] == pytest.approx(whole.loc[(truth, metric), "value"])
    assert (by_k["n"] == 18).all() and (by_k["low"] <= by_k["value"]).all() and (by_k["value"] <= by_k["high"]).all()


def test_without_truth_there_is_no_quality():
    assert len(quality_by_k(frame(record(truth=None)), [1, 2])) == 0


# -- what the labels look like


def test_bands_count_every_step_once():
    counts = [(16, 0, 0), (16, 4, 0), (16, 8, 0), (16, 15, 0), (16, 16, 0), None]
    found = label_quality.score_bands(frame(record(counts=counts, truth=None)), "form").set_index("kind")["value"]
    assert found.to_dict() == {"0": 1, "up to 1/4": 1, "up to 1/2": 1, "under 1": 1, "1": 1, "not known": 1}


def test_unknowns_are_counted_with_their_reasons():
    solutions = [
        solution("p0/s0"), solution("p0/s1", verdict="unknown", reason="no answer"),
        solution("p0/s2", verdict="unknown", reason="no answer"),
    ]  # fmt: skip
    settled = record("p0/s1", [(4, 0, 0), (1, 0, 1)], None)  # by its own verdict, which is no rollout
    found = label_quality.unknowns(solutions, [record(), settled], Options())
    assert found.values.tolist()[0] == ["solutions", "no answer", 2] and len(found) == 1
    found = label_quality.unknowns(solutions, [record(), settled], Options(last_step="rollout"))
    assert found.values.tolist() == [["solutions", "no answer", 2], ["rollouts", "no verdict", 2]]
    assert len(label_quality.unknowns([solution()], [], Options())) == 0


def test_correct_answers_after_wrong_steps_are_seen():
    solutions = [solution("p0/s0"), solution("p0/s1", verdict="wrong"), solution("p0/s2")]
    found = label_quality.outcome_frame(solutions, [record(), record("p0/s1"), record("p0/s2", truth=None)])
    assert found.values.tolist() == [["p0", "p0/s0", True, False], ["p0", "p0/s1", False, False]]
    none = label_quality.outcome_frame(solutions, [])
    assert len(none[none["correct"]]["clean"]) == 0


def test_cost_counts_only_what_was_drawn():
    labels = [record(counts=[(4, 2, 0), (1, 1, 0)], truth=None), record("p0/s1", [(4, 2, 0), (4, 1, 0)], None)]
    solutions = [solution("p0/s0"), solution("p0/s1", finish_reason="length")]
    assert label_quality.cost(labels, solutions, Options()) == (12, 100)  # 4 + 4 + 4: a verdict settled the fourth
    assert label_quality.cost(labels, solutions, Options(last_step="rollout")) == (13, 100)


def test_of_trees_all_that_they_took_is_counted_once():
    estimated = dict(estimated=True, n_rollouts=4, n_correct=1)
    nodes = [Node(parent=None, span=[], mc_value=1 / 3, n_unknown=1, **estimated),
             Node(parent=0, span=["a"], mc_value=0.5, n_unknown=2, **estimated)]  # fmt: skip
    end = Node(parent=1, span=["b"], estimated=False, mc_value=None, n_rollouts=1, n_correct=0, n_unknown=1)
    grown = Tree(problem_id="p0", nodes=[*nodes, end], n_searches=1, n_rollouts=8, n_generated_tokens=70)
    lost = Node(parent=None, span=[], estimated=True, mc_value=None, n_rollouts=4, n_correct=0, n_unknown=4)
    barren = Tree(problem_id="p1", nodes=[lost], n_searches=0, n_rollouts=4, n_generated_tokens=30)
    rows = [record("p0/o0"), record("p0/o1")]  # two paths through the same nodes
    ends = [solution("p0/o0"), solution("p0/o1", verdict="unknown", reason="a prefix, left where its mc_score is 0")]
    assert label_quality.cost(rows, ends, Options(), [grown, barren]) == (12, 100)
    # 1 + 2 of the first tree, 4 of the second; the end of a solution is no rollout of its own
    found = label_quality.unknowns(ends, rows, Options(), [grown, barren])
    assert found.values.tolist() == [["rollouts", "no verdict", 7]]
    assert label_quality.first_tries(ends, [grown, barren]) == ([1 / 3], ["p0"])
    assert label_quality.first_tries(ends) == ([1.0, 0.0], ["p0", "p0"])


def test_the_widest_fall_is_shown_first():
    flat = record("p0/s0", [(4, 2, 0), (4, 2, 0)], None)
    rise = record("p0/s1", [(4, 0, 0), (4, 4, 0)], None)
    fall = record("p0/s2", [(4, 4, 0), None, (4, 1, 0)], None)
    assert [r.solution_id for r in label_quality.telling([flat, rise, fall])] == ["p0/s2", "p0/s0", "p0/s1"]


def test_rates_by_group_leave_missing_values_out():
    table = pd.DataFrame({"problem_id": list("aabbc"), "form": list("xxyyy"), "right": [True, False, True, None, True]})
    found = stats.rates(table, "form", "right")
    assert found[["form", "value", "n"]].values.tolist() == [["x", 0.5, 2], ["y", 1.0, 2]]
    assert np.isnan(found["low"][0]) and found["low"][1] == 1.0  # one problem gives no interval
    assert len(stats.rates(table[:0], ["form", "problem_id"], "right")) == 0
