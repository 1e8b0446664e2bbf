"""One spelling per thing: LaTeX clean-up, exact numbers with units, sequences (tuples, intervals, sets, blanks)."""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

MAX_ANSWER = 2000  # characters; what is longer is no final answer
MAX_DEPTH = 24  # of brackets in brackets

# --- one spelling per thing -----------------------------------------------------------------------
_CHARACTERS = {c: chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)} | str.maketrans({
    "\u3000": " ", "\xa0": " ", "。": ".", "、": ",", "−": "-", "–": "-", "“": '"', "”": '"', "’": "'",
    "²": "^2", "³": "^3", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "≤": r"\leq ", "≥": r"\geq ",
    "≠": r"\neq ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
    "$": "", "£": "", "€": "", "¥": "",
}) | {0x2460 + i: f"({i + 1})" for i in range(9)}
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"(?<!\\)\\\\(?=[a-zA-Z]{2})", r"\\"),  # doubled backslashes of escaped JSON
    (r"\\(?:number|mathrm|text(?:bf|rm|it)?|mbox|mathbf|operatorname)\s*\{([^{}]*)\}", r"\1"),
    (r"\\ce(?![a-z])", ""),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\frac\s*(\{[^{}]*\}|\w)\s*(\{[^{}]*\}|\w)",
     lambda m: rf"\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}"),
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-z])", ""),
    (r",\s*\\!\s*|\{,\}", ","),
    (r"\\!", ""),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-z])", " "),
    (r"(?:\{\})?\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))", "°"),
    (r"\\degree(?![a-z])|\\?textdegree|(?<=\d)\s*degrees?\b", "°"),
    (r"\\leq?(?:slant)?(?![a-z])", r"\\leq "),
    (r"\\geq?(?:slant)?(?![a-z])", r"\\geq "),
    (r"\\lt(?![a-z])", "<"),
    (r"\\gt(?![a-z])", ">"),
    (r"\\%", "%"),
    (r"√\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}"),
    (r"(?<!\\)\\[()\[\]]", ""),
    (r"\s+", " "),
]]
_FUNCTIONS = re.compile(r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|arcsin|arccos|arctan|infty|cup|cap)\b")


_BOXED, _BRACE = re.compile(r"\\boxed\s*(?=\{)"), re.compile(r"(?<!\\)[{}]")


def last_boxed(text: str) -> str | None:
    """Content of the last complete \\boxed{...}, braces matched; None without one. One pass over the text."""
    starts = {m.end() for m in _BOXED.finditer(text)}
    opened, best = list[int](), (-1, -1)
    for brace in _BRACE.finditer(text) if starts else ():
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened and (start := opened.pop()) in starts:
            best = max(best, (start, brace.start()))
    return text[best[0] + 1 : best[1]].strip() if best[0] >= 0 else None


_TAG = re.compile(r"<(/?)answer>", re.I)


def last_tagged(text: str) -> str | None:
    """What stands in the last <answer>...</answer>; None without one."""
    start, found = None, None
    for tag in _TAG.finditer(text):
        if tag[1]:
            found, start = (found, None) if start is None else (text[start:tag.start()], None)
        elif start is None:
            start = tag.end()
    return None if found is None else found.strip()


def unreadable(text: str) -> str:
    """Why a text is no answer that could be compared; "" if it could."""
    if len(text) > MAX_ANSWER:
        return f"an answer of {len(text)} characters (limit {MAX_ANSWER})"
    depths = accumulate((c in "([{") - (c in ")]}") for c in text)
    return f"brackets in brackets, more than {MAX_DEPTH} deep" if max(depths, default=0) > MAX_DEPTH else ""


@lru_cache(maxsize=65536)
def clean_text(text: str) -> str:
    """One spelling: wrappers ($, \\boxed, \\text, bold, final period) gone, one name per command, ASCII marks."""
    text = text.strip()
    if text.startswith(r"\boxed{") and text.rstrip(" .").endswith("}"):
        text = last_boxed(text) or text
    text = text.replace(r"\$", "").translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().strip('"`')
    return text.strip("*").strip().rstrip(" .,;") or text


def exact_key(clean: str) -> str:
    """Exact-match key: no spaces except between digits, no braces round one character."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"(?<!\d) | (?!\d)", "", clean))


# --- numbers and units ----------------------------------------------------------------------------
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
_QUANTITY = re.compile(
    rf"([+-]?)\s*(?:({_NUMBER})(?!\s*[/:]|[\d.,]))?\s*"  # sign, whole part (not the 1 of 12 or of 1/2)
    rf"(?:\\frac\{{\s*([+-]?{_NUMBER})\s*\}}\{{\s*({_NUMBER})\s*\}}|({_NUMBER})\s*[/:]\s*({_NUMBER}))?\s*"  # fraction
    r"(?:(?:\\times|\*|x)\s*10\s*\^\s*[{(]?\s*([+-]?\d{1,3})\s*[})]?|[eE]([+-]?\d{1,3}))?"  # power of ten
    r"\s*((?:%|percent|[A-Za-z°]).*)?")  # unit
_DIMENSIONS = {
    "length": "mm=1/1000 cm=1/100 dm=1/10 m=1 km=1000 millimeter=1/1000 centimeter=1/100 decimeter=1/10 meter=1 "
              "kilometer=1000 inch=127/5000 foot=381/1250 feet=381/1250 ft=381/1250 yard=1143/1250 mile=201168/125",
    "mass": "mg=1/1000 g=1 kg=1000 gram=1 kilogram=1000 ton=1000000", "angle": "°=1 deg=1 degree=1",
    "time": "s=1 sec=1 second=1 min=60 minute=60 h=3600 hr=3600 hour=3600 day=86400 week=604800",
    "percent": "%=1/100 percent=1/100",
    "volume": "ml=1/1000 l=1 milliliter=1/1000 liter=1", "money": "dollar=1 cent=1/100", "yuan": "yuan=1"}
_UNITS = {name: (dimension, Fraction(factor)) for dimension, table in _DIMENSIONS.items()
          for name, factor in (pair.split("=") for pair in table.split())}
Unit = tuple[tuple[tuple[str, int], ...], Fraction]  # (sorted powers of dimensions, factor to the base unit)


def _unit(text: str) -> Unit | None:
    """Dimension and factor of a unit such as "cm^2", "square metres", "km/h"; () and 1 for other words, else None."""
    text = text.casefold().replace("metre", "meter").replace("litre", "liter").translate({ord(c): "" for c in "{}()"})
    text = re.sub(r"\b(square|sq\.?|cubic)\s+([a-z]+)", lambda m: f"{m[2]}^{3 if m[1] == 'cubic' else 2}", text)
    powers, factor = {}, Fraction(1)
    for place, side in enumerate(re.split(r"/|\bper\b", text)):
        for token in side.replace("\\cdot", " ").split():
            m = re.fullmatch(r"([a-z°%]+)(?:\^?(\d))?\.?", token)
            names = [m[1], m[1].removesuffix("s"), m[1].removesuffix("es")] if m else []
            unit = next((_UNITS[name] for name in names if name in _UNITS), None)
            if unit is None:
                plain = re.fullmatch(r"[a-z]{3,}(?:[ -][a-z]{2,}){0,3}", text) and not _FUNCTIONS.search(text)
                return ((), Fraction(1)) if plain else None
            power = int(m[2] or 1) * (-1 if place else 1)
            powers[unit[0]] = powers.get(unit[0], 0) + power
            factor *= unit[1] ** power
    return tuple(sorted(powers.items())), factor


@lru_cache(maxsize=65536)
def quantity(clean: str) -> tuple[Fraction, Unit | None] | None:
    """Exact value and unit of "1,234.5", "-1\\frac{4}{5}", "3/4", "2.1 \\times 10^{3}", "7 cm", "50%"; else None."""
    clean = " ".join(clean.split())  # the pattern's time is a high power of the length of white space
    m = _QUANTITY.fullmatch(clean) if len(clean) < 400 else None
    if m is None or not (m[2] or m[3] or m[5]):
        return None
    sign, whole, a, b, c, d, power, e, words = m.groups()
    unit = _unit(words) if words else None
    if words and (unit is None or (len(words) == 1 and words.isalpha() and clean[-2] != " ")):  # "3m" may be 3 times m
        return None
    number: Callable[[str], Fraction] = lambda text: Fraction(text.replace(",", ""))  # noqa: E731
    top, bottom = (number(a or c), number(b or d)) if a or c else (Fraction(0), Fraction(1))
    if not bottom:
        return None
    value = (number(whole) if whole else 0) + top / bottom
    return (-value if sign == "-" else value) * Fraction(10) ** int(power or e or 0), unit


def near(a: Fraction, b: Fraction) -> bool:
    """Equal, or equal to six digits where one is no integer (0.333333 is 1/3, 0.33 is not), as in math-verify."""
    if a == b:
        return True
    return (a.denominator > 1 or b.denominator > 1) and abs(a - b) <= min(1, max(abs(a), abs(b))) / 1_000_000


def same_quantity(candidate: tuple, gold: tuple) -> bool:
    """Equal values; a missing unit is forgiven, another is converted or wrong; 50% is 0.5 and, beside a bare 50, 50."""
    (x, ux), (y, uy) = candidate, gold
    if ux and uy and ux[0] and uy[0]:
        return ux[0] == uy[0] and near(x * ux[1], y * uy[1])
    if any(u and u[0] == (("percent", 1),) for u in (ux, uy)):
        as_ratio = near(x * (ux or (0, 1))[1], y * (uy or (0, 1))[1])
        return as_ratio or (near(x, y) and abs(y) >= 1)
    return near(x, y)


def trailing_unit(clean: str) -> tuple[str, Unit | None]:
    """The expression without a known unit at its end, and the unit: "2\\sqrt{2} cm" is "2\\sqrt{2}" and cm."""
    m = re.search(r"(?<=[\d}) ])(?<!\\)\s*([A-Za-z°][A-Za-z°/ ]*(?:\^\{?\d\}?)?)$", clean)
    unit = _unit(m[1]) if m and (len(m[1]) > 1 or m[1] == "°" or m[0][0] == " ") else None
    if not (m and unit and unit[0] and clean[:m.start()].strip()):
        return clean, None
    return clean[:m.start()].strip(), unit


# --- sequences ------------------------------------------------------------------------------------
def unmatched(left: list[str], items: tuple[str, ...]) -> list[str]:
    """The items that nothing in `left` is spelled like; what one is spelled like is taken out of `left`."""
    spelled = dict[str, list[str]]()
    for other in left:
        spelled.setdefault(exact_key(clean_text(other)), []).append(other)
    rest = []
    for item in items:
        if same := spelled.get(exact_key(clean_text(item))):
            left.remove(same.pop())
        else:
            rest.append(item)
    return rest


def _split_top(text: str, separators: str) -> list[str]:
    """Parts of text between separators (a regular expression) that stand outside all brackets."""
    depth, last, parts = 0, 0, []
    for m in re.finditer(rf"(?P<sep>{separators})|[(\[{{⦃]|[)\]}}⦄]", text):
        if m["sep"] and depth <= 0:
            parts.append(text[last:m.start()])
            last = m.end()
        elif not m["sep"]:
            depth += 1 if m[0] in "([{⦃" else -1
    return [part.strip() for part in [*parts, text[last:]]]


@lru_cache(maxsize=16384)
def sequence(raw: str) -> tuple[str, tuple[str, ...]] | None:
    """(kind, items) or None; kind: "parts" (blanks, in order), "list" (bare commas, any order), "{}" or brackets."""
    text = raw.strip().translate({ord(wide): chr(ascii_) for wide, ascii_ in zip("，；（）", b",;()", strict=True)})
    marked = re.split(r"(?:^|\s|(?<=[$;.]))\(\d\)\s*", text)  # (1) ... (2) ...
    adjacent = re.fullmatch(r"(?:(\${1,2})[^$]+\1\s*){2,}", text)  # $$7$$ $$10$$
    for parts in (
        [line for line in text.split("\n") if line.strip()],
        [part.rstrip(" ;,") for part in marked[1:]] if not marked[0].strip() else [],
        [body for _, body in re.findall(r"(\${1,2})([^$]+)\1", text)] if adjacent else [],
        _split_top(text, ";"),
        text.split() if re.fullmatch(rf"-?{_NUMBER}( -?{_NUMBER})+", text) else [],
    ):
        if len(parts) > 1 and all(clean_text(part) for part in parts):
            return "parts", tuple(parts)
    clean = clean_text(text.replace(r"\{", "⦃").replace(r"\}", "⦄"))
    statements = clean + "." if re.fullmatch(r"\d(\.\d){2,}", clean) else clean
    if re.fullmatch(r"(?:\(\d\)|\d\.){2,}", statements):  # the numbers of true statements: (1)(3)(4) or 1.3.4.
        return "list", tuple(re.findall(r"\d", clean))
    if bracketed := _bracketed(clean):
        return bracketed
    if quantity(clean) or clean.startswith(r"\begin"):
        return None
    items = _split_top(clean, r",\s*(?:and |or )?|\s(?:and|or)\s")
    return ("list", tuple(items)) if len(items) > 1 and all(items) else None


def _bracketed(clean: str) -> tuple[str, tuple[str, ...]] | None:
    """Brackets and items of a tuple, interval or set whose first bracket closes at its end; None for anything else."""
    if len(clean) < 2 or clean[0] + clean[-1] not in ("()", "[]", "(]", "[)", "⦃⦄", "{}"):
        return None
    inner = clean[1:-1]
    items = _split_top(inner, r",\s*")
    depths = [0, *accumulate((c in "([{⦃") - (c in ")]}⦄") for c in inner)]
    if min(depths) < 0 or depths[-1] or (clean[0] == "{" and len(items) < 2):
        return None
    restored = tuple(item.replace("⦃", r"\{").replace("⦄", r"\}") for item in items)
    return ("{}" if clean[0] in "⦃{" else clean[0] + clean[-1]), restored
