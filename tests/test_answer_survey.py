"""The survey of the checker on golds: kinds, writings and changes by hand; the document against what it says today."""

import pytest

from mmprm_lib.answer_survey import EXPECTED, Gold, changes, counts, document, gaps, kind_of, survey, writings
from tests import golds


@pytest.mark.parametrize("gold, kind", [
    ("12", "whole number"), ("1,234", "whole number"), ("1.5", "decimal number"), (r"\frac{1}{2}", "fraction"),
    ("2:3", "fraction"), ("12 cm^2", "number with a unit"), ("50%", "percent"), ("(B)", "choice letter"),
    ("True", "truth value or sign"), ("<", "truth value or sign"), ("(1,2]", "tuple or interval"), ("1, 2", "list"),
    (r"\{1,2\}", "set"), ("$$7$$ $$10$$", "several parts"), ("x=2y", "equation or inequality"),
    ("2\\sqrt{3}", "expression"), ("x", "expression"), ("a rhombus", "text"), ("the sum of both sides", "text"),
])  # fmt: skip
def test_golds_have_kinds(gold, kind):
    assert kind_of(Gold("x", gold)) == kind


def test_writings_say_the_same_and_changes_do_not():
    assert writings("1234")["thousands"] == "Answer: 1,234"
    assert writings(r"\frac{1}{2}")["short fractions"] == r"Answer: \dfrac{1}{2}"
    assert changes("12 cm") == {
        "a digit": "22 cm", "the other sign": "-12 cm", "a unit of another dimension": "12 kg",
        "a unit of another size": "12 m",
    }  # fmt: skip
    assert changes("7 N/C")["a unit of another size"] == "7 mN/C" and "a unit of another size" not in changes("50%")
    assert changes("7 kg")["a unit of another dimension"] == "7 s"
    assert changes(r"2\sqrt{2} cm")["a unit of another dimension"] == r"2\sqrt{2} kg"
    assert changes("5 apples") == {"a digit": "6 apples", "the other sign": "-5 apples"}  # what are five pears?
    assert changes("2x+1")["another letter"] == "2y+1" and changes("n!-xn")["another letter"] == "x!-xn"
    assert not any("another letter" in changes(gold) for gold in ("x=5", "y=2x", "e^2", r"2\pi", "the sum of x and y"))
    assert changes("-0.5") == {"a digit": "-0.6", "the other sign": "0.5", "ten times": "-5.0"}
    assert changes("(1, 2)") == {"a digit": "(2, 2)", "one item less": "1", "swapped": "(2, 1)"}
    assert changes("(1) 7 (2) 7")["a digit"] == "(1) 8 (2) 7" and "swapped" not in changes("7; 7")
    assert changes("True") == {"the other truth value": "False"} and changes("D") == {"the next letter": "A"}
    assert changes("rhombus") == {} and changes("<") == {"another sign": ">"}


def test_the_table_counts_each_verdict_apart():
    rows = survey([Gold("s", "12"), Gold("s", "50%"), Gold("t", "1.\n2.")])
    table = counts(rows).set_index(["kind", "test"])
    assert table.loc[("whole number", "itself"), ["n", "correct", "wrong", "unknown"]].tolist() == [1, 1, 0, 0]
    assert table.loc[("whole number", "changed"), ["n", "correct", "wrong", "unknown"]].tolist() == [3, 0, 3, 0]
    assert table.loc[("percent", "changed"), "as_expected"] == 1.0
    inside = (table["low"] - 1e-9 <= table["as_expected"]) & (table["as_expected"] <= table["high"] + 1e-9)
    assert inside.all() and (table["low"] < table["high"]).all()
    assert (table[["correct", "wrong", "unknown"]].sum(axis=1) == table["n"]).all()
    assert set(counts(rows, "source")["source"]) == {"s", "t"}
    off = gaps(rows)
    assert set(off["label"]) <= {"unknown"} and not off[off["gold"] == "12"].size
    text = document(rows, {"s": "two golds", "t": "a broken one"})
    assert "- s: two golds, n = 2" in text and "| whole number | itself | 1 | 1 | 0 | 0 | 1.000 |" in text


def need_golds():
    if not golds.DATA.exists():
        pytest.skip(f"{golds.DATA} is not there: nothing is measured on published golds")
    return golds.golds()


def test_every_tenth_published_gold_is_judged_as_expected():
    rows = survey(need_golds()[::10])
    off = rows[rows["label"] != rows["test"].map(EXPECTED)]
    assert set(off["label"]) <= {"unknown"} and set(off["test"]) <= {"changed"}
    assert len(off) <= 4 and len(rows) > 2000


@pytest.mark.slow
def test_the_document_is_what_the_checker_says_today():
    found = document(survey(need_golds()), golds.SETS)
    assert golds.DOCUMENT.read_text(encoding="utf-8") == found, "python -m tests.golds brings the document up to date"
