"""Where the final answer of a response stands: boxes, tags, "Answer:" and its like, in English and Chinese."""

import re
from typing import Any

from mmprm_lib.quantities import boxes, clean_text, exact_key, last_tagged, quantity
from mmprm_lib.wording import letters_of, named, text_key, words

_MARK = r"[*_`]*"  # of bold and italic text
_IS = r"(?:\b(?:is|are|(?:would|should|must|will) be|equals)\b)"
_ANCHOR = re.compile(
    rf"(?im)(?:\bfinal\s+)?(?:(?<![A-Za-z])answers?\b|\b(?:correct|right|best)\s+(?:option|choice)s?\b){_MARK}"
    rf"(?:\s+(?:to|of|for)\s[^.\n:]{{0,60}}?)?\s*"
    rf"(?:{_IS}(?!n't|\s+not\b){_MARK}\s*:?|[:：]|=|→|⇒|->|[-–—]\s){_MARK}|"
    r"^[^\w\n]{0,9}final answer[^\w\n]{0,9}$|^[ \t]*#{1,6}[ \t*_]*answers?[ \t*_:：]*$|^[ \t]*\*\*answers?\*\*[ \t]*$|"
    rf"【答案】|答案{_MARK}\s*(?:应?[是为])?\s*[:：]?{_MARK}|^[^\S\n]*{_MARK}答\s*[:：]{_MARK}|"
    r"选(?:择|项)?\s*(?:[:：]\s*)?(?=[(（]?[A-J](?![A-Za-z]))|"
    rf"^[^\S\n]*####(?!#)|(?P<letter>^\W{{0,4}}(?-i:A)\s*[:：]{_MARK})")
_OPTION_B = re.compile(r"(?m)^\W{0,4}(?:A\s*[:：][^\n]*\W)?B\s*[:：]")  # beside it "A:" names an option, and no answer
_JSON = re.compile(r'"(?:(?:short|final)[ _])?answer"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*)', re.I)
_OPTION = re.compile(r"\b(?:option|choice)\s+\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right)", re.I)
_END = re.compile(  # (?<!\s): white space is looked at from its beginning alone, lest the time be quadratic in it
    r"(?<!\d)\.\s|\.\s+(?=[A-Z])|。|,?(?<!\s)\s+(?:because|since|which|where|i\.e\.)(?!\w)|"
    r",\s+(?:and\s+)?not\b|(?<!\s)\s*</|(?<!\s)\s*\((?:approx\w*\.?|rounded[^()]*|about)\)", re.I)
_SENTENCE = re.compile(
    r"^(?:so\s+|thus,?\s+)?(?:the|it|this|there|that)\b[^\d\\$.:]{0,60}?\s(?:is|are|equals?|=)\s+(.+)$", re.I)
_RESTATED = re.compile(r"(?m)^\s*[-*•]\s*\(?[A-J]\s*[:：.)]|^\W{0,4}A\s*[:：.)][^\n]*\n\W{0,4}B\s*[:：.)]")  # options
MAX_BETWEEN = 40  # characters between two boxes that are one answer
_AND = re.compile(r"[\s$.,;、和及]*(?:\\?text\{[^{}]*\})?(?:and|or|\\quad|\\ )?[\s$,;、]*", re.I)


def extract(text: str, options: bool = False) -> str | None:
    """Final answer of a response as written, or None. options: the question has some, so that "A: 5" restates one.

    What stands after </think> counts alone, if anything does. The last \\boxed{} wins (neighbours joined by "and" or a
    comma are one answer), then the last <answer> tag, a JSON field "answer", then the last of "Answer:", "The answer
    is", "Final answer:", "The correct option is", "答案", "故选", "####" and GSM8K's "A:" (not beside options, a "B:").
    An unclosed box or tag, of a truncated response, does not count.
    """
    tail = text[text.rfind("\n") + 1:]
    if tail.startswith("Answer: ") and tail[8:].isalnum() and len(tail) < 24 and "\\" not in text and "<" not in text:
        return tail[8:]  # the world's own form, decided without a regular expression
    text = text.rpartition("</think>")[2]
    inner = _boxes(text)
    if inner is None:
        inner = last_tagged(text)
    if inner is None and (fields := _JSON.findall(text)):
        inner = _unquoted(fields[-1])
    if inner is not None:
        return extract(inner, options) or inner or None
    found = _first_line(after_anchor(text, options))
    letters = () if found else _OPTION.findall(text)
    return letters[-1].upper() if letters else found


def _first_line(rest: str) -> str | None:
    """The answer at the beginning of what follows an anchor."""
    line = next((line for line in rest.split("\n") if line.strip(" *_:#$`")), "")
    found = _END.split(line.strip() + " ", maxsplit=1)[0].strip(" *_`").removesuffix(".") or None
    said = _SENTENCE.match(found) if found else None  # "The area is 12 cm"
    return said[1] if said and quantity(clean_text(said[1])) else found


def _unquoted(field: str) -> str:
    """The value of a JSON field. Not by json.loads, which makes a form feed and "rac" of an unescaped \\frac."""
    return field.strip().strip('"').replace(r"\\", "\\").replace(r"\"", '"').strip()


def _boxes(text: str) -> str | None:
    """The content of the last box; with those before it from which only "and" or a comma divides it, all of them."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    found: list[tuple[str, int]] = []
    for content, start, stop in reversed(boxes(text)):
        between = text[stop : found[-1][1]] if found else ""
        if found and (stop > found[-1][1] or len(between) > MAX_BETWEEN or not _AND.fullmatch(between)):
            break
        found.append((content, start))
    return ", ".join(content for content, _ in reversed(found)) if found else None


def after_anchor(text: str, options: bool = False) -> str:
    """Everything after the last "Answer:" or its like; "" without one. options: as for `extract`."""
    end, options = len(text), options or bool(_OPTION_B.search(text))
    for anchor in _ANCHOR.finditer(text):
        if not (options and anchor["letter"]):
            end = anchor.end()
    return text[end:]


def later_answer(text: str) -> str | None:
    """The number that is called the answer after the last box, which it may take back; None without one."""
    text = text.rpartition("</think>")[2]
    if "\\boxed" not in text:
        return None
    found = boxes(text)
    said = _first_line(after_anchor(text[found[-1][2]:])) if found else None
    return said if said and quantity(clean_text(said)) else None


def has_options(problem: Any) -> bool:
    """Whether a problem asks for one of several options."""
    return problem.answer_type == "choice" or bool(problem.choices)


def is_bare(text: str, problem: Any) -> bool:
    """Whether a text without any answer marker is itself an answer and not a sentence of an unfinished solution."""
    if len(text) > max(200, 2 * len(problem.answer)):
        return False
    clean = clean_text(text)
    if has_options(problem) and _RESTATED.search(text):
        return False
    if exact_key(clean) == exact_key(clean_text(problem.answer)):
        return True
    if not clean or len(text) > 200 or "\n\n" in text:
        return False
    if quantity(clean):
        return True
    options = [text_key(clean_text(choice)) for choice in problem.choices]
    if options and (letters_of(clean) or text_key(clean) in options):
        return True
    if words(clean):
        sentence = len(clean.split()) > 4 or re.search(r"\b(?:is|are|so|because)\b|[=\d]", clean)
        return problem.answer_type == "text" and not sentence
    return "=" not in clean[named(clean) :] or "=" in problem.answer
