"""Hostile input: refused with one clear error or counted, nothing executed, nothing written outside, nothing lost."""

import json
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmprm_lib import answers, critique, mathcheck, quantities, steps
from mmprm_lib.answers import equal, extract, normal_form, verdict
from mmprm_lib.label_selection import parse_first_error

SECONDS = 3.0  # of CPU for what takes milliseconds, and took minutes where time was quadratic or worse


def asked(answer="12", answer_type="number", choices=()):
    return SimpleNamespace(answer=answer, answer_type=answer_type, choices=list(choices))


@pytest.fixture
def quick():
    """The test took SECONDS of CPU time at most."""
    start = time.process_time()
    yield
    assert time.process_time() - start < SECONDS


# -- texts that make a parser slow

LONG = 60_000
PUMPS = [
    "\n", "\n ", " ", "\\boxed{", "\\boxed{\\", "\\boxed ", "<answer>", "<step>", "<step></answer>", "</step>", "answer ",
    "answer to ", "Answer:", "A:", "####", ". ", "答案", "Intent: ", "Step 1:", "**", "\\frac{", "(A) ", "$$", "\r",
]  # fmt: skip


@pytest.mark.parametrize("pump", PUMPS)
def test_parsers_of_model_text_take_time_in_proportion_to_it(pump, quick):
    for before, after in (("", ""), ("Answer: 3", "x")):
        text = before + pump * (LONG // len(pump)) + after
        extract(text)
        steps.split(text)
        verdict(text, asked())
        normal_form(text, asked())
        assert critique.parse("s", text, 3).parse.startswith("failed: ")
        parse_first_error(text, 3)


@pytest.mark.parametrize("text", ["(A) " * 400 + "#", "x" + " " * 1900 + "y", "i=" * 900 + "2", "a. " + "A," * 900])
def test_no_rule_on_an_answer_takes_exponential_time(text, quick):
    for gold in (asked(), asked("the cat", "text", ["the cat", "a dog"]), asked("i=3", "expression")):
        assert verdict(f"Answer: {text}", gold).label in ("correct", "wrong", "unknown")
        normal_form(text, gold)
    quantities.quantity("\t" * 390 + "_(")


def test_the_last_complete_box_and_tag_are_found_as_before():
    assert quantities.last_boxed(r"\boxed{1} \boxed {2 \} {3}} \boxed{4") == r"2 \} {3}"
    assert quantities.last_boxed(r"\boxed{\boxed{5}} }") == "5" and quantities.last_boxed(r"\boxed{ \{ ") is None
    assert quantities.last_tagged("<ANSWER>1<answer>2</answer> </answer><answer>3") == "1<answer>2"
    assert quantities.last_tagged("</answer>") is None


@pytest.mark.parametrize("answer", [
    "(1," * 400 + "x" + ")" * 400, r"\{1," * 300 + "x" + r"\}" * 300, "{" * 900 + "x" + "}" * 900, "[" * 1900,
])  # fmt: skip
def test_nested_brackets_are_unknown_with_the_reason(answer, quick):
    found = verdict(f"Answer: {answer}", asked(answer.replace("x", "y"), "expression"))
    assert found.label == "unknown" and found.reason == "brackets in brackets, more than 24 deep"
    assert equal("12", answer, "expression", []) is None and normal_form(answer, asked()) == answer


def test_answers_of_hundreds_of_parts_are_judged_in_bounded_time(quick):
    numbers = [str(i) for i in range(400)]
    given, gold = "{" + ",".join(numbers) + "}", "{" + ",".join(reversed(numbers)) + "}"
    assert verdict(f"Answer: {given}", asked(gold, "expression")).label == "correct"
    assert verdict(f"Answer: {given}", asked(gold.replace("399", "400"), "expression")).label == "wrong"


def test_a_verdict_asks_math_verify_a_bounded_number_of_times(monkeypatch):
    asked_for = []

    def slow(candidate, gold, seconds):
        asked_for.append(candidate)
        late = len(asked_for) >= 500
        return (None, f"{mathcheck._TOO_LONG} 5 s") if late else (candidate[1:] == gold[1:], "")

    monkeypatch.setattr(mathcheck, "same_expression", slow)
    items = [f"f(x^{i})" for i in range(60)]
    found = verdict(f"Answer: {{{','.join(items)}}}", asked("{" + ",".join(f"g(x^{i})" for i in range(60)) + "}"))
    assert found.label == "unknown" and len(asked_for) == mathcheck.MAX_CHECKS == 100
    assert found.reason == "more than 100 expressions to compare, or one took more than its time"
    del asked_for[:]
    asked_for += ["x"] * 499  # the next one is the first that takes too long, and so the last
    found = verdict(f"Answer: [{','.join(items)}]", asked("[" + ",".join(f"h(x^{i})" for i in range(60)) + "]"))
    assert found.label == "unknown" and len(asked_for) == 500


EXPRESSIONS = [
    "9^9^9^9", "9^{9^{9^{9}}}", "10^{10^9}", "10^{1000000000}", "((7^{999})^{999})^{999}", "1000000!", "(9999!)!",
    r"\sum_{i=1}^{1000000000} i^i", r"\prod_{i=1}^{99999} i", r"\frac{1}{" * 40 + "2" + "}" * 40, "1" * 1999,
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_too_large_to_compute_are_unknown_at_once(expression, quick):
    found = verdict(f"Answer: {expression}", asked("x+1", "expression"))
    assert found.label == "unknown" and found.reason


def test_text_that_spells_python_is_never_run(tmp_path):
    canary = tmp_path / "ran"
    touch = f"open('{canary}','w')"
    texts = [f"__import__('os').system('touch {canary}')", touch, f"exec(\"{touch}\")", f"\\sqrt{{{touch}}}",
             f"(lambda: {touch})()", f"x.__class__.__init__.__globals__[{touch}]", f"{{{{{touch}}}}}", f"${touch}$"]
    for text in texts:
        for kind in ("number", "expression", "text", "choice"):
            assert verdict(f"Answer: {text}", asked("x+1", kind)).label in ("wrong", "unknown")
            assert equal(text, text + "+0", kind, []) is not True or kind == "choice"
            normal_form(text, asked("x+1", kind))
    assert not canary.exists()
