"""Where the final answer of a response stands: boxes, tags, "Answer:" and its like, in English and Chinese."""

import re

from mmprm_lib.quantities import clean_text, last_boxed, quantity

MAX_BOXES = 12  # side by side, of one answer
_MARK = r"[*_`]*"  # of bold and italic text
_IS = r"(?:\b(?:is|are|(?:would|should|must|will) be|equals)\b)"
_ANCHOR = re.compile(
    rf"(?im)(?:\bfinal\s+)?(?:(?<![A-Za-z])answers?\b|\b(?:correct|right|best)\s+(?:option|choice)s?\b){_MARK}"
    rf"(?:\s+(?:to|of|for)\s[^.\n:]{{0,60}}?)?\s*"
    rf"(?:{_IS}(?!n't|\s+not\b){_MARK}\s*:?|[:：]|=|→|⇒|->|[-–—]\s){_MARK}|"
    r"^[^\w\n]{0,9}final answer[^\w\n]{0,9}$|^[ \t]*#{1,6}[ \t*_]*answers?[ \t*_:：]*$|^[ \t]*\*\*answers?\*\*[ \t]*$|"
    rf"【答案】|答案{_MARK}\s*(?:应?[是为])?\s*[:：]?{_MARK}|^[ \t]*{_MARK}答[ \t]*[:：]{_MARK}|"
    r"选(?:择|项)?\s*[:：]?\s*(?=[(（]?[A-J](?![A-Za-z]))|"
    rf"^[ \t]*####(?!#)|^\W{{0,4}}(?-i:A)\s*[:：]{_MARK}")
_TAGS = [  # opening, closing
    (re.compile(re.escape(opening), re.I), re.compile(re.escape(closing), re.I)) for opening, closing in (
        ("<answer>", "</answer>"), ("[answer]", "[/answer]"), ("<|begin_of_box|>", "<|end_of_box|>"))]
_JSON = re.compile(r'"(?:(?:short|final)[ _])?answer"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*)', re.I)
_OPTION = re.compile(r"\b(?:option|choice)\s+\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right)", re.I)
_END = re.compile(
    r"(?<!\d)\.\s|\.\s+(?=[A-Z])|。|,?\s+(?:because|since|which|where)\b|,\s+(?:and\s+)?not\b|\s*</|"
    r"\s*\((?:approx\w*\.?|rounded[^()]*|about)\)", re.I)
_SENTENCE = re.compile(
    r"^(?:so\s+|thus,?\s+)?(?:the|it|this|there|that)\b[^\d\\$.:]{0,60}?\s(?:is|are|equals?|=)\s+(.+)$", re.I)
_AND = re.compile(r"[\s$.,;、和及]*(?:\\?text\{[^{}]*\})?(?:and|or|\\quad|\\ )?[\s$,;、]*", re.I)


def extract(text: str) -> str | None:
    """Final answer of a response as written, or None.

    What stands after </think> counts alone, if anything does. The last \\boxed{} wins (neighbours joined by "and" or a
    comma are one answer), then the last <answer> tag, a JSON field "answer", then the last of "Answer:", "The answer
    is", "Final answer:", "The correct option is", "答案", "故选", "####" and GSM8K's "A:". An unclosed box or tag, of
    a truncated response, does not count.
    """
    tail = text[text.rfind("\n") + 1:]
    if tail.startswith("Answer: ") and tail[8:].isalnum() and len(tail) < 24 and "\\" not in text and "<" not in text:
        return tail[8:]  # the world's own form, decided without a regular expression
    text = text.rpartition("</think>")[2]
    inner = _boxes(text)
    inner = _tagged(text) if inner is None else inner
    if inner is None and (fields := _JSON.findall(text)):
        inner = _unquoted(fields[-1])
    if inner is not None:
        return extract(inner) or inner or None
    found = _first_line(after_anchor(text))
    options = () if found else _OPTION.findall(text)
    return options[-1].upper() if options else found


def _first_line(rest: str) -> str | None:
    """The answer at the beginning of what follows an anchor."""
    line = next((line for line in rest.split("\n") if line.strip(" *_:#$`")), "")
    found = _END.split(line.strip() + " ", maxsplit=1)[0].strip(" *_`").removesuffix(".") or None
    said = _SENTENCE.match(found) if found else None  # "The area is 12 cm"
    return said[1] if said and quantity(clean_text(said[1])) else found


def _tagged(text: str) -> str | None:
    """The content of the last tag that is closed. Not by one expression, which takes minutes for many open tags."""
    for opening, closing in _TAGS:
        ends = [m.start() for m in closing.finditer(text)]
        starts = [m.end() for m in opening.finditer(text) if ends and m.end() <= ends[-1]]
        if starts:
            return text[starts[-1]:ends[-1]].strip()
    return None


def _unquoted(field: str) -> str:
    """The value of a JSON field. Not by json.loads, which makes a form feed and "rac" of an unescaped \\frac."""
    return field.strip().strip('"').replace(r"\\", "\\").replace(r"\"", '"').strip()


def _boxes(text: str) -> str | None:
    """The content of the last box; with those before it from which only "and" or a comma divides it, all of them."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    found, end = [], len(text)
    while len(found) < MAX_BOXES and (box := last_boxed(text[:end])) is not None:
        content, start, stop = box
        if found and not _AND.fullmatch(text[stop:found[0][1]]):
            break
        found.insert(0, (content, start))
        end = start
    return ", ".join(content for content, _ in found) if found else None


def after_anchor(text: str) -> str:
    """Everything after the last "Answer:" or its like; "" without one."""
    end = len(text)
    for anchor in _ANCHOR.finditer(text):
        end = anchor.end()
    return text[end:]


def later_answer(text: str) -> str | None:
    """The number that is called the answer after the last box, which it may take back; None without one."""
    text = text.rpartition("</think>")[2]
    if "\\boxed" not in text:
        return None
    box = last_boxed(text)
    found = _first_line(after_anchor(text[box[2]:])) if box else None
    return found if found and quantity(clean_text(found)) else None
