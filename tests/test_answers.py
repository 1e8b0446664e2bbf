"""Answers: what is extracted, what is equal, and that a checker in trouble says unknown and never wrong."""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprm_lib import mathcheck
from mmprm_lib.answers import equal, extract, normal_form, verdict
from mmprm_lib.quantities import clean_text, last_boxed, quantity, sequence

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def problem(answer, answer_type="expression", choices=()):
    return SimpleNamespace(answer=answer, answer_type=answer_type, choices=list(choices))


def same(candidate, gold, answer_type="expression", choices=()):
    return equal(candidate, gold, answer_type, list(choices))


@pytest.mark.parametrize("text, answer", [
    ("Bar A is 7.\n\nAnswer: 12", "12"),
    ("Answer: 1.\nLet me check.\nAnswer: 2.", "2"),  # the last one
    (r"so \boxed{\frac{1}{2}} and then", r"\frac{1}{2}"),  # braces matched
    (r"\boxed{3} no, \boxed{\{1,\, 2\}}", r"\{1,\, 2\}"),  # escaped braces are not counted
    (r"\boxed{5}. The answer is clear.", "5"),  # a box before a sentence
    ("Step\n<answer>12</answer>", "12"),
    (r"<answer>The answer is \boxed{7}</answer>", "7"),
    ("the answer is 12 apples because x", "12 apples"),
    ("**Final Answer:**\n\n$12$", "$12$"),
    (r"The final answer is $\boxed{18}$. I hope it is correct.", "18"),
    ("The final answer is 3.5 m. That is all.", "3.5 m"),
    ("#### 1,234", "1,234"),
    ("6*3 = <<6*3=18>>18\nA: 18", "18"),
    ("答案是 12。", "12"),
    ("答案：B", "B"),
    ("**Answer: B**", "B"),
    ("The answer to the question is **12**.", "12"),
    ("The correct answer is option C.", "option C"),
    ("no marker here", None),
    (r"truncated \boxed{12", None),
    ("<answer>12", None),
    ("Answer:", None),
    ("", None),
])
def test_the_final_answer_is_extracted(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize("candidate, gold", [
    ("0.5", r"\frac{1}{2}"), (r"\dfrac12", "1/2"), ("1,234", "1234"), ("12.0", "12"), ("−2", "-2"), ("１２", "12"),
    (r"1\frac{4}{5}", "1.8"), ("1 4/5", "9/5"), ("0.333333", r"\frac13"), (r"2.1 \times 10^{3}", "2100"),
    ("4e-05", "0.00004"),
    (r"\number{10500}", "10,500"), ("$$32$$", "32"), (r"30{}^\circ", "30°"), ("70$textdegree$", r"70^\circ"),
    ("50%", "0.5"), (r"50\%", "50"), ("50", "50%"), ("12 apples", "12"), ("about 12", "12"), (r"\$18.90", "18.9"),
    ("x = 5", "5"),
    ("5", "x=5"), ("16-3=13", "13"), ("2:3", r"\frac{2}{3}"), ("7cm", "7"), ("700 cm", "7 m"),
    (r"15\mbox{ cm}^2", "15 square centimeters"),
    ("36 km/h", "10 m/s"), (r"\left( 3,\frac{3}{2} \right)", "(3, 1.5)"), ("[-4,3]", r"\left[-4, 3\right]"),
    ("{2, 1}", r"\{1,2\}"),
    ("-2, 1", "1,-2"), ("2, 6 and 10", "6 or 2 or 10"), ("7, 10", "$$7$$ $$10$$"), ("(1) 7 (2) 10", "7\n10"),
    ("(1)(3)(4)", "1.3.4."),
    ("①③④", "(1)(3)(4)"), ("10 000", "10000"), ("<", r"$\lt$"), ("＞", ">"), ("equal", "="),
    ("Rhombus.", "a rhombus"), ("Yes", "True"),
    (r"\text{(C)}", "C"), (r"\ce{C_{\number{2013}}H_{4028}}", "C_{2013}H_{4028}"),
    ("8.75", r"$$\dfrac{35}{4}$$(or fill in $$8.75$$)"),
    ("7", "∵AB=AC ∴BD=CE=7cm. Therefore, fill in 7."),
])
def test_equal_answers_are_equal_by_rule(candidate, gold):
    assert same(candidate, gold) is True


@pytest.mark.parametrize("candidate, gold", [
    ("12", "1"), ("1", "12"), ("0.33", r"\frac13"), ("1000001", "1000000"), ("1234567.5", "1234568"),
    ("0.0000001", "0"), ("-5", "5"),
    ("7 cm", "7 m"), ("7 kg", "7 cm"), ("0.5%", "0.5"), ("75", "0.75"), ("(1,2)", "(2,1)"), ("[1,2)", "(1,2)"),
    ("(1,2]", "[1,2)"),
    ("1, 2, 3", "1, 2"), ("5", "5 or 6"), ("10, 7", "$$7$$ $$10$$"), ("710", "$$7$$ $$10$$"), ("paris", "london"),
    ("london", "paris"),
    ("No", "Yes"), ("<", ">"), ("not sure", "12"), ("(B)", "C"), ("1,3", "1.3.4."), (r"\sqrt{3}", "2"),
])
def test_different_answers_are_wrong(candidate, gold):
    assert same(candidate, gold) is False


@pytest.mark.parametrize("candidate, gold, expected", [
    (r"\sqrt{8}", r"2\sqrt{2}", True), ("2(x+1)", "2x+2", True), ("y=18-3x", "y=-3x+18", True),
    ("BD=AC", "AC=BD", True),
    (r"(2,\infty)", "x>2", True), ("x>2", r"(2,\infty)", True),
    (r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}", True),
    (r"3\sqrt2 cm", r"3\sqrt{2}", True), ("cos(x)", r"\cos x", True),
    ("2sin(2x-π/6)", r"$2\sin (2x-\frac{\pi }{6})$", True),
    (r"\frac{x^{2}}{8}+\frac{y^{2}}{4}=1", "x^2+2y^2=8", None), ("1.414214", r"\sqrt2", True),
    ("x^2", "x^3", False), ("x", "y", False),
    ("2k", "2", False),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}", True),
])
def test_expressions_are_compared_by_math_verify(candidate, gold, expected):
    result = same(candidate, gold)
    assert result is expected or (expected is None and result is not None)  # None: either verdict, but a verdict


@pytest.mark.parametrize("text, label", [
    ("B", "correct"), ("(B)", "correct"), ("b", "correct"), ("B) 12", "correct"), ("Answer: 12", "correct"),
    ("12.0", "correct"),
    ("The answer is 12 cm.", "correct"), ("Answer: option B", "correct"), ("C", "wrong"), ("E", "wrong"),
    ("99", "wrong"),
    ("A. 12", "wrong"),  # the letter decides
    ("Bar B is 12", "unknown"), ("7 + 5 = 12", "unknown"), ("", "unknown"), ("I think it is (B) or so", "unknown"),
])
def test_a_choice_is_its_letter_or_its_text(text, label):
    assert verdict(text, problem("B", "choice", ["10", "12", "14", "21"])).label == label


def test_choices_decide_what_a_text_means():
    assert same("12", "B", "choice", ["10", "12"]) is True
    assert same("12", "B", "choice", ["12", "10"]) is False
    assert same("12", "B", "choice", []) is None  # nothing says what B is
    assert same("12", "12", "choice", ["10", "12"]) is True  # a gold may be the text of an option
    assert same("B", "12", "choice", ["10", "12"]) is True
    assert same("12", "B", "choice", ["12", "12.0"]) is False  # the same text: A
    assert same("12.00", "B", "choice", ["12", "12.0"]) is None  # equals several options
    assert same("C, A", "AC", "choice") is True and same("A", "AC", "choice") is False


def test_a_glued_letter_is_a_factor_and_no_unit():
    assert same("3m", "3") is False
    assert same("3 m", "3") is True
    assert same(r"\sqrt{3} cm", r"\sqrt3") is True and same(r"\sqrt{3} cm", r"\sqrt3 kg") is False
    assert same(r"\sqrt{3} cm", r"\sqrt3 m") is None


@pytest.mark.parametrize("text, answer_type, label, answer", [
    ("Read bar A: 7.\n\nAnswer: 12", "number", "correct", "12"),
    ("The answer is 12.", "number", "correct", "12"),
    ("12", "number", "correct", "12"),
    ("Answer: 13", "number", "wrong", "13"),
    ("Read bar A: 7.", "number", "unknown", None),  # truncated: a step is no answer
    ("7 + 5 = 12", "number", "unknown", None),
    ("It was 12 all along, I am sure of that", "number", "unknown", None),
    ("", "number", "unknown", None),
])
def test_a_verdict_names_what_it_judged(text, answer_type, label, answer):
    result = verdict(text, problem("12", answer_type))
    assert (result.label, result.answer) == (label, answer)
    assert bool(result.reason) == (label == "unknown")


def test_text_answers_may_be_bare():
    assert verdict("red", problem("red", "text")).label == "correct"
    assert verdict("blue", problem("red", "text")).label == "wrong"
    assert verdict("The bar is red", problem("red", "text")).label == "unknown"


def test_several_lines_are_one_answer():
    assert verdict("Answer: 9\n19.0\n5", problem("9\n19\n5")).label == "correct"
    assert verdict("Answer: 9\n19\n6", problem("9\n19\n5")).label == "wrong"


@pytest.mark.parametrize("gold, reason", [
    ("1.\n2.", "broken"), ("", "empty"), ("$$BD=CE$$ (not unique)", "several right answers"),
    ("The frequency of using at most the standard is found by counting all households: 20.", "free text"),
])
def test_a_gold_that_cannot_be_judged_is_unknown(gold, reason):
    result = verdict("Answer: 3", problem(gold))
    assert result.label == "unknown" and reason in result.reason


# --- a checker in trouble ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("candidate", [
    "9^9^9^9", "9^{9^{9^{9}}}", "(9^9)^{(9^9)}", "99999!", "((3!)!)!", r"\prod_{n=1}^{100000} n", "7" * 50 + "x",
    "x+" * 200 + "1", r"\frac{1}{", "x\x00y", "x__2", "1" * 3000,
])
def test_hostile_answers_are_unknown_at_once(candidate):
    start = time.monotonic()
    response = f"Answer: {candidate}" if "{" in candidate else f"\\boxed{{{candidate}}}"
    result = verdict(response, problem(r"\sqrt{2}"))
    assert result.label == "unknown" and result.reason
    assert time.monotonic() - start < 3


def test_a_hang_ends_in_unknown_and_the_next_answer_is_right():
    result = verdict(r"\boxed{\binom{100000000}{50000000}}", problem(r"\sqrt{2}"), timeout_s=0.3)
    assert result.label == "unknown" and "0.3 s" in result.reason
    assert same("3(x+1)", "3x+3") is True


def test_no_text_is_evaluated(tmp_path):
    target = tmp_path / "pwned"
    for text in (f"__import__('pathlib').Path('{target}').touch()", f"open('{target}','w')", r"\input{/etc/passwd}"):
        assert same(text, "5") is not True
        assert same(f"${text}+1$", "x+5") is not True
    assert not target.exists()


def test_a_failing_checker_is_unknown_and_asked_again(monkeypatch):
    def broken(*_):
        raise mathcheck.CheckerError("out of order")
    monkeypatch.setattr(mathcheck, "same_expression", broken)
    result = verdict("Answer: 5(x+1)", problem("5x+5"))
    assert result == ("unknown", "5(x+1)", "out of order") and same("5(x+1)", "5x+5") is None
    monkeypatch.undo()
    assert verdict("Answer: 5(x+1)", problem("5x+5")).label == "correct"  # the failure was not cached


def test_a_checker_beside_a_large_process_still_tells_different_answers():
    """On Linux a child inherits the highest memory of the process that starts it, which says nothing of the child."""
    large = (
        "import numpy\nfrom mmprm_lib import mathcheck\nheld = numpy.ones(mathcheck.MEMORY // 3 // 8 + (1 << 22))\n"
        "print(mathcheck.same_expression('x+1', 'x+2'), mathcheck.same_expression('x+1', '1+x'))"
    )
    done = subprocess.run([sys.executable, "-c", large], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(False, '') (True, '')"


def test_an_exception_in_math_verify_is_unknown():
    same_or_not, reason = mathcheck.same_expression("x", r"\frac{1}{0}")
    assert same_or_not is not True and (same_or_not is False or reason)


def test_threads_get_right_verdicts():
    results = {}

    def work(i):
        results[i] = (same(f"{i}(x+2)", f"{i}x+{2 * i}"), same(f"{i}(x+2)", f"{i}x+{2 * i + 1}"))
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: (True, False) for i in range(2, 8)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_gets_its_own_checker():
    assert same("11(x+1)", "11x+11") is True  # the parent's worker runs
    child = os.fork()
    if child == 0:
        os._exit(0 if same("12(x+1)", "12x+12") is True else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert same("13(x+1)", "13x+13") is True


# --- parts ------------------------------------------------------------------------------------------------------
def test_boxes_quantities_and_sequences_are_read_exactly():
    assert last_boxed(r"\boxed{a\}b{c}}") == r"a\}b{c}" and last_boxed(r"\boxed{a") is None
    assert quantity(r"-1\frac{4}{5}")[0] == Fraction(-9, 5)
    assert quantity("12 cm^2")[1] == ((("length", 2),), Fraction(1, 10_000))
    assert quantity("1/0") is None and quantity("2k") is None
    assert sequence("(1,2]") == ("(]", ("1", "2")) and sequence("(a+5)(b+2)") is None and sequence("1,234") is None
    assert clean_text(r"$\dfrac{1}{2}$.") == r"\frac{1}{2}"


def test_equal_answers_share_a_vote():
    number, choice = problem("12", "number"), problem("B", "choice", ["10", "12"])
    assert {normal_form(a, number) for a in ("12", "12.0", "$12$", "12 cm", "x = 12", "24/2", "12.")} == {"12"}
    assert {normal_form(a, choice) for a in ("B", "(b)", "12", "B. 12")} == {"B"}
    assert normal_form("1, 2", number) == normal_form("2, 1", number) != normal_form("(2, 1)", number)
    assert normal_form("50%", number) == normal_form("0.5", number) == "1/2"
    assert normal_form("Rhombus", problem("x", "text")) == normal_form("a rhombus.", problem("x", "text"))
    assert normal_form("11", number) != normal_form("12", number)


@settings(max_examples=200, deadline=None)
@given(st.integers(-10**9, 10**9), st.integers(-10**9, 10**9))
def test_integers_are_equal_exactly_when_they_are(a, b):
    gold = problem(str(b), "number")
    assert verdict(f"Work.\n\nAnswer: {a}", gold).label == ("correct" if a == b else "wrong")
    assert verdict(f"The answer is ${b:,}$.", gold).label == "correct"
    assert (normal_form(f"{a:,}", gold) == normal_form(f"{b}.0", gold)) == (a == b)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_gets_a_verdict(text):
    for gold in (problem("12", "number"), problem("B", "choice", ["10", "12"]), problem("red", "text")):
        for response in (text, "Answer: " + text):
            assert verdict(response, gold, timeout_s=1.0).label in ("correct", "wrong", "unknown")
        assert isinstance(normal_form(text, gold), str)


def test_the_world_form_is_fast():
    gold, start = problem("12", "number"), time.perf_counter()
    texts = [f"Read bar A: 7.\n\nAdd: 7 + 5 = 12.\n\nAnswer: {i % 97}" for i in range(20_000)]
    n_right = (20_000 - 13) // 97 + 1  # i = 12, 109, ...: 207
    assert sum(verdict(text, gold).label == "correct" for text in texts) == n_right == 207
    assert len(texts) / (time.perf_counter() - start) > 20_000  # 130,000 a second on one quiet core


# --- real golds -------------------------------------------------------------------------------------------------
def _golds(name):
    if not DATA.exists():
        pytest.skip(f"{DATA} is not there: the check on real golds needs it")
    if name == "mm_k12":
        return [(row["answer"], "expression") for row in json.loads((DATA / "mm_k12/k12.json").read_text())]
    if name == "math500":
        lines = (DATA / "answers/math500_test.jsonl").read_text().splitlines()
        return [(json.loads(line)["answer"], "expression") for line in lines]
    rows = json.loads((DATA / "answers/theoremqa_test.json").read_text())
    return [(str(row["Answer"]), "text" if row["Answer_type"] == "bool" else "expression") for row in rows]


def _rewrites(gold):
    yield from (gold, f"  {gold} ", f"{gold}.", f"Work: \\boxed{{{gold}}}", f"<answer>{gold}</answer>",
                f"**Answer:** {gold}",
                f"Work.\n\nAnswer: {gold}", gold.replace(r"\frac", r"\dfrac"), gold.replace(r"\dfrac", r"\frac"))
    if "\n" not in gold:
        yield from (f"The final answer is {gold}.", re.sub(r"([=+,])", r"\1 ", gold))
    if "\n" not in gold and "$" not in gold:
        yield from (f"${gold}$", f"$$ {gold} $$", f"\\({gold}\\)", f"The answer is $\\boxed{{{gold}}}$.")


@pytest.mark.parametrize("name", ["mm_k12", "math500", "theoremqa"])
def test_every_gold_equals_its_rewrites(name):
    failed = [(text, gold) for gold, kind in _golds(name) for text in _rewrites(gold)
              if verdict(text, problem(gold, kind)).label != "correct"]
    assert failed == []


def test_verdicts_agree_with_the_recorded_ones_of_gsm8k():
    path = DATA / "answers/gsm8k_example_model_solutions.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there: the check on recorded verdicts needs it")
    n, n_agree, n_unknown = 0, 0, 0
    with gzip.open(path) as file:
        rows = list(map(json.loads, file))
    for row in rows:
        gold = problem(row["ground_truth"].rsplit("A:", 1)[1].strip(), "number")
        for solution in (value for value in row.values() if isinstance(value, dict)):
            label = verdict(solution["solution"], gold).label
            n, n_unknown = n + 1, n_unknown + (label == "unknown")
            n_agree += label != "unknown" and (label == "correct") == solution["is_correct"]
    assert n == 5276 and n_unknown <= 11 and n_agree / n >= 0.99
