"""Graders: each published rule on hand cases, and the aggregates that the benchmarks report."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprm_lib import aggregates, grading
from mmprm_lib.mathcheck import value_of


def judged(answer, gold, rule, answer_type="expression", choices=(), text="Answer: {}", **more):
    problem = SimpleNamespace(
        answer=gold, answer_type=answer_type, choices=list(choices), grading={"rule": rule, **more}
    )
    found = grading.verdict(text.format(answer), problem)
    assert bool(found.reason) == (found.label == "unknown"), found
    return found.label


@pytest.mark.parametrize("answer, gold, rule, more, label", [
    # MathVista: int(float(x)) cuts off, round(float(x), precision), str(list)
    ("7.9", "7", "integer", {}, "correct"), ("8", "7", "integer", {}, "wrong"),
    ("-3.2", "-3", "integer", {}, "correct"),
    ("7 cm", "7", "integer", {}, "correct"), ("1,200", "1200", "integer", {}, "correct"),
    ("seven", "7", "integer", {}, "unknown"),
    ("1.24", "1.2", "places", {"places": 1}, "correct"), ("1.26", "1.2", "places", {"places": 1}, "wrong"),
    ("6/5", "1.2", "places", {"places": 1}, "correct"), ("$1.20", "1.2", "places", {"places": 1}, "correct"),
    ("1.2", "1.2", "places", {"places": 2}, "correct"), ("1.21", "1.2", "places", {"places": 2}, "wrong"),
    ("[1, 2, 3]", "[1, 2, 3]", "list", {}, "correct"), ("1, 2, 3", "[1, 2, 3]", "list", {}, "correct"),
    ("(1, 2, 3)", "[1, 2, 3]", "list", {}, "correct"), ("[2, 1, 3]", "[1, 2, 3]", "list", {}, "wrong"),
    ("[1, 2]", "[1, 2, 3]", "list", {}, "wrong"), ("3", "[1, 2, 3]", "list", {}, "wrong"),
    ("all of them", "[1, 2, 3]", "list", {}, "unknown"),
    # MATH-Vision: round(x, 2) on both sides, tuples entry by entry
    ("1.73", r"\sqrt{3}", "rounded", {}, "correct"), ("1.75", r"\sqrt{3}", "rounded", {}, "wrong"),
    ("0.333", r"\frac{1}{3}", "rounded", {}, "correct"), ("(1.001, 2)", "(1,2)", "rounded", {}, "correct"),
    ("(2, 1)", "(1,2)", "rounded", {}, "wrong"), ("24", "24", "rounded", {}, "correct"),
    # DynaMath: at most 0.001 away
    ("0.501", "0.5", "absolute", {"tolerance": 0.001}, "correct"),
    ("0.5011", "0.5", "absolute", {"tolerance": 0.001}, "wrong"),
    (r"2\pi", "6.283", "absolute", {"tolerance": 0.001}, "correct"),
    ("a half", "0.5", "absolute", {"tolerance": 0.001}, "unknown"),
    ("even", "Even", "text", {}, "correct"), ("odd", "even", "text", {}, "wrong"),
    ("eve", "even", "text", {}, "unknown"),
    # MMMU, open: any of the golds, numbers rounded to two decimals
    ("3.429", "24/7", "open", {"alternatives": ["3.429"]}, "correct"), ("3.43", "24/7", "open", {}, "correct"),
    ("3.5", "24/7", "open", {"alternatives": ["3.429"]}, "wrong"), ("fuji", "Fuji", "open", {}, "correct"),
    ("Mount Fuji", "Fuji", "open", {}, "unknown"), ("Etna", "Fuji", "open", {}, "wrong"),
    # LogicVista: the same set of labels
    ("A, C", "C, A", "letters", {}, "correct"), ("AC", "A, C", "letters", {}, "correct"),
    ("(C) and (A)", "A, C", "letters", {}, "correct"), ("C", "A, C", "letters", {}, "wrong"),
    ("I, J", "IJ", "letters", {}, "correct"), ("3", "3", "letters", {}, "correct"),
    ("the circle", "A", "letters", {}, "unknown"),
    # OlympiadBench: tolerances, several answers, intervals, units, a factor of 100
    ("2, 1", "$1,2$", "olympiad", {}, "correct"), ("1", "$1,2$", "olympiad", {}, "wrong"),
    ("0.333333", r"$\frac{1}{3}$", "olympiad", {}, "wrong"),
    ("0.33", r"$\frac{1}{3}$", "olympiad", {"tolerances": [0.01]}, "correct"),
    ("1.1, 2.5", "1.0,2.0", "olympiad", {"tolerances": [0.1, 0.5]}, "correct"),
    ("1.2, 2.5", "1.0,2.0", "olympiad", {"tolerances": [0.1, 0.5]}, "wrong"),
    ("1, 2, 3", "1,2,3", "olympiad", {"tolerances": [0.1, 0.5]}, "unknown"),
    ("-2, 2", r"$\pm 2$", "olympiad", {}, "correct"), ("2", r"$\pm 2$", "olympiad", {}, "wrong"),
    ("[1,2)", "$[1,2)$", "olympiad", {}, "correct"), ("(1,2)", "$[1,2)$", "olympiad", {}, "wrong"),
    (r"50\%", "0.5", "olympiad", {}, "correct"), ("150 cm", "1.5", "olympiad", {"unit": "m"}, "correct"),
    ("1.5 kg", "1.5", "olympiad", {"unit": "m"}, "wrong"), ("2x+2", "2(x+1)", "olympiad", {}, "correct"),
    ("2x+3", "2(x+1)", "olympiad", {}, "wrong"),
])  # fmt: skip
def test_each_rule_on_hand_cases(answer, gold, rule, more, label):
    kind = "text" if rule in ("text", "open") and not any(c.isdigit() for c in gold) else "expression"
    assert judged(answer, gold, rule, kind, **more) == label
    if label == "correct":
        assert judged(answer, gold, rule, kind, text="So it is. The final answer is \\boxed{{{}}}.", **more) == label


def test_the_text_of_an_option_stands_for_its_letter():
    options = ["larger than", "equal to", "smaller than"]
    found = [judged(text, "B", "plain", "choice", options) for text in ("B", "equal to", "(b)", "C", "less")]
    assert found == ["correct", "correct", "correct", "wrong", "wrong"]
    assert judged("J", "J", "plain", "choice", [str(i) for i in range(10)]) == "correct"  # MMMU has up to ten
    assert judged("B", "B", "rounded", "choice", ["1", "2"]) == "correct"


def test_no_answer_is_unknown_under_every_rule():
    for rule in grading.RULES:
        more = {"places": 1, "tolerance": 0.001}
        assert judged("", "7", rule, text="I looked at the figure. It shows a line.", **more) == "unknown"


def test_a_problem_without_grading_is_judged_as_ever_and_an_unknown_rule_is_an_error():
    plain = SimpleNamespace(answer="7", answer_type="number", choices=[])
    assert grading.verdict("Answer: 7", plain).label == "correct"
    with pytest.raises(ValueError, match="rule 'guess' is unknown"):
        judged("7", "7", "guess")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.sampled_from(sorted(grading.RULES)))
def test_any_text_gets_a_verdict_under_every_rule(text, rule):
    problem = SimpleNamespace(
        answer="7", answer_type="expression", choices=[], grading={"rule": rule, "places": 1, "tolerance": 0.001}
    )
    for response in (text, f"Answer: {text}"):
        assert grading.verdict(response, problem, timeout_s=1.0).label in ("correct", "wrong", "unknown")


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e4, 1e4).map(lambda x: round(x, 4)), st.floats(-0.01, 0.01))
def test_the_tolerance_of_dynamath_is_a_distance(gold, off):
    given_ = round(gold + off, 4)
    if abs(abs(given_ - gold) - 0.001) > 1e-9:
        expected = "correct" if abs(given_ - gold) <= 0.001 else "wrong"
        assert judged(f"{given_:.4f}", f"{gold:.4f}", "absolute", tolerance=0.001) == expected


def test_values_of_expressions():
    assert math.isclose(value_of(r"2\sqrt{3}"), 3.4641016151)
    assert value_of(r"\frac{1}{4}") == 0.25 and value_of("0*5") == 0.0
    assert [value_of(text) for text in ("x+1", r"\frac{1}{0}", "(1,2)", "9^{9^9}", r"\sqrt{-1}", "")] == [None] * 6


# --- aggregates -----------------------------------------------------------------------------------------------------


def row(benchmark, group, variant):
    place = {"benchmark": benchmark, "group": group, "variant": variant, "rule": "plain"}
    return SimpleNamespace(problem_id=f"{group}-{variant}", grading=place)


def values(table):
    return {r.metric: (round(r.value, 4), r.n, r.n_unknown, round(r.most, 4), r.n_left_out) for r in table.itertuples()}


def test_dynamath_counts_a_question_only_if_all_ten_variants_are_right():
    problems = [row("dynamath", str(g), f"sample_variant{v}") for g in range(4) for v in range(1, 11)][:-1]
    labels = ["correct"] * 39
    labels[10] = "wrong"  # question 1: nine of ten
    labels[20] = "unknown"  # question 2: nine right, one unknown
    found = aggregates.table(problems, {"greedy": labels})
    assert values(found) == {
        "average_accuracy": (round(37 / 39, 4), 39, 1, round(38 / 39, 4), 0),
        "worst_case_accuracy": (round(1 / 3, 4), 3, 1, round(2 / 3, 4), 1),  # question 3 has nine variants
    }
    assert (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()
    perfect = aggregates.table(problems[:10], {"greedy": ["correct"] * 10})
    assert values(perfect)["worst_case_accuracy"] == (1.0, 1, 0, 1.0, 0)


def test_we_math_tells_four_outcomes_and_two_scores():
    cases = {  # steps, whole -> strict, loose
        "a": (["correct", "correct"], "correct"),  # CM, CM
        "b": (["correct", "correct"], "wrong"),  # IG, IG
        "c": (["correct", "wrong"], "correct"),  # RM, CM
        "d": (["wrong", "wrong"], "correct"),  # RM, RM
        "e": (["wrong", "correct"], "wrong"),  # IK, IK
        "f": (["correct", "unknown"], "correct"),  # RM, CM; strictly CM if the unknown step is right
    }
    problems, labels = [], []
    for name, (steps, whole) in cases.items():
        for variant, label in zip(("2steps_1", "2steps_2", "2steps_multi"), [*steps, whole], strict=True):
            problems.append(row("wemath", f"2steps-{name}", variant))
            labels.append(label)
    for variant in ("3steps_1", "3steps_2", "3steps_3", "3steps_multi"):
        problems.append(row("wemath", "3steps-a", variant))  # another problem than 2steps-a
        labels.append("correct")  # CM
    problems.append(row("wemath", "3steps-z", "3steps_1"))  # its other rows are missing
    labels.append("wrong")
    found = {key: value[:3] for key, value in values(aggregates.table(problems, {"m": labels})).items()}
    assert found["accuracy__one_step"] == (round(10 / 15, 4), 15, 1)  # 7 of 12, and 3 of 3
    assert found["accuracy__two_steps"] == (round(4 / 6, 4), 6, 0) and found["accuracy__three_steps"] == (1.0, 1, 0)
    assert found["score_strict"] == (round(2.5 / 7, 4), 7, 1)  # CM 2, IG 1 half, RM 3, IK 1
    assert found["score_loose"] == (round(4.5 / 7, 4), 7, 1)  # CM 4, IG 1 half, RM 1, IK 1
    assert found["RM_strict"] == (0.6, 5, 1) and found["RM_loose"] == (0.2, 5, 1)  # of CM and RM
    assert found["IK_strict"] == found["IK_loose"] == found["IG_strict"] == (round(1 / 7, 4), 7, 1)
    assert found["CM_strict"] == (round(2 / 7, 4), 7, 1)
    whole = values(aggregates.table(problems, {"m": labels}))
    assert whole["score_strict"][3:] == (round(3.5 / 7, 4), 1) and math.isnan(whole["RM_strict"][3])


def test_versions_stand_apart_and_share_their_problem():
    problems = [row("mathverse", str(g), v) for g in range(3) for v in ("Text Lite", "Vision Only")]
    labels = ["correct", "wrong", "correct", "wrong", "correct", "correct"]
    found = values(aggregates.table(problems, {"greedy": labels}))
    assert found["accuracy"][:2] == (round(4 / 6, 4), 6)
    assert found["accuracy__Text_Lite"][:2] == (1.0, 3) and found["accuracy__Vision_Only"][:2] == (round(1 / 3, 4), 3)


def test_problems_of_no_or_several_benchmarks_have_no_aggregate():
    mixed = [row("mathverse", "1", "a"), row("mathvista", "1", "a")]
    assert aggregates.table(mixed, {"m": ["correct"] * 2}).empty and aggregates.benchmark_of(mixed) == ""
    assert aggregates.table([SimpleNamespace(grading=None)], {"m": ["correct"]}).empty
    with pytest.raises(ValueError, match="1 verdicts for 2 problems"):
        aggregates.table([row("mathverse", "1", "a")] * 2, {"m": ["correct"]})
    assert np.isnan(aggregates.table([row("dynamath", "1", "a")], {"m": ["correct"]})["value"][1])


def test_a_part_of_a_benchmark_says_so():
    def of(n, name="mmmu"):
        return [SimpleNamespace(problem_id=str(i), grading={"benchmark": name}) for i in range(n)]

    assert aggregates.named(of(900)) == "mmmu, all 900 questions"
    assert aggregates.named(of(847)) == "mmmu, A PART: 847 of its 900 questions"  # those with one image
    assert aggregates.named(of(3) + of(3, "mathvista")) == aggregates.named([]) == ""
