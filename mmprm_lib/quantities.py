"""One spelling per thing: LaTeX clean-up, exact numbers with units, sequences (tuples, intervals, sets, blanks)."""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from mmprm_lib.units import Unit, is_known, same_quantity, unit_of

MAX_ANSWER = 2000  # characters; what is longer is no final answer
MAX_DEPTH = 24  # of brackets in brackets

# --- one spelling per thing -----------------------------------------------------------------------
_CHARACTERS = {c: chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)} | str.maketrans({
    "\u3000": " ", "\xa0": " ", "。": ".", "、": ",", "−": "-", "–": "-", "“": '"', "”": '"', "’": "'",
    "²": "^2", "³": "^3", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "≤": r"\leq ", "≥": r"\geq ",
    "≠": r"\neq ", "∅": r"\emptyset ", "℃": "°C", "º": "°", "˚": "°", "℉": "°F",
    "µ": "μ", "¢": " cent", "⁄": "/", "∶": ":",
    "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≈": r"\approx ",
    "±": r"\pm ", "ℝ": "R", "$": "", "¥": "",
}) | {0x2460 + i: f"({i + 1})" for i in range(9)} | {
    ord(c): f" {fraction}" for c, fraction in zip(
        "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "1/2 1/3 2/3 1/4 3/4 1/5 2/5 3/5 4/5 1/6 5/6 1/8 3/8 5/8 7/8".split(), strict=True)}
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
_MONEY = {"$": "dollar", "£": "gbp", "€": "euro"}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"(?<!\\)\\\\(?=[a-zA-Z]{2})", r"\\"),  # doubled backslashes of escaped JSON
    (r"(?<=[\d}])(?=\\(?:mathrm|text(?:rm)?|mbox)\s*\{(?!(?:st|nd|rd|th)\}))", " "),  # 5\mathrm{m}: no factor
    (r"\\(?:number|mathrm|text(?:bf|rm|it)?|mbox|mathbf|operatorname)\s*\{([^{}]*)\}", r"\1"),
    (r"\\ce(?![a-z])|(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])", ""),
    (r"\\mathbb\s*(?:\{R\}|R)", "R"),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\frac\s*(\{[^{}]*\}|\w)\s*(\{[^{}]*\}|\w)",
     lambda m: rf"\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}"),
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-z])", ""),
    (r",\s*\\!\s*|\{,\}", ","),
    (r"\\!", ""),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-z])", " "),
    (r"(?:\{\})?\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))", "°"),
    (r"(?<=\d)\s?\^\s?(?:\{o\}|o(?![A-Za-z]))", "°"),
    (r"\\degree(?![a-z])|\\?textdegree|(?<=\d)\s*degrees?\b", "°"),
    (r"\\leq?(?:slant)?(?![a-z])", r"\\leq "),
    (r"\\geq?(?:slant)?(?![a-z])", r"\\geq "),
    (r"\\lt(?![a-z])", "<"),
    (r"\\gt(?![a-z])", ">"),
    (r"\\%", "%"),
    (r"(?<=\d)\s+(?=10\s*\^)|(?<=\d)\s*\\cdot\s*(?=10\s*\^)", r"\\times "),
    (r"\\varnothing(?![a-z])", r"\\emptyset"),
    (r"\\Omega(?![a-z])", "Ω"),
    (r"°\s*(?=[CF]\b)", "°"),
    (r"(?<=[\d}i)\s])\s*\brad(?:ians?)?\.?$", ""),
    (r"(?<![A-Za-z\\])\\?sqrt\s*\(([^()]*)\)", lambda m: rf"\sqrt{{{m[1]}}}"),
    (r"√\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}"),
    (r"(?<!\\)\\[()\[\]]", ""),
    (rf"[\$£€]\s*{_NUMBER}(?:\s*[mbtr]r?illion|\s*thousand)?(?=\s*$|\s*[,;)]|\s+[A-Za-z]|\s*/\s*[A-Za-z])",
     lambda m: f"{m[0][1:].strip()} {_MONEY[m[0][0]]}"),
    (r"(?<=\d)\s?([£€])", lambda m: f" {_MONEY[m[1]]}"),
    (r"[$£€]", ""),
    (r"\s+", " "),
]]


_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(-?\d[\d.,/]*|[A-J](?![A-Za-z]))")
_BRACE = re.compile(r"(?<!\\)[{}]")


def boxes(text: str) -> list[tuple[str, int, int]]:
    """Content, start, end of every complete \\boxed{...}, \\fbox{...} or \\boxed 12, by their starts, in one pass."""
    found, begun, opened = [], dict[int, int](), list[int]()
    for box in _BOX.finditer(text):
        if box[1]:
            found.append((box[1].rstrip(".,"), box.start(), box.end()))
        else:
            begun[box.end()] = box.start()
    for brace in _BRACE.finditer(text) if begun else ():
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened and (start := opened.pop()) in begun:
            found.append((text[start + 1 : brace.start()].strip(), begun[start], brace.end()))
    return sorted(found, key=lambda box: box[1])


def last_boxed(text: str) -> str | None:
    """The content of the last of `boxes`; None without one."""
    found = boxes(text)
    return found[-1][0] if found else None


_TAG = re.compile(r"<(?P<tag>/?)answer>|\[(?P<bracket>/?)answer\]|<\|(?P<box>begin|end)_of_box\|>", re.I)


def last_tagged(text: str) -> str | None:
    """What stands in the last <answer>...</answer>, or its like in brackets or GLM's boxes; None without one."""
    begun, found = dict[str, int](), None
    for tag in _TAG.finditer(text):
        if tag[tag.lastgroup].casefold() not in ("/", "end"):
            begun[tag.lastgroup] = tag.end()
        elif (start := begun.pop(tag.lastgroup, None)) is not None:
            found = text[start : tag.start()]
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
    text = re.sub("[⁰¹⁴-⁹⁻][⁰¹²³⁴-⁹]*|[²³][⁰¹²³⁴-⁹]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}", text)
    text = text.replace(r"\$", "＄").translate(_CHARACTERS)  # what is a dollar still is one, what is LaTeX is gone
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().strip('"`')
    return text.strip("*").strip().rstrip(" .,;") or text


def exact_key(clean: str) -> str:
    """Exact-match key: no spaces except between digits, no braces round one character."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"(?<!\d) | (?!\d)", "", clean))


# --- numbers and units ----------------------------------------------------------------------------
_QUANTITY = re.compile(
    rf"([+-]?)\s*(?:({_NUMBER})(?!\s*[/:]|[\d.,]))?\s*"  # sign, whole part (not the 1 of 12 or of 1/2)
    rf"(?:\\frac\{{\s*([+-]?{_NUMBER})\s*\}}\{{\s*({_NUMBER})\s*\}}|({_NUMBER})\s*[/:]\s*({_NUMBER}))?\s*"  # fraction
    r"(?:(?:\\times|\*|x)\s*10\s*\^\s*[{(]?\s*([+-]?\d{1,3})\s*[})]?|[eE]([+-]?\d{1,3}))?"  # power of ten
    r"\s*((?:%|percent|[A-Za-z°Ωμ'′\u4e00-\u9fff]).*)?")  # unit
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
           "万": 10**4, "亿": 10**8}  # fmt: skip
_SCALE = re.compile(r"(?i)(?:(dozen|hundred|thousand|million|billion|trillion)s?(?![a-z])|([万亿]))\s*")
_FACTORS = re.compile(  # glued to a number no unit for sure: 3m, 2nm, 5lb
    r"[A-Za-z]|(?!mm|cm|dm|km|mg|kg|m[lL]|ft|hr|Pa|Hz|eV|[pnmkMG][NJWV]|[pnmk]A)[A-Za-z]{2}")
_FRACTION = re.compile(r"(?<=[\d} ])\\frac\{([A-Za-zΩμ°][A-Za-z ^\d]*)\}\{([A-Za-zΩμ°][A-Za-z ^\d]*)\}$")  # \frac{m}{s}
_HALF = re.compile(r"^([+-]?\d+) and (?:a|one) half\b")
_GUESSED = {"v", "w", "n", "j", "a", "k", "'", "′"}  # V, W ..., or minutes or feet, where there must be a unit
_CLOCK = re.compile(r"\d{1,3}:[0-5]\d")


@lru_cache(maxsize=65536)
def quantity(clean: str, beside_unit: bool = False) -> tuple[Fraction, Unit | None] | None:
    """Exact value and unit of "1,234.5", "-1\\frac{4}{5}", "3/4", "2.1 \\times 10^{3}", "7 cm", "50%"; else None.

    Letters glued to a number are factors and no unit, but for what can only be one (7cm); beside_unit: what it is
    compared with has a unit, so that "5v" may be volts.
    """
    clean = " ".join(clean.split()) if len(clean) < 400 else ""
    return _one_number(clean, beside_unit) or next(iter(mixed(clean)), None)


def _one_number(clean: str, beside_unit: bool) -> tuple[Fraction, Unit | None] | None:
    """As `quantity`, for one number; clean: without double spaces, of which the pattern's time is a high power."""
    clean = re.sub(r"^([+-]?)\s*10(?=\s*\^)", r"\g<1>1\\times 10", clean)  # 10^{-3}
    clean = _HALF.sub(r"\1.5", clean)
    below = _FRACTION.search(clean)
    if below and (beside_unit or (" \\frac" in clean and (len(below[1] + below[2]) > 2 or below[0].endswith("m}{s}")))):
        clean = f"{clean[:below.start()].rstrip()} {below[1]}/{below[2]}"
    clean = re.sub(r"(?<=[\d}]) ?/ ?([A-Za-z]+)$", r" \1^-1", clean) if beside_unit else clean
    m = _QUANTITY.fullmatch(clean)
    if m is None or not (m[2] or m[3] or m[5]):
        return None
    sign, whole, a, b, c, d, power, e, words = m.groups()
    scale = _SCALE.match(words or "")
    glued = not scale and m.start(9) > 0 and clean[m.start(9) - 1] != " "
    words = words[scale.end() :] if scale else words
    unit = _unit(words, glued, beside_unit) if words else None
    if words and unit is None:
        return None
    number: Callable[[str], Fraction] = lambda text: Fraction(text.replace(",", ""))  # noqa: E731
    top, bottom = (number(a or c), number(b or d)) if a or c else (Fraction(0), Fraction(1))
    if not bottom:
        return None
    value = (number(whole) if whole else 0) + top / bottom
    value *= _SCALES[(scale[1] or scale[2]).casefold()] if scale else 1
    return (-value if sign == "-" else value) * Fraction(10) ** int(power or e or 0), unit


def _unit(words: str, glued: bool, beside_unit: bool) -> Unit | None:
    """The unit after a number; None for letters that may be factors of it."""
    unit = unit_of(words)
    if unit is None and beside_unit and words in _GUESSED:
        return ((f"~{words}", 1),), Fraction(1)
    if unit and glued and words[0].isascii() and words[0].isalpha() and not beside_unit:
        sure = is_known(unit) or not unit[0]
        return None if _FACTORS.fullmatch(words) or not sure else unit
    return unit


@lru_cache(maxsize=16384)
def mixed(clean: str) -> tuple[tuple[Fraction, Unit], ...]:
    """What "1 h 30 min" is in each of its units, largest first (3/2 and hours, 90 and minutes); () for other text."""
    if "°" in clean:
        clean = re.sub(r"(?<=\d) ?['′]", " arcmin", re.sub(r"(?<=\d) ?(?:″|'')", " arcsec", clean))
    parts = re.split(r"(?<=[A-Za-z°\u4e00-\u9fff]) ?(?:and )?(?=\d)", clean)
    if not 2 <= len(parts) <= 4:
        return ()
    found = [_one_number(part, True) for part in parts]
    if not all(each and each[0] >= 0 and is_known(each[1]) and each[1][0] == found[0][1][0] for each in found):
        return ()
    for (_, large), (rest, small) in zip(found, found[1:], strict=False):
        if rest * small[1] >= large[1]:  # of what is left there is less than one of the larger unit
            return ()
    total = sum(value * unit[1] for value, unit in found)
    return tuple((total / unit[1], unit) for _, unit in found)


def _perhaps_a_unit(c: str, g: str, qc: tuple | None, qg: tuple | None) -> tuple[None, str] | None:
    """A reason not to tell "5ms" from 5, which it is if the letters are a unit; None where there is none."""
    pair = [quantity(side, beside_unit=True) for side in (c, g)] if qc or qg else [None]
    if all(pair) and any(is_known(unit) for _, unit in pair) and same_quantity(*pair):
        glued = re.search(r"[A-Za-z]{2}$", c if qg else g)
        return (None, f"letters that may be a unit or factors: {(c if qg else g)[:60]!r}") if glued else None
    return None


def same_amount(c: str, g: str) -> tuple[bool | None, str] | None:
    """Whether two cleaned texts are the same quantity, with the reason of a None; None alone where one is no quantity.

    "1 h 30 min" is 90 as well as 1.5 where the gold has no unit.
    """
    qc, qg = quantity(c), quantity(g)
    if (qc or qg) and not (qc and qg) and is_known((qc or qg)[1]):
        qc, qg = quantity(c, beside_unit=True), quantity(g, beside_unit=True)
    if not (qc and qg):
        return _perhaps_a_unit(c, g, qc, qg)
    if any(_CLOCK.fullmatch(text) and other[1] and other[1][0] == (("time", 1),) for text, other in ((c, qg), (g, qc))):
        return None, f"a time of the day, or so many hours or minutes: {c[:60]!r}"
    for amount in (() if qg[1] else mixed(c)) or (qc,):
        if (same := same_quantity(amount, qg)) is not False:
            break
    return same, "" if same is not None else f"units that cannot be compared for certain: {c[:60]!r}"


def trailing_unit(clean: str) -> tuple[str, Unit | None]:
    """The expression without a known unit at its end, and the unit: "2\\sqrt{2} cm" is "2\\sqrt{2}" and cm."""
    m = re.search(r"(?<=[\d}) ])(?<!\\)\s*([A-Za-z°Ωμ][A-Za-z°Ωμ/ ]*(?:\^\{?\d\}?)?)$", clean)
    m = None if re.search(r"(?:sin|cos|tan|cot)(?![a-z])", clean) else m  # \\sin 60° has no unit
    unit = unit_of(m[1]) if m and (len(m[1]) > 1 or m[1] == "°" or m[0][0] == " ") else None
    glued = m and m[0][0] != " " and _FACTORS.fullmatch(m[1])
    if not (m and is_known(unit) and not glued and clean[:m.start()].strip()):
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


def _unlabelled(lines: list[str]) -> list[str]:
    """The lines without the numbers 1. 2. 3. or letters a) b) c) of a list, if each has its own."""
    found = [re.match(r"\s*\(?(\d|[a-h])(?:[.、:：]\s+|\)\s*)(?=\S)", line) for line in lines]
    labels = "".join(m[1] for m in found if m)
    if not 2 <= len(lines) == len(labels) or not ("123456789".startswith(labels) or "abcdefgh".startswith(labels)):
        return lines
    return [line[m.end():] for m, line in zip(found, lines, strict=True)]


@lru_cache(maxsize=16384)
def sequence(raw: str) -> tuple[str, tuple[str, ...]] | None:
    """(kind, items) or None; kind: "parts" (blanks, in order), "list" (bare commas, any order), "{}" or brackets."""
    text = re.sub(r"\*\*(\(?[\da-h][.)]:?)\*\*", r"\1", raw.strip())  # the number of a part in bold
    text = text.translate({ord(wide): chr(ascii_) for wide, ascii_ in zip("，；（）", b",;()", strict=True)})
    mark = r"(?:^|\s|(?<=[$;.,]))\((?:\d|[a-h])\)\s*"  # (1) ... (2) ..., (a) ... (b) ...
    marked, labels = re.split(mark, text), "".join(re.findall(r"[\da-h](?=\))", "".join(re.findall(mark, text))))
    if not ("123456789".startswith(labels) or "abcdefgh".startswith(labels)):
        marked = [text]
    adjacent = re.fullmatch(r"(?:(\${1,2})[^$]+\1\s*){2,}", text)  # $$7$$ $$10$$
    for parts in (
        _unlabelled([line for line in text.split("\n") if line.strip()]),
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
    items = _split_top(clean, r",\s*(?:and |or )?|\s(?:and|or)\s|\s*或\s*")
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
