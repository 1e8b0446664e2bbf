"""Extract the final answer of a response and compare it with the gold: correct, wrong or unknown.

Typed rules decide letters, text, numbers, units and sequences; only what is left goes to math-verify (mathcheck.py). A
checker that fails says unknown, never wrong; wrong is said only of an answer that was extracted and differs. Nothing
matches by substring.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple

from mmprm_lib.extraction import after_anchor, extract, has_options, is_bare, later_answer
from mmprm_lib.mathcheck import TIMEOUT_S, CheckerError, Effort, Judgement, TooMuchError
from mmprm_lib.quantities import (
    clean_text,
    exact_key,
    quantity,
    same_amount,
    sequence,
    trailing_unit,
    unmatched,
    unreadable,
)  # fmt: skip
from mmprm_lib.units import is_known, is_percent, same_quantity
from mmprm_lib.wording import (
    RELATION,
    SIGNS,
    TO_20,
    by_name,
    clock,
    in_doubt,
    letters_of,
    named,
    numeral,
    point,
    ratio,
    sign_of,
    text_key,
    unhedged,
    union_of,
    unnamed,
    words,
)  # fmt: skip


class Verdict(NamedTuple):
    """label "correct", "wrong" or "unknown"; the extracted answer or None; why it is unknown ("" otherwise)."""

    label: str
    answer: str | None
    reason: str = ""


# --- one answer against one gold ------------------------------------------------------------------
_NOTE = re.compile(r"\((?:(?:the )?answers? (?:is|are) )?(?:not unique|or fill in|choose one)[^()]*\)", re.I)
_BROKEN = re.compile(r"\s*1\.\s*\n\s*2\.(?:\s*\n\s*\d\.)*\s*")  # the numbers of a list whose contents are lost
_SET = re.compile(r"[<>]|\\[lg]eq|\\infty|\\in(?![a-z])|^R$")
_FIGURE = re.compile(r"\\(?:angle|triangle|vartriangle|parallel|perp|overline)(?![a-z])|[∠△⊥∥∵∴→]")
_NOTED = re.compile(r"(.+?)(\s*)\(([^()]+)\)")


def _same_text(candidate: str, gold: str) -> Judgement:
    """Where one side is prose: equal words, different words, or unknown where only a reader could tell."""
    c, g = text_key(candidate), text_key(gold)
    if c.replace(" ", "") == g.replace(" ", ""):
        return True, ""
    shorter, longer = sorted((f" {c} ", f" {g} "), key=len)
    contained = re.sub(r"[^\w\s]", " ", shorter) in re.sub(r"[^\w\s]", " ", longer)
    # "3rd quadrant" and "third quadrant"; "all but 3" and an interval
    other = numeral(gold) and not (re.search(r"\d", candidate) and re.search(r"\d", gold))
    unread = numeral(candidate) and (other or not words(gold))
    if contained or unread or (_SET.search(gold) and not words(gold)):
        return None, f"cannot tell the answer in the text {candidate[:60]!r}"
    return False, ""


def _same(candidate: str, gold: str, effort: Effort) -> Judgement:
    """Equality of two answers that are no choice letters, by the first rule that decides."""
    effort.rule()
    c, g = clean_text(candidate), clean_text(gold)
    if exact_key(c) == exact_key(g):
        return True, ""
    if not g.strip("$ ") or not c.strip("$ "):
        return None, f"the {'answer' if g.strip('$ ') else 'gold'} is empty"
    if _BROKEN.fullmatch(gold):
        return None, "the gold is broken (numbers of a list without contents)"
    if len(words(g)) > 6 or "∴" in gold:
        stated = re.search(r"(?:fill in|the answer is)\s+([^\s]+?)\.?\s*$", gold)
        if stated is None:
            return None, "the gold is free text, which no rule can judge"
        return _same(candidate, stated[1], effort)
    if _NOTE.search(gold):
        alternatives = [_NOTE.sub(" ", gold), *re.findall(r"or fill in\s+([^()]*)\)", gold)]
        same = any(_same(candidate, other, effort)[0] for other in alternatives)
        return (True, "") if same else (None, "the gold is one of several right answers")
    if text_key(g) == r"\emptyset" != text_key(c):
        return (None, f"whether {c[:60]!r} is nothing") if words(c) and not numeral(c) else (False, "")
    gold_letter = re.fullmatch(r"\(([A-Ha-h])\)|([A-H])", g)
    if gold_letter and (letter := letters_of(c)):
        return letter == (gold_letter[1] or gold_letter[2]).upper(), ""
    return _same_typed(c, g, candidate, gold, effort)


def _same_typed(c: str, g: str, candidate: str, gold: str, effort: Effort) -> Judgement:
    """The rules for numbers, relations and sequences on cleaned c and g, then those of `_same_rest`."""
    if re.search(r"\d\s*[ap]\.?\s?m", c + g, re.I) and (tc := clock(c)) and (tg := clock(g)):
        return (tc[0] - tg[0]) % (1440 if tc[1] and tg[1] else 720) == 0, ""
    c = re.sub(r"(?<=\d)\s+to\s+(?=\d)", ":", c) if ":" in g else c
    c = str(TO_20.index(text_key(c))) if text_key(c) in TO_20 else c
    if (found := same_amount(unhedged(c), g)) is not None:
        return found
    qc, qg = quantity(unhedged(c)), quantity(g)
    if (rc := ratio(c)) and (rg := ratio(g)):
        return rc == rg, ""
    if (found := _by_parts(c, g, gold, effort)) is not None:
        return found
    if (r"\cup" in c) != (r"\cup" in g) and (uc := union_of(c)) and (ug := union_of(g)):
        return effort.check(uc, ug)
    if c in SIGNS or g in SIGNS:
        return sign_of(c) == g, ""
    sc, sg = sequence(candidate), sequence(gold)
    if sg and sc and r"\pm" not in c + g:
        return _same_items(sc, sg, effort)
    for one, other in ((sc, gold), (sg, candidate)):
        if one and len(one[1]) == 1 and one[0] in ("()", "[]"):
            return _same(one[1][0], other, effort) if other is gold else _same(other, one[1][0], effort)
    if sc and sc[0] == "parts" and not sg:  # several answers for one, unless "10 000" was meant
        joined = quantity(c.replace(" ", ""))
        return bool(joined and qg and re.fullmatch(r"-?\d{1,3}( \d{3})+", c) and same_quantity(joined, qg)), ""
    if sc and qg:
        return _several_for_one(c, sc[1], gold, effort)
    if sg and qc:
        return False, ""
    c_bare = c if re.search(r"=|\\in(?![a-z])", g) else unnamed(c)
    g_bare = g if re.search(r"=|\\in(?![a-z])", c) else unnamed(g)
    if "=" in c_bare and qg and not sc:
        c_bare = c_bare.rsplit("=", 1)[1].strip()  # 16-3=13
    if (c_bare, g_bare) != (c, g) and c_bare and g_bare:
        return _same(c_bare, g_bare, effort)
    return _same_rest(c, g, effort)


def _by_parts(c: str, g: str, gold: str, effort: Effort) -> Judgement | None:
    """Where the answer is a point with its name, a value with another after "approximately", or one with a note."""
    (name_c, at_c), (name_g, at_g) = point(c), point(g)
    if (at_c, at_g) != (c, g) and at_c[0] == at_g[0] == "(" and (not (name_c and name_g) or name_c == name_g):
        return _same(at_c, at_g, effort)
    if len(values := [part for part in c.split(r"\approx") if part.strip()]) > 1 and r"\approx" not in g:
        return (True, "") if any(_same(value, gold, effort)[0] for value in values) else None
    noted = _NOTED.fullmatch(c)
    unit = noted and (quantity(f"1 {noted[3]}") or (1, None))[1]
    if noted and "(" not in g and (noted[2] or is_known(unit)):  # not 2(x+1)
        if unit:
            return _same(f"{noted[1]} {noted[3]}", gold, effort)
        same, again = (_same(side, gold, effort)[0] for side in (noted[1], noted[3]))
        if same or again:
            return (True, "") if same and again else (None, f"two answers in {c[:60]!r}")
    return None


def _several_for_one(c: str, items: tuple[str, ...], gold: str, effort: Effort) -> Judgement:
    """Where the answer has several parts and the gold is one number: correct if each is that number."""
    results = [_same(item, gold, effort)[0] for item in items]
    if all(results):
        return True, ""
    swapped = quantity(c.translate(str.maketrans(",.", ".,")))
    if swapped and same_quantity(swapped, quantity(clean_text(gold))):
        return None, f"a comma that may be a decimal sign in {c[:60]!r}"
    if any(results) and any(words(text) and not quantity(text) for text in map(clean_text, items)):
        return None, f"cannot tell the answer in the text {c[:60]!r}"
    return False, ""


def _same_rest(c: str, g: str, effort: Effort) -> Judgement:
    """Expressions with a unit at their end, prose, names of a figure; all else is for math-verify."""
    (c_bare, unit_c), (g_bare, unit_g) = trailing_unit(unhedged(c)), trailing_unit(g)
    if bool(unit_c) != bool(unit_g) and (unit_c or unit_g)[0] == (("angle", 1),) and r"\pi" in (g if unit_c else c):
        sides = [f"({bare})*\\pi/180" if unit else bare for bare, unit in ((c_bare, unit_c), (g_bare, unit_g))]
        return effort.check(*sides)
    if unit_c and unit_g and unit_c != unit_g:
        return (None, "units that need a conversion") if unit_c[0] == unit_g[0] else (False, "")
    if words(c_bare) or words(g_bare):
        return _same_text(c, g)
    if _FIGURE.search(c + g):
        return None, "names of a figure, which no rule can judge"
    same, why = effort.check(c_bare, g_bare)
    return (None, doubt) if same is False and (doubt := in_doubt(c_bare, g_bare)) else (same, why)


def _same_items(candidate: tuple, gold: tuple, effort: Effort) -> Judgement:
    """Equality of two sequences: in order, or in any order if both are sets or bare lists; interval ends must agree."""
    (kind_c, items_c), (kind_g, items_g) = candidate, gold
    kinds = {kind_c, kind_g}
    brackets = kinds - {"list", "parts"}
    if len(items_c) != len(items_g) or ("{}" in kinds and brackets != {"{}"}):
        return False, ""
    if len(brackets) > 1 and (len(items_g) == 2 or brackets & {"(]", "[)"}):
        return False, ""
    if any(map(RELATION.search, items_c)) != any(map(RELATION.search, items_g)):
        return None, "inequalities beside numbers"
    if kind_g == "()" and (sorted_c := by_name(items_c)):
        if _same_items(("()", sorted_c), gold, effort)[0]:
            return True, ""
        as_said = all(_same(*pair, effort)[0] for pair in zip(items_c, items_g, strict=True))
        return (None, "values in another order than that of their names") if as_said else (False, "")
    if kinds <= {"{}", "list"}:
        left, unsure = list(items_c), ""
        for item in unmatched(left, items_g):
            found = [(_same(other, item, effort), other) for other in left]
            unsure = unsure or next((why for (same, why), _ in found if same is None), "")
            match = next((other for (same, _), other in found if same), None)
            if match is None:
                return (None, unsure) if unsure else (False, "")
            left.remove(match)
        return True, ""
    results = [_same(c, g, effort) for c, g in zip(items_c, items_g, strict=True)]
    if any(same is False for same, _ in results):
        return False, ""
    return next(((same, why) for same, why in results if same is None), (True, ""))


# --- multiple choice ------------------------------------------------------------------------------
def _pick(answer: str, choices: tuple[str, ...], effort: Effort) -> tuple[str | None, str]:
    """(letters, ""), or (None, why unknown), or (None, "") for an answer that is certainly none of the options.

    A letter decides before the text: "B) 12" is B, also where 12 stands elsewhere.
    """
    clean = clean_text(answer)
    if letters := letters_of(clean):
        return letters, ""
    if not choices:
        return None, f"no choice letter in {clean[:60]!r}"
    texts = [re.sub(rf"^\(?{chr(65 + i)}[.):：]\s*", "", choice.strip()) for i, choice in enumerate(choices)]
    exact = [i for i, text in enumerate(texts) if text_key(clean_text(text)) == text_key(clean)]
    results = [_same(answer, text, effort) for text in texts] if len(exact) != 1 else []
    hits = exact if len(exact) == 1 else [i for i, (same, _) in enumerate(results) if same]
    if len(hits) == 1:
        return chr(65 + hits[0]), ""
    if len(hits) > 1:
        return None, f"{clean[:60]!r} equals several options"
    return None, next((why for same, why in results if same is None), "")


@lru_cache(maxsize=262144)
def _judge(candidate: str, gold: str, answer_type: str, choices: tuple[str, ...], timeout_s: float) -> Judgement:
    """Equality and the reason of an unknown, cached; CheckerError passes through and is not cached."""
    if why := unreadable(gold) or unreadable(candidate):
        return None, why
    effort = Effort(timeout_s)
    try:
        if answer_type == "choice" or choices:
            gold_letters, _ = _pick(gold, choices, effort)
            if gold_letters is not None:
                letters, why = _pick(candidate, choices, effort)
                return (None, why) if letters is None and why else (letters == gold_letters, "")
        return _same(candidate, gold, effort)
    except TooMuchError as error:
        return None, str(error)


def equal(
    candidate: str, gold: str, answer_type: str, choices: list[str], *, timeout_s: float = TIMEOUT_S
) -> bool | None:
    """True if two final answers mean the same, False if not, None where the checker cannot tell.

    timeout_s: CPU seconds for math-verify. Not symmetric (gold decides units and form). Typed rules: choice letters
    (the text of an option stands for its letter); exact text; exact numbers, with six digits where one is rounded;
    units (a missing one is forgiven); tuples and intervals in order, sets and bare lists in any order.
    """
    try:
        return _judge(candidate, gold, answer_type, tuple(choices), timeout_s)[0]
    except CheckerError:
        return None


def verdict(response_or_answer: str, problem: Any, *, timeout_s: float = TIMEOUT_S) -> Verdict:
    """Verdict on a whole response or a bare answer against problem.answer (with .answer_type and .choices).

    unknown: no final answer in it (also a truncated response), or the checker failed or cannot tell (see .reason).
    """
    options = has_options(problem)
    answer, later = extract(response_or_answer, options), later_answer(response_or_answer)
    if answer is None and is_bare(response_or_answer, problem):
        answer = response_or_answer.strip()
    if answer is None:
        return Verdict("unknown", None, "no final answer in the response")
    try:
        same, reason = _judge(answer, problem.answer, problem.answer_type, tuple(problem.choices), timeout_s)
        several = (sequence(problem.answer) or ("",))[0] == "parts"
        if not same and (several or len(problem.answer) > len(answer)):  # extract took only the first line
            rest = after_anchor(response_or_answer, options).strip()
            if len(answer) < len(rest) < 2 * len(problem.answer) + 40:
                whole = _judge(rest, problem.answer, "", (), timeout_s)
                if whole[0] or (several and whole[0] is None):
                    (same, reason), answer = whole, rest
        if later is not None and equal(later, answer, problem.answer_type, list(problem.choices)) is False:
            same, reason = None, f"two final answers: {answer[:40]!r} in a box, then {later[:40]!r}"
    except CheckerError as error:
        return Verdict("unknown", answer, str(error))
    return Verdict("unknown" if same is None else "correct" if same else "wrong", answer, reason)


@lru_cache(maxsize=65536)
def _normal(answer: str, answer_type: str, choices: tuple[str, ...]) -> str:
    if (answer_type == "choice" or choices) and (letters := _pick(answer, choices, Effort(TIMEOUT_S))[0]):
        return letters
    clean = unhedged(clean_text(answer))
    if value := quantity(clean):
        return str(value[0] / 100 if is_percent(value[1]) else value[0])
    if items := sequence(answer):
        inner = [_normal(item, answer_type, ()) for item in items[1]]
        ends = "()" if items[0] == "parts" else "{}" if items[0] == "list" else items[0]
        return ends[0] + ",".join(sorted(inner) if ends == "{}" else inner) + ends[1]
    clean = clean[named(clean) :] or clean
    return text_key(clean) if words(clean) else str(value[0]) if (value := quantity(clean)) else exact_key(clean)


def normal_form(answer: str, problem: Any) -> str:
    """Key under which equal answers are counted as one vote; the gold is not looked at.

    A letter for choices; an exact value for numbers ("12.0", "12 cm" and "12" share "12": a unit is dropped; "50%" is
    "1/2"); sorted items for sets; else the cleaned text. Expressions that need algebra to be seen equal ("2x+2" and
    "2(x+1)") keep different keys, and so does what is too long or too deeply nested to be an answer.
    """
    if unreadable(answer):
        return answer.strip()
    try:
        return _normal(answer, problem.answer_type, tuple(problem.choices))
    except (CheckerError, TooMuchError):
        return exact_key(clean_text(answer))
