"""What the words of an answer say: hedges, names before a value, letters, prose, numbers, times, inequalities."""

import re
from fractions import Fraction

_HEDGE = re.compile(
    r"^(?:(?:about|approximately|roughly|exactly|equal to|simply|option|choice|it is|this is|(?-i:an?)|the)\s+|"
    r"\\approx\s*|[:：]\s*)+", re.I)
_NAMED = re.compile(r"^[A-Za-z]\w*'?(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?\s*(?:=|\\in(?![a-z])|\\approx(?![a-z]))\s*")
_POINT = re.compile(r"(?:the\s+)?(?:points?\s+)?([A-Z]?'?)\s*(\([^()]*,[^()]*\))", re.I)
_SEVERAL = re.compile(r"\(?[A-J]\)?(?:\s*(?:,?\s*(?:,|and\b|&|、)\s*)?\(?[A-J]\)?)+")
_ONE = re.compile(r"\(\s*([A-Ja-j])\s*\)|([A-J])(?=\s*$|\s*[.):,]|\s+is\s|\s+\()|([a-h])(?=\s*$|\s*[).:]\s*\S)")
_SAID = {"yes": "true", "no": "false", "correct": "true", "incorrect": "false", "是": "true", "否": "false",
         "all real numbers": "r", "all reals": "r", "全体实数": "r", "任意实数": "r"}
SIGNS = ("<", ">", "=", r"\leq", r"\geq")
RELATION = re.compile(r"[<>]|\\[lg]eq|≤|≥")
_RELATIONS = {"lessthan": "<", "greaterthan": ">", "equal": "=", "equals": "=", "equalto": "="}
_EMPTY = re.compile(
    r"(?:there (?:is|are) |(?:it|(?:the )?(?:equation|system|inequality)) has )?no (?:real )?(?:solutions?|roots?)"
    r"(?: exists?)?|empty set|(?:方程)?无(?:实数)?[解根]|空集|\\emptyset")
TO_20 = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen twenty").split()
_NUMERAL = re.compile(
    rf"\d|\b(?:{'|'.join(TO_20)}|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|half|first|second|third|"
    r"fourth|fifth|quarter|thousand|none|nothing|dozen|II|III|IV|VI{0,3})\b|[零一二两三四五六七八九十百千万半]", re.I)
_WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]?[a-z]{2,}|[A-Z][a-z]+)(?![A-Za-z])|[\u4e00-\u9fff]+")
_NOT_WORDS = set("sin cos tan cot sec csc log ln exp sqrt pi arcsin arccos arctan sinh cosh tanh max min begin end "
                 "pmatrix bmatrix cases array matrix vmatrix mod gcd lcm and or".split())
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?){2,}")
_EXPLICIT = re.compile(r"[a-z](?:\([a-z]\))?\s*=")
_SLASH = re.compile(r"\d\s*/\s*\d+\s*(?:[A-Za-z(]|\\(?:pi|sqrt))")


def unhedged(clean: str) -> str:
    """The answer without "about", "it is", "option" and the like before it."""
    return _HEDGE.sub("", clean) or clean


def named(clean: str) -> int:
    """How many characters the name before a value takes: 4 in "x = 2", 0 without one."""
    found = _NAMED.match(clean)
    return found.end() if found else 0


def unnamed(clean: str) -> str:
    """The answer without "x =" (also "x = y =") before it."""
    while (bare := clean[named(clean) :]) and bare != clean:
        clean = bare
    return clean


def by_name(items: tuple[str, ...]) -> tuple[str, ...] | None:
    """The items of "y = 3, x = 2" in the order of their names; None if they are in it, or not each has its own."""
    names = [found[1] for item in items if (found := re.match(r"[\s$]*([a-z])\s*=", item))]
    if len(set(names)) != len(items) or names == sorted(names):
        return None
    return tuple(item for _, item in sorted(zip(names, items, strict=True)))


def point(clean: str) -> tuple[str, str]:
    """The name and the coordinates of "A(2,3)" or "the point (2,3)"; ("", the text) of anything else."""
    found = _POINT.fullmatch(clean)
    return (found[1], found[2]) if found else ("", clean)


def words(clean: str) -> list[str]:
    """Words of prose in a cleaned answer, names of functions and LaTeX environments left out."""
    found = (word for word in _WORD.findall(clean) if word.casefold() not in _NOT_WORDS)
    return [word for word in found if not (len(word) == 2 and word.islower())]


def text_key(clean: str) -> str:
    """The text in lower case without the marks and articles around it; what says the same has one key."""
    text = re.sub(r"\s+", " ", clean.casefold()).strip(" .!?'\"")
    text = re.sub(r"^(?:(?:it is|this is|they are|an?|the)\s+)+", "", text)
    return r"\emptyset" if _EMPTY.fullmatch(text) else _SAID.get(text, text)


def numeral(clean: str) -> bool:
    """Whether a number stands in a text, in digits or as a word."""
    return bool(_NUMERAL.search(clean))


def letters_of(clean: str) -> str | None:
    """Letter of "B", "(B)", "B.", "b) 12" or "option B"; sorted letters of "A, C" or "AC"; None without one."""
    text = unhedged(clean)
    if _SEVERAL.fullmatch(text):
        return "".join(sorted(set(re.findall("[A-J]", text))))
    match = _ONE.match(text)
    return (match[1] or match[2] or match[3]).upper() if match else None


def sign_of(clean: str) -> str:
    """The one sign of SIGNS in a text, or the one that "less than", "equals" and the like stand for; "" otherwise."""
    found = re.findall(r"[<>=]|\\leq|\\geq", clean) or [_RELATIONS.get(text_key(clean).replace(" ", ""), "")]
    return found[0] if len(found) == 1 else ""


def ratio(clean: str) -> tuple[Fraction, ...] | None:
    """The terms of "2:3:4" as multiples of the first; None for anything else: a ratio of two is a number."""
    terms = [Fraction(term) for term in clean.split(":")] if _RATIO.fullmatch(clean) else [Fraction(0)]
    return tuple(term / terms[0] for term in terms) if terms[0] else None


def in_doubt(c: str, g: str) -> str:
    """Why two expressions that are found different may be the same all the same; "" if they may not."""
    if _SLASH.search(c) or _SLASH.search(g):
        return "a factor after a slash, which may stand above or below the line"
    unknowns = set(re.findall(r"(?<![\\A-Za-z])[a-z](?![A-Za-z])", c + " " + g))
    if len(unknowns) == 1 and c.count("=") == g.count("=") == 1 and not (_EXPLICIT.match(c) and _EXPLICIT.match(g)):
        return "equations of one unknown that may have the same roots"
    return ""


def clock(clean: str) -> tuple[int, bool] | None:
    """Minutes after midnight of "7:30 pm", "7 pm", "19:30", whether the half of the day is known; None for other."""
    m = re.fullmatch(r"(\d{1,2})(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\.?)?", clean, re.I)
    if m is None or not (m[2] or m[3]) or int(m[1]) > 23:
        return None
    hours = int(m[1]) % 12 + (12 if m[3].casefold() == "p" else 0) if m[3] else int(m[1])
    return 60 * hours + int(m[2] or 0), bool(m[3]) or int(m[1]) > 12


def union_of(clean: str) -> str | None:
    """The set of "x<1 or x>2" or "1 < x \\leq 2" as intervals joined by \\cup; text with \\cup as it is; else None."""
    if r"\cup" in clean:
        return clean
    parts, sign = [], r"\s*(<|>|\\leq|\\geq)\s*"
    for part in re.split(r"\s*(?:\bor\b|\\lor|\\vee|,|或)\s*", clean):
        one = re.fullmatch(rf"[a-z]{sign}([^<>]+)", part)
        two = re.fullmatch(rf"([^<>]+?){sign}[a-z]{sign}([^<>]+)", part)
        if one:
            value, closed = one[2].strip(), "q" in one[1]
            below = rf"(-\infty,{value}{']' if closed else ')'}"
            parts.append(below if one[1] in ("<", r"\leq") else rf"{'[' if closed else '('}{value},\infty)")
        elif two and two[2] in ("<", r"\leq") and two[3] in ("<", r"\leq"):
            ends = "[" if "q" in two[2] else "(", "]" if "q" in two[3] else ")"
            parts.append(f"{ends[0]}{two[1].strip()},{two[4].strip()}{ends[1]}")
        else:
            return None
    return r"\cup ".join(parts)
