"""What the checker says of a set of golds, by kind of answer: each as it is, in other writings, and changed.

Unknown is not wrong: of a gold itself and of another writing of it everything but "correct" is a gap, of a changed one
everything but "wrong" (a "correct" there is the worst, an answer that passes and should not).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd

from .answers import verdict
from .quantities import clean_text, quantity, sequence, trailing_unit
from .stats import wilson
from .units import is_known, is_percent, unit_of
from .wording import words

EXPECTED = {"itself": "correct", "other writing": "correct", "changed": "wrong"}
LABELS = ("correct", "wrong", "unknown")
_TRUTH = {"true": "False", "false": "True", "yes": "No", "no": "Yes"}
_SIGNS = {"<": ">", ">": "<", "=": "<"}


class Gold(NamedTuple):
    """A gold of a set called `source`, with its type as the record of a problem has it, and the options if any."""

    source: str
    gold: str
    answer_type: str = "expression"
    choices: tuple[str, ...] = ()


def kind_of(gold: Gold) -> str:
    """What a gold looks like: the rows of the survey."""
    clean = clean_text(gold.gold)
    found, items = quantity(clean), sequence(gold.gold)
    if gold.choices or re.fullmatch(r"\(?[A-H]\)?", clean):
        return "choice letter"
    if clean.casefold() in _TRUTH or clean in _SIGNS:
        return "truth value or sign"
    if found and found[1]:
        return "percent" if is_percent(found[1]) else "number with a unit"
    if found:
        whole = re.fullmatch(r"[-+]?[\d,]+", clean)
        return "whole number" if whole else "fraction" if re.search(r"frac|/|:", clean) else "decimal number"
    if items:
        names = {"parts": "several parts", "list": "list", "{}": "set"}
        return names.get(items[0], "tuple or interval")
    if len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", clean)) > 2:
        return "text"
    if re.search(r"[=<>]|\\(?:leq|geq)", clean):
        return "equation or inequality"
    return "expression" if re.search(r"[\\^\d+*/()_-]|^[A-Za-z]$", clean) else "text"


def writings(gold: str) -> dict[str, str]:
    """Other ways in which a policy writes the same answer, by name."""
    found = {
        "boxed": f"So it is \\boxed{{{gold}}}.", "tag": f"<answer>{gold}</answer>", "bold": f"**Answer:** {gold}",
        "heading": f"### Final Answer\n\n{gold}", "Chinese": f"因此，答案是 {gold}", "bare": gold,
        "short fractions": f"Answer: {gold.replace(chr(92) + 'frac', chr(92) + 'dfrac')}",
    }  # fmt: skip
    if "\n" not in gold:
        found["sentence"] = f"Therefore, the final answer is {gold}."
        found["spaces"] = "Answer: " + re.sub(r"([=+,])", r"\1 ", gold)
        if "$" not in gold:
            found |= {"dollars": f"Answer: ${gold}$", "boxed in dollars": f"The answer is $\\boxed{{{gold}}}$."}
    if re.fullmatch(r"-?\d{4,}", gold):
        found["thousands"] = f"Answer: {int(gold):,}"
    return found


def changes(gold: str) -> dict[str, str]:
    """Answers that are not the gold, and nearly are, by name; none where no small change is surely another answer."""
    clean, found = clean_text(gold), {}
    number = re.search(r"[1-9](?!\))|(?<!\()[1-9](?=\))", clean)  # the first digit, but not of (1), (2)
    if clean.casefold() in _TRUTH:
        return {"the other truth value": _TRUTH[clean.casefold()]}
    if clean in _SIGNS:
        return {"another sign": _SIGNS[clean]}
    if re.fullmatch(r"\(?[A-H]\)?", clean):
        return {"the next letter": chr((ord(clean.strip("()")) - 65 + 1) % 4 + 65)}
    if number:
        other = "8" if number[0] == "9" else str(int(number[0]) + 1)
        found["a digit"] = clean[: number.start()] + other + clean[number.end():]
    if (value := quantity(clean)) and value[0]:
        found["the other sign"] = clean[1:] if clean.startswith("-") else f"-{clean}"
        if not value[1]:
            found["ten times"] = str(float(value[0] * 10))
    found |= _other_units(clean) | _other_letter(clean)
    items = sequence(gold)
    if items and len(items[1]) > 1:
        found["one item less"] = ", ".join(items[1][:-1])
        if items[0] in ("()", "parts") and clean_text(items[1][0]) != clean_text(items[1][1]):
            swapped = [items[1][1], items[1][0], *items[1][2:]]
            found["swapped"] = f"({', '.join(swapped)})" if items[0] == "()" else "; ".join(swapped)
    return found


def _other_units(clean: str) -> dict[str, str]:
    """The number or expression with a unit of another dimension, and with a larger or smaller one of its own."""
    found = {}
    for start in (m.end() for m in re.finditer(r"(?<=[\d}) °])\s*(?=[A-Za-z°%Ωμ])", clean)):
        bare, name = clean[:start].rstrip(), clean[start:]
        if (unit := unit_of(name)) and unit[0] and (quantity(bare) or trailing_unit(clean)[0] == bare):
            break
    else:
        return found
    if is_known(unit):
        found["a unit of another dimension"] = f"{bare} {'s' if dict(unit[0]).get('mass') else 'kg'}"
    others = [prefix + name for prefix in "mknM"] + [name[1:], "s", "min", "h", "m", "cm"]
    sizes = [other for other in others if (u := unit_of(other)) and u[0] == unit[0] and u[1] != unit[1]]
    if sizes and is_known(unit) and quantity(bare):
        found["a unit of another size"] = f"{bare} {sizes[0]}"
    return found


def _other_letter(clean: str) -> dict[str, str]:
    """An expression with another letter for its first unknown; none for equations, whose unknown may have any name."""
    bare = trailing_unit(clean)[0]
    letters = re.findall(r"(?<![\\A-Za-z_{])[a-bf-hj-z](?![A-Za-z])", bare)
    if quantity(clean) or not letters or re.search(r"[=<>→]|\\(?:[lg]eq|in(?![a-z])|text)", bare) or words(bare):
        return {}
    other = next(letter for letter in "xytuvwzbk" if letter not in letters)
    return {"another letter": re.sub(rf"(?<![\\A-Za-z]){letters[0]}(?![A-Za-z])", other, clean)}


def cases(gold: Gold) -> Iterable[tuple[str, str, str]]:
    """(test, name, response) of a gold, for the tests of EXPECTED."""
    yield "itself", "itself", f"Work.\n\nAnswer: {gold.gold}"
    yield from (("other writing", name, text) for name, text in writings(gold.gold).items())
    yield from (("changed", name, f"Work.\n\nAnswer: {text}") for name, text in changes(gold.gold).items())


def survey(golds: Iterable[Gold]) -> pd.DataFrame:
    """One row per gold and response: source, kind, test, name, gold, response, label, reason."""
    rows = []
    for gold in golds:
        problem = SimpleNamespace(answer=gold.gold, answer_type=gold.answer_type, choices=list(gold.choices))
        kind = kind_of(gold)
        for test, name, response in cases(gold):
            found = verdict(response, problem)
            rows.append((gold.source, kind, test, name, gold.gold, response, found.label, found.reason))
    names = ["source", "kind", "test", "name", "gold", "response", "label", "reason"]
    return pd.DataFrame(rows, columns=names)


def counts(rows: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """Of `survey`, how often each verdict: `by`, test, n, correct, wrong, unknown, as_expected with its interval."""
    found = rows.groupby([by, "test"], sort=True)["label"].value_counts().unstack(fill_value=0)
    found = found.reindex(columns=list(LABELS), fill_value=0).reset_index()
    found["n"] = found[list(LABELS)].sum(axis=1)
    right = [row[EXPECTED[row["test"]]] for _, row in found.iterrows()]
    estimates = [wilson(int(k), int(n)) for k, n in zip(right, found["n"], strict=True)]
    found = found.assign(as_expected=[e.value for e in estimates], low=[e.low for e in estimates],
                         high=[e.high for e in estimates])  # fmt: skip
    order = found["test"].map(list(EXPECTED).index)
    found = found.assign(order=order).sort_values([by, "order"]).drop(columns="order").reset_index(drop=True)
    return found[[by, "test", "n", *LABELS, "as_expected", "low", "high"]]


def gaps(rows: pd.DataFrame, each: int = 2) -> pd.DataFrame:
    """The first `each` responses of every kind and test whose verdict is not the expected one, short."""
    off = rows[rows["label"] != rows["test"].map(EXPECTED)]
    off = off[off["response"].str.len() < 110].groupby(["kind", "test", "label"], sort=True).head(each)
    columns = ["kind", "test", "gold", "response", "label", "reason"]
    return off.sort_values(["kind", "test", "label"], kind="stable")[columns]


def document(rows: pd.DataFrame, sets: Mapping[str, str]) -> str:
    """The survey as Markdown: what was asked, verdicts by kind and by set, and where they are not the expected ones."""
    n = rows[rows["test"] == "itself"]["source"].value_counts()
    listed = "\n".join(f"- {name}: {what}, n = {n.get(name, 0)}" for name, what in sets.items())
    return "\n".join([
        "# How answers are judged", "",
        "Made by `mmprm_lib/answer_survey.py` from published golds; `tests/test_answer_survey.py` holds it to what the "
        "checker says today.", "", listed, "",
        "Each gold was given to the checker as the answer of a response (*itself*), in other writings (boxed, tagged, "
        "bold, under a heading, in Chinese, in a sentence, in dollars, with spaces), and a little *changed* (a digit, "
        "the sign, ten times, an item less, two swapped, a unit of another dimension or size, another letter). "
        "Expected is correct, correct and wrong. What is not as expected stands below; `unknown` counts neither for "
        "nor against a solution.", "",
        "## By kind of answer", "", _markdown(counts(rows)), "",
        "## By set", "", _markdown(counts(rows, "source")), "",
        "## Not as expected: examples", "",
        _markdown(gaps(rows)), ""])  # fmt: skip


def _markdown(table: pd.DataFrame) -> str:
    def cell(value: object) -> str:
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        return text.replace("\n", " ⏎ ").replace("|", "\\|")

    lines = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
