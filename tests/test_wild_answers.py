"""How policies write their answers: a table of texts with what is taken from them, and what is said of it.

A marker is needed ("Answer:", a box, a tag ...): what an unfinished solution happens to end with is no answer. What
cannot be told is unknown, with a reason.
"""

import time
from types import SimpleNamespace

import pytest

from mmprm_lib.answers import extract, verdict
from mmprm_lib.quantities import quantity
from mmprm_lib.wording import clock, union_of


def judge(text, gold, kind="expression", choices=()):
    found = verdict(text, SimpleNamespace(answer=gold, answer_type=kind, choices=list(choices)))
    assert bool(found.reason) == (found.label == "unknown"), found
    return found


@pytest.mark.parametrize("text, answer", [
    # boxes
    (r"so \fbox{12}", "12"), (r"\boxed 12", "12"), (r"\boxed{\boxed{12}}", "12"), (r"\boxed{12}\text{ cm}", "12"),
    (r"\boxed{3} and \boxed{5}", "3, 5"), (r"$\boxed{3}$, $\boxed{4}$ and $\boxed{5}$.", "3, 4, 5"),
    (r"First \boxed{3}. Then we go on and get \boxed{5}", "5"), (r"\boxed{}", None),
    # markdown
    ("**Answer:** 12", "12"), ("**Answer**: 12", "12"), ("### Answer\n12", "12"), ("### Final Answer\n\n**12**", "12"),
    ("**Answer**\n\n12", "12"), ("__Answer:__ 12", "12"), ("Answer: `12`", "12"), ("> Answer: 12", "12"),
    ("- **Answer:** **12 cm**", "12 cm"), ("*Answer: 12*", "12"), ("Answer:\n\n$$12$$", "$$12$$"),
    ("### Final Answer\n\n>", ">"),
    # arrows, dashes, capitals
    ("Final answer → 12", "12"), ("Answer - 12", "12"), ("ANSWER = 12", "12"),
    # sentences
    ("The final answer is: 12", "12"), ("The answer would be 12.", "12"), ("The correct option is B.", "B"),
    ("The right choice is (C).", "(C)"), ("Option B is correct.", "B"), ("The answer is 12, not 13.", "12"),
    ("The answer is 12 (approximately).", "12"), ("The answer is 3.5 (rounded to one place).", "3.5"),
    ("Answer: The area is 12 cm².", "12 cm²"), ("Answer: It equals -3", "-3"),
    ("Answer: the point A is the vertex", "the point A is the vertex"),
    ("The answer isn't 12.", None), ("The answer is not 12 but 13.", None), ("Hence the area is 12.", None),
    ("So, B.", None), ("I have answered all questions.", None), ("", None),
    # tags, thoughts, JSON
    ("<answer>\n12\n</answer>", "12"), ("[ANSWER]12[/ANSWER]", "12"), ("<|begin_of_box|>12<|end_of_box|>", "12"),
    ("<answer>5<answer>12</answer> 13", "12"), ("<answer>5</answer> <answer>12", "5"),
    (r"<think>\boxed{5}</think><answer>12</answer>", "12"), ("<think>Answer: 5</think>\n\nAnswer: 12", "12"),
    ('{"answer": 12}', "12"), ('```json\n{"solution": "x = 2", "short answer": "0.500"}\n```', "0.500"),
    (r'{"solution": "...", "short answer": "\frac{1}{2}"}', r"\frac{1}{2}"),
    # Chinese
    ("答案：12", "12"), ("【答案】B", "B"), ("故答案为：12", "12"), ("故选：B", "B"), ("故选B．", "B．"),
    ("因此，选 B。", "B"),
    ("The answer is $\\frac{3}{4}$, i.e. 0.75.", "$\\frac{3}{4}$"),
    ("答：12 厘米。", "12 厘米"), ("所以答案是 12。然后", "12"), ("选项很多", None),
])  # fmt: skip
def test_what_is_taken_from_a_text(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize("answer, gold, label", [
    # units: converted within a dimension, wrong across; a missing one is forgiven
    ("12 N", "12", "correct"), ("5000 mV", "5 V", "correct"), ("5 mV", "5 V", "wrong"), ("12 MW", "12 mW", "wrong"),
    ("12 kJ", "12000 N m", "correct"), ("1 W", "1 J/s", "correct"), ("3 Pa", "3 N/m^2", "correct"),
    ("20 °C", "20", "correct"), ("20℃", r"20^\circ \mathrm{C}", "correct"), ("20 °F", "20 °C", "wrong"),
    ("60 km/h", "60 km per hour", "correct"), ("36 km/h", "10 m/s", "correct"), ("4 rad/s", "4", "correct"),
    ("12厘米", "0.12 m", "correct"), ("12平方厘米", "12 cm^2", "correct"), ("60千米/小时", "60 km/h", "correct"),
    ("5元", "5 yuan", "correct"), ("3小时", "3 hours", "correct"), ("3个", "3", "correct"), ("3小时", "3 cm", "wrong"),
    ("30°", r"\frac{\pi}{6}", "correct"), (r"\pi/6 rad", "30°", "correct"), ("60°", r"\frac{\pi}{6}", "wrong"),
    # percent, fractions, ratios, words
    ("10 percent", "10%", "correct"), ("10%", "0.1", "correct"), ("0.1%", "10%", "wrong"),
    ("½", "0.5", "correct"), ("1½", "3/2", "correct"), ("1⁄3", r"\frac13", "correct"), ("2 to 1", "2:1", "correct"),
    ("2:30", "1:15", "correct"), ("2:30", "1:16", "wrong"),
    ("twelve", "12", "correct"), ("thirteen", "12", "wrong"), ("twelve apples", "12", "unknown"),
    ("百分之十", "10%", "unknown"), ("none", "0", "unknown"), ("not sure", "12", "wrong"),
    # powers of ten: small numbers are not zero
    (r"1.31 10^{-22}", r"1.31\times 10^{-22}", "correct"), (r"1.32 10^{-22}", r"1.31 10^{-22}", "wrong"),
    (r"2\sqrt{3}\cdot 10^{-9}", r"3\sqrt{3}\cdot 10^{-9}", "wrong"), ("1e-3", "10^{-3}", "correct"),
    ("2·10^3", "2000", "correct"),
    # intervals, sets, inequalities
    ("1 \\le x \\le 2", "[1,2]", "correct"), ("1 < x < 2", "[1,2]", "wrong"), ("x ≥ 1", r"[1,\infty)", "correct"),
    (r"(-\infty,1)\cup(2,\infty)", "x<1 or x>2", "correct"), (r"(-\infty,1]\cup(2,\infty)", "x<1 or x>2", "wrong"),
    ("x<1 or x>2", r"(-\infty,1)\cup(2,\infty)", "correct"), (r"\{2, 1\}", "{1, 2}", "correct"),
    ("∅", r"\emptyset", "correct"), ("no solution", r"\varnothing", "correct"), ("无解", r"\emptyset", "correct"),
    ("2", r"\emptyset", "wrong"),
    # several parts and numbers
    ("1. 3\n2. 5", "3\n5", "correct"), ("1. 5\n2. 3", "3\n5", "wrong"), ("1.5\n2.5", "1.5\n2.5", "correct"),
    ("(a) 3, (b) 5", "3, 5", "correct"), ("(1) 3; (2) 5", "3; 5", "correct"), ("(2) 3 (2) 5", "(1) 3 (2) 5", "wrong"),
    ("a=3, b=5", "3, 5", "correct"), ("3 and 6", "3; 5", "wrong"), ("12 or 13", "12", "wrong"),
    ("Part 1: 3, Part 2: 5", "3; 5", "unknown"), ("at least 12", "12", "unknown"), ("more than 12", "12", "unknown"),
    # functions without braces, times of the day, truth
    ("sqrt(12)", r"2\sqrt{3}", "correct"), ("√12", "2√3", "correct"), ("7:30 am", "7:30", "correct"),
    ("19:30", "7:30 pm", "correct"), ("7:30 am", "7:30 pm", "wrong"), ("correct", "True", "correct"),
    ("Incorrect.", "True", "wrong"),
    # words for a set, for none, for a number
    ("There is no solution.", "no solution", "correct"), ("the equation has no real roots", r"\emptyset", "correct"),
    ("方程无实数根", "无解", "correct"), ("no value fits", "no solution", "unknown"), ("2", "no solution", "wrong"),
    ("all real numbers", r"\mathbb{R}", "correct"), ("ℝ", r"\mathbb{R}", "correct"),
    ("all reals", r"(-\infty,\infty)", "unknown"), ("infinitely many", r"\infty", "unknown"),
    ("1 million", "1000000", "correct"), ("3 million dollars", "3000000", "correct"), ("3 million", "3", "wrong"),
    ("3万人", "30000", "correct"), ("2 dozen", "24", "correct"), ("1st", "1", "correct"),
    ("3rd quadrant", "third quadrant", "unknown"), ("Quadrant III", "third quadrant", "unknown"),
    ("I don't know", "12", "wrong"), ("5 square units", "5", "correct"),
    # one value in two writings, a note in brackets, a comma that may be a decimal sign
    ("0.5 or 1/2", "1/2", "correct"), ("0.5 or 1/3", "1/2", "wrong"), ("7/3 ≈ 2.33", "7/3", "correct"),
    ("4π ≈ 12.57", r"4\pi", "correct"), ("5π ≈ 15.7", r"4\pi", "wrong"), ("d ≈ 12 cm", "12 cm", "correct"),
    ("12 (cm)", "12", "correct"), ("12(厘米)", "12 cm", "correct"), ("12 (cm)", "12 m", "wrong"),
    ("3/4 (75%)", "0.75", "correct"), ("3/4 (70%)", "0.75", "unknown"), ("2 (x+1)", "2x+2", "correct"),
    ("12,5", "12.5", "unknown"), ("1.234,5", "1234.5", "unknown"), ("12,5", "12.6", "wrong"),
    ("12 cm, and the perimeter is 14 cm", "12", "unknown"), ("12 cm, 14 cm", "12", "wrong"),
    # points by their names, values by the names of theirs
    ("C(2, 3)", "(2,3)", "correct"), ("(2,3)", "A(2,3)", "correct"), ("A(2,3)", "A(2, 6/2)", "correct"),
    ("the point (2, 3)", "(2,3)", "correct"), ("A(3,2)", "(2,3)", "wrong"), ("A(2,3)", "B(2,3)", "wrong"),
    ("y = 3, x = 2", "(2,3)", "correct"), ("y = 2, x = 3", "(2,3)", "unknown"), ("y = 5, x = 6", "(2,3)", "wrong"),
    # ratios, a factor after a slash, degrees in a function, equations but for a factor, inequalities for an interval
    ("4:6:8", "2:3:4", "correct"), ("4:6:9", "2:3:4", "wrong"), ("1/2x", r"\frac{x}{2}", "unknown"),
    ("2/3π", r"\frac{2}{3}\pi", "unknown"), ("x/2", r"\frac{x}{2}", "correct"), ("2x=x^2", "x=2", "unknown"),
    (r"\sin 60^\circ", r"\frac{\sqrt3}{2}", "correct"), (r"\sin 30^\circ", r"\frac{\sqrt3}{2}", "wrong"),
    ("2x+4y-6=0", "x+2y-3=0", "correct"), ("2x+4=0", "x+2=0", "unknown"), ("y=2x+1", "y=2x-1", "wrong"),
    ("x ≤ 3 and x ≥ -1", "[-1,3]", "unknown"),
    ("x=2或x=-3", "-3, 2", "correct"),
])  # fmt: skip
def test_what_is_said_of_an_answer(answer, gold, label):
    assert judge(f"\\boxed{{{answer}}}", gold).label == label


@pytest.mark.parametrize("text, gold, label", [
    ("A and C", "AC", "correct"), ("A、C", "A, C", "correct"), ("(a)", "A", "correct"), ("A or C", "A", "unknown"),
    ("either A or B", "A", "unknown"), ("A, B, and D", "ABD", "correct"), ("A (12)", "A", "correct"),
    ("A (12)", "B", "wrong"), ("not B", "B", "unknown"), ("Both A and B", "AB", "unknown"),
    ("I, J", "IJ", "correct"), ("A circle", "A", "unknown"),
])  # fmt: skip
def test_letters_in_the_wild(text, gold, label):
    assert judge(f"Answer: {text}", gold, "choice").label == label


@pytest.mark.parametrize("text", [
    "A: 5\nB: 7", "Let me compare the options.\n\nA: 5\nB: 7\nC: 9\n", "- A: 5", "The options are:\n- A: 5",
    "* A: 5\n* B: 7", "Bar one is 5.\nA: 5", "(A) 5\n(B) 7",
])  # fmt: skip
def test_options_that_are_restated_are_no_answer(text):
    for gold in "AB":
        for choices in (["5", "7", "9"], []):
            found = judge(text, gold, "choice", choices)
            assert found.label == "unknown" and found.answer is None, found


def test_an_a_before_a_colon_is_an_answer_where_nothing_is_to_be_chosen():
    assert extract("6*3 = 18\nA: 18") == "18" and extract("6*3 = 18\nA: 18", options=True) is None
    for text in ("A: 5\nB: 7", "A: 5, B: 7", "- A: 5\n- B: 7"):
        assert extract(text) is None and judge("So it is.\n" + text, "5").label == "unknown"
    assert extract("A: 5\nB: 7\n\nAnswer: B", options=True) == "B"
    assert judge("A: 5\nB: 7\n\nThe answer is B.", "B", "choice", ["5", "7"]).label == "correct"


@pytest.mark.parametrize("text", ["**Answer:**\n(1) 3\n(2) 5", "**(1)** 3\n**(2)** 5", "Answer: (1) 3\n(2) 5"])
def test_parts_in_several_lines(text):
    assert judge(text, "3\n5").label == "correct" and judge(text, "5\n3").label == "wrong"
    assert judge(text, "3\n6").label == "wrong"


def test_a_box_that_is_taken_back_is_unknown():
    taken_back = r"\boxed{12}. Wait, that is wrong. The answer is 13."
    for gold in ("12", "13"):
        found = judge(taken_back, gold)
        assert found.label == "unknown" and "two final answers" in found.reason
    assert judge(r"\boxed{12}. So the answer is 12.0 cm.", "12").label == "correct"
    assert judge(r"\boxed{12}. The answer is clear.", "12").label == "correct"


def test_units_and_times_are_read_exactly():
    assert quantity("12 kN")[1] == ((("length", 1), ("mass", 1), ("time", -2)), 10**6)  # 1000 N of 1000 g m/s^2 each
    assert quantity("5 mW")[1][1] * 10**9 == quantity("5 MW")[1][1]
    assert quantity("12厘米")[1] == quantity("12 cm")[1] and quantity("3个")[1] == ((), 1)
    assert quantity("5元")[1] == ((("yuan", 1),), 1) and quantity("3N") is None  # glued: 3 times N
    assert clock("7:30 pm") == (1170, True) and clock("19:30") == (1170, True) and clock("7:30") == (450, False)
    assert clock("25:00") is None and clock("3:75") is None and clock("12:00 am") == (0, True)
    assert union_of("x<1 or x>2") == r"(-\infty,1)\cup (2,\infty)" and union_of(r"1 < x \leq 2") == "(1,2]"
    assert union_of("x=1") is None and union_of("x+1<2") is None


@pytest.mark.parametrize("piece", [
    "<answer>", "<|begin_of_box|>", "\\boxed{", "answer of ", "Answer: ", "\n", "\\boxed{1} ,", '"answer": "\\', "选",
])  # fmt: skip
def test_a_long_text_is_read_in_the_time_of_its_length(piece):
    start = time.process_time()
    extract(piece * (200_000 // len(piece)))
    assert time.process_time() - start < 10  # 0.2 on one quiet core; quadratic time would be minutes
