"""How published benchmarks grade an answer: their tolerances, letters and lists, on top of the rules of answers.py.

What a row needs stands in `Problem.grading`, written by registry.py from assets/benchmarks.yaml, where the source of
each rule and every difference from it is named. The published scripts ask a large model to find the answer in the text
and count whatever they cannot parse as wrong; here it is found by rule, and what cannot be judged is unknown. Nothing
is accepted because it is part of another text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from . import answers
from .answers import Verdict
from .mathcheck import TIMEOUT_S, CheckerError, Judgement, value_of
from .quantities import clean_text, quantity, sequence, trailing_unit
from .units import Unit, is_known

_NAMED = re.compile(r"^[A-Za-z]\w*(?:_\{?\w+\}?)?\s*(?:=|\\approx(?![a-z]))\s*")
SLACK = 1.01  # OlympiadBench's own margin on a tolerance, for the rounding of binary fractions


def verdict(text: str, problem: Any, *, timeout_s: float = TIMEOUT_S) -> Verdict:
    """Verdict on a response or a bare answer: by the benchmark's rule where the problem has one, else answers.verdict.

    unknown: no answer in it, an answer that the rule cannot read, or a checker that fails. ValueError for a rule that
    is not in RULES.
    """
    plain = answers.verdict(text, problem, timeout_s=timeout_s)
    grading = getattr(problem, "grading", None)
    if not grading or plain.answer is None:
        return plain
    if grading["rule"] not in RULES:
        raise ValueError(f"grading rule {grading['rule']!r} is unknown; use one of {', '.join(RULES)}")
    try:
        same, reason = RULES[grading["rule"]](plain, problem, timeout_s)
    except CheckerError as error:
        return Verdict("unknown", plain.answer, str(error))
    return Verdict("unknown" if same is None else "correct" if same else "wrong", plain.answer, reason)


def _as_judged(plain: Verdict) -> Judgement:
    return {"correct": True, "wrong": False}.get(plain.label), plain.reason


def number(text: str, timeout_s: float = TIMEOUT_S) -> tuple[float, Unit | None] | None:
    """The value and unit of "x = 2\\\\sqrt{3} cm", "1,234" or "50%" (50 and percent); None for what is no number."""
    clean = _NAMED.sub("", answers.unhedged(clean_text(text)))
    if found := quantity(clean):
        return float(found[0]), found[1]
    bare, unit = trailing_unit(clean)
    value = value_of(bare, timeout_s) if re.search(r"\d|\\pi", bare) and "=" not in bare else None
    return None if value is None else (value, unit)


def _unread(text: str) -> Judgement:
    return None, f"no number that the benchmark's rule could read in {text[:60]!r}"


# --- the rules: the plain verdict with its answer, the problem, CPU seconds -> equal, or None and why -----
def _plain(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """answers.py alone: letters or the text of an option, numbers, expressions."""
    return _as_judged(plain)


def _integer(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """MathVista's integers: the fraction of the answer is cut off before it is compared (7.9 is 7)."""
    found = number(plain.answer, timeout_s)
    return _unread(plain.answer) if found is None else (math.trunc(found[0]) == round(float(problem.answer)), "")


def _places(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """MathVista's decimals: equal after rounding to the number of places that the row asks for."""
    found, places = number(plain.answer, timeout_s), int(problem.grading["places"])
    return _unread(plain.answer) if found is None else (round(found[0], places) == float(problem.answer), "")


def _list(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """MathVista's lists: the same numbers in the same order, whatever the brackets."""
    gold, given = sequence(problem.answer), sequence(plain.answer)
    if gold is None:
        return None, f"the gold {problem.answer[:60]!r} is no list"
    if given is None:
        single = number(plain.answer, timeout_s) is not None  # one number for a list of several
        return (False, "") if single else (None, f"no list in {plain.answer[:60]!r}")
    pairs = [[number(item, timeout_s) for item in kind[1]] for kind in (given, gold)]
    if any(found is None for items in pairs for found in items):
        return None, f"an entry of {plain.answer[:60]!r} is no number"
    return [round(v, 6) for v, _ in pairs[0]] == [round(v, 6) for v, _ in pairs[1]], ""


def _rounded(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """MATH-Vision: a letter, or numbers and tuples of numbers that agree when rounded to two decimals."""
    if problem.choices or problem.answer_type == "choice" or plain.label == "correct":
        return _as_judged(plain)
    sides = []
    for text in (plain.answer, problem.answer):
        kind, items = sequence(text) or ("", (text,))
        found = [number(item, timeout_s) for item in items]
        if any(each is None for each in found):
            return _as_judged(plain)
        sides.append((kind, [round(value, 2) for value, _ in found]))
    return sides[0] == sides[1], ""


def _absolute(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """DynaMath's floats: at most `tolerance` away."""
    found = number(plain.answer, timeout_s)
    if found is None:
        return _unread(plain.answer)
    distance = abs(found[0] - float(problem.answer))
    return distance <= float(problem.grading["tolerance"]) + 1e-12, ""  # 0.501 - 0.5 is more than 0.001 in binary


def _text(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """Equal texts; unknown where the published rule, a substring test, would accept and equality does not."""
    if plain.label == "correct":
        return True, ""
    golds = [problem.answer, *problem.grading.get("alternatives", [])]
    a = plain.answer.casefold().strip(" .$")
    for gold in golds[1:]:
        if answers.equal(plain.answer, gold, "text", [], timeout_s=timeout_s):
            return True, ""
    if a and any(a in gold.casefold() or gold.casefold().strip() in a for gold in golds):
        return None, f"{plain.answer[:60]!r} and the gold hold one another, which proves nothing"
    return _as_judged(plain)


def _open(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """MMMU's open questions: any of the golds, numbers rounded to two decimals, else equal texts."""
    found = number(plain.answer, timeout_s)
    golds = [problem.answer, *problem.grading.get("alternatives", [])]
    values = [each[0] for gold in golds if (each := number(gold, timeout_s))]
    if found is not None and values:
        return any(round(found[0], 2) == round(value, 2) for value in values), ""
    return _text(plain, problem, timeout_s)


def _letters(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """LogicVista: the same set of option labels, letters or digits, in any order."""
    given, gold = _labels(plain.answer), _labels(problem.answer)
    if given is None or gold is None:
        return None, f"no option label in {(plain.answer if gold else problem.answer)[:60]!r}"
    return given == gold, ""


def _labels(text: str) -> str | None:
    """The labels of "A, C", "AC", "(B)", "option C" or "3", sorted; None for a text that is no label."""
    clean = answers.unhedged(clean_text(text)).strip(" .")
    if found := answers.letters_of(clean):
        return found
    parts = [part.strip("() ") for part in re.split(r"\s*(?:,|;|&|\band\b)\s*|\s+", clean) if part]
    if len(parts) == 1 and re.fullmatch("[A-Z]{1,6}", parts[0]):
        parts = list(parts[0])
    labels = {part.upper() for part in parts}
    return "".join(sorted(labels)) if labels and all(re.fullmatch("[A-Z0-9]", label) for label in labels) else None


def _olympiad(plain: Verdict, problem: Any, timeout_s: float) -> Judgement:
    """OlympiadBench: all of several answers in any order, each within its tolerance, a factor of 100 forgiven.

    `tolerances`: one for all, or one per gold. `unit`: of the gold, which an answer need not repeat.
    """
    golds, given = _several(problem.answer), _several(plain.answer)
    tolerances = problem.grading.get("tolerances") or [1e-8]
    tolerances = tolerances * len(golds) if len(tolerances) == 1 else tolerances
    if len(golds) != len(given):
        return False, ""
    if len(tolerances) != len(golds):
        return None, f"{len(tolerances)} tolerances for {len(golds)} answers"
    unit, left, unsure = problem.grading.get("unit") or "", list(given), ""
    for gold, tolerance in zip(golds, tolerances, strict=True):
        found = [(_close(item, gold, unit, tolerance, timeout_s), item) for item in left]
        match = next((item for (same, _), item in found if same), None)
        unsure = unsure or next((why for (same, why), _ in found if same is None), "")
        if match is None:
            return (None, unsure) if unsure else (False, "")
        left.remove(match)
    return True, ""


def _several(text: str) -> list[str]:
    """The answers of "1, 2" or "1 \\pm 2"; a tuple or an interval is one."""
    kind, items = sequence(text) or ("", (text,))
    items = items if kind in ("list", "parts", "{}") else (text,)
    return [item.replace(r"\pm", sign) for item in items for sign in ("+-" if r"\pm" in item else "+")]


def _close(given: str, gold: str, unit: str, tolerance: float, timeout_s: float) -> Judgement:
    found, wanted = number(given, timeout_s), number(gold, timeout_s)
    if found is None or wanted is None:
        same = answers.equal(given, gold, "expression", [], timeout_s=timeout_s)
        return same, "" if same is not None else f"cannot compare {given[:60]!r}"
    value, own = found
    other = wanted[1] or (quantity(clean_text(f"1 {unit}")) or (None, None))[1]
    if own and own[0] and other and other[0]:
        if own[0] == other[0]:
            value *= float(own[1] / other[1])
        elif is_known(own) and is_known(other):
            return False, ""
        else:
            return None, f"a unit that cannot be compared in {given[:60]!r}"
    near = any(abs(wanted[0] * factor - value) <= tolerance * SLACK for factor in (0.01, 1.0, 100.0))
    return near, ""


RULES: dict[str, Callable[[Verdict, Any, float], Judgement]] = {
    "plain": _plain, "integer": _integer, "places": _places, "list": _list, "rounded": _rounded,
    "absolute": _absolute, "text": _text, "open": _open, "letters": _letters, "olympiad": _olympiad,
}  # fmt: skip

